"""The tap's reader: its device is a socket here, and the host's sockets are real ones on loopback."""

from __future__ import annotations

import _socket
import errno
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.features import Feature
from gpasst.formats import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC
from gpasst.host import sockets
from gpasst.link.port import FREE, PASSED, TAKEN, LinkGone
from gpasst.path.backlog import CROWDED_LIMIT
from gpasst.path.budget import BACKLOG_SECONDS, CROWDED_SECONDS, FRAMES_PER_STEP, STEP_SECONDS
from gpasst.path.tap_reader import FRAMES_PER_LOOK
from gpasst.testing import free_port
from tests.support.bench import server, udp_frame
from tests.support.families import FAMILIES
from tests.support.taps import WAYS, received, tap

GSO_UDP_L4, NEEDS_CHECKSUM = 5, 1


class Record:
    """A capture file's stand-in."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write(self, to_guest: bool, *parts: bytes) -> None:
        assert not to_guest
        self.frames.append(b"".join(parts))


@FAMILIES
@pytest.mark.parametrize("features", WAYS, ids=["all", "no join", "no GSO", "none"])
def test_equal_frames_of_one_flow_arrive_in_order(family: int, features: frozenset[Feature]) -> None:
    with tap(features) as case, server(family) as host:
        port = free_port("udp")
        sent = [bytes([number]) * 100 for number in range(150)] + [b"short"]
        case.give(*(udp_frame(family, port, host.getsockname()[1], data) for data in sent))
        assert case.move() == 151
        assert received(host) == sent
        down = case.counters.udp.down
        assert (down.datagrams, case.counters.frames_down) == (151, 151)
        joined = {Feature.JOIN, Feature.GSO} <= features
        assert (down.superframes > 0) == joined
        assert case.counters.drops == {}


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EINTR])
@pytest.mark.parametrize("reads", [0, 1, 2], ids=["first", "second", "within a run"])
def test_an_error_of_one_read_does_not_end_the_tap(number: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    readv, left = os.readv, reads

    def fail_once(fd: int, buffers: list[memoryview]) -> int:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(number, os.strerror(number))
        return readv(fd, buffers)

    with tap() as case, server(4) as host:
        sent = [bytes([size]) * 100 for size in range(4)]
        case.give(*(udp_frame(4, free_port("udp"), host.getsockname()[1], data) for data in sent[:1]))
        case.move()
        peer = next(iter(case.bench.nat.tables[4]))
        case.give(*(udp_frame(4, peer.mapping.port, host.getsockname()[1], data) for data in sent[1:]))
        monkeypatch.setattr(os, "readv", fail_once)
        assert case.reader.step() == reads
        case.move()
        assert received(host) == sent
        assert case.counters.drops == {}


def test_an_error_of_another_call_does_not_end_the_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have no memory for the address of a socket."""

    class Socket(_socket.socket):
        def getsockname(self) -> Any:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with tap() as case, server(4) as host:
        case.give(udp_frame(4, free_port("udp"), host.getsockname()[1], b"lost"))
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "RawSocket", Socket)
            case.move()
        assert case.counters.drops == {Drop.NO_SOCKET: 1}
        case.give(udp_frame(4, free_port("udp"), host.getsockname()[1], b"carried"))
        case.move()
        assert received(host) == [b"carried"]


# Flow, family, payload bytes and number of equal frames, one behind the other.
TRAINS = st.tuples(
    st.integers(0, 2), st.sampled_from([4, 6]), st.sampled_from([0, 1, 100, 100, 100, 1400]), st.integers(1, 6)
)


