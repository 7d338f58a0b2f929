"""TCP on either link: runs of a connection, segments without data, and a link that is full."""

from __future__ import annotations

import socket
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.formats import TCP4, TCP6, TCP_ACK, TCP_PSH
from gpasst.host.peek import StreamPeeker
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.packet.segmentation import split
from gpasst.tcp.header import Header
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.connections import KEY
from tests.support.families import FAMILIES
from tests.support.scripted_tcp import Segment, parse_tcp
from tests.support.streams import noise

FIRST = 0xFFFFFF00  # so that the numbers wrap
LENGTH = 4  # bytes before a frame on a stream
SIZES = [
    (1, 1460),
    (5, 1460),
    (6, 1460),
    (7, 1460),
    (1460, 1460),
    (1461, 1460),
    (3001, 1001),
    (65000, 88),
    (60000, 60000),
]
VIRTIO = 10  # bytes before a frame on a tap


def head(family: int) -> Header:
    """Return the headers of a connection, ready for a run."""
    made = Header(GUEST_MAC, HOST_MAC, KEY[family])
    made.prepare(FIRST, 7, TCP_ACK | TCP_PSH, 999)
    return made


class Room:
    """Who waits for room in a stream."""

    def __init__(self) -> None:
        self.empty: Callable[[], None] | None = None

    def begin(self, sock: Any, empty: Callable[[], None]) -> None:
        self.empty = empty

    def stop(self) -> None:
        self.empty = None


class Streamed:
    """A stream, and the guest at its other end.

    :ivar emptied: how often nothing waited any more.
    """

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.theirs = theirs
        self.counters, self.room, self.emptied = Counters(), Room(), 0
        self.link = Stream(self.counters, self.room.begin, self.room.stop)
        self.link.connect(cast(RawSocket, ours))
        self.link.emptied.append(self._emptied)
        self._left = b""

    def _emptied(self) -> None:
        self.emptied += 1

    def read(self) -> list[Segment]:
        """Read what is there; each frame is checked."""
        data = self._left
        while True:
            try:
                data += self.theirs.recv(1 << 20)
            except BlockingIOError:
                break
        found = []
        while len(data) >= LENGTH and len(data) >= LENGTH + int.from_bytes(data[:LENGTH], "big"):
            end = LENGTH + int.from_bytes(data[:LENGTH], "big")
            segment = parse_tcp(data[LENGTH:end])
            assert segment
            found.append(segment)
            data = data[end:]
        self._left = data
        return found


@contextmanager
def streamed(send_bytes: int = 4 << 20) -> Iterator[Streamed]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        yield Streamed(ours, theirs)


