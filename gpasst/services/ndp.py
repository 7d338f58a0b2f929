"""Neighbour discovery (RFC 4861): the addresses that are the host's on the link resolve to the host's MAC address, and
the host is the router.

Theory of operation: `answer` builds the reply to a solicitation of the guest. `unsolicited` router advertisements are
sent when `Schedule` says that one is due, and `solicitation` asks for the guest's MAC address before the guest sends
anything. Time and random numbers are arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.packet.address import IP6_BYTES, UNSPECIFIED, V6, is_link_local, is_multicast
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.dns_names import encode_names
from gpasst.packet.parse import Packet
from gpasst.records import dataclass
from gpasst.wire import (
    HOP_LIMIT,
    ICMP_CODEC,
    NDP_ADVERTISEMENT_CODEC,
    NDP_FLAG_OVERRIDE,
    NDP_FLAG_ROUTER,
    NDP_FLAG_SOLICITED,
    NDP_INFINITE,
    NDP_LINK_ADDRESS_CODEC,
    NDP_LIST_CODEC,
    NDP_MTU_CODEC,
    NDP_OPTION_DNSSL,
    NDP_OPTION_RDNSS,
    NDP_OPTION_SOURCE_LINK_ADDRESS,
    NDP_OPTION_TARGET_LINK_ADDRESS,
    NDP_PREFIX_CODEC,
    NDP_PREFIX_FLAG_AUTONOMOUS,
    NDP_PREFIX_FLAG_ON_LINK,
    NDP_RA_FLAG_MANAGED,
    NDP_ROUTER_ADVERTISEMENT_CODEC,
    NDP_ROUTER_SOLICITATION_CODEC,
    NDP_SOLICITATION_CODEC,
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMPV6,
)

ROUTER_LIFETIME = 65535  # seconds; the maximum of 16 bits (RFC 8319), so that the guest's default route never expires
CURRENT_HOP_LIMIT = 255  # advertised for packets that the guest originates (RFC 4861, section 4.2), as passt does
PREFIX_BITS = 64  # what address autoconfiguration needs (RFC 4862, section 5.5.3; RFC 2464, section 4)
PREFIX_BYTES = PREFIX_BITS // 8
UNIT_BYTES = 8  # of the length of an option (RFC 4861, section 4.6)
OPTION_MAXIMUM_BYTES = UNIT_BYTES * 255  # an option's length is 8 bits, in units of 8 bytes (RFC 4861, section 4.6)
DNSSL_BYTES = OPTION_MAXIMUM_BYTES - 8  # of names that fit the search list option (RFC 8106, section 5.2)
RDNSS_LIMIT = (OPTION_MAXIMUM_BYTES - 8) // 16  # resolvers that fit that option (RFC 8106, section 5.1)
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # the address's last 3 bytes follow (RFC 4291, 2.7.1)
MULTICAST_MAC = b"\x33\x33"  # the group's last 4 bytes follow (RFC 2464, section 7)
# Seconds between unsolicited advertisements, and how many initial ones come sooner (RFC 4861, sections 6.2.1 and 10).
MAXIMUM_INTERVAL = 600.0
MINIMUM_INTERVAL = 0.33 * MAXIMUM_INTERVAL
INITIAL_INTERVAL = 16.0
INITIAL_ADVERTISEMENTS = 3
CHECKSUM = ICMP_CODEC.offset("checksum")
TYPES = (
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_SOLICITATION,
    NDP_TYPE_ADVERTISEMENT,
)


@dataclass(frozen=True, slots=True)
class Router:
    """Settings of the router that the guest sees.

    :ivar network: the guest's network.
    :ivar advertise: whether router solicitations are answered.
    :ivar mtu: MTU to advertise in bytes, 0 for none.
    """

    network: GuestNetwork
    advertise: bool
    mtu: int


def answer(router: Router, packet: Packet, guest_mac: bytes, resolves: Callable[[bytes], bool]) -> bytes | None:
    """Build the reply to a neighbour or router solicitation.

    :param router: the settings.
    :param packet: an ICMPv6 packet of one of `TYPES`.
    :param guest_mac: destination of the reply, 6 bytes.
    :param resolves: returns whether an address, 16 bytes, resolves to the host's MAC address; not for a guest's own,
        for which a reply would signal a conflict (RFC 4862, section 5.4).
    :return: the reply's frame; None for advertisements, duplicate address detection, and solicitations of other
        addresses or of a router that does not advertise.
    :raises PacketError: `Drop.MALFORMED_NDP`, if the message is malformed.
    """
    network = router.network.ip6
    assert network is not None and network.link_local is not None
    kind = checked_type(packet)
    if kind == NDP_TYPE_SOLICITATION:
        message = _advertisement(router, packet, resolves)
    elif kind == NDP_TYPE_ROUTER_SOLICITATION and router.advertise:
        NDP_ROUTER_SOLICITATION_CODEC.parse(packet.payload, Drop.MALFORMED_NDP)
        message = router_advertisement(router)
    else:
        return None
    if message is None:
        return None
    source = router_address(network)
    # The reply to a sender without address goes to all nodes (RFC 4861, section 6.2.6).
    destination = packet.source if packet.source != UNSPECIFIED[V6] else ALL_NODES
    return framed(message, source, destination, router.network.host_mac, guest_mac)


def checked_type(packet: Packet) -> int:
    """Return the type of a message.

    :param packet: an ICMPv6 packet of one of `TYPES`.
    :raises PacketError: `Drop.MALFORMED_NDP`, if it came through a router, or is a solicitation whose code is not 0
        (RFC 4861, sections 6.1.1 and 7.1.1).
    """
    kind = packet.payload[0]
    solicits = kind in (NDP_TYPE_SOLICITATION, NDP_TYPE_ROUTER_SOLICITATION)
    if packet.hop_limit != HOP_LIMIT or (solicits and any(packet.payload[1:2])):
        raise PacketError(Drop.MALFORMED_NDP)
    return kind


def framed(message: bytes, source: bytes, destination: bytes, host_mac: bytes, mac: bytes | None = None) -> bytes:
    """Return the frame of a message.

    :param message: the ICMPv6 message, checksum zero.
    :param source: 16 bytes.
    :param destination: 16 bytes.
    :param host_mac: of the source, 6 bytes.
    :param mac: of the destination, 6 bytes; None where that is a multicast group.
    """
    complete = with_checksum(message, CHECKSUM, source, destination, PROTOCOL_ICMPV6)
    to = mac or MULTICAST_MAC + destination[-4:]
    return wrap(to, host_mac, source, destination, PROTOCOL_ICMPV6, complete)


def router_address(network: FamilyNetwork) -> bytes:
    """Return the router's link-local address: the gateway's if it is one, else the host's own.

    Advertisements must come from a link-local address (RFC 4861, section 6.1.2).
    """
    assert network.link_local is not None
    return network.gateway if is_link_local(network.gateway) else network.link_local


def unsolicited(router: Router) -> bytes:
    """Build the frame of an unsolicited router advertisement, to all nodes (RFC 4861, section 6.2.4)."""
    return _to_group(router.network, ALL_NODES, router_advertisement(router))


def solicitation(network: GuestNetwork, target: bytes) -> bytes:
    """Build the frame of a neighbour solicitation for an address of the guest (RFC 4861, section 7.2.2).

    :param network: the guest's network.
    :param target: the address, 16 bytes.
    """
    message = NDP_SOLICITATION_CODEC.pack(type=NDP_TYPE_SOLICITATION, target=target) + _link_address(
        NDP_OPTION_SOURCE_LINK_ADDRESS, network
    )
    return _to_group(network, SOLICITED_NODE + target[-3:], message)


def _to_group(network: GuestNetwork, group: bytes, message: bytes) -> bytes:
    """Build the frame of a message to a multicast group.

    :param network: the guest's network.
    :param group: 16 bytes.
    :param message: the ICMPv6 message, checksum zero.
    """
    assert network.ip6 is not None
    return framed(message, router_address(network.ip6), group, network.host_mac)


class Schedule:
    """Times of unsolicited router advertisements: the start, and then after random intervals (RFC 4861, section 6.2.4).

    :param now: time of the start in seconds.
    :param uniform: returns a random number between two others, like `random.uniform`.
    """

    def __init__(self, now: float, uniform: Callable[[float, float], float]) -> None:
        self._due = now
        self._sent = 0
        self._uniform = uniform

    def due(self, now: float) -> bool:
        """Return whether an advertisement is due at `now`, in seconds; if so, the next one is scheduled."""
        if now < self._due:
            return False
        self._sent += 1
        interval = self._uniform(MINIMUM_INTERVAL, MAXIMUM_INTERVAL)
        if self._sent < INITIAL_ADVERTISEMENTS:
            interval = min(interval, INITIAL_INTERVAL)
        self._due = now + interval
        return True


def _advertisement(router: Router, packet: Packet, resolves: Callable[[bytes], bool]) -> bytes | None:
    target = NDP_SOLICITATION_CODEC.parse(packet.payload, Drop.MALFORMED_NDP)["target"]
    if is_multicast(target):
        # RFC 4861, section 7.1.1.
        raise PacketError(Drop.MALFORMED_NDP)
    if packet.source == UNSPECIFIED[V6] or not resolves(target):
        return None
    flags = NDP_FLAG_ROUTER | NDP_FLAG_SOLICITED | NDP_FLAG_OVERRIDE
    return NDP_ADVERTISEMENT_CODEC.pack(type=NDP_TYPE_ADVERTISEMENT, flags=flags, target=target) + _link_address(
        NDP_OPTION_TARGET_LINK_ADDRESS, router.network
    )


def router_advertisement(router: Router) -> bytes:
    """Build the router advertisement, an ICMPv6 message with checksum zero."""
    network = router.network.ip6
    assert network is not None
    options = b""
    if network.address:
        options += NDP_PREFIX_CODEC.pack(
            prefix_length=PREFIX_BITS,
            flags=NDP_PREFIX_FLAG_ON_LINK | NDP_PREFIX_FLAG_AUTONOMOUS,
            valid=NDP_INFINITE,
            preferred=NDP_INFINITE,
            prefix=network.address[:PREFIX_BYTES].ljust(IP6_BYTES, b"\0"),
        )
    if router.mtu:
        options += NDP_MTU_CODEC.pack(mtu=router.mtu)
    if network.resolvers:
        options += _list(NDP_OPTION_RDNSS, b"".join(network.resolvers[:RDNSS_LIMIT]))
        if router.network.search:
            options += _list(NDP_OPTION_DNSSL, encode_names(router.network.search, DNSSL_BYTES))
    options += _link_address(NDP_OPTION_SOURCE_LINK_ADDRESS, router.network)
    return (
        NDP_ROUTER_ADVERTISEMENT_CODEC.pack(
            type=NDP_TYPE_ROUTER_ADVERTISEMENT,
            hop_limit=CURRENT_HOP_LIMIT,
            flags=NDP_RA_FLAG_MANAGED,
            # A router with a lifetime of 0 is no default router (RFC 4861, section 4.2).
            lifetime=ROUTER_LIFETIME if network.routed else 0,
        )
        + options
    )


def _link_address(kind: int, network: GuestNetwork) -> bytes:
    """Build the option that has the gateway's MAC address."""
    return NDP_LINK_ADDRESS_CODEC.pack(type=kind, mac=network.host_mac)


def _list(kind: int, data: bytes) -> bytes:
    """Build an option that lists something for ever, padded to whole units (RFC 8106, section 5)."""
    data += bytes(-len(data) % UNIT_BYTES)
    return NDP_LIST_CODEC.pack(type=kind, length=1 + len(data) // UNIT_BYTES, lifetime=NDP_INFINITE) + data
