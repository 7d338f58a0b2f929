"""The NAT of UDP: what the first datagram between a guest's port and a remote end sets up.

Theory of operation: the data path finds peers by raw header bytes and asks `UdpNat` only for an unknown one. In the
words of RFC 4787:

1. `outbound`, for a datagram of the guest: choose the target (`gpasst.flow.translation`), find or open the mapping's
   host socket (endpoint-independent mapping, REQ-1) and store the peer. If the guest's port is the target of a forward
   on every address, the forward's listener is the mapping's socket, so that datagrams from a forwarded port leave from
   the forwarding one (port preservation).
2. `inbound`, for a datagram to a host socket: apply the filtering (endpoint-independent, or address-dependent with
   ``--udp-filter address``), choose the addresses that the guest sees, and store the peer. A sender that would look
   like another one to the guest is shown under another port, so that no answer reaches the wrong one.
3. A peer uses another host socket of its mapping than the first where that one already has a peer with the same remote
   end that the guest knows by another name.
4. No hairpinning to oneself: a mapping that begins with the host's port of the same number gets another port, and a
   datagram to a port that the mapping itself holds is dropped, since no other program can be bound there.
5. An address and port that is `served` belongs to a service of the program. Its peers have sockets of their own kind,
   one each, and the mapping's is left alone.
6. `header` makes the headers of a peer at its first datagram upward.

A `SocketOpener` opens and closes the sockets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Protocol

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.flow.key import down_key, end_key, split
from gpasst.flow.translation import Target
from gpasst.packet.address import UNSPECIFIED
from gpasst.udp.header import NO_HEADER, Header
from gpasst.udp.mapping import Listener, Mapping, Peer, UdpSocket
from gpasst.udp.table import Table

MODELS = 256  # pairs of addresses whose headers are made once for all ports
PEERS_LOOKED_AT = 1024  # in half a millisecond

# Returns the raw sender key under which datagrams of (family, address, port, scope) arrive.
SenderKey = Callable[[int, bytes, int, int], bytes]
# Returns the socket between an address and port of the guest and a service.
ServedOpener = Callable[[bytes, int], UdpSocket]

SERVED_KEY = b""  # of the one peer of a service's socket


class SocketOpener(Protocol):
    """Opens and closes the host sockets of mappings."""

    def open(self, family: int, port: int) -> UdpSocket:
        """Open a host socket of `family`, at `port` if that is free, else at another one.

        :raises PacketError: if no socket can be had.
        """

    def close(self, udp_socket: UdpSocket) -> None:
        """Close a host socket that `open` returned."""


class UdpNat:
    """All UDP state between one guest and the host.

    :param guest: the guest.
    :param opener: opens host sockets.
    :param sender_key: builds raw sender keys.
    :param filtered: admit only senders whose address the guest has sent to (RFC 4787, address-dependent filtering).
    :param now: monotonic seconds.
    :ivar guest: the guest.
    :ivar tables: mappings and peers by family.
    :ivar served: what opens the sockets of services, by address and port.
    """

    def __init__(
        self,
        guest: Guest,
        opener: SocketOpener,
        sender_key: SenderKey,
        filtered: bool = False,
        now: int = 0,
    ) -> None:
        self.tables: dict[int, Table] = {family: Table(now) for family in guest.addresses}
        self.guest = guest
        self.served: dict[tuple[bytes, int], ServedOpener] = {}
        # Listeners on every address, by family, the address that they lead to (empty for the guest's own) and the
        # guest's port; each may be a mapping's socket.
        self._general: dict[tuple[int, bytes, int], Listener] = {}
        self._opener = opener
        self._sender_key = sender_key
        self._filtered = filtered

    def outbound(self, family: int, guest: bytes, destination: bytes, guest_port: int, port: int) -> Peer:
        """Set up the peer of a datagram from the guest.

        :param family: 4 or 6.
        :param guest: source address of the packet.
        :param destination: destination address of the packet.
        :param guest_port: source port.
        :param port: destination port.
        :raises PacketError: if the datagram must be dropped.
        """
        table = self.tables[family]
        target = self.guest.addresses[family].outbound(guest, guest_port, destination, port)
        mapping = table.mappings.get(end_key(guest, guest_port)) or self._mapping(guest, guest_port)
        served = self.served.get((destination, port))
        if served is not None:
            key, remote = SERVED_KEY, (destination, port, 0)
            udp_socket = served(guest, guest_port)
        else:
            key = self._sender_key(family, target.address, port, target.scope)
            remote = target.address, port, target.scope
            udp_socket = self._socket_for(family, mapping, target, port, key)
        peer = Peer(mapping, udp_socket, (destination, port), remote, b"")
        self._close_all(table.add(peer, key))
        return peer

    def inbound(self, udp_socket: UdpSocket, key: bytes, source: bytes, port: int, scope: int, local: bytes) -> Peer:
        """Set up the peer of a datagram that reached a host socket.

        :param udp_socket: the socket.
        :param key: the sender's raw key, as it arrived.
        :param source: the sender's address.
        :param port: the sender's port.
        :param scope: interface index of a link-local sender, else 0.
        :param local: the host's address that was addressed; empty where the socket does not report it.
        :raises PacketError: if the datagram must be dropped.
        """
        family = udp_socket.family
        addresses, table = self.guest.addresses[family], self.tables[family]
        answering = udp_socket.find(self._sender_key(family, source, port, scope))
        if answering is not None and answering.local in (b"", local):
            # The guest spoke first, and only now is it known which address of the host it speaks from.
            answering.local = local
            answering.sender = None
            answering.enter(key)
            return answering
        if source == UNSPECIFIED[family]:
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        mapping = udp_socket.mapping
        if mapping is not None and mapping.admitted is not None and source not in mapping.admitted:
            raise PacketError(Drop.FILTERED)
        if mapping is None:
            assert isinstance(udp_socket, Listener)
            view = addresses.to_guest(source, udp_socket.target_address)
            shown, guest, guest_port = view.source, view.destination, udp_socket.target
            mapping = table.mappings.get(end_key(guest, guest_port)) or self._mapping(guest, guest_port)
            if not mapping.sockets and udp_socket.general:
                mapping.sockets = [udp_socket]
        else:
            shown, guest, guest_port = addresses.shown(source), mapping.guest, mapping.port
        shown_port = port
        if down_key(guest, shown, guest_port, port) in table.down:
            shown_port = table.free_port(guest, shown, guest_port, port)
        peer = Peer(mapping, udp_socket, (shown, shown_port), (source, port, scope), local)
        self._close_all(table.add(peer, key))
        return peer

    def header(self, peer: Peer, tos_ttl: int) -> Header:
        """Return the headers of a peer's upward frames with a TOS and TTL that they do not have yet.

        :param peer: the peer; headers that are made now are kept in it.
        :param tos_ttl: as in `gpasst.udp.header`.
        """
        header = peer.header
        if header is NO_HEADER:
            guest, shown, guest_port, port = split(peer.down_key)
            mac, host_mac = self.guest.mac_of(guest), self.guest.network.host_mac
            model = _model(peer.udp_socket.family, mac, host_mac, shown, guest, tos_ttl)
            header = peer.header = model.between(port, guest_port, mac)
        elif header.tos_ttl != tos_ttl:
            header.set_tos_ttl(tos_ttl)
        return header

    def rebind(self, mapping: Mapping) -> None:
        """Give a mapping's own sockets other ports, as a NAT does that has lost its state; its peers stay.

        :raises PacketError: if no socket can be had; the mapping keeps what it has.
        """
        for old in mapping.sockets:
            if old.mapping is not mapping or old.served:
                continue
            # The old one is still bound, so the kernel chooses another port.
            new = self._opener.open(old.family, 0)
            mapping.sockets = [new if other is old else other for other in mapping.sockets]
            new.mapping, old.mapping = mapping, None
            new.take_over(old)
            for peer in new.peers():
                peer.udp_socket, peer.sender = new, None
            self._opener.close(old)

    def scan(self, now: int, timeout: int) -> Iterator[int]:
        """Let go of what has been idle for more than `timeout` seconds at `now`.

        :return: how many mappings ended in each piece of bounded work.
        """
        for table in self.tables.values():
            for expired in table.scan(now, timeout):
                self._close_all(expired.sockets)
                yield expired.mappings

    def held(self) -> int:
        """Return the number of mappings that have sockets of their own."""
        return sum(len(table.owners) for table in self.tables.values())

    def let_go(self) -> bool:
        """Close the sockets of the mapping that was idle longest; return whether it had one that is closed now."""
        table = max(self.tables.values(), key=lambda table: len(table.owners))
        closing = table.evict()
        self._close_all(closing)
        return bool(closing)

    def active_ports(self, most: int) -> list[int]:
        """Return ports of the guest that are forwarded or have active flows, the oldest flows first.

        :param most: how many at most; `PEERS_LOOKED_AT` peers of each family are looked at.
        """
        ports = dict.fromkeys(port for _, _, port in islice(self._general, most))
        for table in self.tables.values():
            for peer in islice(table.down.values(), PEERS_LOOKED_AT):
                if table.active(peer):
                    ports[peer.mapping.port] = None
        return list(ports)[:most]

    def end_flows(self, family: int, ends: Callable[[Peer], bool]) -> Iterator[None]:
        """End some flows of a family, 4 or 6.

        :param ends: returns whether a peer ends.
        :return: yields after half a millisecond's work.
        """
        table = self.tables[family]
        for number, peer in enumerate(list(table.down.values()), 1):
            if ends(peer) and table.down.get(peer.down_key) is peer:
                self._close_all(table.remove(peer))
            if not number % PEERS_LOOKED_AT:
                yield

    def listen(self, listener: Listener) -> None:
        """Take note of a new listener; it stays its owner's to close."""
        if listener.general:
            self._general.setdefault(_general_key(listener), listener)

    def retire(self, listener: Listener) -> Iterator[None]:
        """Forget a listener that is about to be closed, and every peer whose datagrams pass it.

        The caller receives from it no more. Until the last piece, the guest's datagrams to these peers leave by it.

        :return: yields after each peer.
        """
        if self._general.get(_general_key(listener)) is listener:
            del self._general[_general_key(listener)]
        table = self.tables[listener.family]
        # Again for those that came in between. Once its mapping has left the listener, no other peer of it comes.
        while peers := list(listener.peers()):
            for peer in peers:
                if table.down.get(peer.down_key) is peer:
                    sockets = peer.mapping.sockets
                    peer.mapping.sockets = [udp_socket for udp_socket in sockets if udp_socket is not listener]
                    self._close_all(table.remove(peer))
                    yield

    def close(self) -> None:
        """Forget everything and close every socket but the listeners."""
        for table in self.tables.values():
            for peer in list(table):
                self._close_all(table.remove(peer))

    def _mapping(self, guest: bytes, port: int) -> Mapping:
        mapping = Mapping(guest, port)
        if self._filtered:
            mapping.admitted = Counter()
        return mapping

    def _socket_for(self, family: int, mapping: Mapping, target: Target, port: int, key: bytes) -> UdpSocket:
        """Choose the host socket for a new peer of `mapping`; open one if none will do."""
        sockets = mapping.sockets
        if not sockets:
            listener = self._general.get((family, mapping.guest, mapping.port)) or self._general.get(
                (family, b"", mapping.port)
            )
            avoid = port if target.own else 0
            sockets = mapping.sockets = [listener or self._own(family, mapping, mapping.port, avoid)]
        if target.own and any(udp_socket.port == port for udp_socket in sockets):
            raise PacketError(Drop.HAIRPIN)
        for udp_socket in sockets:
            if udp_socket.find(key) is None:
                return udp_socket
        spare = self._own(family, mapping, 0, port if target.own else 0)
        mapping.sockets = [*sockets, spare]
        return spare

    def _own(self, family: int, mapping: Mapping, port: int, avoid: int) -> UdpSocket:
        """Open a host socket for `mapping` at `port`, or at another one if it must `avoid` that."""
        udp_socket = self._opener.open(family, 0 if port == avoid else port)
        if udp_socket.port == avoid:
            # By chance; while this one is held, the kernel chooses another.
            unlucky = udp_socket
            try:
                udp_socket = self._opener.open(family, 0)
            finally:
                self._opener.close(unlucky)
        udp_socket.mapping = mapping
        return udp_socket

    def _close_all(self, sockets: Iterable[UdpSocket]) -> None:
        for udp_socket in sockets:
            self._opener.close(udp_socket)


@lru_cache(MODELS)
def _model(family: int, mac: bytes, host_mac: bytes, shown: bytes, guest: bytes, tos_ttl: int) -> Header:
    """Return headers between two addresses, which those between their ports are copied from."""
    model = Header(family, mac, host_mac, shown, guest, 0, 0)
    model.set_tos_ttl(tos_ttl)
    return model


def _general_key(listener: Listener) -> tuple[int, bytes, int]:
    return listener.family, listener.target_address, listener.target
