"""The connection to qemu: Ethernet frames on a UNIX stream socket, each behind its length.

Theory of operation: before each frame stand 4 bytes, its length in network byte order (qemu's ``-netdev stream``, 7.2
or later). Frames carry no offloads here, so a run from a host socket is split into its frames: its segments arrive with
room for headers between them (`gpasst.host.receive_framed`), and leave in one call.

1. Frames are gathered until `flush`, and then sent in one call, up to 1024 pieces. Answers of services leave one by
   one, but for those of a step that is `gathering`.
2. A frame is sent whole or not at all. What a full socket does not take waits in a queue, beginning with the rest of
   the frame that was cut; a watcher empties it as the guest reads. Frames that do not fit the queue are dropped and
   counted, so a guest that stops reading costs its own traffic and nothing else.
3. Without a guest, frames are dropped and counted.

NOTE: what is gathered refers to the receiver's buffers, so it is flushed before the next receive.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # a class
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from gpasst.counters import Counters, Drop, Tally
from gpasst.hub import readable
from gpasst.link.port import TRANSIENT, Gate, RunHeader
from gpasst.link.recorder import Recorder
from gpasst.linux import MSG_DONTWAIT, MSG_NOSIGNAL, UIO_MAXIOV
from gpasst.packet.segmentation import split
from gpasst.switch.framing import FRAME_MAXIMUM
from gpasst.wire import FRAME_MINIMUM_BYTES, STREAM_LENGTH_BYTES, VIRTIO_NET_BLANK, VIRTIO_NET_CODEC

QUEUE_BYTES = 4 << 20  # of frames that wait for the guest to read
FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL

_P = ParamSpec("_P")
_T = TypeVar("_T")

# The frames of one piece that waits for `Stream.flush`: their number, bytes from one to the next, payload bytes in all
# and of each but perhaps the last, and where they are counted (None for the frame of a service).
_Gathered = tuple[int, int, int, int, Tally | None]


class Stream:
    """The guest's end of a link that is a stream.

    :param counters: where traffic and drops are counted.
    :param await_room: begins to call a function when a socket takes more.
    :param stop_awaiting: stops that.
    :param full: why frames are dropped that do not fit the queue.
    :param gone: why frames are dropped while nobody is there.
    :ivar recorder: records what crosses, None while nobody wants that.
    :ivar gate: asked for each frame of the guest, None while no rule of weather is in force for these.
    :ivar emptied: called when nothing waits for the guest any more.
    """

    def __init__(
        self,
        counters: Counters,
        await_room: Callable[[RawSocket, Callable[[], None]], None],
        stop_awaiting: Callable[[], None],
        full: Drop = Drop.STREAM_FULL,
        gone: Drop = Drop.NO_GUEST,
    ) -> None:
        self.socket: RawSocket | None = None
        self.recorder: Recorder | None = None
        self.gate: Gate | None = None
        self._counters = counters
        self._tallies = {protocol: traffic.up for protocol, traffic in counters.traffic.items()}
        self._await_room = await_room
        self._stop_awaiting = stop_awaiting
        self._full = full
        self._gone = gone
        self.emptied: list[Callable[[], None]] = []
        self._gathering = False
        self._pieces: list[memoryview] = []
        self._gathered: list[_Gathered] = []
        # Layout of the receiver's buffer, and which header stands how often at its start.
        self._written: tuple[memoryview | None, bytes, int] = (None, b"", 0)
        self._queue: deque[memoryview] = deque()
        self._queued = 0

    @property
    def ready(self) -> bool:
        """Whether anybody is there."""
        return self.socket is not None

    @property
    def full(self) -> bool:
        """Whether what is written now has to wait for the guest to read."""
        return bool(self._queue)

    def unread(self) -> bool:
        """Return whether the guest has sent what has not been read."""
        return self.socket is not None and readable(self.socket.fileno())

    def connect(self, sock: RawSocket) -> None:
        """Begin to write to a guest."""
        self.socket = sock
        # Whoever waited for the guest before has not heard that what it was to read was dropped.
        for emptied in self.emptied:
            emptied()

    def disconnect(self) -> None:
        """Forget the guest, and what waits for it."""
        self._forget()
        self.socket = None

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Gather one run.

        :param header: the flow's headers.
        :param total: payload bytes in all.
        :param segment: payload bytes of each segment but perhaps the last.
        :param payload: the segments in one piece, with room for the headers of each (`gpasst.host.receive_framed`).
        """
        frames = payload[0]
        gap = STREAM_LENGTH_BYTES + header.size
        step = gap + max(segment, FRAME_MINIMUM_BYTES - header.size)
        count = -(-total // segment) if total else 1
        rest = total - (count - 1) * segment
        equal = 0
        if header.repeats:
            equal = count if rest == segment else count - 1
            if equal:
                head, pad = header.framed(segment)
                for at in range(self._already_written(payload, head, equal, equal < count) * step, equal * step, step):
                    frames[at : at + gap] = head
                    frames[at + gap + segment : at + step] = pad
        for i in range(equal, count):
            at, size = i * step, segment if i < count - 1 else rest
            head, pad = header.framed(size, frames[at + gap : at + gap + size], i * segment)
            frames[at : at + gap] = head
            frames[at + gap + size : at + gap + size + len(pad)] = pad
        self._pieces.append(frames)
        self._gathered.append((count, step, total, segment, self._tallies[header.protocol]))
        if len(self._pieces) == UIO_MAXIOV:
            self.flush()

    @property
    def bare(self) -> bool:
        """Whether frames may be written past `write_run`: nobody records them, and no rule of weather is in force."""
        return self.recorder is None and "write_run" not in self.__dict__

    def joins(self, protocol: str, family: int) -> bool:
        """Return whether a run of a protocol and family crosses as one superframe: none does."""
        del protocol, family
        return False

    def write_each(self, protocol: str, frames: list[memoryview], sizes: list[int]) -> None:
        """Send frames of one segment each, and what was gathered before.

        :param protocol: what they count for, such as ``"udp"``.
        :param frames: the frames, each with its length before it.
        :param sizes: payload bytes of each.
        """
        tally = self._tallies[protocol]
        self.flush()
        sent = 0
        if self.socket is not None and not self._queue and self.recorder is None:
            with suppress(OSError):  # which `flush` meets again
                sent = self.socket.sendmsg(frames, (), FLAGS)
            if sent == sum(map(len, frames)):
                tally.datagrams += len(frames)
                tally.bytes += sum(sizes)
                return
        gathered: list[_Gathered] = [
            (1, len(frame), size, size, tally) for frame, size in zip(frames, sizes, strict=True)
        ]
        if sent:
            self._rest(frames, gathered, sent)
        else:
            self._pieces, self._gathered = frames, gathered
            self.flush()

    def _already_written(self, payload: list[memoryview], head: bytes, equal: int, ends: bool) -> int:
        """Return how many gaps at the start of the buffer hold `head` already, and note that `equal` will.

        :param ends: whether another header follows these.
        """
        layout = payload[-1] if len(payload) > 1 else None
        known, written, count = self._written
        if layout is None or known is not layout or written is not head:
            count = 0
        self._written = layout, head, equal if ends else max(equal, count)
        return count

    def write_bare(self, header: RunHeader) -> None:
        """Gather one frame without payload."""
        head, pad = header.framed(0, b"")
        self._pieces.append(memoryview(head + pad))
        self._gathered.append((1, len(head) + len(pad), 0, 0, self._tallies[header.protocol]))
        if len(self._pieces) == UIO_MAXIOV:
            self.flush()

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""
        self._gather(frame, 0, None)
        if not self._gathering:
            self.flush()

    def gathering(self, step: Callable[_P, _T]) -> Callable[_P, _T]:
        """Return `step`, but what it writes by `write_frame` leaves in one call at its end.

        Each send wakes the guest, which costs as much as building the frame.
        """

        def gathering(*args: _P.args, **keywords: _P.kwargs) -> _T:
            self._gathering = True
            try:
                return step(*args, **keywords)
            finally:
                self._gathering = False
                self.flush()

        return gathering

    def gather(self, frame: bytes) -> None:
        """Gather one complete Ethernet frame of a switch, to be sent by `flush`."""
        if len(frame) > FRAME_MAXIMUM:
            # A superframe that contradicts its headers; the other end would lose its place in the stream.
            self._counters.drop(Drop.FRAME_LENGTH)
        else:
            self._gather(frame, 0, None)

    def write_message(self, message: bytes) -> bool:
        """Write what is no frame; return whether it will be sent.

        :param message: it, as it stands in the stream. It is not sent where frames would be dropped.
        """
        if self.socket is None or self._queued + len(message) > QUEUE_BYTES:
            return False
        self._pieces.append(memoryview(message))
        self._gathered.append((1, len(message), 0, 0, None))
        self.flush()
        return True

    def superframe(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> bytes:
        """Return a run as it would cross a link that offloads; see `gpasst.link.port.ImpairableLink`."""
        frames, gap = payload[0], STREAM_LENGTH_BYTES + header.size
        step = gap + max(segment, FRAME_MINIMUM_BYTES - header.size)
        head = header.fill(total, segment)
        places = zip(range(gap, len(frames), step), range(0, total, segment or 1), strict=False)
        return b"".join((head, *(frames[at : at + min(segment, total - before)] for at, before in places)))

    def write_held(self, data: bytes, count: int, head: int, family: int, protocol: str) -> None:
        """Gather a frame or superframe that was held; see `gpasst.link.port.ImpairableLink`."""
        tally = self._tallies.get(protocol)
        bare = head - VIRTIO_NET_CODEC.size
        for frame in split(data):
            self._gather(frame, len(frame) - bare, tally)

    def _gather(self, frame: bytes, size: int, tally: Tally | None) -> None:
        """Gather one complete Ethernet frame with `size` bytes of payload."""
        padded = frame.ljust(FRAME_MINIMUM_BYTES, b"\0")
        self._pieces.append(memoryview(len(padded).to_bytes(STREAM_LENGTH_BYTES, "big") + padded))
        self._gathered.append((1, len(padded) + STREAM_LENGTH_BYTES, size, size, tally))
        if len(self._pieces) == UIO_MAXIOV:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered, or queue it."""
        if not self._gathered:
            return
        pieces, gathered = self._pieces, self._gathered
        self._pieces, self._gathered = [], []
        if self.socket is None:
            self._counters.drop(self._gone, sum(frames for frames, *_ in gathered))
            return
        sent = 0
        if not self._queue:
            try:
                sent = self.socket.sendmsg(pieces, (), FLAGS)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    # The reader of the stream finds out by itself, and ends the connection.
                    self._counters.drop(self._gone, sum(frames for frames, *_ in gathered))
                    return
            if self.recorder is None and sent == sum(map(len, pieces)):
                for frames, _, total, _, tally in gathered:
                    self._count(tally, frames, total)
                return
        self._rest(pieces, gathered, sent)

    def empty(self) -> None:
        """Send what waits, as far as the socket takes it."""
        assert self.socket is not None
        while self._queue:
            try:
                sent = self.socket.sendmsg(
                    [self._queue[i] for i in range(min(len(self._queue), UIO_MAXIOV))], (), FLAGS
                )
            except OSError as error:
                if error.errno not in TRANSIENT:
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
        for emptied in self.emptied:
            emptied()

    def _forget(self) -> None:
        """Drop what waits for the guest."""
        if self._queue:
            self._stop_awaiting()
            self._counters.drop(self._gone, len(self._queue))
            self._queue.clear()
            self._queued = 0

    def _count(self, tally: Tally | None, frames: int, total: int) -> None:
        """Count frames that carry `total` payload bytes, or the frame of a service."""
        if tally is None:
            self._counters.frames_up += frames
            return
        tally.datagrams += frames
        tally.bytes += total
        tally.superframes += frames > 1

    def _rest(self, pieces: list[memoryview], gathered: list[_Gathered], sent: int) -> None:
        """Take frames one by one: count what was sent, queue what was not, drop what does not fit."""
        waiting = bool(self._queue)
        for piece, (frames, step, total, segment, tally) in zip(pieces, gathered, strict=True):
            carried = carried_bytes = 0
            for number in range(frames):
                frame = piece[number * step : (number + 1) * step]
                size = len(frame)
                if sent < size:
                    # A frame that was begun has to be completed.
                    if not sent and self._queued + size > QUEUE_BYTES:
                        self._counters.drop(self._full)
                        if self.recorder is not None:
                            body = frame[STREAM_LENGTH_BYTES:]
                            self.recorder.write(True, VIRTIO_NET_BLANK, body, comment=self._full.value)
                        continue
                    self._queue.append(memoryview(bytes(frame))[sent:])
                    self._queued += size - sent
                sent = max(0, sent - size)
                if self.recorder is not None:
                    self.recorder.write(True, VIRTIO_NET_BLANK, frame[STREAM_LENGTH_BYTES:])
                carried += 1
                carried_bytes += min(segment, total - number * segment)
            if carried:
                self._count(tally, carried, carried_bytes)
        if self._queue and not waiting and self.socket is not None:
            self._await_room(self.socket, self.empty)
