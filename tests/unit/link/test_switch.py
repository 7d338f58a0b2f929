"""The switch: where frames go, what is kept of that, and what is dropped."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from gpasst.counters import Counters, Drop
from gpasst.link import switch_tap
from gpasst.link.port import LinkGone
from gpasst.link.recorder import Recorder
from gpasst.link.switch import WAITING_FRAMES, WAYS_PER_PORT, Data, InnerPort, Port, Switch
from gpasst.link.switch_tap import APART_FRAMES, FRAMES_PER_STEP, SINGLE_CHECK, SINGLE_STEPS, TapPort
from gpasst.link.tap import FRAME_BYTES
from gpasst.linux import UDP_MAX_SEGMENTS_SENT
from gpasst.packet.joining import joinable
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import shape
from gpasst.switch.table import LEARNED_PER_PORT
from gpasst.udp.header import Header
from tests.support.records import Kept
from tests.support.switches import BROADCAST, World, frame, mac


def test_a_frame_goes_to_its_address_alone() -> None:
    world = World()
    sent = frame(mac(1), mac(0))
    for _ in range(2):
        world.switch.forward(world.ports[0], sent)
    assert world.ports[1].got == [sent, sent]
    assert world.got() == [0, 2, 0]


@pytest.mark.parametrize("to", [BROADCAST, b"\x01\0\x5e\0\0\xfb", mac(9)], ids=["broadcast", "multicast", "unknown"])
def test_a_frame_for_many_or_to_an_unknown_address_goes_to_all_others(to: bytes) -> None:
    world = World()
    for _ in range(2):
        world.switch.forward(world.ports[0], frame(to, mac(0)))
    assert world.got() == [0, 2, 2]
    assert not world.ports[0].ways


def test_questions_that_a_gateway_answers_stay_in_its_part_of_the_network() -> None:
    world = World()
    world.ports[2].beyond = True
    question, other = frame(BROADCAST, mac(0), b"?"), frame(BROADCAST, mac(0), b"!")
    world.switch.answered = lambda data: bytes(data) == question
    world.switch.forward(world.ports[0], question)
    assert world.got() == [0, 1, 0]
    world.switch.forward(world.ports[0], other)
    world.switch.forward(world.ports[0], frame(mac(9), mac(0), b"?"))
    assert world.got() == [0, 3, 2]


def test_an_address_that_answers_is_known_from_then_on() -> None:
    world = World()
    world.switch.forward(world.ports[0], frame(mac(9), mac(0)))
    world.switch.forward(world.ports[2], frame(mac(0), mac(9)))
    world.switch.forward(world.ports[0], frame(mac(9), mac(0)))
    assert world.got() == [1, 1, 2]


def test_an_address_that_moves_is_followed() -> None:
    world = World()
    world.switch.forward(world.ports[2], frame(mac(0), mac(9)))
    world.switch.forward(world.ports[0], frame(mac(9), mac(0)))
    world.switch.forward(world.ports[1], frame(mac(0), mac(9)))
    world.switch.forward(world.ports[0], frame(mac(9), mac(0)))
    assert world.got() == [2, 1, 1]


def test_a_host_that_invents_addresses_costs_nobody_a_way() -> None:
    world = World()
    world.switch.forward(world.ports[0], frame(mac(1), mac(0)))
    ways = dict(world.ports[0].ways)
    assert ways
    for number in range(2 * LEARNED_PER_PORT):
        world.switch.forward(world.ports[2], frame(mac(1), b"\x06" + number.to_bytes(5, "big")))
    assert world.ports[0].ways == ways


def test_nobody_takes_the_address_of_another_host() -> None:
    world = World()
    world.switch.forward(world.ports[1], frame(mac(2), mac(0)))
    world.switch.forward(world.ports[2], frame(mac(0), mac(2)))
    assert world.got() == [1, 0, 0]
    assert world.counters.drops == {Drop.SOURCE_ADDRESS: 1}


def test_what_cannot_pass_is_counted() -> None:
    world = World()
    a = world.ports[0]
    world.switch.forward(a, frame(mac(1), mac(0))[:20])
    world.switch.forward(a, frame(mac(0), mac(0)))
    world.switch.forward(a, frame(mac(1), BROADCAST))
    world.ports[1].down = True
    world.switch.reset()
    world.switch.forward(a, frame(mac(1), mac(0)))
    world.switch.forward(a, frame(BROADCAST, mac(0)))
    assert world.got() == [0, 0, 1]
    assert world.counters.drops == {
        Drop.FRAME_SHORT: 1,
        Drop.SAME_PORT: 1,
        Drop.SOURCE_ADDRESS: 1,
        Drop.LINK_DOWN: 2,
    }


def test_frames_are_recorded_at_their_senders_link_and_at_each_receivers() -> None:
    world, sink = World(), Kept()
    recorder = Recorder(world.switch, "lan", lambda: 0, lambda: None)
    a, b = world.ports[:2]
    world.switch.forward(a, frame(mac(1), mac(0)))
    assert a.ways
    recorder.add(sink)
    assert not a.ways
    b.down = True
    for sent in (frame(mac(2), mac(0)), frame(BROADCAST, mac(0)), frame(mac(0), mac(0)), frame(mac(2), mac(1))):
        world.switch.forward(a, sent)
    assert not a.ways
    recorder.remove(sink)
    assert [(record.link, record.to_guest, record.comment) for record in sink.records] == [
        ("a", False, ""),
        ("c", True, ""),
        ("a", False, ""),
        ("b", True, Drop.LINK_DOWN.value),
        ("c", True, ""),
        ("a", False, Drop.SAME_PORT.value),
        ("a", False, Drop.SOURCE_ADDRESS.value),
    ]
    world.switch.forward(a, frame(mac(2), mac(0)))
    assert a.ways


class Doubtful:
    """Stands between ports, and lets pass what a test says."""

    def __init__(self) -> None:
        self.entering = self.passing = True
        self.asked: list[str] = []

    def enters(self, source: Port, data: Data) -> bool:
        self.asked.append(f"{source.name} >")
        return self.entering

    def passes(self, source: Port, target: Port, data: Data) -> bool:
        self.asked.append(f"{source.name} > {target.name}")
        return self.passing

    def sees(self, source: Port, target: Port) -> bool:
        return target.name == "b"


def test_what_stands_between_the_ports_is_asked_where_it_sees() -> None:
    world, between = World(), Doubtful()
    world.switch.between = between
    a = world.ports[0]
    for _ in range(2):
        for number in (1, 2):
            world.switch.forward(a, frame(mac(number), mac(0)))
    assert between.asked == ["a >", "a > b", "a >", "a > c", "a >", "a > b"]
    between.passing = False
    world.switch.forward(a, frame(BROADCAST, mac(0)))
    between.entering = False
    world.switch.forward(a, frame(mac(1), mac(0)))
    assert between.asked[6:] == ["a >", "a > b", "a > c", "a >"]
    assert world.got() == [0, 2, 2]


def test_a_port_that_is_removed_has_no_frames_any_more() -> None:
    world = World()
    world.switch.forward(world.ports[0], frame(mac(1), mac(0)))
    world.switch.remove(world.ports[1])
    world.switch.remove(world.ports[1])
    world.switch.forward(world.ports[0], frame(mac(1), mac(0)))
    assert world.got() == [0, 1, 1]


def test_a_host_cannot_make_ways_without_end() -> None:
    world = World()
    for number in range(2 * WAYS_PER_PORT):
        world.switch.forward(world.ports[0], frame(mac(1), mac(100 + number)))
        assert len(world.ports[0].ways) <= WAYS_PER_PORT


class Inner:
    """An inner port that answers each frame to its sender, and asks for steps."""

    def __init__(self, world: World, name: str, number: int, to: bytes | None = None) -> None:
        self.asked = 0
        self.got: list[bytes] = []
        self._switch, self._to = world.switch, to
        self._address = mac(number)
        self.port = InnerPort(name, self._take, self._again, world.counters)
        world.switch.add(self.port, self._address)

    def _take(self, data: Data) -> None:
        self.got.append(bytes(data))
        self._switch.forward(self.port, frame(self._to or bytes(data[16:22]), self._address))

    def _again(self) -> None:
        self.asked += 1


def test_an_inner_port_answers_at_once() -> None:
    world = World()
    inner = Inner(world, "router", 7)
    for _ in range(2):
        world.switch.forward(world.ports[0], frame(mac(7), mac(0)))
    assert len(inner.got) == world.got()[0] == 2
    assert not inner.asked


def test_what_inner_ports_send_to_each_other_waits_for_steps() -> None:
    world = World()
    one, two = Inner(world, "one", 7, mac(8)), Inner(world, "two", 8, mac(7))
    world.switch.forward(world.ports[0], frame(mac(7), mac(0)))
    assert (len(one.got), len(two.got)) == (1, 0)
    for turn in range(1, 4):
        assert two.port.step() == 1
        assert one.port.step() == 1
        assert (len(one.got), len(two.got)) == (turn + 1, turn)
    assert two.asked
    assert one.asked


def test_an_inner_port_that_does_not_keep_up_loses_frames() -> None:
    world = World()
    one, two = Inner(world, "one", 7), Inner(world, "two", 8)
    for _ in range(WAITING_FRAMES + 3):
        world.switch.forward(one.port, frame(mac(8), mac(7)))
    assert world.counters.drops == {Drop.PORT_FULL: 3}
    assert 1 <= two.port.step() < WAITING_FRAMES


class Taps:
    """A switch with two taps, whose other ends are sockets."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.switch = Switch(self.counters)
        self.now = 0.0
        self.ends: list[socket.socket] = []
        self.ports: list[TapPort] = []
        self._ours: list[socket.socket] = []
        for number in range(2):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for sock in (ours, theirs):
                sock.setblocking(False)
            port = TapPort(str(number), ours.fileno(), self.switch, self.counters, lambda: self.now)
            self.switch.add(port, mac(number))
            self.ends.append(theirs)
            self.ports.append(port)
            self._ours.append(ours)

    def close(self) -> None:
        for sock in (*self.ends, *self._ours):
            sock.close()


