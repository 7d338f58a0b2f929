"""The parts of TCP between a link and sockets, with an epoll set that reports what a test says."""

from __future__ import annotations

import errno
import socket
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, cast

from gpasst.counters import Counters
from gpasst.flow.guest import Guest
from gpasst.flow.sender import StreamSocket
from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN
from gpasst.host.descriptors import Descriptors
from gpasst.host.peek import Peeker, TapPeeker
from gpasst.host.tcp import accept, lacking
from gpasst.link.port import Link, RunHeader
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.path.tcp_writer import TcpWriter
from gpasst.tcp.connection import Connection
from gpasst.tcp.table import CONNECTIONS, ConnectionTable
from tests.support import bench
from tests.support.addresses import (
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    HOST_MAC,
    SERVER4,
    SERVER6,
    ip,
)
from tests.support.families import FAMILY, LOOPBACK
from tests.support.networks import guest_network
from tests.support.scripted_tcp import MASK, Segment, parse_tcp, tcp_frame

LIMITS = {4: 1460, 6: 1440}  # bytes of the largest segment
OURS = {4: GUEST4, 6: GUEST6}
THEIRS = {4: SERVER4, 6: SERVER6}
TARGET = 80  # the guest's port
VIRTIO = bytes(10)  # before each frame of a tap
ISN = 0xFFFFF000  # of the guest, so that the numbers wrap soon
MINIMUM = 60  # bytes of a frame
NEVER = float("inf")
_ports = count(40000)


