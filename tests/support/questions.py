"""What a guest asks of its network: packets and frames for ARP, neighbour discovery, echo and TCP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpasst.flow.network import GuestNetwork
from gpasst.formats import ARP_CODEC, NDP_ROUTER_SOLICITATION, NDP_SOLICITATION_CODEC
from gpasst.packet.parse import Packet
from gpasst.services import ndp
from tests.support.addresses import GUEST4, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip
from tests.support.networks import NETWORK4, NETWORK6

SERVER = {4: SERVER4, 6: SERVER6}
GUEST = {4: GUEST4, 6: GUEST6}
ICMP, TCP, ICMPV6 = 1, 6, 58
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
OWN = (ip(GUEST6), ip(GUEST_LINK_LOCAL), None)


def packet(family: int, protocol: int, payload: bytes, source: str = "", hop_limit: int = 255, to: str = "") -> Packet:
    return Packet(
        family,
        ip(source or GUEST[family]),
        ip(to or SERVER[family]),
        protocol,
        memoryview(payload),
        hop_limit,
    )


def request(target: str, sender: str = GUEST4, **fields: int) -> memoryview:
    values = {"operation": 1, **fields}
    return memoryview(
        ARP_CODEC.pack(sender_mac=GUEST_MAC, sender_ip=ip(sender), target_mac=bytes(6), target_ip=ip(target), **values)
    )


def router(mtu: int = 65520, search: tuple[str, ...] = (), advertise: bool = True, **changes: Any) -> ndp.Router:
    packed = {name: ip(value) if isinstance(value, str) else value for name, value in changes.items()}
    network = GuestNetwork(
        ip4=NETWORK4,
        ip6=replace(NETWORK6, **packed),
        interface="tap0",
        template="up0",
        host_mac=HOST_MAC,
        mtu=mtu,
        search=search,
        addresses=(),
        routes=(),
    )
    return ndp.Router(network, advertise, mtu)


def solicitation(target: str, source: str = GUEST6, hop_limit: int = 255) -> Packet:
    payload = NDP_SOLICITATION_CODEC.pack(type=135, target=ip(target))
    return packet(6, ICMPV6, payload, source, hop_limit, "ff02::1:ff00:1")


def router_solicitation(source: str = GUEST_LINK_LOCAL) -> Packet:
    return packet(6, ICMPV6, NDP_ROUTER_SOLICITATION.build({"type": 133}), source, to="ff02::2")
