"""The network that hosts with one gateway share, laid over that of a guest which has the host's own.

Theory of operation: `gpasst.flow.network.build_network` finds out how the host reaches the outside. Of that the hosts
of a network see a gateway in a subnet of their own, whose address means what the gateway means to a single guest: the
host's loopback, and on port 53 the host's resolver, wherever that is.
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.records import replace

LINK_LOCAL = ipaddress.IPv6Address("fe80::1").packed  # the gateway's own (RFC 4861, section 6.1.2)

Interface = TypeVar("Interface", ipaddress.IPv4Interface, ipaddress.IPv6Interface)


def shared_network(
    network: GuestNetwork,
    gateway4: ipaddress.IPv4Interface | None,
    gateway6: ipaddress.IPv6Interface | None,
    host_mac: bytes,
    mtu: int,
) -> GuestNetwork:
    """Return the network of hosts behind a gateway.

    :param network: the network of a guest, as `build_network` makes it.
    :param gateway4: the gateway's IPv4 address and subnet, None without IPv4.
    :param gateway6: likewise for IPv6.
    :param host_mac: the gateway's MAC address, 6 bytes.
    :param mtu: MTU of the link in bytes.
    """
    return replace(
        network,
        ip4=_family(network.ip4, gateway4),
        ip6=_family(network.ip6, gateway6),
        host_mac=host_mac,
        mtu=mtu,
        addresses=(),
        routes=(),
        notes=(),
    )


def _family(family: FamilyNetwork | None, gateway: Interface | None) -> FamilyNetwork | None:
    if family is None or gateway is None:
        return None
    address = gateway.ip.packed
    return replace(
        family,
        local=False,
        address=None,
        prefix=gateway.network.prefixlen,
        gateway=address,
        link_local=LINK_LOCAL if family.link_local else None,
        host_loopback=address,
        loopback_chosen=False,
        guest_alias=None,
        dns_forward=address if family.resolver else None,
        resolvers=(address,) if family.resolver else (),
        explicit=False,
    )
