"""New connections: those that the guest opens, and those that a forward accepts.

Theory of operation: the guest's SYN is answered when the host's socket is connected, so the guest learns what the
remote end says: a SYN+ACK, a RST where it was refused, an ICMP error where there is no way there. A client of a forward
has been accepted by the host's kernel before the guest is asked; a guest that refuses shows as a connection that is
reset.

The target follows `gpasst.flow.translation`, as for every protocol, and is stored with the connection. A client that
would look like another one to the guest is shown under another port.
"""

from __future__ import annotations

import errno
import logging
from _socket import socket as RawSocket  # a class
from collections.abc import Callable
from typing import Protocol

from gpasst.counters import Counters, Drop
from gpasst.errors import GpasstError, PacketError
from gpasst.flow.guest import Guest
from gpasst.flow.key import down_key, split
from gpasst.flow.sender import SocketAddress
from gpasst.host.descriptors import Descriptors
from gpasst.host.sockets import socket_address
from gpasst.host.tcp import close_with_reset, local_port, open_outbound, prepare
from gpasst.packet.address import family_of
from gpasst.packet.icmp_error import quoted_packet
from gpasst.packet.parse import Packet
from gpasst.packet.refusal import refusal
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.tcp.connection import Connection
from gpasst.tcp.isn import Hash, initial_sequence
from gpasst.tcp.segment import SEQUENCE_MASK, Segment, parse_options
from gpasst.tcp.states import State
from gpasst.tcp.table import ConnectionTable
from gpasst.tcp.window import Budget
from gpasst.wire import PROTOCOL_TCP, TCP_CODEC, TCP_SYN

PORTS_TRIED = 64  # to show a client under, where its own is taken
PORT_MAXIMUM = 0xFFFF

log = logging.getLogger(__name__)


class ServedStreams(Protocol):
    """A service of the program, which accepts connections of the guest on a socket that nobody else can reach."""

    @property
    def address(self) -> SocketAddress:
        """The address of its listener."""

    def socket(self) -> RawSocket:
        """Return a socket that can be connected to its listener.

        :raises OSError: if this process may open no more descriptors.
        :raises GpasstError: if none can be had.
        """

    def expect(self, port: int, guest: tuple[bytes, int]) -> None:
        """Take note that the client at a port of that socket stands for an address and port of the guest."""


