"""Peeking at the data of TCP sockets: where each segment lies, what is seen next, and what is discarded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpasst.host.peek import LAYOUTS, RUN_BYTES, RUNS, Peeker, StreamPeeker, TapPeeker, discard
from gpasst.host.tcp import lacking, peek_from_start, prepare, prepare_stream
from gpasst.linux import SO_PEEK_OFF
from tests.support.families import FAMILIES, FAMILY, LOOPBACK
from tests.support.streams import noise

HEADERS = {4: 54, 6: 74}  # bytes, Ethernet to TCP
LENGTH = 4  # bytes before a frame on a stream
MINIMUM = 60  # bytes of a frame
NEEDS_OFFSET = pytest.mark.skipif(bool(lacking()), reason="needs SO_PEEK_OFF of TCP sockets (Linux 6.9)")
OFFSETS = pytest.mark.parametrize(
    "offset", [pytest.param(True, marks=NEEDS_OFFSET, id="offset"), pytest.param(False, id="no-offset")]
)


@contextmanager
def pair(family: int = 4, offset: bool = True) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the socket that is peeked at, prepared, and its remote end."""
    with socket.create_server((LOOPBACK[family], 0), family=FAMILY[family]) as server:
        remote = socket.create_connection(server.getsockname()[:2], 2)
        ours, _ = server.accept()
    with ours, remote:
        prepare_stream(ours)
        prepare(ours, offset and not lacking())
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield ours, remote


def fill(ours: socket.socket, remote: socket.socket, data: bytes) -> None:
    """Let data arrive."""
    offset = ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
    remote.sendall(data)
    ours.settimeout(2)
    assert len(ours.recv(len(data), socket.MSG_PEEK | socket.MSG_WAITALL)) == len(data)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, min(offset, 0))


def laid_out(family: int, mss: int, data: bytes) -> bytes:
    """Return where each segment has to lie on a stream, and zeros elsewhere."""
    room = MINIMUM - HEADERS[family]
    pieces = [data[at : at + mss] for at in range(0, len(data), mss)]
    gap = bytes(LENGTH + HEADERS[family])
    return b"".join(gap + piece.ljust(room, b"\0") for piece in pieces)


@FAMILIES
@pytest.mark.parametrize("mss", [88, 1001, 1440, 65460])
@pytest.mark.parametrize("count", [1, 2, 87, 88, 89, 1440, 5000, 65460])
def test_segments_lie_behind_room_for_their_headers(family: int, mss: int, count: int) -> None:
    data = noise(count)
    with pair(family) as (ours, remote):
        fill(ours, remote, data)
        found, payload = StreamPeeker().peek(ours, family, mss, RUN_BYTES, 0)
        carried = min(count, RUN_BYTES // mss * mss)
        assert found == carried
        assert bytes(payload) == laid_out(family, mss, data[:carried])


@FAMILIES
@pytest.mark.parametrize("room", [1, 500, 1000, 1001, 2000])
def test_no_more_is_peeked_than_there_is_room_for(family: int, room: int) -> None:
    """Even where the window ends within a segment."""
    data = noise(3000)
    with pair(family, offset=False) as (ours, remote):
        fill(ours, remote, data)
        for peeker, expected in (
            (StreamPeeker(), laid_out(family, 1000, data[:room])),
            (TapPeeker(), data[:room]),
        ):
            found, payload = peeker.peek(ours, family, 1000, room, 0)
            assert (found, bytes(payload)) == (room, expected)


@OFFSETS
@pytest.mark.parametrize("kind", [TapPeeker, StreamPeeker])
def test_a_peek_begins_behind_what_is_in_flight(kind: type[TapPeeker] | type[StreamPeeker], offset: bool) -> None:
    data = noise(5000)
    with pair(offset=offset) as (ours, remote):
        fill(ours, remote, data)
        peeker: Peeker = kind()
        flight = 0
        for size in (1000, 2000, 2000):
            found, payload = peeker.peek(ours, 4, 1000, size, 0 if offset else flight)
            assert found == size
            assert data[flight + size - 1000 : flight + size] in bytes(payload)
            flight += size
        with pytest.raises(BlockingIOError):
            peeker.peek(ours, 4, 1000, 1000, 0 if offset else flight)
        discard(ours, 2000)
        flight -= 2000
        with pytest.raises(BlockingIOError):
            peeker.peek(ours, 4, 1000, 1000, 0 if offset else flight)


@OFFSETS
def test_the_end_is_not_seen_before_what_is_in_flight_has_gone(offset: bool) -> None:
    """Without the kernel's offset it cannot be told from there being nothing new."""
    with pair(offset=offset) as (ours, remote):
        fill(ours, remote, b"abc")
        remote.shutdown(socket.SHUT_WR)
        peeker = TapPeeker()
        assert peeker.peek(ours, 4, 1000, 1000, 0)[0] == 3
        if offset:
            assert peeker.peek(ours, 4, 1000, 1000, 0)[0] == 0
        else:
            with pytest.raises(BlockingIOError):
                peeker.peek(ours, 4, 1000, 1000, 3)
        discard(ours, 3)
        assert peeker.peek(ours, 4, 1000, 1000, 0)[0] == 0


@NEEDS_OFFSET
def test_a_stream_has_room_for_some_runs_until_they_are_written() -> None:
    data = noise(8000)
    with pair() as (ours, remote):
        fill(ours, remote, data)
        peeker = StreamPeeker()
        runs = []
        for _ in range(RUNS):
            assert not peeker.full
            runs.append(peeker.peek(ours, 4, 1000, 1000, 0)[1])
        assert peeker.full
        assert b"".join(bytes(run)[-1000:] for run in runs) == data[: 1000 * RUNS]
        peeker.start()
        assert not peeker.full


def test_a_peek_that_finds_the_end_takes_no_room() -> None:
    with pair() as (ours, remote):
        remote.close()
        peeker = StreamPeeker()
        ours.settimeout(2)
        assert ours.recv(1, socket.MSG_PEEK) == b"", "it has come"
        ours.setblocking(False)
        for _ in range(2 * RUNS):
            assert peeker.peek(ours, 4, 1000, 1000, 0)[0] == 0
        assert not peeker.full


def test_segment_sizes_are_forgotten_where_a_guest_has_too_many() -> None:
    data = noise(300)
    with pair(offset=False) as (ours, remote):
        fill(ours, remote, data)
        peeker = StreamPeeker()
        for mss in [*range(88, 88 + 2 * LAYOUTS), 88]:
            peeker.start()
            found, payload = peeker.peek(ours, 4, mss, mss, 0)
            assert found == mss
            assert bytes(payload)[-mss:] == data[:mss]


@NEEDS_OFFSET
def test_all_is_discarded_across_urgent_data() -> None:
    """A receive stops before it, so what the guest has would be sent to it once more."""
    with pair() as (ours, remote):
        remote.sendall(b"abc")
        remote.send(b"d", socket.MSG_OOB)
        remote.sendall(b"efg")
        ours.settimeout(2)
        seen = b""
        while len(seen) < 7:
            seen += ours.recv(7, socket.MSG_PEEK)
        assert seen == b"abcdefg"
        discard(ours, 7)
        remote.sendall(b"hi")
        peek_from_start(ours)
        assert ours.recv(99) == b"hi"
