"""Neighbour discovery (RFC 4861): every address but the guest's own is at the host's MAC address, and the host is the
router (context 3).

Theory of operation: `answer` replies to what the guest asks. Without being asked, the host sends `unsolicited` router
advertisements whenever `Schedule` says so, and `solicitation` asks for the guest's MAC address before the guest speaks
by itself. Who drives this brings time and chance along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpasst.codec import parse_untrusted
from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.formats import (
    HOP_LIMIT,
    ICMP_CODEC,
    NDP_ADVERTISEMENT_CODEC,
    NDP_FLAG_OVERRIDE,
    NDP_FLAG_ROUTER,
    NDP_FLAG_SOLICITED,
    NDP_INFINITE,
    NDP_OPTION_DNSSL,
    NDP_OPTION_MTU,
    NDP_OPTION_PREFIX,
    NDP_OPTION_RDNSS,
    NDP_OPTION_SOURCE_LINK_ADDRESS,
    NDP_OPTION_TARGET_LINK_ADDRESS,
    NDP_OPTIONS,
    NDP_PREFIX_FLAG_AUTONOMOUS,
    NDP_PREFIX_FLAG_ON_LINK,
    NDP_RA_FLAG_MANAGED,
    NDP_ROUTER_ADVERTISEMENT_CODEC,
    NDP_ROUTER_SOLICITATION,
    NDP_SOLICITATION,
    NDP_SOLICITATION_CODEC,
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMPV6,
)
from gpasst.packet.address import UNSPECIFIED
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.dns_names import encode_names
from gpasst.packet.parse import Packet

ROUTER_LIFETIME = 65535  # seconds; the longest there is, so that guests keep their route (upstream since 2023-12)
DNSSL_BYTES = 8 * 255 - 8  # bytes of names that fit the option: its length is 8 bits, in units of 8 bytes
MAX_RESOLVERS = 127  # that fit the option, whose length is 8 bits, in units of half an address
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # RFC 4291, section 2.7.1; 3 bytes of the address follow
MULTICAST_MAC = b"\x33\x33"  # RFC 2464, section 7; the last 4 bytes of the group follow
# Seconds between unsolicited advertisements, and how many of them begin sooner (RFC 4861, sections 6.2.1 and 10).
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
    """Who answers, and with what.

    :ivar network: the guest's network.
    :ivar advertise: whether router solicitations are answered.
    :ivar mtu: MTU to advertise in bytes, 0 for none.
    """

    network: GuestNetwork
    advertise: bool
    mtu: int


def answer(router: Router, packet: Packet, guest_mac: bytes, own: tuple[bytes | None, ...]) -> bytes | None:
    """Answer a neighbour or router solicitation.

    :param router: who answers.
    :param packet: an ICMPv6 packet of one of `TYPES`.
    :param guest_mac: where the answer goes, 6 bytes.
    :param own: the guest's own addresses, which must not look taken.
    :return: the answer's frame, or None where none is due.
    :raises PacketError: if the message is malformed.
    """
    network = router.network.ip6
    assert network is not None and network.link_local is not None
    if packet.hop_limit != HOP_LIMIT:
        # RFC 4861, section 6.1.1 and 7.1.1: it came from beyond the link.
        raise PacketError(Drop.MALFORMED_NDP)
    kind = packet.payload[0]
    if kind in (NDP_TYPE_SOLICITATION, NDP_TYPE_ROUTER_SOLICITATION) and any(packet.payload[1:2]):
        # The same sections: the code is 0.
        raise PacketError(Drop.MALFORMED_NDP)
    if kind == NDP_TYPE_SOLICITATION:
        message = _advertisement(router, packet, own)
    elif kind == NDP_TYPE_ROUTER_SOLICITATION and router.advertise:
        parse_untrusted(NDP_ROUTER_SOLICITATION, packet.payload, Drop.MALFORMED_NDP)
        message = router_advertisement(router)
    else:
        return None
    if message is None:
        return None
    source = router_address(network)
    # A sender without address yet hears the answer at the all-nodes address (RFC 4861, section 6.2.6).
    destination = packet.source if packet.source != UNSPECIFIED[6] else ALL_NODES
    complete = with_checksum(message, CHECKSUM, source, destination, PROTOCOL_ICMPV6)
    return wrap(guest_mac, router.network.host_mac, source, destination, PROTOCOL_ICMPV6, complete)


def router_address(network: FamilyNetwork) -> bytes:
    """Give the link-local address that the host speaks from: the gateway's if it is one, else the host's own."""
    gateway = network.gateway
    assert network.link_local is not None
    return gateway if gateway[0] == 0xFE and gateway[1] & 0xC0 == 0x80 else network.link_local


def unsolicited(router: Router) -> bytes:
    """Build the frame of an unsolicited router advertisement, to all nodes (RFC 4861, section 6.2.4)."""
    return _to_group(router.network, ALL_NODES, router_advertisement(router))


def solicitation(network: GuestNetwork, target: bytes) -> bytes:
    """Build the frame that asks who has an IPv6 address (RFC 4861, section 7.2.2).

    :param network: the guest's network.
    :param target: the guest's address, 16 bytes.
    """
    message = NDP_SOLICITATION_CODEC.pack(type=NDP_TYPE_SOLICITATION, target=target) + _options(
        [{"type": NDP_OPTION_SOURCE_LINK_ADDRESS, "mac": network.host_mac}]
    )
    return _to_group(network, SOLICITED_NODE + target[-3:], message)


def _to_group(network: GuestNetwork, group: bytes, message: bytes) -> bytes:
    """Put a message, checksum zero, into a frame to a multicast group."""
    assert network.ip6 is not None
    source = router_address(network.ip6)
    complete = with_checksum(message, CHECKSUM, source, group, PROTOCOL_ICMPV6)
    return wrap(MULTICAST_MAC + group[-4:], network.host_mac, source, group, PROTOCOL_ICMPV6, complete)


class Schedule:
    """When unsolicited router advertisements are due: at once, and then after random times (RFC 4861, section 6.2.4).

    :param now: time of the start in seconds.
    :param uniform: gives a random number between two others, like `random.uniform`.
    """

    def __init__(self, now: float, uniform: Callable[[float, float], float]) -> None:
        self._due = now
        self._sent = 0
        self._uniform = uniform

    def due(self, now: float) -> bool:
        """Tell whether an advertisement is to be sent at `now`, in seconds; the next one is due later then."""
        if now < self._due:
            return False
        self._sent += 1
        interval = self._uniform(MINIMUM_INTERVAL, MAXIMUM_INTERVAL)
        if self._sent < INITIAL_ADVERTISEMENTS:
            interval = min(interval, INITIAL_INTERVAL)
        self._due = now + interval
        return True


def _advertisement(router: Router, packet: Packet, own: tuple[bytes | None, ...]) -> bytes | None:
    request = parse_untrusted(NDP_SOLICITATION, packet.payload, Drop.MALFORMED_NDP)
    if request.target[0] == 0xFF:
        # RFC 4861, section 7.1.1: a group is not to be asked for.
        raise PacketError(Drop.MALFORMED_NDP)
    if packet.source == UNSPECIFIED[6] or request.target in own:
        return None
    flags = NDP_FLAG_ROUTER | NDP_FLAG_SOLICITED | NDP_FLAG_OVERRIDE
    return NDP_ADVERTISEMENT_CODEC.pack(type=NDP_TYPE_ADVERTISEMENT, flags=flags, target=request.target) + _options(
        [{"type": NDP_OPTION_TARGET_LINK_ADDRESS, "mac": router.network.host_mac}]
    )


def router_advertisement(router: Router) -> bytes:
    """Build the router advertisement, checksum zero."""
    network = router.network.ip6
    assert network is not None
    options: list[dict[str, Any]] = []
    if network.address:
        options.append(
            {
                "type": NDP_OPTION_PREFIX,
                "prefix_length": 64,
                "flags": NDP_PREFIX_FLAG_ON_LINK | NDP_PREFIX_FLAG_AUTONOMOUS,
                "valid": NDP_INFINITE,
                "preferred": NDP_INFINITE,
                "prefix": network.address[:8] + bytes(8),
            }
        )
    if router.mtu:
        options.append({"type": NDP_OPTION_MTU, "mtu": router.mtu})
    if network.resolvers:
        resolvers = list(network.resolvers[:MAX_RESOLVERS])
        options.append({"type": NDP_OPTION_RDNSS, "lifetime": NDP_INFINITE, "addresses": resolvers})
        if router.network.search:
            labels = encode_names(router.network.search, DNSSL_BYTES)
            options.append({"type": NDP_OPTION_DNSSL, "lifetime": NDP_INFINITE, "labels": labels})
    options.append({"type": NDP_OPTION_SOURCE_LINK_ADDRESS, "mac": router.network.host_mac})
    return NDP_ROUTER_ADVERTISEMENT_CODEC.pack(
        type=NDP_TYPE_ROUTER_ADVERTISEMENT,
        hop_limit=HOP_LIMIT,
        flags=NDP_RA_FLAG_MANAGED,
        lifetime=ROUTER_LIFETIME,
    ) + _options(options)


def _options(options: list[dict[str, Any]]) -> bytes:
    built: bytes = NDP_OPTIONS.build(options)
    return built