class TcpOpener:
    """Opens connections.

    :param guest: the guest.
    :param table: the connections.
    :param sockets: does their work.
    :param icmp: reports to the guest that there is no way to a host.
    :param descriptors: closes idle sockets near the limit of open files.
    :param limits: payload bytes of the largest segment that the link carries, by family.
    :param peek_offset: whether sockets know what was peeked before.
    :param hashed: hashes keys for initial sequence numbers.
    :param counters: where drops are counted.
    :param clock: returns monotonic seconds.
    :ivar served: services of the program, by address and port.
    """

    def __init__(
        self,
        guest: Guest,
        table: ConnectionTable,
        sockets: TcpSockets,
        icmp: IcmpToGuest,
        descriptors: Descriptors,
        limits: dict[int, int],
        peek_offset: bool,
        hashed: Hash,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._guest = guest
        self._table = table
        self._sockets = sockets
        self._icmp = icmp
        self._descriptors = descriptors
        self._limits = limits
        self._peek_offset = peek_offset
        self._hashed = hashed
        self._drop = counters.drop  # one object for all connections
        self._clock = clock
        self._budget = Budget()
        self.served: dict[tuple[bytes, int], ServedStreams] = {}

    def outbound(self, packet: Packet, segment: Segment, key: bytes) -> None:
        """Open a connection for a SYN of the guest.

        :param packet: the packet that has it.
        :param segment: the SYN.
        :param key: the connection's key.
        :raises PacketError: if the connection must not be, or no socket can be had.
        """
        addresses = self._guest.addresses[packet.family]
        _, _, guest_port, port = split(key)
        target = addresses.outbound(packet.source, guest_port, packet.destination, port, multicast=False)
        if packet.destination in self._guest.network.broadcasts:
            raise PacketError(Drop.NOT_UNICAST)
        now = self._clock()
        self._make_room(now)
        served = self.served.get((packet.destination, port))
        sock = self._socket(lambda: open_outbound(addresses.network) if served is None else served.socket())
        remote = (target.address, port, target.scope) if served is None else (packet.destination, port, 0)
        connection = self._connection(key, State.CONNECTING, remote, now)
        connection.opened(segment.sequence, parse_options(segment.options), segment.window)
        number = sock.connect_ex(socket_address(*remote) if served is None else served.address)
        if served is not None:
            served.expect(local_port(sock), (packet.source, guest_port))
        self._enter(connection, sock)
        if number == 0:
            self._sockets.mark(connection, self._table.connected(connection))
        elif number != errno.EINPROGRESS:
            self._sockets.mark(connection, self._sockets.unconnected(connection, number))
        elif target.own or served is not None:
            # The host itself has answered by now, in most cases.
            self._sockets.look()
        self._sockets.ask()

    def inbound(
        self, sock: RawSocket, family: int, source: bytes, port: int, scope: int, target: int, target_address: bytes
    ) -> None:
        """Open a connection to the guest for an accepted client.

        :param sock: the accepted socket, closed if an error is raised.
        :param family: 4 or 6.
        :param source: the client's address.
        :param port: the client's port.
        :param scope: interface index of a link-local client, else 0.
        :param target: the guest's port.
        :param target_address: the guest's address, empty for its own.
        :raises PacketError: if the connection must not be.
        """
        try:
            now = self._clock()
            view = self._guest.addresses[family].to_guest(source, target_address)
            self._make_room(now)
            key = self._free_key(view.destination, view.source, target, port)
            prepare(sock, self._peek_offset)
            connection = self._connection(key, State.SYN_SENT, (source, port, scope), now)
        except OSError as error:
            close_with_reset(sock)
            raise PacketError(Drop.NO_SOCKET, f"no client: {error.strerror}") from error
        except BaseException:
            close_with_reset(sock)
            raise
        self._enter(connection, sock)
        self._sockets.mark(connection, connection.greeted())
        self._sockets.ask()

    def failed(self, connection: Connection, number: int) -> bool:
        """Report to the guest that a connect failed with the errno `number`; return whether that was an ICMP error.

        A guest that sends its SYN again is answered again.
        """
        family = connection.family
        problem = refusal(number).problem(family)
        if problem is None:
            return False
        guest, shown, guest_port, port = connection.ends
        header = TCP_CODEC.pack(
            source=guest_port,
            destination=port,
            sequence=(connection.receiver.acknowledged - 1) & SEQUENCE_MASK,
            acknowledgement=0,
            flags=TCP_SYN,
            window=0,
        )
        offender = self._icmp.shown(family, b"")
        self._icmp.report(problem, offender, guest, quoted_packet(guest, shown, PROTOCOL_TCP, header))
        return True

    def held(self) -> int:
        """Return the number of connections."""
        return len(self._table)

    def let_go(self) -> bool:
        """End the connection that was idle longest; return whether a descriptor is free then."""
        return self._end(self._table.longest_idle())

    def _end(self, connection: Connection | None) -> bool:
        """End a connection that gives way to others; return whether there is one."""
        if connection is None:
            return False
        self._drop(Drop.CONNECTIONS_FULL)
        self._sockets.end(connection)
        return True

    def _make_room(self, now: float) -> None:
        if self._table.full:
            self.let_go()
        self._end(self._table.unanswered(now))

    def _socket(self, opened: Callable[[], RawSocket]) -> RawSocket:
        """Return a socket for a connection of the guest, which `opened` opens.

        :raises PacketError: if none can be had.
        """
        try:
            sock = self._descriptors.make(opened)
            try:
                prepare(sock, self._peek_offset)
                settled = self._descriptors.settle(sock)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise PacketError(Drop.NO_SOCKET, f"no host socket: {error.strerror}") from error
        except GpasstError as error:
            raise PacketError(Drop.NO_SOCKET, f"no socket to a service: {error}") from error
        assert isinstance(settled, RawSocket)
        return settled

    def _connection(self, key: bytes, state: State, remote: tuple[bytes, int, int], now: float) -> Connection:
        family = family_of(remote[0])
        start = initial_sequence(self._hashed(key), now)
        return Connection(key, state, None, start, self._budget, self._limits[family], remote, now, self._drop)

    def _enter(self, connection: Connection, sock: RawSocket) -> None:
        """Enter a new connection, whose socket is closed if an error is raised.

        :raises PacketError: if the kernel watches no more sockets.
        """
        connection.socket = sock
        try:
            self._sockets.watch(connection)
        except OSError as error:
            # As epoll_ctl(2) says: no memory, or as many watches as the user may have.
            connection.release()
            close_with_reset(sock)
            raise PacketError(Drop.NO_SOCKET, f"no watch: {error.strerror}") from error
        self._table.add(connection)

    def _free_key(self, guest: bytes, shown: bytes, guest_port: int, port: int) -> bytes:
        """Return the key of a connection to the guest, with another port of the client if its own is taken.

        :raises PacketError: `Drop.PORTS_EXHAUSTED`, if none is free.
        """
        for distance in range(PORTS_TRIED):
            candidate = (port - 1 + distance) % PORT_MAXIMUM + 1
            key = down_key(guest, shown, guest_port, candidate)
            if key not in self._table.by_key:
                return key
        raise PacketError(Drop.PORTS_EXHAUSTED)
