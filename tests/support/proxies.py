"""All of a proxy that a guest's frames reach, between a link that checks what it carries and sockets that are objects.

Nothing leaves the process, no clock is read, and what is random in a proxy is constant here: the same frames, the same
outcome. A program at the remote end of each connection follows a script (`tests.support.tcp_world`).
"""

from __future__ import annotations

import errno
import os
from _socket import socket as RawSocket  # a class
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, cast
from unittest.mock import patch

from gpasst.counters import Counters
from gpasst.features import ALL, Feature
from gpasst.flow.guests import Guests
from gpasst.formats import (
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)
from gpasst.host.descriptors import Descriptors
from gpasst.host.peek import TapPeeker
from gpasst.host.receive import sender_key
from gpasst.link.impaired import Impaired
from gpasst.link.stream import Stream
from gpasst.linux import EPOLLOUT
from gpasst.packet import icmp_error
from gpasst.path.backlog import Backlog, Queue
from gpasst.path.dispatch import Dispatch
from gpasst.path.fastpath import FastPath
from gpasst.path.icmp_handler import IcmpHandler
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.impairment_answers import ImpairmentAnswers
from gpasst.path.ping_sockets import PingSockets
from gpasst.path.service_handlers import ServiceHandlers
from gpasst.path.stream_reader import StreamReader
from gpasst.path.tcp_deadlines import TcpDeadlines
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.path.tcp_writer import TcpWriter
from gpasst.path.udp_sockets import UdpSockets
from gpasst.path.uplink_reader import UplinkReader
from gpasst.records import replace
from gpasst.services import chatter, dhcpv6, ndp
from gpasst.tcp.table import ConnectionTable
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.wire import MLD_TYPES
from tests.support.addresses import HOST_MAC
from tests.support.checked import CheckedLink
from tests.support.nat import Host, Opener
from tests.support.tcp import LIMITS, Ready
from tests.support.tcp_guest import Clock
from tests.support.tcp_world import HostSocket, Remote

DUID = dhcpv6.duid(HOST_MAC, 700_000_000)
DATAGRAM_LIMIT = 65507  # bytes that a host's socket takes
RAW_LIMIT = 1280  # bytes that a raw socket takes here
STEPS_LIMIT = 10_000  # of the proxy's own, after which it does not come to rest
NOW = 1000  # seconds
CONNECT_SECONDS = 0.001

Sent = tuple[int, Any, bytes]  # port, address, payload


class DatagramSocket:
    """A host's socket that takes what is sent, as far as a datagram can hold it.

    :param port: its port; 0 for a ping socket.
    :param sent: where what it sends is kept.
    """

    def __init__(self, port: int, sent: list[Sent]) -> None:
        self._port = port
        self._sent = sent

    def fileno(self) -> int:
        return 0

    def sendto(self, payload: Any, address: Any) -> int:
        if len(payload) > DATAGRAM_LIMIT:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self._sent.append((self._port, address, bytes(payload)))
        return len(payload)

    def sendmsg(self, pieces: Iterable[Any], control: Any = (), flags: int = 0, address: Any = None) -> int:
        del control, flags
        pieces = list(pieces)
        self._sent += [(self._port, address, bytes(piece)) for piece in pieces]
        return sum(map(len, pieces))

    def recvmsg(self, *_: int) -> Any:
        raise BlockingIOError

    def close(self) -> None:
        """Nothing is held."""


class DatagramSockets(Host):
    """Host sockets of UDP by port, and all that was sent.

    :param guests: the hosts of a network, in the place of a single guest.
    """

    def __init__(self, guests: Guests | None = None) -> None:
        self.sent: list[Sent] = []
        super().__init__()
        if guests is not None:
            guests.ask = _ignore
            self.guest = guests
            self.path = UdpNat(guests, Opener(self), sender_key, now=NOW)

    def open_socket(self, family: int, port: int) -> UdpSocket:
        udp_socket = super().open_socket(family, port)
        udp_socket.socket = cast(Any, DatagramSocket(udp_socket.port, self.sent))
        return udp_socket