@settings(max_examples=40, deadline=None)
@given(trains=st.lists(TRAINS, max_size=12), features=st.sampled_from(WAYS))
def test_whatever_the_guest_sends_each_flow_arrives_as_it_was_sent(
    trains: list[tuple[int, int, int, int]], features: frozenset[Feature]
) -> None:
    with tap(features) as case, server(4) as four, server(6) as six:
        hosts = {4: four, 6: six}
        ports = {family: [free_port("udp") for _ in range(3)] for family in (4, 6)}
        sent: dict[int, dict[int, list[bytes]]] = {4: {}, 6: {}}
        for family, host in hosts.items():
            # From here on every flow is known, so runs are joined.
            for port in ports[family]:
                case.give(udp_frame(family, port, host.getsockname()[1], b"first"))
        case.move()
        for host in hosts.values():
            assert [host.recv(9) for _ in range(3)] == [b"first"] * 3
        for number, (flow, family, size, count) in enumerate(trains):
            port = ports[family][flow]
            for copy in range(count):
                data = bytes([number, copy] * size)[:size]
                sent[family].setdefault(port, []).append(data)
                case.give(udp_frame(family, port, hosts[family].getsockname()[1], data))
        count = sum(count for _, _, _, count in trains)
        assert case.move() == count == case.counters.udp.down.datagrams - 6
        for family, host in hosts.items():
            got: dict[int, list[bytes]] = {}
            for _ in range(sum(map(len, sent[family].values()))):
                data, sender = host.recvfrom(65535)
                got.setdefault(sender[1], []).append(data)
            # A port that is taken by now is changed, so flows are compared by what they carried.
            assert sorted(got.values()) == sorted(sent[family].values())


@FAMILIES
def test_a_superframe_of_a_known_flow_leaves_as_one(family: int) -> None:
    with tap() as case, server(family) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        payload = bytes(at * 7 & 0xFF for at in range(2500))
        virtio = VIRTIO_NET_CODEC.pack(flags=NEEDS_CHECKSUM, gso_type=GSO_UDP_L4, gso_size=1000)
        for turn in range(2):
            case.give(udp_frame(family, port, to, payload), virtio=virtio)
            assert case.move() == 1
            assert received(host) == [payload[:1000], payload[1000:2000], payload[2000:]]
            assert case.counters.udp.down.superframes == turn + 1


@FAMILIES
def test_a_superframe_without_segments_is_malformed(family: int) -> None:
    with tap() as case, server(family) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        virtio = VIRTIO_NET_CODEC.pack(flags=NEEDS_CHECKSUM, gso_type=GSO_UDP_L4, gso_size=0)
        case.give(udp_frame(family, port, to, b"first"))
        case.give(udp_frame(family, port, to, b"of a known flow"), virtio=virtio)
        case.give(udp_frame(family, port + 1, to, b"of another"), virtio=virtio)
        case.move()
        assert received(host) == [b"first"]
        assert case.counters.drops == {Drop.MALFORMED_UDP: 2}


@FAMILIES
def test_a_frame_that_ends_a_run_begins_the_next(family: int) -> None:
    with tap() as case, server(family) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        sent = [b"a" * 100, b"b" * 100, b"c" * 100, b"d" * 50, b"e" * 50, b"f" * 50, b"", b"g" * 100]
        case.give(udp_frame(family, port, to, b"known from now on"))
        case.move()
        case.give(*(udp_frame(family, port, to, data) for data in sent))
        assert case.move() == len(sent)
        assert received(host) == [b"known from now on", *sent]


@FAMILIES
def test_other_frames_wait_until_known_ones_have_gone(family: int) -> None:
    with tap() as case, server(family) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        case.give(udp_frame(family, port, to, b"known"))
        case.move()
        received(host)
        case.give(udp_frame(family, free_port("udp"), to, b"new"), udp_frame(family, port, to, b"known"))
        case.reader.step()
        assert received(host) == [b"known", b"new"]


def test_arp_is_dispatched() -> None:
    with tap() as case:
        case.give(bytes(12) + b"\x08\x06" + bytes(28))
        assert case.move() == 1
        assert (case.arps, case.counters.drops) == (1, {})


