"""What is known of the guest: its network, and the addresses that it is seen to use.

Theory of operation: the guest's MAC address is learned from its frames, its IP addresses from `translation`'s rules.
Headers that were built for an earlier MAC address are rewritten when they are next used. Users compare MAC addresses by
identity, since `mac` stays one object until it changes.
"""

from __future__ import annotations

from gpasst.flow.network import GuestNetwork
from gpasst.flow.translation import Addresses
from gpasst.packet.address import BROADCAST_MAC, V6


class Guest:
    """One guest, as every protocol knows it.

    :param network: the network that it sees.
    :param mac: its MAC address, 6 bytes; None while unknown, when frames go to the broadcast address.
    :param link_local: its IPv6 link-local address, None while unknown.
    :ivar network: the network that it sees.
    :ivar mac: where frames to the guest go, 6 bytes.
    :ivar addresses: the translation rules of each family that it uses, 4 and 6.
    """

    def __init__(self, network: GuestNetwork, mac: bytes | None = None, link_local: bytes | None = None) -> None:
        self.network = network
        self.mac = mac or BROADCAST_MAC
        self.addresses: dict[int, Addresses] = {}
        for family_network in (network.ip4, network.ip6):
            if family_network:
                family = family_network.family
                self.addresses[family] = Addresses(family_network, link_local if family == V6 else None)

    @property
    def routers(self) -> frozenset[bytes]:
        """The addresses that its gateway has as its neighbour, 4 or 16 bytes."""
        networks = [addresses.network for addresses in self.addresses.values()]
        return frozenset(
            address for network in networks for address in (network.gateway, network.link_local) if address
        )

    def learn_mac(self, mac: bytes) -> None:
        """Send frames to `mac`, 6 bytes, from now on."""
        if mac != self.mac:
            self.mac = mac