class Program(HostSocket):
    """A socket of a connection, and the program at its other end.

    :param number: what stands for its descriptor.
    :param remote: the program.
    :param clock: its time.
    :param ready: where its events are reported.
    :param outcome: errno of its connect; 0 for one that succeeds, but later.
    """

    def __init__(self, number: int, remote: Remote, clock: Clock, ready: Ready, outcome: int) -> None:
        super().__init__(remote, clock, lambda event: ready.events.append((number, event)), True)
        self._number = number
        self._outcome = outcome
        if not outcome:
            clock.after(CONNECT_SECONDS, lambda: self.turn(EPOLLOUT))

    def fileno(self) -> int:
        return self._number

    def setblocking(self, flag: bool, /) -> None:
        del flag

    def connect_ex(self, address: Any, /) -> int:
        del address
        return self._outcome or errno.EINPROGRESS


PROGRAM: Any = type("ProgramSocket", (Program, RawSocket), {})
"""The same as one of the kernel's sockets, without a descriptor."""


class Raw:
    """Raw sockets that take what is short."""

    def send(self, inside: bool, built: bytes, *_: Any) -> bool:
        del inside
        return len(built) <= RAW_LIMIT


class Pieces:
    """A stream as the guest filled it: so many bytes a receive."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.left = [piece for piece in pieces if piece]

    def recv_into(self, buffer: memoryview, room: int, flags: int) -> int:
        del flags
        assert 0 < room == len(buffer)
        if not self.left:
            raise BlockingIOError
        piece = self.left.pop(0)
        if len(piece) > room:
            self.left.insert(0, piece[room:])
        size = min(room, len(piece))
        buffer[:size] = piece[:size]
        return size


class Proxy:
    """The proxy of one guest.

    :ivar link: the guest's end.
    :ivar host: the sockets of UDP.
    :ivar counters: what it has counted.
    :ivar clock: its time.
    :ivar dispatch: takes a frame of no known flow.
    :ivar reader: takes the stream of a guest.
    :ivar uplink: takes frames of a switch, in the place of `reader`.
    :ivar table: the connections.
    :ivar opener: opens them.
    :ivar sockets: does their work.
    :ivar remote: the program at the other end of the next connection.
    :ivar programs: those of all connections.
    :ivar outcome: errno of the next connect, 0 for success.
    """

    def __init__(self, features: frozenset[Feature] = ALL, host: DatagramSockets | None = None) -> None:
        self.counters, self.link, self.clock = Counters(), CheckedLink(), Clock()
        self.host = host or DatagramSockets()
        self.remote, self.outcome = Remote(), 0
        link, guest, counters, clock = cast(Any, self.link), self.host.guest, self.counters, self.clock
        icmp = IcmpToGuest(link, guest, counters)
        network = guest.network
        if guest.many and network.ip6:
            # As `gpasst.proxy.build` has it: what is advertised is the prefix of the gateway.
            network = replace(network, ip6=replace(network.ip6, address=network.ip6.gateway))
        router, server = ndp.Router(network, True, 1500), dhcpv6.Server(network, DUID)
        services = ServiceHandlers(link, guest, router, True, server)
        ports = {(4, 67): services.dhcp, (6, 547): services.dhcpv6}
        udp = UdpSockets(self.host.path, link, icmp, None, {}, ports, counters, features)
        self.nat = udp.nat
        pings = PingSockets(link, guest, icmp, counters, _ignore, _ignore, lambda: NOW, Descriptors())
        self._pings = pings
        frames = self._tcp(link, icmp)
        to_sender = IcmpToSender(cast(Any, Raw()), udp.nat.tables, counters, frames.too_big)
        tcp = self.table, self.sockets, frames
        self._answers = ImpairmentAnswers(link, guest, udp.nat, icmp, to_sender, tcp, counters)
        by_type: dict[int, dict[int, Any]] = {4: {}, 6: dict.fromkeys(ndp.TYPES, services.ndp)}
        by_type[6].update(dict.fromkeys(MLD_TYPES, chatter.membership))
        for family, types in icmp_error.TYPES.items():
            by_type[family].update(dict.fromkeys(types, to_sender.take))
        handlers = {
            (4, chatter.PROTOCOL_IGMP): chatter.membership,
            (4, PROTOCOL_UDP): udp.outbound,
            (6, PROTOCOL_UDP): udp.outbound,
            (4, PROTOCOL_TCP): frames.outbound,
            (6, PROTOCOL_TCP): frames.outbound,
            (4, PROTOCOL_ICMP): IcmpHandler(by_type[4], pings.request).handle,
            (6, PROTOCOL_ICMPV6): IcmpHandler(by_type[6], pings.request).handle,
        }
        self.dispatch = Dispatch(guest, services.arp, handlers, counters, lambda: NOW)
        fastpath = FastPath(udp.nat.tables)
        self._asked: set[str] = set()
        self._backlog = Backlog(
            self.dispatch.frame,
            lambda frame: fastpath.knows(frame) or frames.knows(frame),
            lambda: self._asked.add("backlog"),
            counters,
            lambda: clock.now,
            guest.routers,
        )
        queue = Queue(self._backlog, lambda: self._asked.add("backlog"))
        self.uplink = UplinkReader(
            HOST_MAC,
            guest.routers,
            fastpath,
            udp,
            lambda: queue,
            lambda mac: True,
            counters,
            frames,
            lambda: clock.now,
        )
        self.reader = StreamReader(
            cast(Stream, self.link),
            fastpath,
            icmp,
            self._backlog,
            lambda: self._asked.add("reader"),
            counters,
            features,
            lambda: clock.now,
            frames,
        )

    def _tcp(self, link: Any, icmp: IcmpToGuest) -> TcpFrames:
        """Make the parts of TCP; return what takes the guest's segments."""
        guest, counters, clock = self.host.guest, self.counters, self.clock
        self.ready, self.table = Ready(), ConnectionTable()
        self.programs: list[Program] = []
        self._numbers = count()
        self._deadlines = TcpDeadlines(
            clock.at,
            lambda connection, work: self.sockets.mark(connection, work),
            lambda: self.sockets.ask(),
            lambda: 0.0,
        )
        self.sockets = TcpSockets(
            TcpWriter(link, guest, TapPeeker(), True),
            self.table,
            self.ready,
            counters,
            lambda connection, number: opener.failed(connection, number),
            lambda: self._asked.add("tcp"),
            clock.at,
            self._deadlines.arm,
            lambda: clock.now,
            lambda: 0.0,
        )
        opener = self.opener = TcpOpener(
            guest,
            self.table,
            self.sockets,
            icmp,
            Descriptors(),
            LIMITS,
            True,
            lambda key: 0,
            counters,
            lambda: clock.now,
        )
        return TcpFrames(self.table, self.sockets, opener, link, guest, counters)

    def opened(self, *_: Any) -> Program:
        """Return the socket of the next connection."""
        made: Program = PROGRAM(next(self._numbers), self.remote, self.clock, self.ready, self.outcome)
        self.programs.append(made)
        return made

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Let nothing leave the process while frames are carried."""
        with (
            patch("gpasst.path.ping_sockets.ping_socket", lambda *_: DatagramSocket(0, self.host.sent)),
            patch("gpasst.path.tcp_opener.open_outbound", self.opened),
        ):
            yield

    def weather(self) -> Impaired:
        """Return weather between the link and the rest, which has no rules yet."""
        clock = self.clock
        return Impaired(
            cast(Any, self.link),
            self.reader,
            self._answers,
            clock.at,
            False,
            self.counters,
            lambda: clock.now,
            _raise,
            lambda: 0.0,
        )

    def move(self, *pieces: bytes) -> None:
        """Let the guest send pieces of a stream, and move all of it."""
        self.link.socket = stream = Pieces(pieces)
        while stream.left:
            self.reader.step()
            self.rest()

    def rest(self) -> None:
        """Do all that was asked for, without letting time pass."""
        for _ in range(STEPS_LIMIT):
            if self.ready.events:
                self._asked.add("tcp")
            if not self._asked:
                return
            part = sorted(self._asked)[0]
            self._asked.remove(part)
            if part == "tcp":
                self.sockets.step()
            elif part == "backlog":
                self._backlog.step()
            else:
                self.reader.step()
        raise AssertionError("it does not come to rest")

    def wait(self, seconds: float) -> None:
        """Let time pass, and do what is due in it."""
        self.clock.pass_to(self.clock.now + seconds, self.rest)


def _ignore(*_: Any) -> None:
    """Watch nothing."""


def _raise(error: Exception) -> None:
    raise error