@pytest.fixture
def taps() -> Iterator[Taps]:
    made = Taps()
    yield made
    made.close()


def test_frames_cross_between_taps(taps: Taps) -> None:
    sent = [frame(mac(1), mac(0), bytes([number])) for number in range(20)]
    for data in sent:
        taps.ends[0].send(data)
    assert taps.ports[0].step() == 20
    assert [taps.ends[1].recv(100) for _ in sent] == sent
    assert (taps.ports[0].received, taps.ports[1].sent) == (20, 20)
    assert taps.ports[0].step() == 0


def test_a_step_is_bounded_in_number_and_in_time(taps: Taps) -> None:
    for _ in range(FRAMES_PER_STEP + 5):
        taps.ends[0].send(frame(mac(1), mac(0)))
        taps.ends[1].send(frame(BROADCAST, mac(1)))
    assert taps.ports[0].step() == FRAMES_PER_STEP
    taps.ports[1].write = lambda data: None  # type: ignore[method-assign]
    taps.ports[0].write = lambda data: setattr(taps, "now", taps.now + 0.0001)  # type: ignore[method-assign]
    assert taps.ports[1].step() == 3


@pytest.mark.parametrize(("to", "rest"), [(BROADCAST, 0.0002), (mac(9), 0.0002), (mac(1), 0.0)])
def test_only_a_storm_has_to_rest_as_long_as_its_step_was(taps: Taps, to: bytes, rest: float) -> None:
    for _ in range(FRAMES_PER_STEP):
        taps.ends[0].send(frame(to, mac(0)))
    taps.ports[1].write = lambda data: setattr(taps, "now", taps.now + 0.0001)  # type: ignore[method-assign]
    taps.ports[0].step()
    assert taps.ports[0].rest == pytest.approx(rest)
    while taps.ports[0].step() > 1:
        pass
    assert not taps.ports[0].rest


