"""What follows from the host's addresses and routes, as the helper reports them."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from gpasst.linux import RT_SCOPE_UNIVERSE
from gpasst.packet.address import V4, V6

if TYPE_CHECKING:
    from gpasst.helper.facts import HostAddress, HostFacts, HostRoute

LIMITED_BROADCAST = bytes(4 * (255,))  # RFC 919
CLASS_PREFIXES = ((128, 8), (192, 16), (224, 24), (256, 32))  # end of the first byte, bits; RFC 791, section 3.2
POINT_TO_POINT_PREFIX = 31  # bits; networks of one or two addresses have no broadcast address (RFC 3021)


def own_addresses(usable: list[HostAddress], index: int, default: HostRoute | None) -> list[tuple[str, int]]:
    """Return the (address, prefix length) pairs of global scope that the host has on its template interface.

    An unnumbered interface sends from an address of another one, mostly of the loopback device (RFC 5549 hosts).

    :param usable: the family's addresses that are neither tentative nor duplicates.
    :param index: of the template interface.
    :param default: its default route, None if it has none.
    """
    general = [a for a in usable if a["scope"] == RT_SCOPE_UNIVERSE]
    own = [a for a in general if a["index"] == index]
    if not own and default is not None and default["source"]:
        own = [a for a in general if a["address"] == default["source"]]
    return [(a["address"], a["prefix"]) for a in own]


def broadcasts(facts: HostFacts) -> frozenset[bytes]:
    """Return the broadcast addresses of the host's IPv4 networks, and the limited one."""
    networks = [
        ipaddress.IPv4Network((item["address"], item["prefix"]), strict=False)
        for item in facts["addresses"]
        if item["family"] == V4 and item["prefix"] < POINT_TO_POINT_PREFIX
    ]
    return frozenset((LIMITED_BROADCAST, *(network.broadcast_address.packed for network in networks)))


def link_local_network(route: HostRoute) -> bool:
    """Return whether a route is that of IPv6's link-local network, which every link has."""
    return ipaddress.ip_address(route["destination"] or "").is_link_local and route["family"] == V6


def guess_prefix4(address: str, gateway: str) -> int:
    """Guess an IPv4 prefix length: by address class, then shortened until the gateway is inside, if any length does."""
    first = ipaddress.IPv4Address(address).packed[0]
    prefix = next(bits for end, bits in CLASS_PREFIXES if first < end)
    for shorter in range(prefix, 0, -1):
        if ipaddress.ip_address(gateway) in ipaddress.ip_network(f"{address}/{shorter}", strict=False):
            return shorter
    return prefix
