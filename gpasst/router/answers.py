"""What a router answers itself: ARP, and solicitations of neighbours and of routers."""

from __future__ import annotations

import ipaddress
from typing import Final

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import IP4_BYTES, UNSPECIFIED, V4, V6, is_multicast
from gpasst.packet.parse import Packet
from gpasst.router.interface import Interface
from gpasst.services import arp, ndp
from gpasst.wire import (
    ARP_CODEC,
    ARP_ETHERNET,
    ETHERTYPE_IPV4,
    NDP_ADVERTISEMENT_CODEC,
    NDP_FLAG_OVERRIDE,
    NDP_FLAG_ROUTER,
    NDP_FLAG_SOLICITED,
    NDP_INFINITE,
    NDP_LINK_ADDRESS_CODEC,
    NDP_MTU_CODEC,
    NDP_OPTION_SOURCE_LINK_ADDRESS,
    NDP_OPTION_TARGET_LINK_ADDRESS,
    NDP_PREFIX_CODEC,
    NDP_PREFIX_FLAG_AUTONOMOUS,
    NDP_PREFIX_FLAG_ON_LINK,
    NDP_ROUTER_ADVERTISEMENT_CODEC,
    NDP_ROUTER_SOLICITATION_CODEC,
    NDP_SOLICITATION_CODEC,
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_ROUTER_ADVERTISEMENT,
    NDP_TYPE_ROUTER_SOLICITATION,
    NDP_TYPE_SOLICITATION,
)

_OPTION_HEAD: Final = 2  # type and length

Learned = tuple[bytes, bytes]
"""The IP address and the MAC address of a neighbour."""


def arp_packet(interface: Interface, payload: memoryview) -> tuple[Learned | None, bytes | None]:
    """Return what an ARP packet says of its sender, and the frame of the reply.

    :param interface: where it came in.
    :param payload: of its frame.
    :raises PacketError: `Drop.MALFORMED_ARP`.
    """
    fields = ARP_CODEC.parse(payload, Drop.MALFORMED_ARP)
    if (fields["hardware"], fields["protocol"]) != (ARP_ETHERNET, ETHERTYPE_IPV4):
        raise PacketError(Drop.MALFORMED_ARP)
    own, sender, target = interface.addresses.get(V4), fields["sender_ip"], fields["target_ip"]
    learned = (sender, fields["sender_mac"]) if any(sender) and sender != own else None
    if target != own:
        # Of packets for others only announcements (RFC 5227) say something that is true now.
        return (learned if sender == target else None), None
    return learned, arp.answer(payload, interface.mac, lambda _: True)


def discovery(interface: Interface, packet: Packet, advertises: bool) -> tuple[Learned | None, bytes | None]:
    """Return what a message of neighbour discovery says of its sender, and the frame of the answer.

    :param interface: where it came in.
    :param packet: an ICMPv6 packet of one of `gpasst.services.ndp.TYPES`.
    :param advertises: whether a router solicitation is answered.
    :raises PacketError: `Drop.MALFORMED_NDP`.
    """
    payload, kind = bytes(packet.payload), ndp.checked_type(packet)
    if kind == NDP_TYPE_ROUTER_SOLICITATION:
        mac = _option(payload[NDP_ROUTER_SOLICITATION_CODEC.size :], NDP_OPTION_SOURCE_LINK_ADDRESS)
        return None, advertisement(interface, packet.source, mac) if advertises else None
    if kind == NDP_TYPE_ADVERTISEMENT:
        target = NDP_ADVERTISEMENT_CODEC.parse(payload, Drop.MALFORMED_NDP)["target"]
        mac = _option(payload[NDP_ADVERTISEMENT_CODEC.size :], NDP_OPTION_TARGET_LINK_ADDRESS)
        return ((target, mac) if mac else None), None
    if kind != NDP_TYPE_SOLICITATION:
        return None, None
    target = NDP_SOLICITATION_CODEC.parse(payload, Drop.MALFORMED_NDP)["target"]
    if target not in (interface.addresses[V6], interface.link_local):
        return None, None
    mac = _option(payload[NDP_SOLICITATION_CODEC.size :], NDP_OPTION_SOURCE_LINK_ADDRESS)
    if packet.source == UNSPECIFIED[V6] or not mac:
        # The probe of a host that would have the same address (RFC 4862, section 5.4.3).
        return None, _neighbour_advertisement(interface, target, ndp.ALL_NODES, None)
    return (packet.source, mac), _neighbour_advertisement(interface, target, packet.source, mac)


def _neighbour_advertisement(interface: Interface, target: bytes, destination: bytes, mac: bytes | None) -> bytes:
    flags = NDP_FLAG_ROUTER | NDP_FLAG_OVERRIDE | (NDP_FLAG_SOLICITED if mac else 0)
    message = NDP_ADVERTISEMENT_CODEC.pack(
        type=NDP_TYPE_ADVERTISEMENT, flags=flags, target=target
    ) + NDP_LINK_ADDRESS_CODEC.pack(type=NDP_OPTION_TARGET_LINK_ADDRESS, mac=interface.mac)
    return ndp.framed(message, target, destination, interface.mac, mac)


def advertisement(interface: Interface, destination: bytes, mac: bytes | None) -> bytes:
    """Return the frame of a router advertisement (RFC 4861, section 4.2), with the prefix of the network (RFC 4862).

    :param interface: where it leaves.
    :param destination: 16 bytes; the unspecified address and one without MAC address stand for all nodes.
    :param mac: of the destination; None for all nodes.
    """
    network = ipaddress.ip_network(interface.prefixes[V6])
    message = (
        NDP_ROUTER_ADVERTISEMENT_CODEC.pack(
            type=NDP_TYPE_ROUTER_ADVERTISEMENT,
            hop_limit=ndp.CURRENT_HOP_LIMIT,
            flags=0,
            lifetime=ndp.ROUTER_LIFETIME,
        )
        + NDP_PREFIX_CODEC.pack(
            prefix_length=network.prefixlen,
            flags=NDP_PREFIX_FLAG_ON_LINK | NDP_PREFIX_FLAG_AUTONOMOUS,
            valid=NDP_INFINITE,
            preferred=NDP_INFINITE,
            prefix=network.network_address.packed,
        )
        + NDP_MTU_CODEC.pack(mtu=interface.mtu)
        + NDP_LINK_ADDRESS_CODEC.pack(type=NDP_OPTION_SOURCE_LINK_ADDRESS, mac=interface.mac)
    )
    if mac is None or destination == UNSPECIFIED[V6]:
        destination, mac = ndp.ALL_NODES, None
    return ndp.framed(message, interface.link_local, destination, interface.mac, mac)


def _option(options: bytes, wanted: int) -> bytes | None:
    """Return the link-layer address in an option of neighbour discovery, None without one."""
    at = 0
    while at + ndp.UNIT_BYTES <= len(options):
        kind, size = options[at], options[at + 1] * ndp.UNIT_BYTES
        if kind == wanted:
            return options[at + _OPTION_HEAD : at + ndp.UNIT_BYTES]
        if not size:
            return None
        at += size
    return None


def is_group(destination: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is of a group or of all hosts, which no router forwards."""
    return is_multicast(destination) or (len(destination) == IP4_BYTES and destination == b"\xff" * IP4_BYTES)
