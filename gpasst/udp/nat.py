"""The guest path: what the first datagram between a guest's port and a peer sets up.

Theory of operation: the data path looks peers up by raw header bytes and never comes here for one it knows. For one it
does not know it asks `UdpNat`:

1. `outbound`, for a datagram from the guest: choose the target (`addresses`), find or open the mapping's host socket
   and store the peer. If the guest's port is the target of a general forward, its listener is the mapping's socket, so
   that what the guest sends from a forwarded port leaves from the forwarding one (seed rule 7.1.2).
2. `inbound`, for a datagram to a host socket: choose what the guest sees (`addresses`), and store the peer. A sender
   that would look like another one is shown under another port (E-39).
3. A peer uses another host socket of its mapping than the first where that one already has a peer with the same remote
   end that the guest knows by another name.
4. No mapping hears itself (E-41): one that begins with the host's port of the same number gets another port, and what
   would reach a port that the mapping already holds is dropped, since nobody else can be there.

Sockets are opened and closed by whoever drives this, through the two functions it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import GuestNetwork
from gpasst.flow.translation import Addresses, Target
from gpasst.packet.address import BROADCAST_MAC, UNSPECIFIED, is_loopback, is_multicast
from gpasst.udp.header import Header
from gpasst.udp.mapping import Mapping, Peer, Table, UdpSocket, down_key, free_port

# Opens a host socket of a family, at the wanted port if it is free; raises PacketError.
OpenSocket = Callable[[int, int], UdpSocket]
CloseSocket = Callable[[UdpSocket], None]
# Gives the raw sender key under which datagrams of (address, port, scope) arrive.
SenderKey = Callable[[int, bytes, int, int], bytes]


class UdpNat:
    """All UDP state between one guest and the host.

    :param network: the guest's network.
    :param open_socket: opens host sockets.
    :param close_socket: closes them.
    :param sender_key: gives raw sender keys.
    :param guest_mac: the guest's MAC address, None while unknown.
    :param guest_link_local: the guest's IPv6 link-local address, None while unknown.
    :param filtered: admit only senders whose address the guest has sent to (RFC 4787, address-dependent filtering).
    :param now: monotonic seconds.
    """

    def __init__(
        self,
        network: GuestNetwork,
        open_socket: OpenSocket,
        close_socket: CloseSocket,
        sender_key: SenderKey,
        guest_mac: bytes | None = None,
        guest_link_local: bytes | None = None,
        filtered: bool = False,
        now: int = 0,
    ) -> None:
        self.network = network
        self.addresses: dict[int, Addresses] = {}
        self.tables: dict[int, Table] = {}
        for family_network in (network.ip4, network.ip6):
            if family_network:
                family = family_network.family
                self.addresses[family] = Addresses(family_network, guest_link_local if family == 6 else None)
                self.tables[family] = Table(now)
        # Listeners on every address, by family and the guest's port; each may be a mapping's socket.
        self._general: dict[tuple[int, int], UdpSocket] = {}
        self.guest_mac = guest_mac or BROADCAST_MAC
        self._open = open_socket
        self._close = close_socket
        self._sender_key = sender_key
        self._filtered = filtered

    def learn_mac(self, mac: bytes) -> None:
        """Send upward frames to `mac` from now on."""
        if mac != self.guest_mac:
            self.guest_mac = mac
            for table in self.tables.values():
                for peer in table:
                    peer.header.readdress(mac)

    def outbound(self, family: int, guest: bytes, destination: bytes, guest_port: int, port: int) -> Peer:
        """Set up the peer of a datagram from the guest.

        :param family: 4 or 6.
        :param guest: source address of the packet.
        :param destination: destination address of the packet.
        :param guest_port: source port.
        :param port: destination port.
        :raises PacketError: if the datagram must be dropped.
        """
        if is_loopback(guest):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        if guest == UNSPECIFIED[family] or is_multicast(guest):
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        if not guest_port:
            raise PacketError(Drop.SOURCE_PORT_ZERO)
        if not port:
            raise PacketError(Drop.DESTINATION_PORT_ZERO)
        addresses, table = self.addresses[family], self.tables[family]
        addresses.learn(guest)
        target = addresses.to_host(destination, port)
        key = self._sender_key(family, target.address, port, target.scope)
        mapping = table.mappings.get((guest, guest_port)) or self._mapping(guest, guest_port)
        udp_socket = self._socket_for(family, mapping, target, port, key)
        if mapping.admitted is not None:
            mapping.admitted.add(target.address)
        header = self._header(family, destination, guest, port, guest_port)
        peer = Peer(mapping, udp_socket, (destination, port), (target.address, port, target.scope), b"", header)
        self._close_all(table.add(peer, key))
        return peer

    def inbound(self, udp_socket: UdpSocket, key: bytes, source: bytes, port: int, scope: int, local: bytes) -> Peer:
        """Set up the peer of a datagram that reached a host socket.

        :param udp_socket: the socket.
        :param key: the sender's raw key, as it arrived.
        :param source: the sender's address.
        :param port: the sender's port.
        :param scope: interface index of a link-local sender, else 0.
        :param local: the host's address that was addressed; empty where the socket does not tell.
        :raises PacketError: if the datagram must be dropped.
        """
        family = udp_socket.family
        addresses, table = self.addresses[family], self.tables[family]
        answering: Peer | None = udp_socket.peers.get(self._sender_key(family, source, port, scope))
        if answering is not None and answering.local in (b"", local):
            # The guest spoke first, and only now is it known which address of the host it speaks from.
            answering.local = local
            answering.send = None
            table.alias(answering, key)
            return answering
        if source == UNSPECIFIED[family]:
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        mapping = udp_socket.mapping
        if mapping is not None and mapping.admitted is not None and source not in mapping.admitted:
            raise PacketError(Drop.FILTERED)
        shown = addresses.to_guest(source)
        if mapping is None:
            guest, guest_port = udp_socket.target_address or shown.destination, udp_socket.target
            mapping = table.mappings.get((guest, guest_port)) or self._mapping(guest, guest_port)
            if not mapping.sockets and udp_socket.general and not udp_socket.target_address:
                mapping.sockets.append(udp_socket)
        guest, guest_port = mapping.guest, mapping.port
        shown_port = port
        if down_key(guest, shown.source, guest_port, port) in table.down:
            shown_port = free_port(table, guest, shown.source, guest_port, port)
        header = self._header(family, shown.source, guest, shown_port, guest_port)
        peer = Peer(mapping, udp_socket, (shown.source, shown_port), (source, port, scope), local, header)
        self._close_all(table.add(peer, key))
        return peer

    def scan(self, now: int, timeout: int) -> int:
        """Let go of what has been idle for more than `timeout` seconds at `now`; give how many mappings ended."""
        ended = 0
        for table in self.tables.values():
            expired = table.scan(now, timeout)
            self._close_all(expired.sockets)
            ended += expired.mappings
        return ended

    def listen(self, listener: UdpSocket) -> None:
        """Take note of a new listener; it stays its owner's to close."""
        if listener.general and not listener.target_address:
            self._general.setdefault((listener.family, listener.target), listener)

    def retire(self, listener: UdpSocket) -> None:
        """Forget a listener that is about to be closed, and every peer whose datagrams pass it."""
        if self._general.get((listener.family, listener.target)) is listener:
            del self._general[listener.family, listener.target]
        table = self.tables[listener.family]
        for peer in {peer for peer in listener.peers.values() if isinstance(peer, Peer)}:
            if listener in peer.mapping.sockets:
                peer.mapping.sockets.remove(listener)
            self._close_all(table.remove(peer))

    def close(self) -> None:
        """Forget everything and close every socket but the listeners."""
        for table in self.tables.values():
            for peer in list(table):
                self._close_all(table.remove(peer))

    def _mapping(self, guest: bytes, port: int) -> Mapping:
        mapping = Mapping(guest, port)
        if self._filtered:
            mapping.admitted = set()
        return mapping

    def _socket_for(self, family: int, mapping: Mapping, target: Target, port: int, key: bytes) -> UdpSocket:
        """Choose the host socket for a new peer of `mapping`; open one if none will do."""
        if not mapping.sockets:
            listener = self._general.get((family, mapping.port))
            if listener is not None:
                mapping.sockets.append(listener)
            else:
                avoid = port if target.own else 0
                mapping.sockets.append(self._own(family, mapping, mapping.port, avoid))
        if target.own and any(udp_socket.port == port for udp_socket in mapping.sockets):
            raise PacketError(Drop.HAIRPIN)
        for udp_socket in mapping.sockets:
            if key not in udp_socket.peers:
                return udp_socket
        spare = self._own(family, mapping, 0, port if target.own else 0)
        mapping.sockets.append(spare)
        return spare

    def _own(self, family: int, mapping: Mapping, port: int, avoid: int) -> UdpSocket:
        """Open a host socket for `mapping` at `port`, or at another one if it must `avoid` that."""
        udp_socket = self._open(family, 0 if port == avoid else port)
        if udp_socket.port == avoid:
            # By chance; while this one is held, the kernel gives another.
            unlucky = udp_socket
            try:
                udp_socket = self._open(family, 0)
            finally:
                self._close(unlucky)
        udp_socket.mapping = mapping
        return udp_socket

    def _close_all(self, sockets: Iterable[UdpSocket]) -> None:
        for udp_socket in sockets:
            self._close(udp_socket)

    def _header(self, family: int, source: bytes, guest: bytes, port: int, guest_port: int) -> Header:
        return Header(family, self.guest_mac, self.network.host_mac, source, guest, port, guest_port)
