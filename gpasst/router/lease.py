"""Addresses for inside hosts that ask their gateway for them: DHCP (RFC 2131), by the rules of `gpasst.services.dhcp`.

IPv6 addresses come by autoconfiguration from the prefix of a router advertisement (RFC 4862).
"""

from __future__ import annotations

import ipaddress

from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.packet.address import V4
from gpasst.packet.parse import Packet, parse_udp
from gpasst.records import dataclass
from gpasst.router.interface import Interface
from gpasst.services import dhcp


@dataclass(frozen=True, slots=True)
class Lease:
    """What a host gets that asks.

    :ivar address: its IPv4 address, None if none is kept for it.
    :ivar resolvers: IPv4 addresses of resolvers.
    """

    address: bytes | None = None
    resolvers: tuple[bytes, ...] = ()


def answer(interface: Interface, lease: Lease, packet: Packet, mac: bytes) -> bytes | None:
    """Return the frame of the reply to a DHCP message, None if it has none.

    :param interface: where it came in, with IPv4.
    :param lease: what its sender gets; with an address.
    :param packet: a packet to the server's port.
    :param mac: of its sender.
    :raises PacketError: if the message is malformed, or of a type that has no answer.
    """
    _, _, data = parse_udp(packet.payload)
    ip4 = FamilyNetwork(
        family=V4,
        local=False,
        address=lease.address,
        prefix=ipaddress.ip_network(interface.prefixes[V4]).prefixlen,
        gateway=interface.addresses[V4],
        link_local=None,
        index=0,
        host_loopback=None,
        loopback_chosen=False,
        gateway_resolver=None,
        guest_alias=None,
        resolver=None,
        dns_forward=None,
        resolvers=lease.resolvers,
        host_addresses=frozenset(),
    )
    network = GuestNetwork(ip4, None, "", interface.mac, interface.mtu, (), (), ())
    return dhcp.answer(network, data, mac)
