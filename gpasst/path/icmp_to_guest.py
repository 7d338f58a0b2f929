"""ICMP errors for the guest: the errors that its datagrams and echo requests met on the host's side of the link.

Theory of operation: `gpasst.host.error_queue` reads which datagram of a host socket met which error. Its peer is found
as for an answer, and the guest gets the error that it would have got without a proxy: from the offender as the guest
knows it, quoting the guest's own packet. A datagram that the host's kernel refuses to send is reported likewise, by the
host as the guest's router.

Errors about datagrams are limited, as a router's have to be (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4 (f)): a
guest may send any number to a port that is closed, and an error costs ten times what a datagram of a known flow costs.
While none of a mapping would be reported, its queue is emptied unread.

NOTE: an error never answers a datagram to a multicast or broadcast address (RFC 1122, section 3.2.2; RFC 4443,
section 2.4).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.flow.admission import Admission, Rate
from gpasst.flow.guest import Guest
from gpasst.host.error_queue import QueuedError, discard_errors, read_errors
from gpasst.host.receive import sender_key
from gpasst.link.port import Link
from gpasst.packet import icmp_error
from gpasst.packet.address import LOOPBACK, family_of, is_multicast
from gpasst.packet.icmp_error import Problem, expired, quoted_udp
from gpasst.packet.refusal import refusal
from gpasst.udp.header import TTL_MASK
from gpasst.udp.mapping import Peer, UdpSocket

QUOTED_BYTES = 1280  # of a refused datagram; no error holds more (RFC 4443, section 2.4 (c))
ERRORS = Rate(256, 250)  # about datagrams of one address; Linux sends one a second for each (net.ipv4.icmp_ratelimit)


class IcmpToGuest:
    """Reports errors to the guest.

    :param link: the guest's end, None where there are splice pairs alone.
    :param guest: the guest.
    :param counters: where errors are counted.
    :param clock: returns seconds, for the rate.
    """

    def __init__(
        self,
        link: Link | None,
        guest: Guest,
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link = link
        self._guest = guest
        self._counters = counters
        self._clock = clock
        self._admission = Admission(ERRORS)

    def queued(self, udp_socket: UdpSocket) -> int:
        """Report the errors in the queue of a mapping's or listener's socket; return how many it held."""
        assert udp_socket.socket is not None
        mapping = udp_socket.mapping
        if mapping is not None and self._admission.refuses(mapping.guest, self._clock()):
            count = discard_errors(udp_socket.socket)
            self._counters.socket_errors += count
            self._counters.drop(Drop.ERROR_RATE, count)
            return count
        errors = read_errors(udp_socket.socket, udp_socket.family)
        self._counters.socket_errors += len(errors)
        for error in errors:
            peer = _peer(udp_socket, error)
            if peer is not None and error.problem is not None:
                self._datagram(peer, error.problem, error.offender, error.payload)
        return len(errors)

    def refused(self, peer: Peer, number: int, payload: memoryview) -> None:
        """Report that the host's kernel refused to send a datagram of the guest.

        :param peer: the peer that it was for.
        :param number: the errno.
        :param payload: the datagram, or the first of those that were refused together.
        """
        problem = refusal(number).problem(peer.udp_socket.family)
        if problem is not None:
            self._datagram(peer, problem, b"", bytes(payload[:QUOTED_BYTES]))

    def _datagram(self, peer: Peer, problem: Problem, offender: bytes, payload: bytes) -> None:
        """Report the error that a datagram to `peer` met."""
        family, mapping = peer.udp_socket.family, peer.mapping
        address, port = peer.shown
        if is_multicast(address) or peer.remote[0] in self._guest.network.broadcasts:
            return
        if not self._admission.admit(mapping.guest, self._clock()):
            self._counters.drop(Drop.ERROR_RATE)
            return
        # It was the last router that would have counted down to 0; of others it is not known how far they are.
        hop_limit = 1 if expired(family, problem) else peer.tos_ttl & TTL_MASK
        quoted = quoted_udp(mapping.guest, mapping.port, address, port, payload, peer.tos_ttl >> 8, hop_limit)
        shown = address if offender == peer.remote[0] else self.shown(family, offender)
        self.report(problem, shown, mapping.guest, quoted)

    def shown(self, family: int, offender: bytes) -> bytes:
        """Return the address under which the guest knows the offender of an error.

        :param family: 4 or 6.
        :param offender: its address as the host sees it; empty for the host itself.
        """
        return self._guest.addresses[family].shown(offender or LOOPBACK[family])

    def report(self, problem: Problem, offender: bytes, guest: bytes, quoted: bytes) -> None:
        """Write one error to the guest.

        :param problem: what went wrong.
        :param offender: the node that reported it, as the guest knows it; 4 or 16 bytes.
        :param guest: the guest's address.
        :param quoted: the guest's packet.
        """
        message = icmp_error.message(family_of(offender), problem, quoted)
        assert self._link is not None
        self._link.write_frame(
            icmp_error.frame(self._guest.mac_of(guest), self._guest.network.host_mac, offender, guest, message)
        )
        self._counters.errors_up += 1


def _peer(udp_socket: UdpSocket, error: QueuedError) -> Peer | None:
    """Return the peer whose datagram met an error, None if it is unknown."""
    key = sender_key(udp_socket.family, error.address, error.port, error.scope)
    # A listener's keys hold the addressed address too, unless the guest spoke first.
    return udp_socket.find(key + error.local) or udp_socket.find(key)
