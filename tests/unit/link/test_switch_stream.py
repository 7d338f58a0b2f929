"""A stream as a port of a switch: frames out as a wire would carry them, and in as a tap would."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gpasst.counters import Counters, Drop
from gpasst.link.port import LinkGone
from gpasst.link.stream import QUEUE_BYTES, Stream
from gpasst.link.switch import Data, Port, Switch
from gpasst.link.switch_stream import StreamPort
from gpasst.link.switch_tap import FRAMES_PER_LOOK, FRAMES_PER_STEP
from gpasst.packet.segmentation import split
from gpasst.switch.framing import FRAME_MAXIMUM, Cutter
from gpasst.wire import VIRTIO_NET_BLANK
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.superframes import udp_superframe

MINIMUM = 60  # bytes of a frame on a stream
HEADERS = {4: 42, 6: 62}  # bytes, Ethernet to UDP


class Kept(Port):
    """A port that keeps what is written to it."""

    def __init__(self, counters: Counters) -> None:
        super().__init__("host", counters)
        self.got: list[bytes] = []

    def write(self, data: Data) -> None:
        self.got.append(bytes(data))


class World:
    """A switch with a host and a stream, and the other end of that."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.switch = Switch(self.counters)
        self.host = Kept(self.counters)
        self.asked = self.asked_send = 0
        self.now = self.seconds = 0.0
        here, self.peer = socket.socketpair()
        here.setblocking(False)
        self.peer.settimeout(5)
        self.stream = Stream(self.counters, lambda *_: None, lambda: None, Drop.PORT_FULL)
        self.stream.connect(here)
        cutter = Cutter(None, lambda: self.counters.drop(Drop.FRAME_LENGTH))
        self.port = StreamPort(
            "vm", self.stream, self.switch, cutter, self.ask, self.ask_send, Drop.NO_GUEST, self.counters, self.clock
        )
        self.switch.add(self.host, HOST_MAC)
        self.switch.add(self.port, GUEST_MAC)

    def ask(self) -> None:
        self.asked += 1

    def ask_send(self) -> None:
        self.asked_send += 1

    def send(self) -> int:
        """Take a step of sending, if one was asked for; return how many frames it was."""
        asked, self.asked_send = self.asked_send, 0
        return self.port.send() if asked else 0

    def clock(self) -> float:
        """Return the time, of which some passes between two looks."""
        self.now += self.seconds
        return self.now

    def read(self) -> list[bytes]:
        """Return the frames that have been written to the stream."""
        while self.send():
            pass
        self.peer.setblocking(False)
        data, found = self.peer.recv(1 << 20), []
        while data:
            size = int.from_bytes(data[:4], "big")
            found.append(data[4 : 4 + size])
            data = data[4 + size :]
        return found

    def close(self) -> None:
        if self.stream.socket is not None:
            self.stream.socket.close()
        self.peer.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def frame(payload: bytes, to: bytes = HOST_MAC, sender: bytes = GUEST_MAC) -> bytes:
    return to + sender + b"\x08\0" + payload


@pytest.mark.parametrize("family", [4, 6])
def test_a_superframe_leaves_as_the_frames_of_a_wire(world: World, family: int) -> None:
    data = udp_superframe(family, b"x" * 2500, 1000)
    world.switch.forward(world.host, data)
    frames = world.read()
    assert frames == list(split(data))
    assert [len(found) - HEADERS[family] for found in frames] == [1000, 1000, 500]


def test_a_short_frame_is_padded(world: World) -> None:
    sent = frame(b"short", GUEST_MAC, HOST_MAC)
    world.switch.forward(world.host, VIRTIO_NET_BLANK + sent)
    assert world.read() == [sent.ljust(MINIMUM, b"\0")]


def test_a_frame_that_no_stream_can_carry_is_dropped(world: World) -> None:
    world.switch.forward(world.host, VIRTIO_NET_BLANK + frame(bytes(FRAME_MAXIMUM), GUEST_MAC, HOST_MAC))
    world.switch.forward(world.host, VIRTIO_NET_BLANK + frame(bytes(100), GUEST_MAC, HOST_MAC))
    assert len(world.read()) == 1
    assert world.counters.drops == {Drop.FRAME_LENGTH: 1}


