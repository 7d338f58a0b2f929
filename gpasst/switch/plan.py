"""The addresses of a network's hosts.

Theory of operation: host n of a network has the n-th address of its prefixes. The first is its gateway's: that of an
uplink, or of whatever router a test puts there. The MAC address is made of the IP address, so parts of one network in
several processes, which divide its addresses among themselves, need not divide MAC addresses as well.

They divide them without a word: the upper half of the bits that number a host is the number of the part, and the lower
half that of the host in it. So a /16 has 256 parts with 254 hosts each, and a /24 has 16 parts with 14.
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from gpasst.errors import ConfigurationError
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass

GATEWAY = 1
"""The number of a network's gateway."""

GATEWAY_NAME = "gateway"
"""The name of the gateway that an uplink is, where links are named."""

LOCAL_NAMES = frozenset(("localhost", "ip6-localhost", "ip6-loopback"))
"""Names that lead to a host itself in each host's /etc/hosts, and to no other."""

MAC_PREFIX = b"\x02\x67"  # locally administered (IEEE 802-2014, section 8.4)
MAC_SUFFIX_BYTES = 4
SUBNETS = 256  # that are chosen without being asked for
SUBNET4 = "10.77.{}.0/24"
SUBNET6 = "fd77:0:0:{:x}::/64"  # unique local (RFC 4193)
SHARED4 = "10.78.0.0/16"  # of a network with parts
SHARED6 = "fd78::/64"
HOSTS6 = 1 << 32  # as many as MAC addresses can be made for
ADDRESSES_MINIMUM = 4  # of a prefix, or of a part, in which a gateway and a host have room
PART_REMEDY = "number parts from 0, or give a shorter prefix as subnet4"

Network4 = ipaddress.IPv4Network
Network6 = ipaddress.IPv6Network
N = TypeVar("N", Network4, Network6)


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """What one host of a network has.

    :ivar ip4: its IPv4 address, as text; empty without IPv4.
    :ivar ip6: its IPv6 address, likewise.
    :ivar prefixes: pairs of address and prefix length, as they are configured.
    :ivar mac: its MAC address, 6 bytes.
    """

    ip4: str
    ip6: str
    prefixes: tuple[tuple[str, int], ...]
    mac: bytes


class Plan:
    """The prefixes of one network.

    :param subnet4: such as ``"10.1.0.0/24"``, None without IPv4.
    :param subnet6: such as ``"fd01::/64"``, None without IPv6.
    :param part: the number of this part of a network that has several; None for a whole network.
    :raises ConfigurationError: if one makes no sense, or both prefixes are None.
    :ivar ip4: the prefix of IPv4, None without it.
    :ivar ip6: likewise.
    :ivar first: the number of the first host.
    :ivar last: the highest number that a host may have.
    """

    def __init__(self, subnet4: str | None, subnet6: str | None, part: int | None = None) -> None:
        self.ip4 = _parsed(Network4, "subnet4", subnet4, 0) if subnet4 else None
        self.ip6 = _parsed(Network6, "subnet6", subnet6, 1) if subnet6 else None
        if self.ip4 is None and self.ip6 is None:
            raise ConfigurationError("a network needs an address family", "give subnet4 or subnet6")

        hosts = HOSTS6
        for network in (self.ip4, self.ip6):
            hosts = min(hosts, network.num_addresses) if network else hosts
        # The last address of IPv4 is the broadcast address.
        self.first, self.last = GATEWAY + 1, hosts - (2 if self.ip4 else 1)
        if part is None:
            return
        size = 1 << (hosts.bit_length() - 1) // 2
        parts = hosts // size
        if not isinstance(part, int) or not 0 <= part < parts or size < ADDRESSES_MINIMUM:
            raise ConfigurationError(f"part {part!r} of a network with {parts} parts", PART_REMEDY)
        self.first += part * size
        self.last = min(self.last, (part + 1) * size - 1)

    def host(self, number: int) -> HostAddresses:
        """Return what the host of a number has.

        :param number: `GATEWAY`, or `first` to `last`.
        """
        networks = [network for network in (self.ip4, self.ip6) if network]
        addresses = [network[number] for network in networks]
        text = {address.version: str(address) for address in addresses}
        prefixes = tuple((str(network[number]), network.prefixlen) for network in networks)
        return HostAddresses(text.get(V4, ""), text.get(V6, ""), prefixes, mac_of(addresses[0]))


def mac_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """Return the MAC address of the host that has an IP address as its first one."""
    return MAC_PREFIX + address.packed[-MAC_SUFFIX_BYTES:]


def chosen(number: int) -> tuple[str, str]:
    """Return the prefixes of both families that a network has which names none.

    :param number: 0 to `SUBNETS` - 1, another one for each network.
    """
    return SUBNET4.format(number), SUBNET6.format(number)


def shared(subnet4: str | None, subnet6: str | None) -> tuple[str, str]:
    """Return the prefixes of a network that has parts in several processes, where the same are chosen for all.

    :param subnet4: that of IPv4, None for the chosen one.
    :param subnet6: that of IPv6, likewise.
    """
    return SHARED4 if subnet4 is None else subnet4, SHARED6 if subnet6 is None else subnet6


def _parsed(kind: type[N], name: str, text: str, family: int) -> N:
    """Return a prefix.

    :raises ConfigurationError: if it is none, or has no room.
    """
    try:
        network = kind(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} {text}: {error}", f"write it like {chosen(1)[family]}") from None
    if network.num_addresses < ADDRESSES_MINIMUM:
        raise ConfigurationError(f"{name} {text} has no room for hosts", f"write it like {chosen(1)[family]}")
    first = network[GATEWAY]
    special = first.is_multicast or first.is_loopback or (first.is_link_local and first.version == V6)
    if special or not any(first.packed[:1] if first.version == V4 else first.packed[:2]):
        raise ConfigurationError(f"{name} {text} has no addresses of hosts", f"write it like {chosen(1)[family]}")
    return network
