"""Peeking at the data of TCP sockets, laid out as the link writes it.

Theory of operation: data stays in a socket's receive queue until the guest has acknowledged it. With SO_PEEK_OFF
(Linux 6.9 for TCP) a peek begins behind what was peeked before; without it, each peek receives the data in flight once
more, into a buffer that nobody reads.

A tap takes the run as it is. On a stream each segment follows headers of its own, so it is peeked into slots with room
for them (as `gpasst.host.receive_framed` does).

What is peeked is valid until `start`, or until there is no more `room` for another run.
"""

from __future__ import annotations

import mmap
from typing import Protocol

from gpasst.flow.sender import StreamSocket
from gpasst.linux import MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC
from gpasst.tcp.header import SIZES
from gpasst.wire import FRAME_MINIMUM_BYTES, STREAM_LENGTH_BYTES

RUN_BYTES = 65495  # of payload: an IPv4 packet of 65535 bytes without headers
RUNS = 4  # that are laid out before they are written
SCRATCH_BYTES = 1 << 20  # more than is ever in flight
LAYOUTS = 32  # by segment size; a guest may announce a new one with every connection

_FLAGS = MSG_PEEK | MSG_DONTWAIT
# Pages that are written only by a kernel without SO_PEEK_OFF, and never read, so they need no lock.
_scratch = memoryview(mmap.mmap(-1, SCRATCH_BYTES))


class Peeker(Protocol):
    """Peeks at sockets for one link."""

    def peek(self, sock: StreamSocket, family: int, mss: int, room: int, skip: int) -> tuple[int, memoryview]:
        """Peek at what a socket has.

        :param family: 4 or 6.
        :param mss: bytes of a segment.
        :param room: bytes to peek at most.
        :param skip: bytes that were peeked before, 0 where the socket knows.
        :return: bytes of payload, 0 at the end of the data; and the payload in the link's layout.
        :raises BlockingIOError: if there is nothing new.
        :raises OSError: if the connection has failed.
        """

    def start(self) -> None:
        """Use the buffer from its start again: what was peeked has been written."""

    @property
    def full(self) -> bool:
        """Whether the buffer has no room for another run."""


class TapPeeker:
    """A `Peeker` for a link that takes a run as it is, at once."""

    full = False

    def __init__(self) -> None:
        self._view = memoryview(bytearray(RUN_BYTES))

    def peek(self, sock: StreamSocket, family: int, mss: int, room: int, skip: int) -> tuple[int, memoryview]:
        """Peek at what a socket has; see `Peeker.peek`."""
        if room > RUN_BYTES - mss:
            room = min(room, RUN_BYTES // mss * mss)
        view = self._view
        count = received(sock, [_scratch[:skip], view[:room]], skip) if skip else sock.recv_into(view, room, _FLAGS)
        return count, view[:count]

    def start(self) -> None:
        """Do nothing: each run was written at once."""


class StreamPeeker:
    """A `Peeker` for a link that needs room for the headers of each segment."""

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(2 * RUN_BYTES)) for _ in range(RUNS)]
        self._layouts: dict[tuple[int, int], list[list[memoryview]]] = {}
        self._used = 0

    @property
    def full(self) -> bool:
        """Whether the buffer has no room for another run."""
        return self._used == RUNS

    def start(self) -> None:
        """Use the buffer from its start again."""
        self._used = 0

    def peek(self, sock: StreamSocket, family: int, mss: int, room: int, skip: int) -> tuple[int, memoryview]:
        """Peek at what a socket has; see `Peeker.peek`."""
        buffer = self._buffers[self._used]
        slots = self._slots(family, mss)[self._used]
        whole, rest = divmod(room, mss)
        if whole < len(slots):
            slots = [*slots[:whole], slots[whole][:rest]] if rest else slots[:whole]
        count = received(sock, [_scratch[:skip], *slots] if skip else slots, skip)
        if count:
            self._used += 1
        before = (-(-count // mss) - 1) * _frame_bytes(family, mss)
        return count, buffer[: before + _frame_bytes(family, count % mss or mss)]

    def _slots(self, family: int, mss: int) -> list[list[memoryview]]:
        """Return the places of segments in each buffer."""
        layout = self._layouts.get((family, mss))
        if layout is None:
            if len(self._layouts) == LAYOUTS:
                self._layouts.clear()
            gap = STREAM_LENGTH_BYTES + SIZES[family]
            step = _frame_bytes(family, mss)
            count = RUN_BYTES // mss
            layout = self._layouts[family, mss] = [
                [buffer[i * step + gap : i * step + gap + mss] for i in range(count)] for buffer in self._buffers
            ]
        return layout


def _frame_bytes(family: int, payload: int) -> int:
    """Return the bytes of a segment's frame on a stream, its length included."""
    return STREAM_LENGTH_BYTES + max(SIZES[family] + payload, FRAME_MINIMUM_BYTES)


def received(sock: StreamSocket, buffers: list[memoryview], skip: int) -> int:
    """Peek into buffers, of which the first holds `skip` bytes that were peeked before; return the bytes behind them.

    :raises BlockingIOError: if there is nothing new.
    """
    count = sock.recvmsg_into(buffers, 0, _FLAGS)[0] - skip
    if skip and count <= 0:
        # Whether there is an end behind what is in flight shows when that has been acknowledged.
        raise BlockingIOError
    return count


def discard(sock: StreamSocket, count: int) -> None:
    """Discard bytes from a socket's queue; the kernel moves the offset of its peeks back by as many.

    :raises OSError: if the connection has failed.
    """
    while count > 0:
        # A receive stops before urgent data, in line or not (net/ipv4/tcp.c, tcp_recvmsg_locked).
        taken = sock.recv_into(_scratch, count, MSG_TRUNC | MSG_DONTWAIT)
        if not taken:
            break
        count -= taken
