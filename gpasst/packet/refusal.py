"""What follows from each error with which Linux refuses to send a datagram: how the drop is counted, and which ICMP
error the guest gets, as from a router in the host's place.

Theory of operation: the errors are those of udp_sendmsg and udpv6_sendmsg, of the route look-up below them
(fib_props and ip6_route_output), of netfilter and BPF, and those that the kernel makes of ICMP errors about earlier
datagrams (icmp_err_convert, tab_unreach). The last are pending errors of the socket: `gpasst.host.error_queue` reports
them with the node that sent them, so they have no answer here; nor has "message too long", whose MTU stands in that
queue.

An error that is missing here is counted as refused and not answered.
"""

from __future__ import annotations

import errno

from gpasst.counters import Drop
from gpasst.packet.address import V4
from gpasst.packet.icmp_error import Problem
from gpasst.records import dataclass
from gpasst.wire import (
    ICMP_HOST_UNREACHABLE,
    ICMP_NET_UNREACHABLE,
    ICMP_UNREACHABLE,
    ICMPV6_ADDRESS_UNREACHABLE,
    ICMPV6_NO_ROUTE,
    ICMPV6_UNREACHABLE,
)

ICMP_PROHIBITED = 13  # communication administratively prohibited (RFC 1812, section 5.2.7.1)
ICMPV6_PROHIBITED = 1  # likewise (RFC 4443, section 3.1)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What follows from one error.

    :ivar reason: how the datagram is counted.
    :ivar ipv4: the guest's error for IPv4, None for none.
    :ivar ipv6: likewise for IPv6.
    """

    reason: Drop
    ipv4: Problem | None = None
    ipv6: Problem | None = None

    def problem(self, family: int) -> Problem | None:
        """Return the guest's error for `family`, 4 or 6."""
        return self.ipv4 if family == V4 else self.ipv6


SILENT = Refusal(Drop.SEND_FAILED)
FULL = Refusal(Drop.SEND_FULL)
NO_ROUTE = Refusal(
    Drop.SEND_FAILED,
    Problem(ICMP_UNREACHABLE, ICMP_NET_UNREACHABLE),
    Problem(ICMPV6_UNREACHABLE, ICMPV6_NO_ROUTE),
)
NO_HOST = Refusal(
    Drop.SEND_FAILED,
    Problem(ICMP_UNREACHABLE, ICMP_HOST_UNREACHABLE),
    Problem(ICMPV6_UNREACHABLE, ICMPV6_ADDRESS_UNREACHABLE),
)
PROHIBITED = Refusal(
    Drop.SEND_FAILED,
    Problem(ICMP_UNREACHABLE, ICMP_PROHIBITED),
    Problem(ICMPV6_UNREACHABLE, ICMPV6_PROHIBITED),
)

REFUSALS = {
    # No way there: no route, a throw route, the interface down or gone, no such family, no source address to send from.
    errno.ENETUNREACH: NO_ROUTE,
    errno.ENETDOWN: NO_ROUTE,
    errno.ENODEV: NO_ROUTE,
    errno.ENXIO: NO_ROUTE,
    errno.EAFNOSUPPORT: NO_ROUTE,
    errno.EADDRNOTAVAIL: NO_ROUTE,
    # An unreachable route.
    errno.EHOSTUNREACH: NO_HOST,
    # A prohibiting route; a rule of netfilter, or a BPF program of the control group.
    errno.EACCES: PROHIBITED,
    errno.EPERM: PROHIBITED,
    # A full queue calms down by itself, and source quench is obsolete (RFC 6633).
    errno.EAGAIN: FULL,
    errno.ENOBUFS: FULL,
    errno.ENOMEM: FULL,
    errno.EMSGSIZE: Refusal(Drop.MESSAGE_SIZE),
    # A blackhole route is silent on purpose.
    errno.EINVAL: SILENT,
    # Pending errors of earlier datagrams.
    errno.ECONNREFUSED: SILENT,
    errno.EHOSTDOWN: SILENT,
    errno.ENONET: SILENT,
    errno.ENOPROTOOPT: SILENT,
    errno.EOPNOTSUPP: SILENT,
    errno.EPROTO: SILENT,
    # Faults of the call or the device, about which the guest can do nothing.
    errno.EBADF: SILENT,
    errno.EDESTADDRREQ: SILENT,
    errno.EFAULT: SILENT,
    errno.EINTR: SILENT,
    errno.EIO: SILENT,
    errno.EPIPE: SILENT,
}


def refusal(number: int) -> Refusal:
    """Return what follows from the errno `number` of a refused send."""
    return REFUSALS.get(number, SILENT)
