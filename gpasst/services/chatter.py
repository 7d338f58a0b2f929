"""What a guest's kernel sends by itself, and needs no answer: reports of multicast membership, and neighbour discovery
where it is not served.

A proxy is no multicast router, so reports and queries of IGMP (RFC 3376) and MLD (RFC 3810) concern nobody. A kernel
sends them, and solicitations of routers and neighbours, in every namespace and in every address family, whether that is
carried or not. They are counted, but apart from the drops that a user would ask about (`gpasst.counters.IGNORED`).
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.parse import Packet
from gpasst.services import ndp
from gpasst.wire import MLD_TYPES, NDP_TYPE_REDIRECT, PROTOCOL_ICMPV6

PROTOCOL_IGMP = 2  # IANA


def membership(packet: Packet) -> None:
    """Ignore a report or query of multicast membership.

    :raises PacketError: `Drop.MEMBERSHIP`, always.
    """
    raise PacketError(Drop.MEMBERSHIP)


def of_disabled_family(packet: Packet) -> Drop:
    """Return the reason to drop a packet of an address family that is not carried."""
    if packet.protocol == PROTOCOL_IGMP:
        return Drop.MEMBERSHIP
    if packet.protocol == PROTOCOL_ICMPV6 and packet.payload:
        kind = packet.payload[0]
        if kind in MLD_TYPES:
            return Drop.MEMBERSHIP
        if kind in ndp.TYPES or kind == NDP_TYPE_REDIRECT:
            return Drop.DISCOVERY
    return Drop.FAMILY_DISABLED
