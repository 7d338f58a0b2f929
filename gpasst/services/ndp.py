"""Neighbour discovery (RFC 4861): every address but the guest's own is at the host's MAC address, and the host is the
router (context 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
    ICMP_CODEC,
    NDP_ADVERTISEMENT_CODEC,
    NDP_FLAG_OVERRIDE,
    NDP_FLAG_ROUTER,
    NDP_FLAG_SOLICITED,
    NDP_HOP_LIMIT,
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
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMPV6,
    parse_untrusted,
)
from gpasst.link.packets import Packet
from gpasst.network import GuestNetwork
from gpasst.services.wrap import with_checksum, wrap

ROUTER_LIFETIME = 65535  # seconds; the longest there is, so that guests keep their route (upstream since 2023-12)
DNSSL_BYTES = 8 * 255 - 8  # bytes of names that fit the option: its length is 8 bits, in units of 8 bytes
UNSPECIFIED = bytes(16)
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
    if packet.hop_limit != NDP_HOP_LIMIT:
        # RFC 4861, section 6.1.1 and 7.1.1: it came from beyond the link.
        raise PacketError(Drop.MALFORMED_NDP)
    kind = packet.payload[0]
    if kind == NDP_TYPE_SOLICITATION:
        message = _advertisement(router, packet, own)
    elif kind == NDP_TYPE_ROUTER_SOLICITATION and router.advertise:
        parse_untrusted(NDP_ROUTER_SOLICITATION, packet.payload, Drop.MALFORMED_NDP)
        message = router_advertisement(router)
    else:
        return None
    if message is None:
        return None
    gateway = network.gateway
    source = gateway if gateway[0] == 0xFE and gateway[1] & 0xC0 == 0x80 else network.link_local
    # A sender without address yet hears the answer at the all-nodes address (RFC 4861, section 6.2.6).
    destination = packet.source if packet.source != UNSPECIFIED else ALL_NODES
    complete = with_checksum(message, CHECKSUM, source, destination, PROTOCOL_ICMPV6)
    return wrap(guest_mac, router.network.host_mac, source, destination, PROTOCOL_ICMPV6, complete)


ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")


def _advertisement(router: Router, packet: Packet, own: tuple[bytes | None, ...]) -> bytes | None:
    request = parse_untrusted(NDP_SOLICITATION, packet.payload, Drop.MALFORMED_NDP)
    if packet.source == UNSPECIFIED or request.target in own:
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
        options.append({"type": NDP_OPTION_RDNSS, "lifetime": NDP_INFINITE, "addresses": list(network.resolvers)})
        if router.network.search:
            labels = b""
            for name in router.network.search:
                # Names that the option has no room for are left out; the first ones matter most.
                if len(labels) + len(encode_name(name)) <= DNSSL_BYTES:
                    labels += encode_name(name)
            options.append({"type": NDP_OPTION_DNSSL, "lifetime": NDP_INFINITE, "labels": labels})
    options.append({"type": NDP_OPTION_SOURCE_LINK_ADDRESS, "mac": router.network.host_mac})
    return NDP_ROUTER_ADVERTISEMENT_CODEC.pack(
        type=NDP_TYPE_ROUTER_ADVERTISEMENT,
        hop_limit=NDP_HOP_LIMIT,
        flags=NDP_RA_FLAG_MANAGED,
        lifetime=ROUTER_LIFETIME,
    ) + _options(options)


def _options(options: list[dict[str, Any]]) -> bytes:
    built: bytes = NDP_OPTIONS.build(options)
    return built


def encode_name(name: str) -> bytes:
    """Give a domain name in DNS wire format (RFC 1035, section 3.1), labels cut at 63 bytes by the sender's care."""
    labels = [label.encode("idna") if label else b"" for label in name.rstrip(".").split(".")]
    return b"".join(bytes((len(label),)) + label for label in labels if label) + b"\0"
