"""The addresses of a network's hosts.

Theory of operation: host n of a network has the n-th address of its prefixes. The first is its gateway's: that of an
uplink, or of whatever router a test puts there. The MAC address is made of the IP address, so parts of one network in
several processes, which divide its addresses among themselves, need not divide MAC addresses as well.
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from gpasst.errors import ConfigurationError
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass

GATEWAY = 1
"""The number of a network's gateway."""

MAC_PREFIX = b"\x02\x67"  # locally administered (IEEE 802-2014, section 8.4)
MAC_SUFFIX_BYTES = 4
SUBNETS = 256  # that are chosen without being asked for
SUBNET4 = "10.77.{}.0/24"
SUBNET6 = "fd77:0:0:{:x}::/64"  # unique local (RFC 4193)
HOSTS6 = 1 << 32  # as many as MAC addresses can be made for
ADDRESSES_MINIMUM = 4  # of a prefix in which a gateway and a host have room

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
    :raises ConfigurationError: if one makes no sense, or both are None.
    :ivar ip4: the prefix of IPv4, None without it.
    :ivar ip6: likewise.
    """

    def __init__(self, subnet4: str | None, subnet6: str | None) -> None:
        self.ip4 = _parsed(Network4, "subnet4", subnet4, 0) if subnet4 else None
        self.ip6 = _parsed(Network6, "subnet6", subnet6, 1) if subnet6 else None
        if self.ip4 is None and self.ip6 is None:
            raise ConfigurationError("a network needs an address family", "give subnet4 or subnet6")

    @property
    def most(self) -> int:
        """The highest number that a host may have."""
        last4 = self.ip4.num_addresses - 2 if self.ip4 else HOSTS6
        return min(last4, self.ip6.num_addresses - 1 if self.ip6 else HOSTS6, HOSTS6 - 1)

    def host(self, number: int) -> HostAddresses:
        """Return what the host of a number has.

        :param number: 1 (`GATEWAY`) to `most`.
        """
        networks = [network for network in (self.ip4, self.ip6) if network]
        addresses = [network[number] for network in networks]
        text = {address.version: str(address) for address in addresses}
        prefixes = tuple((str(network[number]), network.prefixlen) for network in networks)
        mac = MAC_PREFIX + addresses[0].packed[-MAC_SUFFIX_BYTES:]
        return HostAddresses(text.get(V4, ""), text.get(V6, ""), prefixes, mac)


def chosen(number: int) -> tuple[str, str]:
    """Return the prefixes of both families that a network has which names none.

    :param number: 0 to `SUBNETS` - 1, another one for each network.
    """
    return SUBNET4.format(number), SUBNET6.format(number)


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
    return network
