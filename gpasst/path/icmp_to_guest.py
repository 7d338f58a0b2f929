"""ICMP errors for the guest: what its datagrams and echo requests met on the host's side of the tap.

Theory of operation: `error_queue` says which datagram of a host socket met which error. The peer that it went to is
found the way its answers are, and the guest gets the error it would have got without a proxy: from the offender as the
guest knows it, quoting its own packet. What the host's kernel does not even send is reported likewise, by the host as
the guest's router.

NOTE: an error never answers what was sent to many (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
"""

from __future__ import annotations

from gpasst.counters import Counters
from gpasst.errors import PacketError
from gpasst.host.error_queue import QueuedError, read_errors
from gpasst.host.receive import sender_key
from gpasst.packet import icmp_error
from gpasst.packet.address import LOOPBACK, is_multicast
from gpasst.packet.icmp_error import REFUSED, Problem, expired, quoted_udp
from gpasst.path.dispatch import Link
from gpasst.udp.mapping import Peer, UdpSocket
from gpasst.udp.nat import UdpNat

QUOTED_BYTES = 1280  # at most of a refused datagram; an error holds no more


class IcmpToGuest:
    """Tells the guest of errors.

    :param link: the guest's end, None where there are splice pairs alone.
    :param path: knows peers and addresses.
    :param counters: where errors are counted.
    """

    def __init__(self, link: Link | None, path: UdpNat, counters: Counters) -> None:
        self._link = link
        self._path = path
        self._counters = counters

    def queued(self, udp_socket: UdpSocket) -> int:
        """Pass on what the error queue of a mapping's or listener's socket holds; give how many errors it was."""
        errors = read_errors(udp_socket.socket, udp_socket.family)
        self._counters.socket_errors += len(errors)
        for error in errors:
            peer = _peer(udp_socket, error)
            if peer is not None and error.problem is not None:
                self._datagram(peer, error.problem, error.offender, error.payload)
        return len(errors)

    def refused(self, peer: Peer, number: int, payload: memoryview) -> None:
        """Tell the guest that the host's kernel does not send a datagram of its.

        :param peer: where to.
        :param number: the errno.
        :param payload: the datagram, or the first of those that were refused together.
        """
        problem = REFUSED.get((peer.udp_socket.family, number))
        if problem is not None:
            self._datagram(peer, problem, b"", bytes(payload[:QUOTED_BYTES]))

    def _datagram(self, peer: Peer, problem: Problem, offender: bytes, payload: bytes) -> None:
        """Tell the guest what a datagram to `peer` met."""
        family, mapping = peer.udp_socket.family, peer.mapping
        address, port = peer.shown
        if is_multicast(address):
            return
        # It was the last router that would have counted down to 0; of others it is not known how far they are.
        hop_limit = 1 if expired(family, problem) else peer.tos_ttl & 0xFF
        quoted = quoted_udp(mapping.guest, mapping.port, address, port, payload, peer.tos_ttl >> 8, hop_limit)
        try:
            shown = address if offender == peer.remote[0] else self.shown(family, offender)
        except PacketError as error:
            self._counters.drop(error.reason)
            return
        self.tell(problem, shown, mapping.guest, quoted)

    def shown(self, family: int, offender: bytes) -> bytes:
        """Give the address under which the guest knows who reported an error.

        :param family: 4 or 6.
        :param offender: its address as the host sees it; empty for the host itself.
        :raises PacketError: while no address of the guest is known.
        """
        return self._path.addresses[family].to_guest(offender or LOOPBACK[family]).source

    def tell(self, problem: Problem, offender: bytes, guest: bytes, quoted: bytes) -> None:
        """Write one error to the guest.

        :param problem: what went wrong.
        :param offender: who reported it, as the guest knows it; 4 or 16 bytes.
        :param guest: the guest's address.
        :param quoted: the guest's packet.
        """
        path = self._path
        message = icmp_error.message(4 if len(offender) == 4 else 6, problem, quoted)
        assert self._link is not None
        self._link.write_frame(icmp_error.frame(path.guest_mac, path.network.host_mac, offender, guest, message))
        self._counters.errors_up += 1


def _peer(udp_socket: UdpSocket, error: QueuedError) -> Peer | None:
    """Find the peer whose datagram met an error; splice pairs, which have no frames, are none."""
    key = sender_key(udp_socket.family, error.address, error.port, error.scope)
    # A listener tells its senders apart by the address they addressed too, unless the guest spoke first.
    peer = udp_socket.peers.get(key + error.local) or udp_socket.peers.get(key)
    return peer if isinstance(peer, Peer) else None
