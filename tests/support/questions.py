"""What a guest asks of its network: packets and frames for ARP, neighbour discovery, echo and TCP."""

from __future__ import annotations

from typing import Any

from gpasst.formats import ARP_CODEC, NDP_ROUTER_SOLICITATION, NDP_SOLICITATION_CODEC
from gpasst.packet.parse import Packet
from gpasst.services import ndp
from tests.support.addresses import GUEST4, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, SERVER4, SERVER6, ip
from tests.support.networks import family_network, guest_network

SERVER = {4: SERVER4, 6: SERVER6}
GUEST = {4: GUEST4, 6: GUEST6}
ICMP, TCP, ICMPV6 = 1, 6, 58
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
OWN = frozenset(map(ip, (GUEST4, GUEST6, GUEST_LINK_LOCAL)))  # addresses of the guest


def theirs(address: bytes) -> bool:
    """Return whether an address is none of the guest's."""
    return address not in OWN


def packet(family: int, protocol: int, payload: bytes, source: str = "", hop_limit: int = 255, to: str = "") -> Packet:
    """Return a packet, from the guest to a server unless told otherwise."""
    return Packet(
        family,
        ip(source or GUEST[family]),
        ip(to or SERVER[family]),
        protocol,
        memoryview(payload),
        hop_limit,
    )


def request(target: str, sender: str = GUEST4, **fields: int) -> memoryview:
    """Return the payload of an ARP request."""
    values = {"operation": 1, **fields}
    return memoryview(
        ARP_CODEC.pack(sender_mac=GUEST_MAC, sender_ip=ip(sender), target_mac=bytes(6), target_ip=ip(target), **values)
    )


def router(mtu: int = 65520, search: tuple[str, ...] = (), advertise: bool = True, **changes: Any) -> ndp.Router:
    """Return a router of the guest's network; text among `changes` of its IPv6 half is an address."""
    network = guest_network(ip6=family_network(6, **changes), mtu=mtu, search=search)
    return ndp.Router(network, advertise, mtu)


def solicitation(target: str, source: str = GUEST6, hop_limit: int = 255) -> Packet:
    """Return a neighbour solicitation."""
    payload = NDP_SOLICITATION_CODEC.pack(type=135, target=ip(target))
    return packet(6, ICMPV6, payload, source, hop_limit, "ff02::1:ff00:1")


def router_solicitation(source: str = GUEST_LINK_LOCAL) -> Packet:
    """Return a router solicitation."""
    return packet(6, ICMPV6, NDP_ROUTER_SOLICITATION.build({"type": 133}), source, to="ff02::2")
