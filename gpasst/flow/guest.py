"""What is known of the guest: its network, and the addresses that it is seen to use.

Theory of operation: the guest's MAC address is learned from its frames, its IP addresses from `translation`'s rules.
Headers are built once a flow, and hold a MAC address. `stamp` is another object whenever a MAC address has changed;
headers keep the one that they were addressed under, so the data path compares identities, and `readdress` is called
once a header after a change.

A network of several hosts is a `gpasst.flow.guests.Guests`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpasst.flow.network import GuestNetwork
from gpasst.flow.translation import Addresses
from gpasst.packet.address import BROADCAST_MAC, V4, V6, family_of


class Addressed(Protocol):
    """The headers of a flow's upward frames."""

    def readdress(self, destination_mac: bytes, stamp: object) -> None:
        """Send to another MAC address from now on, which is right while the guest's stamp is `stamp`."""


class Guest:
    """One guest, as every protocol knows it.

    :param network: the network that it sees.
    :param mac: its MAC address, 6 bytes; None while unknown, when frames go to the broadcast address.
    :param link_local: its IPv6 link-local address, None while unknown.
    :ivar network: the network that it sees.
    :ivar mac: where the answer to the frame at hand goes, 6 bytes.
    :ivar stamp: one object as long as no MAC address changes.
    :ivar addresses: the translation rules of each family that it uses, 4 and 6.
    :ivar many: whether it is the hosts of a network.
    :ivar ask: asks for the MAC address of one of its addresses, 4 or 16 bytes.
    """

    many = False

    def __init__(self, network: GuestNetwork, mac: bytes | None = None, link_local: bytes | None = None) -> None:
        self.network = network
        self.mac = mac or BROADCAST_MAC
        self.stamp: object = self.mac
        self.ask: Callable[[bytes], object] = bool
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
        """Take note that the frame at hand comes from `mac`, 6 bytes: frames are sent there from now on."""
        if mac != self.mac:
            self.mac = self.stamp = mac

    def mac_of(self, address: bytes) -> bytes:
        """Return where frames to one of the guest's addresses go, 6 bytes.

        :param address: 4 or 16 bytes.
        """
        del address
        return self.mac

    def readdress(self, header: Addressed, address: bytes) -> None:
        """Send the frames of a flow where its end is now.

        :param header: the flow's headers.
        :param address: the guest's end of it, 4 or 16 bytes.
        """
        del address
        header.readdress(self.mac, self.stamp)

    def resolves(self, address: bytes) -> bool:
        """Return whether the host answers ARP and neighbour discovery for an address, 4 or 16 bytes.

        It does for every one but the guest's own, since whatever the guest sends has to reach the link.
        """
        addresses = self.addresses[family_of(address)]
        own = addresses.network.address
        if addresses.network.family == V4:
            return address != own
        return address not in (own, addresses.link_local, addresses.seen)

    @property
    def advertised(self) -> bool:
        """Whether router solicitations of the sender of the frame at hand are answered."""
        return True

    def leased(self) -> GuestNetwork:
        """Return the network with the addresses that the sender of the frame at hand may lease."""
        return self.network
