"""The connection to qemu: Ethernet frames on a UNIX stream socket, each behind its length.

Theory of operation: before each frame stand 4 bytes, its length in network byte order (qemu's ``-netdev stream``, 7.2
or later). Frames carry no offloads here, so a superframe from a host socket is cut into its frames, all of which share
one header and leave in one call.

1. Frames are gathered until `flush`, and then sent in one call, up to 1024 pieces.
2. A frame is sent whole or not at all. What a full socket does not take waits in a queue, beginning with the rest of
   the frame that was cut; a watcher empties it as the guest reads. Frames that do not fit the queue are dropped and
   counted, so a guest that stops reading costs its own datagrams and nothing else (E-04).
3. Without a guest, frames are dropped and counted.

NOTE: what is gathered refers to the receiver's buffers, so it is flushed before the next receive.
"""

from __future__ import annotations

import errno
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL
from _socket import socket as RawSocket  # a class
from collections import deque
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.link.capture import Capture
from gpasst.link.tap import VIRTIO_BLANK
from gpasst.udp.headers import FRAME_LEAST, Header

LENGTH_BYTES = 4  # before each frame
FRAME_MINIMUM = 14  # bytes; an Ethernet header
FRAME_MAXIMUM = 65535  # bytes of a frame from the guest
QUEUE_BYTES = 4 << 20  # of frames that wait for the guest to read
PIECES = 1024  # IOV_MAX of Linux
FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL

Piece = bytes | memoryview


class Stream:
    """The guest's end of a link that is a stream.

    :param counters: where traffic and drops are counted.
    :param await_room: begins to call `empty` when the socket takes more.
    :param stop_awaiting: stops that.
    :param capture: where to record what crosses, or None.
    """

    def __init__(
        self,
        counters: Counters,
        await_room: Callable[[RawSocket], None],
        stop_awaiting: Callable[[], None],
        capture: Capture | None = None,
    ) -> None:
        self.socket: RawSocket | None = None
        self.capture = capture
        self._counters = counters
        self._await_room = await_room
        self._stop_awaiting = stop_awaiting
        self._pieces: list[Piece] = []
        # Of what was gathered, in order: how many frames, of how many pieces each, whether they carry datagrams.
        self._gathered: list[tuple[int, int, bool]] = []
        self._queue: deque[memoryview] = deque()
        self._queued = 0

    def connect(self, sock: RawSocket) -> None:
        """Begin to write to a guest."""
        self.socket = sock

    def disconnect(self) -> None:
        """Forget the guest, and what waits for it."""
        self._forget()
        self.socket = None

    def write_datagrams(self, header: Header, total: int, segment: int, payload: list[memoryview]) -> None:
        """Gather one run of UDP datagrams.

        :param header: the peer's headers.
        :param total: payload bytes in all.
        :param segment: payload bytes of each datagram but perhaps the last.
        :param payload: the datagrams, one behind the other.
        """
        data = payload[0] if len(payload) == 1 else memoryview(b"".join(payload))
        start = 0
        if segment < total and header.family == 4:
            start = self._alike(header, data, total // segment, segment)
        # A shorter last one; or all, where each header has a checksum of its own. An empty datagram is one, too.
        for at in range(start, max(total, 1), max(segment, 1)):
            piece = data[at : at + segment]
            if len(self._pieces) + 3 > PIECES:
                self.flush()
            head, pad = header.framed(len(piece), piece)
            self._pieces += (head, piece, pad)
            self._gathered.append((1, 3, True))

    def _alike(self, header: Header, data: memoryview, count: int, size: int) -> int:
        """Gather `count` datagrams of `size` bytes that share one header; give where the rest of `data` begins."""
        head, pad = header.framed(size)
        end = count * size
        if len(self._pieces) + 3 * count > PIECES:
            self.flush()
        pieces = self._pieces
        if pad:
            for at in range(0, end, size):
                pieces += (head, data[at : at + size], pad)
        else:
            for at in range(0, end, size):
                pieces += (head, data[at : at + size])
        self._gathered.append((count, 3 if pad else 2, True))
        return end

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""
        self._pieces += (max(len(frame), FRAME_LEAST).to_bytes(LENGTH_BYTES, "big"), frame.ljust(FRAME_LEAST, b"\0"))
        self._gathered.append((1, 2, False))
        self.flush()

    def flush(self) -> None:
        """Send what was gathered, or queue it."""
        if not self._gathered:
            return
        pieces, gathered = self._pieces, self._gathered
        self._pieces, self._gathered = [], []
        if self.socket is None:
            self._counters.drop(Drop.NO_GUEST, sum(frames for frames, _, _ in gathered))
            return
        sent = 0
        if not self._queue:
            try:
                sent = self.socket.sendmsg(pieces, (), FLAGS)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    # The reader of the stream finds out by itself, and ends the connection.
                    self._counters.drop(Drop.NO_GUEST, sum(frames for frames, _, _ in gathered))
                    return
            if self.capture is None and sent == sum(map(len, pieces)):
                self._count(gathered, pieces)
                return
        self._rest(pieces, gathered, sent)

    def empty(self) -> None:
        """Send what waits, as far as the socket takes it."""
        assert self.socket is not None
        while self._queue:
            try:
                sent = self.socket.sendmsg([self._queue[i] for i in range(min(len(self._queue), PIECES))], (), FLAGS)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    # The reader of the stream finds out by itself, and ends the connection.
                    self._forget()
                return
            self._queued -= sent
            while sent:
                first = self._queue[0]
                if sent < len(first):
                    self._queue[0] = first[sent:]
                    break
                sent -= len(first)
                self._queue.popleft()
        self._stop_awaiting()

    def _forget(self) -> None:
        """Drop what waits for the guest."""
        if self._queue:
            self._stop_awaiting()
            self._counters.drop(Drop.NO_GUEST, len(self._queue))
            self._queue.clear()
            self._queued = 0

    def _count(self, gathered: list[tuple[int, int, bool]], pieces: list[Piece]) -> None:
        """Count frames that have all been sent."""
        up, at = self._counters.up, 0
        for frames, each, datagrams in gathered:
            if datagrams:
                up.datagrams += frames
                up.bytes += len(pieces[at + 1]) * frames
                up.superframes += frames > 1
            else:
                self._counters.frames_up += frames
            at += frames * each

    def _rest(self, pieces: list[Piece], gathered: list[tuple[int, int, bool]], sent: int) -> None:
        """Take frames one by one: count what was sent, queue what was not, drop what does not fit."""
        at = 0
        waiting = bool(self._queue)
        for frames, each, datagrams in gathered:
            for _ in range(frames):
                frame = pieces[at : at + each]
                at += each
                size = sum(map(len, frame))
                if sent < size:
                    # A frame that was begun has to be completed.
                    if not sent and self._queued + size > QUEUE_BYTES:
                        self._counters.drop(Drop.STREAM_FULL)
                        continue
                    self._queue.append(memoryview(b"".join(frame))[sent:])
                    self._queued += size - sent
                sent = max(0, sent - size)
                if self.capture is not None:
                    self.capture.write(VIRTIO_BLANK, b"".join(frame)[LENGTH_BYTES:])
                self._count([(1, each, datagrams)], frame)
        if self._queue and not waiting and self.socket is not None:
            self._await_room(self.socket)