def test_frames_of_the_stream_come_as_from_a_tap(world: World) -> None:
    sent = [frame(bytes((number,)) * 100) for number in range(5)]
    world.peer.sendall(b"".join(map(framed, sent)))
    assert world.port.step() == 5
    assert world.host.got == [VIRTIO_NET_BLANK + one for one in sent]
    assert world.port.received == 5


def test_a_step_ends_and_the_next_one_goes_on(world: World) -> None:
    count = FRAMES_PER_STEP + 3
    world.peer.sendall(framed(frame(bytes(100))) * count)
    assert (world.port.step(), world.asked) == (FRAMES_PER_STEP, 1)
    assert (world.port.step(), world.asked) == (3, 1)
    assert len(world.host.got) == count
    assert world.port.step() == 0


def test_a_step_ends_when_its_time_is_over(world: World) -> None:
    world.peer.sendall(framed(frame(bytes(100))) * (3 * FRAMES_PER_LOOK))
    world.seconds = 1.0
    assert (world.port.step(), world.asked) == (FRAMES_PER_LOOK, 1)


def test_what_was_sent_before_the_end_is_forwarded(world: World) -> None:
    world.peer.sendall(framed(frame(bytes(100))) * (FRAMES_PER_STEP + 1))
    world.peer.close()
    assert world.port.step() == FRAMES_PER_STEP
    assert world.port.step() == 1
    with pytest.raises(LinkGone):
        world.port.step()


def test_a_peer_that_does_not_read_loses_frames(world: World) -> None:
    data = VIRTIO_NET_BLANK + frame(bytes(60_000), GUEST_MAC, HOST_MAC)
    count = 2 * QUEUE_BYTES // len(data)
    for _ in range(count):
        world.switch.forward(world.host, data)
        world.send()
    assert set(world.counters.drops) == {Drop.PORT_FULL}
    assert world.stream.full
    assert world.send() == 0, "nothing is asked for until it reads"
    world.peer.recv(1 << 20)
    world.stream.empty()
    assert world.send()
    assert world.port.sent == count - world.counters.drops[Drop.PORT_FULL]


def test_a_superframe_is_cut_in_the_time_of_several_steps(world: World) -> None:
    data = udp_superframe(4, bytes(64 * 100), 100)
    world.seconds = 1.0
    for _ in range(2):
        world.switch.forward(world.host, data)
    steps = []
    while moved := world.send():
        steps.append(moved)
    assert steps == [FRAMES_PER_LOOK] * (2 * 64 // FRAMES_PER_LOOK)
    assert len(world.read()) == 2 * 64


def test_frames_for_nobody_are_counted(world: World) -> None:
    data = VIRTIO_NET_BLANK + frame(bytes(100), GUEST_MAC, HOST_MAC)
    world.switch.forward(world.host, data)
    sock = world.stream.socket
    world.stream.disconnect()
    world.send()
    world.switch.forward(world.host, data)
    assert world.counters.drops == {Drop.NO_GUEST: 2}
    assert sock is not None
    world.port.connect()
    world.stream.connect(sock)
    world.switch.forward(world.host, data)
    assert len(world.read()) == 1


def test_what_waited_for_one_peer_is_not_for_the_next(world: World) -> None:
    data = VIRTIO_NET_BLANK + frame(bytes(100), GUEST_MAC, HOST_MAC)
    world.switch.forward(world.host, data)
    world.port.connect()
    assert world.send() == 0
    assert world.counters.drops == {Drop.NO_GUEST: 1}


def test_another_peer_begins_with_a_frame(world: World) -> None:
    world.peer.sendall(framed(frame(bytes(100)))[:50])
    assert world.port.step() == 0
    world.port.connect()
    world.peer.sendall(framed(frame(bytes(100))))
    assert world.port.step() == 1
