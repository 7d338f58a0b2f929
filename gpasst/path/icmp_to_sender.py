"""ICMP errors of the guest, passed on to the senders of the datagrams that met them.

Theory of operation: a guest answers a datagram to a closed port with an error. The sender on the host's side gets it
through a raw socket, quoting the datagram as it sent it: to the host's address and port, where the guest saw its own.
Opening that socket takes CAP_NET_RAW; without it the error is counted.

An error about a TCP segment is not passed on: it is a hint at most (RFC 5927, section 5), and the guest's answer to the
next segment shows what became of the connection.

"Fragmentation needed" and "packet too big" are not passed on: a kernel that receives one lowers the path MTU of all its
traffic to that address (RFC 1191, section 3; RFC 8201, section 4), so a guest could slow down other programs' traffic
(RFC 5927, section 7). No datagram needs one: the link to the guest carries every size. Behind the guest there may be a
smaller one, so a TCP connection has smaller segments from then on.
"""

from __future__ import annotations

from _socket import inet_pton
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Mapping

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.key import down_key
from gpasst.host.raw import RawSockets
from gpasst.host.sockets import family_constant, socket_address
from gpasst.linux import SOCK_DGRAM
from gpasst.packet.address import family_of
from gpasst.packet.icmp_error import Problem, Reported, lowers_path_mtu, message, parse, quoted_udp
from gpasst.packet.parse import Packet
from gpasst.udp.mapping import Peer
from gpasst.udp.table import Table
from gpasst.wire import PROTOCOL_TCP, PROTOCOL_UDP


class IcmpToSender:
    """Passes errors of the guest on to the senders of the datagrams that met them.

    :param raw: sends them.
    :param tables: the guest's peers by family.
    :param counters: where errors are counted.
    :param too_big: takes the reports of TCP segments that did not fit into a link of the guest.
    """

    def __init__(
        self,
        raw: RawSockets,
        tables: Mapping[int, Table],
        counters: Counters,
        too_big: Callable[[Reported], None] | None = None,
    ) -> None:
        self._raw = raw
        self._tables = tables
        self._counters = counters
        self._too_big = too_big

    def take(self, packet: Packet) -> None:
        """Pass an error on.

        :param packet: an ICMP or ICMPv6 packet of one of `gpasst.services.icmp_errors.TYPES`.
        :raises PacketError: if it is malformed, is about neither a datagram of a peer nor a segment, or cannot be
            sent.
        """
        reported = parse(packet)
        if reported is None:
            raise PacketError(Drop.GUEST_ERROR)
        narrows = lowers_path_mtu(packet.family, reported.problem)
        if narrows and reported.protocol == PROTOCOL_TCP and self._too_big is not None:
            self._too_big(reported)
            return
        if narrows or reported.protocol != PROTOCOL_UDP:
            raise PacketError(Drop.GUEST_ERROR)
        key = down_key(reported.destination, reported.source, reported.destination_port, reported.source_port)
        peer = self._tables[packet.family].down.get(key)
        if peer is None:
            raise PacketError(Drop.GUEST_ERROR)
        self.report(peer, reported.problem, reported.payload)

    def report(self, peer: Peer, problem: Problem, payload: bytes) -> None:
        """Report to the sender of a datagram what became of it.

        :param peer: the datagram's peer.
        :param problem: what became of it.
        :param payload: the start of its payload.
        :raises PacketError: `Drop.GUEST_ERROR`, if that cannot be sent.
        """
        if peer.udp_socket.served:
            # Nobody could hear of it, and the network must not.
            raise PacketError(Drop.GUEST_ERROR)
        address, port, scope = peer.remote
        try:
            local = peer.local or _own_address(peer)
        except OSError as error:
            raise PacketError(Drop.GUEST_ERROR) from error
        # What the sender sent: to the host's address and port, where the guest saw its own.
        quoted = quoted_udp(address, port, local[: len(address)], peer.udp_socket.port, payload)
        if not self._raw.send(False, message(family_of(address), problem, quoted), address, scope, local):
            raise PacketError(Drop.GUEST_ERROR)
        self._counters.errors_down += 1


def _own_address(peer: Peer) -> bytes:
    """Find the host's address that a peer's datagrams reach, where its socket is bound to all of them.

    :raises OSError: if there is no way to the peer.
    """
    family = family_constant(peer.udp_socket.family)
    sock = RawSocket(family, SOCK_DGRAM, 0)
    try:
        # Connecting sends nothing; it makes the kernel choose.
        sock.connect(socket_address(*peer.remote))
        return inet_pton(family, sock.getsockname()[0].partition("%")[0])
    finally:
        sock.close()