class Ready:
    """An epoll set that reports what a test says.

    :ivar events: (descriptor, events) to report next.
    :ivar watched: descriptors in the set.
    :ivar refuses: what to raise instead of watching one more.
    """

    def __init__(self) -> None:
        self.events: list[tuple[int, int]] = []
        self.watched: set[int] = set()
        self.refuses: OSError | None = None

    def fileno(self) -> int:
        return -1

    def register(self, fd: int, eventmask: int, /) -> None:
        if self.refuses:
            raise self.refuses
        self.watched.add(fd)

    def unregister(self, fd: int, /) -> None:
        self.watched.remove(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self.watched.clear()


class Wire(bench.Link):
    """A link that keeps the segments that are written to it, and checks each.

    :ivar segments: of the guest's side, the oldest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.segments: list[Segment] = []

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        super().write_run(header, total, segment, payload)
        data = b"".join(payload)
        for at in range(0, total, segment):
            piece = data[at : at + segment]
            self._keep(bytes(header.fill_complete(piece, at))[len(VIRTIO) :] + piece)

    def write_bare(self, header: RunHeader) -> None:
        super().write_bare(header)
        self._keep(bytes(header.fill_complete(b""))[len(VIRTIO) :])

    def write_frame(self, frame: bytes) -> None:
        super().write_frame(frame)
        self._keep(frame)

    def take(self) -> list[Segment]:
        """Return the segments since the last call."""
        segments, self.segments = self.segments, []
        return segments

    def _keep(self, frame: bytes) -> None:
        segment = parse_tcp(frame.ljust(MINIMUM, b"\0"))
        if segment:
            self.segments.append(segment)


class TcpBench:
    """Everything between a guest's frames and sockets.

    :param link: the guest's end.
    :param guest: the guest.
    :param counters: all counters.
    :param clock: returns seconds.
    :param peeker: as the link wants it.
    :param peek_offset: whether sockets know what was peeked before.
    :param stopwatch: returns seconds, for the budget of a step.
    :param limit: of the table.
    :ivar asked: how often a step was asked for.
    :ivar later: (time, function) to be called.
    :ivar armed: connections whose deadline may have come forward.
    """

    def __init__(
        self,
        link: Link,
        guest: Guest,
        counters: Counters,
        clock: Callable[[], float] = lambda: 0.0,
        peeker: Peeker | None = None,
        peek_offset: bool = True,
        stopwatch: Callable[[], float] = lambda: 0.0,
        limit: int = CONNECTIONS,
    ) -> None:
        self.ready = Ready()
        self.table = ConnectionTable(limit)
        self.asked = 0
        self.later: list[tuple[float, Callable[[float], None]]] = []
        self.armed: list[Connection] = []
        self.descriptors = Descriptors()
        self.writer = TcpWriter(link, guest, peeker or TapPeeker(), peek_offset)
        self.sockets = TcpSockets(
            self.writer,
            self.table,
            self.ready,
            counters,
            lambda connection, number: self.opener.failed(connection, number),
            self._ask,
            lambda when, callback: self.later.append((when, callback)),
            lambda connection, now: self.armed.append(connection) if connection.socket else None,
            clock,
            stopwatch,
        )
        icmp = IcmpToGuest(link, guest, counters)
        self.opener = TcpOpener(
            guest,
            self.table,
            self.sockets,
            icmp,
            self.descriptors,
            LIMITS,
            peek_offset,
            lambda key: 0,
            counters,
            clock,
        )
        self.frames = TcpFrames(self.table, self.sockets, self.opener, link, guest, counters)

    def _ask(self) -> None:
        self.asked += 1


class House:
    """A guest, and connections between it and remote ends on the host's loopback.

    :ivar link: keeps what is written to the guest.
    :ivar time: seconds of the clock.
    :ivar lap: seconds of the stopwatch between two looks at it.
    :ivar tcp: the parts of TCP.
    """

    def __init__(self, peeker: Peeker | None = None, peek_offset: bool | None = None, limit: int = CONNECTIONS) -> None:
        self.link, self.counters = Wire(), Counters()
        self.guest = Guest(guest_network(), GUEST_MAC, ip(GUEST_LINK_LOCAL))
        self.time = self.lap = self._watch = 0.0
        offset = not lacking() if peek_offset is None else peek_offset
        self.tcp = TcpBench(
            self.link, self.guest, self.counters, lambda: self.time, peeker, offset, self._stopwatch, limit
        )
        self.sockets, self.frames, self.ready = self.tcp.sockets, self.tcp.frames, self.tcp.ready
        self._remotes: list[socket.socket] = []

    def accepted(self, family: int = 4) -> tuple[RawSocket, socket.socket]:
        """Return a socket on the host and its remote end, which are connected."""
        with socket.create_server((LOOPBACK[family], 0), family=FAMILY[family]) as server:
            remote = socket.create_connection(server.getsockname()[:2], 2)
            sock, *_ = accept(server)
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._remotes.append(remote)
        return sock, remote

    def join(self, family: int = 4, port: int = 0, window: int = 0xFFFF) -> Joined:
        """Make the handshake of a connection of a forward."""
        sock, remote = self.accepted(family)
        self.tcp.opener.inbound(sock, family, ip(THEIRS[family]), port or next(_ports), 0, TARGET, b"")
        connection = next(reversed(self.tcp.table.by_key.values()))
        return Joined(self, family, connection, remote, window)

    def run(self) -> list[Segment]:
        """Do all work; return what the guest gets."""
        self.sockets.run(NEVER)
        return self.link.take()

    def event(self, *events: tuple[Joined, int]) -> list[Segment]:
        """Let sockets have events; return what the guest gets."""
        self.ready.events += [(joined.fd, event) for joined, event in events]
        self.sockets.step()
        return self.link.take()

    def wait(self, seconds: float) -> list[Segment]:
        """Let time pass, and what is due; return what the guest gets."""
        self.time += seconds
        due, self.tcp.later = self.tcp.later, []
        for when, callback in due:
            assert when <= self.time
            callback(self.time)
        return self.link.take()

    def close(self) -> None:
        self.sockets.close()
        for remote in self._remotes:
            remote.close()

    def _stopwatch(self) -> float:
        self._watch += self.lap
        return self._watch


class Joined:
    """The guest's end of an established connection.

    :ivar connection: the connection.
    :ivar remote: its remote end.
    :ivar fd: its socket's descriptor.
    :ivar sequence: number of the guest's next byte.
    :ivar expected: number of the remote end's next byte.
    """

    def __init__(self, house: House, family: int, connection: Connection, remote: socket.socket, window: int) -> None:
        self.house, self.family, self.connection, self.remote = house, family, connection, remote
        assert connection.socket is not None
        self.fd = connection.socket.fileno()
        self.window = window
        remote.settimeout(2)
        (syn,) = house.run()
        assert syn.flags == TCP_SYN
        self.port = syn.source[1]
        self.sequence, self.expected = ISN, (syn.sequence + 1) & MASK
        self.say(TCP_SYN | TCP_ACK, options=b"\x02\x04\x05\xb4\x01\x03\x03\x00")
        (answer,) = house.run()
        self.sequence = (ISN + 1) & MASK
        assert (answer.flags, answer.acknowledgement) == (TCP_ACK, self.sequence)

    def frame(
        self,
        flags: int = TCP_ACK,
        payload: bytes = b"",
        ahead: int = 0,
        acknowledges: int = 0,
        options: bytes = b"",
        window: int = -1,
    ) -> bytes:
        """Return the frame of a segment, from its MAC address on."""
        numbers = self.sequence + ahead, self.expected + acknowledges
        ends = OURS[self.family], THEIRS[self.family]
        field = self.window if window < 0 else window
        return HOST_MAC + GUEST_MAC + tcp_frame(ends, (TARGET, self.port), numbers, flags, field, payload, options)

    def say(self, flags: int = TCP_ACK, payload: bytes = b"", **kinds: Any) -> None:
        """Let the guest send a segment, as for `frame`; `sequence` stays."""
        self.give(self.frame(flags, payload, **kinds))

    def give(self, frame: bytes) -> None:
        """Let a frame arrive that is taken as one of a known connection."""
        buffer = bytearray(VIRTIO + frame)
        assert self.house.frames.frame(buffer, memoryview(buffer), 0, len(buffer)) == 1

    def tell(self, payload: bytes, flags: int = TCP_ACK | TCP_PSH) -> None:
        """Let the guest send data in its place."""
        self.say(flags, payload)
        self.sequence = (self.sequence + len(payload) + bool(flags & TCP_FIN)) & MASK

    def hear(self, segments: list[Segment]) -> bytes:
        """Return the data of segments that are in order, without acknowledging it."""
        data = b""
        for segment in segments:
            assert segment.sequence == self.expected
            data += segment.payload
            self.expected = (self.expected + len(segment.payload)) & MASK
        return data


class Broken:
    """A socket that fails in some calls.

    :ivar sent: what it took.
    :ivar takes: how many bytes each send takes, 0 for none; all where there is none any more.
    """

    def __init__(self, sock: Any, **errors: int) -> None:
        self._sock = sock
        self._errors = errors
        self.takes: list[int] = []
        self.sent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        if name in self._errors:

            def fail(*_: object) -> None:
                raise OSError(self._errors[name], "as the test wants it")

            return fail
        return getattr(self._sock, name)

    def send(self, data: memoryview, flags: int = 0) -> int:
        return self.sendmsg([data])

    def sendmsg(self, pieces: Any, ancillary: Any = (), flags: int = 0) -> int:
        if "send" in self._errors:
            raise OSError(self._errors["send"], "as the test wants it")
        data = b"".join(pieces)
        take = self.takes.pop(0) if self.takes else len(data)
        if not take:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.sent.append(data[:take])
        return len(data[:take])


def breaks(joined: Joined, **errors: int) -> Broken:
    """Let calls of a connection's socket fail."""
    broken = Broken(joined.connection.socket, **errors)
    joined.connection.socket = cast(StreamSocket, broken)
    return broken


def was_reset(remote: socket.socket) -> bool:
    """Whether the remote end got a RST."""
    try:
        remote.recv(1)
    except ConnectionResetError:
        return True
    return False


@contextmanager
def house(peeker: Peeker | None = None, peek_offset: bool | None = None, limit: int = CONNECTIONS) -> Iterator[House]:
    """Yield a house that is closed in the end."""
    made = House(peeker, peek_offset, limit)
    try:
        yield made
    finally:
        made.close()