@contextmanager
def tapped(superframes: bool = True) -> Iterator[tuple[Tap, socket.socket, Counters]]:
    """Yield a tap, its other end, and its counters."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        counters = Counters()
        families = frozenset((4, 6)) if superframes else frozenset[int]()
        yield Tap(ours.fileno(), counters, {"udp": frozenset(), "tcp": families}), theirs, counters


def in_order(segments: list[Segment], total: int, mss: int) -> bytes:
    """Return the data of the segments of a run, whose sizes and numbers are checked."""
    at = 0
    for segment in segments:
        assert segment.sequence == (FIRST + at) % (1 << 32)
        assert len(segment.payload) == min(mss, total - at)
        assert (segment.acknowledgement, segment.window) == (7, 999)
        at += len(segment.payload)
    assert at == total
    return b"".join(segment.payload for segment in segments)


@FAMILIES
@pytest.mark.parametrize(("total", "mss"), SIZES)
def test_what_was_peeked_becomes_the_segments_of_a_stream(family: int, total: int, mss: int) -> None:
    source, remote = socket.socketpair()
    with source, remote, streamed() as stream:
        remote.sendall(noise(total))
        source.setblocking(False)
        count, payload = StreamPeeker().peek(source, family, mss, total, 0)
        assert count == total
        stream.link.write_run(head(family), count, mss, [payload])
        stream.link.flush()
        segments = stream.read()
        assert in_order(segments, total, mss) == noise(total)
        up = stream.counters.tcp.up
        assert (up.datagrams, up.bytes, up.superframes) == (-(-total // mss), total, int(total > mss))


@FAMILIES
@pytest.mark.parametrize(("total", "mss"), SIZES)
@pytest.mark.parametrize("superframes", [True, False])
def test_a_run_on_a_tap(family: int, total: int, mss: int, superframes: bool) -> None:
    with tapped(superframes) as (tap, theirs, counters):
        tap.write_run(head(family), total, mss, [memoryview(noise(total))])
        segments: list[Segment] = []
        reads = 0
        while len(segments) < -(-total // mss):
            reads += 1
            for frame in split(theirs.recv(1 << 17)):
                segment = parse_tcp(frame.ljust(60, b"\0"))
                assert segment
                segments.append(segment)
        assert reads == (1 if superframes else len(segments))
        assert in_order(segments, total, mss) == noise(total)
        assert (counters.tcp.up.datagrams, counters.tcp.up.bytes) == (len(segments), total)


@FAMILIES
def test_a_segment_without_data_keeps_its_place_in_a_stream(family: int) -> None:
    with streamed() as stream:
        made = head(family)
        stream.link.write_bare(made)
        made.prepare(FIRST + 1, 8, TCP_ACK, 77)
        stream.link.write_bare(made)
        assert stream.read() == [], "it is gathered"
        stream.link.flush()
        first, second = stream.read()
        assert (first.sequence, first.acknowledgement, first.flags, first.window) == (FIRST, 7, TCP_ACK | TCP_PSH, 999)
        assert (second.sequence, second.acknowledgement, second.flags, second.window) == (FIRST + 1, 8, TCP_ACK, 77)
        assert (first.payload, second.payload) == (b"", b"")
        assert (stream.counters.tcp.up.datagrams, stream.counters.tcp.up.bytes) == (2, 0)


@FAMILIES
def test_as_many_segments_without_data_as_one_call_takes_are_sent(family: int) -> None:
    with streamed() as stream:
        made = head(family)
        for number in range(1024):
            made.prepare(number, 8, TCP_ACK, 77)
            stream.link.write_bare(made)
        assert [segment.sequence for segment in stream.read()] == list(range(1024))


@FAMILIES
def test_a_segment_without_data_on_a_tap(family: int) -> None:
    with tapped() as (tap, theirs, counters):
        tap.write_run(head(family), 3000, 1000, [memoryview(noise(3000))])
        tap.write_bare(head(family))
        assert len(theirs.recv(1 << 17)) == (TCP4, TCP6)[family == 6].size + 3000
        (frame,) = split(theirs.recv(1 << 17))
        segment = parse_tcp(frame.ljust(60, b"\0"))
        assert segment
        assert (segment.sequence, segment.payload) == (FIRST, b"")
        assert (counters.tcp.up.datagrams, counters.tcp.up.bytes, tap.full) == (4, 3000, False)


def test_a_tap_that_takes_nothing_counts_it() -> None:
    with tapped() as (tap, theirs, counters):
        theirs.close()
        tap.write_bare(head(4))
        assert (counters.drops, counters.tcp.up.datagrams) == ({Drop.TAP_FAILED: 1}, 0)


def test_a_stream_is_full_until_the_guest_has_read() -> None:
    with streamed(1) as stream:
        made = head(4)
        assert not stream.link.full
        written = 0
        while not stream.link.full:
            made.prepare(written, 8, TCP_ACK, 77)
            stream.link.write_bare(made)
            stream.link.flush()
            written += 1
        assert stream.room.empty
        stream.room.empty()
        assert (stream.link.full, stream.emptied) == (True, 0), "nothing was read"
        segments = stream.read()
        stream.room.empty()
        assert (stream.link.full, stream.emptied, stream.room.empty) == (False, 1, None)
        assert [segment.sequence for segment in segments + stream.read()] == list(range(written))


def test_who_waited_for_a_guest_that_has_gone_goes_on_with_the_next_one() -> None:
    with streamed(1) as stream:
        while not stream.link.full:
            stream.link.write_bare(head(4))
            stream.link.flush()
        ours = stream.link.socket
        assert ours
        stream.link.disconnect()
        assert (stream.link.full, stream.link.ready, stream.emptied) == (False, False, 0)
        stream.link.connect(ours)
        assert (stream.link.full, stream.link.ready, stream.emptied) == (False, True, 1)