def datagram(number: int, size: int = 100, port: int = 7) -> bytes:
    """Return a frame of UDP from host 0 to host 1, as a kernel sends it by a tap."""
    header = Header(6, mac(1), mac(0), b"\xfd" + bytes(15), b"\xfd" + bytes(14) + b"\1", 1000, port)
    return bytes(header.fill(size, size)) + bytes([number]) * size


def wired(frames: list[bytes]) -> list[bytes]:
    return [piece for data in frames for piece in split(data)]


def received(end: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(end.recv(FRAME_BYTES))
        except BlockingIOError:
            return frames


def test_datagrams_that_repeat_cross_as_one(taps: Taps) -> None:
    sent = [datagram(number) for number in range(100)]
    for data in sent:
        taps.ends[0].send(data)
    assert taps.ports[0].step() + taps.ports[0].step() == len(sent)
    got = received(taps.ends[1])
    rest = len(sent) - 2 - UDP_MAX_SEGMENTS_SENT
    # The first makes the way, and the second shows what repeats.
    assert [shape(data).count for data in got] == [1, 1, UDP_MAX_SEGMENTS_SENT, rest]
    assert wired(got) == wired(sent)


def test_frames_of_all_kinds_keep_their_order(taps: Taps) -> None:
    sent = [datagram(number) for number in range(4)]
    sent += [datagram(4, 60), *(datagram(number, 60) for number in range(5, 8)), datagram(8, 60, port=8)]
    sent += [frame(mac(1), mac(0)), datagram(9), datagram(10), datagram(11, 3), frame(mac(0), mac(1)), datagram(12)]
    for data in sent:
        taps.ends[0].send(data)
    assert taps.ports[0].step() == len(sent)
    got = received(taps.ends[1])
    assert len(got) < len(sent) - 1
    assert wired(got) == wired([*sent[:-2], sent[-1]])
    assert taps.counters.drops == {Drop.SOURCE_ADDRESS: 1}


def test_two_flows_that_take_turns_are_looked_at_now_and_then(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look(buffer: bytearray, size: int) -> int:
        looks.append(size)
        return joinable(buffer, size)

    monkeypatch.setattr(switch_tap, "joinable", look)
    sent = [datagram(number, port=7 + number % 2) for number in range(2 * FRAMES_PER_STEP)]
    for data in sent:
        taps.ends[0].send(data)
    moved = taps.ports[0].step()
    # A step ends as it does elsewhere, although each look has read a frame that it did not want.
    assert FRAMES_PER_STEP <= moved <= FRAMES_PER_STEP + 1
    assert 1 <= len(looks) <= 1 + moved // APART_FRAMES
    assert wired(received(taps.ends[1])) == wired(sent[:moved])


def test_in_a_conversation_a_step_looks_for_one_frame(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, vector: reads.append(fd) or readv(fd, vector))  # type: ignore[func-returns-value]
    for number in range(SINGLE_STEPS + 4):
        taps.ends[0].send(datagram(number))
        reads.clear()
        assert taps.ports[0].step() == 1
        assert len(reads) == (2 if number <= SINGLE_STEPS else 1)
    for number in range(SINGLE_CHECK):
        for _ in range(3):
            taps.ends[0].send(datagram(number))
        while taps.ports[0].step():
            pass
    assert wired(received(taps.ends[1]))[-3:] == wired(3 * [datagram(SINGLE_CHECK - 1)])


def test_a_tap_that_takes_no_superframes_of_udp_is_sent_frames(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def refuse(fd: int, data: Data) -> int:
        if data[1]:
            raise OSError(errno.EINVAL, "invalid")
        return write(fd, data)

    monkeypatch.setattr(os, "write", refuse)
    sent = [datagram(number) for number in range(20)]
    for data in sent[:10]:
        taps.ends[0].send(data)
    taps.ports[0].step()
    assert not taps.ports[1].joins
    for data in sent[10:]:
        taps.ends[0].send(data)
    taps.ports[0].step()
    assert wired(received(taps.ends[1])) == wired(sent)
    assert not taps.counters.drops


def test_a_frame_that_a_tap_refuses_is_counted(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: Data) -> int:
        raise OSError(11, "again")

    taps.ends[0].send(frame(mac(1), mac(0)))
    monkeypatch.setattr(os, "write", refuse)
    taps.ports[0].step()
    assert taps.counters.drops == {Drop.TAP_FULL: 1}


def test_a_tap_that_is_gone_says_so(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, vector: list[bytearray]) -> int:
        raise OSError(77, "File descriptor in bad state")

    monkeypatch.setattr(os, "readv", refuse)
    with pytest.raises(LinkGone):
        taps.ports[0].step()