def test_a_step_moves_a_bounded_number_of_frames() -> None:
    with tap(frozenset()) as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        case.give(*(udp_frame(4, port, to, b"?") for _ in range(FRAMES_PER_STEP + 1)))
        assert case.reader.step() == FRAMES_PER_STEP
        assert case.reader.step() == 1


def test_a_queue_that_was_not_read_to_its_end_was_not_empty() -> None:
    with tap() as case, server(4) as host:
        assert case.reader.emptied(), "nothing has been read"
        port, to = free_port("udp"), host.getsockname()[1]
        case.give(*(udp_frame(4, port, to, b"%d" % number) for number in range(FRAMES_PER_STEP + 1)))
        case.reader.step()
        assert not case.reader.emptied()
        case.move()
        assert case.reader.emptied()
        assert not case.reader.emptied()


def test_a_step_ends_when_its_time_is_over() -> None:
    with tap(frozenset()) as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        case.give(udp_frame(4, port, to, b"known"))
        case.move()
        case.give(*(udp_frame(4, port, to, b"?") for _ in range(FRAMES_PER_STEP)))
        case.ticks = STEP_SECONDS
        assert case.reader.step() == 2 * FRAMES_PER_LOOK, "the first look begins the time, the second ends it"
        assert case.asked == 0


def test_what_has_no_time_left_is_asked_for_again() -> None:
    with tap() as case, server(4) as host:
        case.ticks = STEP_SECONDS
        frames = [udp_frame(4, free_port("udp"), host.getsockname()[1], b"new") for _ in range(5)]
        case.give(*frames)
        assert case.reader.step() == 5
        assert (case.asked, case.backlog.frames) == (1, 4)
        assert received(host) == [b"new"]
        while case.backlog.frames:
            case.backlog.step()
        assert received(host) == [b"new"] * 4


def test_while_more_frames_wait_in_the_kernel_little_time_is_taken_for_the_unknown() -> None:
    with tap() as case:
        looks = 40
        case.ticks = BACKLOG_SECONDS / looks
        case.give(*[bytes(12) + b"\x08\x06" + bytes(28)] * (FRAMES_PER_STEP + 1))
        assert case.reader.step() == FRAMES_PER_STEP
        assert 0 < case.arps <= looks + 1
        assert case.asked == 1


