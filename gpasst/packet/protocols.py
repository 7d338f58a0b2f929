"""The names of what packets carry, the same in rules of weather, in filters and in parsed frames."""

from __future__ import annotations

from gpasst.impair.facts import DHCP, ICMP, NDP, OTHER, TCP, UDP
from gpasst.packet.address import V4, V6
from gpasst.packet.dhcp_wire import DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DHCPV6_CLIENT_PORT, DHCPV6_SERVER_PORT
from gpasst.wire import (
    MLD_TYPES,
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_REDIRECT,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)

NO_KIND = -1

_NAMES = {PROTOCOL_TCP: TCP, PROTOCOL_UDP: UDP, PROTOCOL_ICMP: ICMP, PROTOCOL_ICMPV6: ICMP}
_DHCP_PORTS = {
    V4: frozenset((DHCP_SERVER_PORT, DHCP_CLIENT_PORT)),
    V6: frozenset((DHCPV6_SERVER_PORT, DHCPV6_CLIENT_PORT)),
}
_DISCOVERY = frozenset(
    (
        *MLD_TYPES,
        NDP_TYPE_ROUTER_SOLICITATION,
        NDP_TYPE_ROUTER_ADVERTISEMENT,
        NDP_TYPE_SOLICITATION,
        NDP_TYPE_ADVERTISEMENT,
        NDP_TYPE_REDIRECT,
    )
)


def protocol_name(family: int, protocol: int, sport: int = 0, dport: int = 0, kind: int = NO_KIND) -> str:
    """Return the name of what an IP packet carries (`gpasst.impair.facts.PROTOCOLS`), `OTHER` if it has none.

    :param family: 4 or 6.
    :param protocol: IP protocol number.
    :param sport: source port, 0 without ports.
    :param dport: destination port, 0 without ports. Both ports of DHCP are its own (RFC 2131, section 4.1; RFC 8415,
        section 7.2).
    :param kind: type of an ICMP message, `NO_KIND` without one. Multicast listener discovery counts as `NDP`.
    """
    if protocol == PROTOCOL_UDP and {sport, dport} <= _DHCP_PORTS[family]:
        return DHCP
    if protocol == PROTOCOL_ICMPV6 and kind in _DISCOVERY:
        return NDP
    return _NAMES.get(protocol, OTHER)
