"""A guest's TCP, a link that loses and delays, the proxy's part of TCP, and a program at the remote end.

What the proxy must never do is checked where its segments enter the link. Time is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from gpasst.counters import Counters
from gpasst.flow.guest import Guest as Told
from gpasst.flow.sender import ControlMessage
from gpasst.formats import PROTOCOL_TCP, STREAM_LEAD_BYTES, STREAM_LENGTH_BYTES, TCP_CODEC, VIRTIO_NET_CODEC
from gpasst.host.peek import TapPeeker
from gpasst.link.port import RunHeader
from gpasst.link.recorder import Recorder
from gpasst.linux import (
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_PEEK,
    MSG_TRUNC,
    SO_LINGER,
    SO_PEEK_OFF,
)
from gpasst.packet.build import wrap
from gpasst.packet.parse import Packet, parse_ip
from gpasst.packet.segmentation import split
from gpasst.path.tcp_deadlines import TcpDeadlines
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.path.tcp_writer import TcpWriter
from gpasst.tcp.reset import reset
from gpasst.tcp.segment import Segment, parse, parse_options
from gpasst.tcp.states import State
from gpasst.tcp.table import ConnectionTable
from tests.support.addresses import GUEST4, GUEST_MAC, HOST_MAC, SERVER4, ip
from tests.support.connections import Watched
from tests.support.networks import guest_network
from tests.support.tcp import Ready
from tests.support.tcp_guest import ACK, FIN, MASK, SYN, Clock, Guest, GuestTcp

LINK_SECONDS = 0.0005
REMOTE_SECONDS = 0.01  # between two turns of the remote program


@dataclass(frozen=True)
class Remote:
    """What the program at the remote end does.

    :ivar data: what it sends.
    :ivar writes: bytes that it writes in a turn.
    :ivar reads: bytes that it reads in a turn.
    :ivar room: bytes that the socket takes beyond what it has read.
    :ivar waits: whether it ends only after the guest.
    """

    data: bytes = b""
    writes: int = 3000
    reads: int = 3000
    room: int = 5000
    waits: bool = False


@dataclass(frozen=True)
class Fate:
    """What happens to one segment on the link.

    :ivar copies: how often it arrives.
    :ivar seconds: how much later than usual.
    """

    copies: int = 1
    seconds: float = 0.0


ORDINARY = Fate()


class HostSocket:
    """The host's socket, with the program behind it.

    :ivar taken: what the guest has sent.
    :ivar shut: whether the proxy has shut it for writing.
    :ivar failure: the errno with which it refuses data; 0 for none.
    """

    def __init__(self, remote: Remote, clock: Clock, event: Callable[[int], None], peek_offset: bool) -> None:
        self.remote = remote
        self.clock = clock
        self.event = event
        self.taken = bytearray()
        self.failure = 0
        self.shut = self.closed = self.was_reset = self.ended = False
        self._queue = bytearray()
        self._written = self._read = 0
        self._peek_offset = peek_offset
        self._peeked = 0
        self._refused = False
        self._turns = True

    def turn(self, happened: int = 0) -> None:
        """Let the program write, read, and end; `happened` are events of the socket that come with that."""
        if self.closed:
            return
        data = self.remote.data[self._written : self._written + self.remote.writes]
        self._written += len(data)
        self._queue += data
        happened |= EPOLLIN if data else 0
        done = self._written == len(self.remote.data) and (self.shut or not self.remote.waits)
        if done and not self.ended:
            self.ended = True
            happened |= EPOLLIN | EPOLLRDHUP
        self._read = min(len(self.taken), self._read + self.remote.reads)
        if self._refused and self._room >= self.remote.room // 3:
            self._refused = False
            happened |= EPOLLOUT
        if happened:
            self.event(happened)
        self._turns = self._written < len(self.remote.data) or self._refused or self._read < len(self.taken)
        if self._turns:
            self.clock.after(REMOTE_SECONDS, self.turn)

    def _wake(self) -> None:
        if not self._turns:
            self._turns = True
            self.clock.after(REMOTE_SECONDS, self.turn)

    @property
    def _room(self) -> int:
        return self.remote.room - (len(self.taken) - self._read)

    def fileno(self) -> int:
        return 7

    def close(self) -> None:
        self.closed = True

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        return self.sendmsg([data])

    def sendmsg(
        self,
        buffers: Iterable[bytes | bytearray | memoryview],
        ancdata: Iterable[ControlMessage] = (),
        flags: int = 0,
        /,
    ) -> int:
        assert not self.shut
        if self.failure:
            raise OSError(self.failure, "failed")
        data = b"".join(buffers)
        assert data
        taken = min(len(data), self._room)
        self._refused = taken < len(data)
        self._wake()
        if not taken:
            raise BlockingIOError
        self.taken += data[:taken]
        return taken

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        if flags & MSG_TRUNC:
            assert 0 < nbytes <= len(self._queue), "discarded what was never there"
            del self._queue[:nbytes]
            self._peeked = max(0, self._peeked - nbytes)
            return nbytes
        assert flags & MSG_PEEK
        data = self._queue[self._peeked : self._peeked + nbytes]
        if not data and not self.ended:
            raise BlockingIOError
        self._peeked += len(data) if self._peek_offset else 0
        buffer[: len(data)] = data
        return len(data)

    def recvmsg_into(
        self, buffers: Iterable[memoryview], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[ControlMessage], int, Any]:
        if not self._queue and not self.ended:
            raise BlockingIOError
        at = 0
        for buffer in buffers:
            data = self._queue[at : at + len(buffer)]
            buffer[: len(data)] = data
            at += len(data)
        return at, [], 0, None

    def shutdown(self, how: int, /) -> None:
        self.shut = True
        self._wake()

    def setsockopt(self, level: int, optname: int, value: int | bytes, /) -> None:
        if optname == SO_PEEK_OFF:
            self._peeked = 0
        if optname == SO_LINGER:
            self.was_reset = True

    def getsockopt(self, level: int, optname: int, /) -> int:
        return 0

    def getsockname(self) -> Any:
        return ("192.0.2.3", 50000)


class World:
    """One connection from end to end.

    :param guest: what the guest does.
    :param remote: what the remote end does.
    :param down: fates of the guest's first segments; later ones are ordinary.
    :param up: likewise for segments to the guest.
    :param inbound: whether the remote end opens the connection.
    :param peek_offset: whether the socket knows what was peeked before.
    :param limit: bytes that the proxy may promise.
    :param fills: after how many runs the link is full for a while, time and again; 0 for never.
    :param stream: whether segments that follow each other are taken together.
    """

    recorder: Recorder | None = None
    ready = True
    full = False
    connects = EPOLLOUT
    """Events of the socket when its connect has ended."""

    def __init__(
        self,
        guest: Guest,
        remote: Remote,
        down: Iterable[Fate] = (),
        up: Iterable[Fate] = (),
        inbound: bool = False,
        peek_offset: bool = True,
        limit: int = 1 << 20,
        fills: int = 0,
        stream: bool = False,
    ) -> None:
        self.clock = Clock()
        self.guest = GuestTcp(guest, self.clock, self._from_guest)
        self.epoll = Ready()
        told = Told(guest_network(), GUEST_MAC)
        self.counters = Counters()
        self.table = ConnectionTable()
        self.deadlines = TcpDeadlines(
            self.clock.at, lambda item, work: self.sockets.mark(item, work), lambda: self.sockets.ask(), lambda: 0.0
        )
        self.sockets = TcpSockets(
            TcpWriter(self, told, TapPeeker(), peek_offset),
            self.table,
            self.epoll,
            self.counters,
            lambda connection, number: False,
            self._again,
            self.clock.at,
            self.deadlines.arm,
            lambda: self.clock.now,
            lambda: 0.0,
        )
        # Nothing comes to the opener.
        self.frames = TcpFrames(self.table, self.sockets, cast(TcpOpener, None), self, told, self.counters)
        self._stream = stream
        self._batch: list[bytes] = []
        self.connection = Watched(State.SYN_SENT if inbound else State.CONNECTING, limit=limit)
        self.host = HostSocket(remote, self.clock, self.event, peek_offset)
        self._inbound = inbound
        self._down, self._up = iter(down), iter(up)
        self._fills, self._runs = fills, 0
        self._asked = False
        self._limit: int | None = None  # right edge of the guest's window, the furthest that the proxy has heard of
        self._closed_window = False
        self._edge: int | None = None  # right edge of the proxy's window
        self._guest_scale = 0
        self._scale = 0

    def start(self) -> None:
        """Open the connection."""
        if self._inbound:
            self._enter()
            self.sockets.mark(self.connection, self.connection.greeted())
            self.host.turn()
            self._again()
        else:
            self.guest.open()

    @property
    def over(self) -> bool:
        """Whether both ends have ended, and nothing is left of the connection."""
        return not len(self.table) and self.host.closed and (self.guest.finished or self.guest.was_reset)

    def _enter(self) -> None:
        self.connection.socket = self.host
        self.table.add(self.connection)
        self.sockets.watch(self.connection)

    def _again(self) -> None:
        if not self._asked:
            self._asked = True
            self.clock.after(0.0, self._step)

    def _step(self) -> None:
        self._asked = False
        self.sockets.step()

    def event(self, event: int) -> None:
        """Let the socket have events."""
        self.epoll.events.append((self.host.fileno(), event))
        self._again()

    def _from_guest(self, data: bytes) -> None:
        fate = next(self._down, ORDINARY)
        for _ in range(fate.copies):
            self.clock.after(LINK_SECONDS + fate.seconds, lambda: self._arrived(data))

    def _arrived(self, data: bytes) -> None:
        self._batch.append(data)
        if len(self._batch) == 1:
            self.clock.after(0.0, self._take)

    def _take(self) -> None:
        """Take the segments that arrived together, as the readers of a tap and of a stream do."""
        batch, self._batch = self._batch, []
        frames = [wrap(HOST_MAC, GUEST_MAC, ip(GUEST4), ip(SERVER4), PROTOCOL_TCP, data) for data in batch]
        buffer = bytearray(STREAM_LEAD_BYTES)
        for frame in frames:
            buffer += len(frame).to_bytes(STREAM_LENGTH_BYTES, "big") + frame
        view = memoryview(buffer)
        at = 0
        while batch:
            size = VIRTIO_NET_CODEC.size + len(frames[0])
            segment = parse(memoryview(batch[0]))
            self._heard(segment.flags, segment.acknowledgement, segment.window, segment.options)
            taken = self.frames.frame(buffer, view, at, size, len(buffer) if self._stream else 0)
            if not taken:
                self._unknown(batch[0], segment)
            at += max(taken, 1) * (STREAM_LENGTH_BYTES + len(frames[0]))
            del batch[: max(taken, 1)], frames[: max(taken, 1)]
        self._again()

    def _unknown(self, data: bytes, segment: Segment) -> None:
        """Take a segment of no connection."""
        if not self._inbound and not self.host.closed:
            if segment.flags & SYN:
                self.connection.opened(segment.sequence, parse_options(segment.options), segment.window)
                self._enter()
                self.clock.after(0.003, lambda: self.host.turn(self.connects))
            return
        frame = reset(Packet(4, ip(GUEST4), ip(SERVER4), PROTOCOL_TCP, memoryview(data), 64), GUEST_MAC, HOST_MAC)
        if frame is not None:
            self._to_guest(frame)

    def _heard(self, flags: int, acknowledgement: int, window: int, options: bytes) -> None:
        """Take note of the window that the guest promises."""
        scale = self._guest_scale
        if flags & SYN:
            scale, self._guest_scale = 0, parse_options(options).scale or 0
        if flags & ACK:
            edge = (acknowledgement + (window << scale)) & MASK
            self._limit = edge if self._limit is None or _ahead(edge, self._limit) > 0 else self._limit

    # --- The link -----------------------------------------------------------------------------------------------------

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        for frame in split(bytes(header.fill(total, segment)) + b"".join(payload)):
            self._checked(frame)
        self._runs += 1
        if self._fills and self._runs % self._fills == 0:
            self.full = True
            self.clock.after(0.005, self._emptied)

    def write_bare(self, header: RunHeader) -> None:
        for frame in split(bytes(header.fill(0, 0))):
            self._checked(frame)

    def write_frame(self, frame: bytes) -> None:
        (whole,) = split(bytes(VIRTIO_NET_CODEC.size) + frame)
        self._checked(whole)

    def flush(self) -> None:
        pass

    def _emptied(self) -> None:
        self.full = False
        self.sockets.resume()

    def _checked(self, frame: bytes) -> None:
        """Check a segment of the proxy, and send it."""
        data = parse_ip(memoryview(frame)).payload
        segment = parse(data)
        size = len(segment.payload) + bool(segment.flags & FIN)
        scale = self._scale
        if segment.flags & SYN:
            scale, offered = 0, parse_options(segment.options).scale
            self._scale = (offered or 0) if self.guest.guest.scale is not None else 0
        if size:
            assert self._limit is not None
            beyond = _ahead((segment.sequence + size) & MASK, self._limit)
            assert beyond <= 0 or size == 1, f"{beyond} bytes outside of the window"
            assert len(segment.payload) <= self.guest.guest.mss
        if segment.flags == SYN | ACK or (segment.flags & ACK and not segment.flags & 4 and self._guest_known):
            edge = (segment.acknowledgement + (segment.window << scale)) & MASK
            assert self._edge is None or _ahead(edge, self._edge) >= 0, "the right edge moved back"
            self._edge = edge
        self._to_guest(frame)

    @property
    def _guest_known(self) -> bool:
        return self.connection.established

    def _to_guest(self, frame: bytes) -> None:
        data = bytes(parse_ip(memoryview(frame)).payload)
        fields = TCP_CODEC.unpack_from(data)
        start = 4 * fields["data_offset"]
        fate = next(self._up, ORDINARY)
        for _ in range(fate.copies):
            self.clock.after(LINK_SECONDS + fate.seconds, lambda: self.guest.take(fields, data[20:start], data[start:]))


def _ahead(newer: int, older: int) -> int:
    """Return how far a sequence number is ahead of another one."""
    return (newer - older + (1 << 31)) % (1 << 32) - (1 << 31)