@pytest.mark.parametrize("watched", [False, True])
def test_in_a_crowd_known_flows_are_carried_and_the_rest_is_dropped(
    watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tap() as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        case.give(udp_frame(4, port, to, b"known"))
        case.move()
        for time in (1.0, 1.0 + CROWDED_SECONDS):
            case.backlog.crowd.left(time)
        for other in range(CROWDED_LIMIT + 1):
            case.backlog.add(memoryview(udp_frame(4, 1 + other, 9, b"new")), 0)
        assert case.backlog.full
        dropped = case.counters.drops[Drop.BACKLOG]
        if watched:
            monkeypatch.setattr(case.tap, "recorder", Record())
        new = [udp_frame(4, 40000 + other, 9, b"new") for other in range(5)]
        case.give(*new[:2], udp_frame(4, port, to, b"1"), *new[2:], udp_frame(4, port, to, b"2"))
        case.ticks = 0.0
        assert case.reader.step() == 7
        assert received(host) == [b"known", b"1", b"2"]
        assert case.counters.drops[Drop.BACKLOG] - dropped == 5
        assert case.backlog.frames == CROWDED_LIMIT
        assert case.asked


def test_nothing_is_read_while_frames_wait_whose_flow_is_known_by_now() -> None:
    """Those behind them would overtake them."""
    with tap() as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        for payload in (b"1", b"2", b"3"):
            case.backlog.add(memoryview(udp_frame(4, port, to, payload)), 0)
        case.backlog.drain(0.0)
        case.give(udp_frame(4, port, to, b"4"))
        case.ticks = BACKLOG_SECONDS
        assert case.reader.step() == 0
        assert case.backlog.frames == 1
        case.ticks = 0.0
        assert case.reader.step() == 0
        assert case.reader.step() == 1
        assert received(host) == [b"1", b"2", b"3", b"4"]


def test_after_single_frames_no_more_than_one_is_looked_for() -> None:
    """But for one step of eight, which checks whether that still holds."""
    with tap(frozenset()) as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        for _ in range(3):
            case.give(udp_frame(4, port, to, b"?"))
            assert case.reader.step() == 1
        case.give(*(udp_frame(4, port, to, b"?") for _ in range(12)))
        moved: list[int] = []
        while sum(moved) < 12:
            moved.append(case.reader.step())
        assert moved[0] == 1
        assert max(moved) > 1, "the check found more"
        assert len(moved) <= 6


def test_frames_are_recorded_one_by_one_while_somebody_records() -> None:
    record = Record()
    with tap() as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        frames = [udp_frame(4, port, to, bytes(100)) for _ in range(20)]
        down = case.counters.udp.down
        case.give(frames[0])
        case.move()
        for recorder, superframes in ((None, 1), (record, 1), (None, 2)):
            case.tap.recorder = recorder  # type: ignore[assignment]
            case.give(*frames)
            assert case.move() == len(frames)
            assert down.superframes == superframes
        assert down.datagrams == 1 + 3 * len(frames)
        assert record.frames == [VIRTIO_NET_BLANK + frame for frame in frames]


class Gate:
    """Takes every frame, or lets it pass, or says that no rule is about it."""

    def __init__(self, fate: int) -> None:
        self.fate = fate
        self.frames: list[bytes] = []

    def take(self, buffer: memoryview, at: int, end: int) -> int:
        self.frames.append(bytes(buffer[at:end]))
        return self.fate


@pytest.mark.parametrize(("fate", "superframes"), [(FREE, 1), (PASSED, 0)])
def test_frames_that_no_rule_is_about_are_joined(fate: int, superframes: int) -> None:
    with tap() as case, server(4) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        frames = [udp_frame(4, port, to, bytes(100)) for _ in range(20)]
        down = case.counters.udp.down
        case.give(frames[0])
        case.move()
        gate = Gate(fate)
        case.tap.gate = gate
        case.give(*frames)
        assert case.move() == len(frames)
        assert (down.datagrams, down.superframes) == (1 + len(frames), superframes)
        assert gate.frames == [VIRTIO_NET_BLANK + frame for frame in frames[: 20 if fate == PASSED else 2]]


@FAMILIES
def test_frames_that_weather_took_come_back_later(family: int) -> None:
    with tap() as case, server(family) as host:
        port, to = free_port("udp"), host.getsockname()[1]
        frames = [udp_frame(family, port, to, bytes((number,)) * 100) for number in range(5)]
        gate = Gate(TAKEN)
        case.tap.gate = gate
        case.give(*frames)
        assert case.move() == len(frames)
        assert received(host) == []
        for frame in gate.frames:
            case.reader.inject(frame)
        case.reader.settle()
        assert received(host) == [bytes((number,)) * 100 for number in range(5)]
        for frame in gate.frames:
            case.reader.inject(frame)
        assert len(received(host)) == len(frames), "its flow is known now"
        assert case.reader.caught_up()


def test_a_device_that_is_gone_is_an_error() -> None:
    with tap() as case:
        case.tap.fd = -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            case.reader.step()


def test_what_was_read_before_the_device_went_is_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    readv = os.readv

    def read_or_fail(fd: int, vector: list[bytearray]) -> int:
        try:
            return readv(fd, vector)
        except BlockingIOError:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD)) from None

    monkeypatch.setattr(os, "readv", read_or_fail)
    with tap() as it:
        it.give(*3 * [bytes(12) + b"\x08\x06" + bytes(28)])
        with pytest.raises(LinkGone, match=os.strerror(errno.EBADFD)):
            it.reader.step()
        while it.backlog.frames:
            assert it.asked
            it.backlog.step()
        assert it.arps == 3
