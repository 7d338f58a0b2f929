"""The hosts of a network that share one gateway: the neighbours of the proxy, and what each may lease.

Theory of operation: `Guests` is a `gpasst.flow.guest.Guest` that is many. Every flow names its host by the host's
address, so the flows need no more than the MAC address of each: the neighbour table.

1. The network *places* a host: address and MAC address are known before it sends anything, and nothing that is heard
   replaces them. So no host takes over the flows of another. One that leaves stays where it was placed, as in the
   neighbour table of a router.
2. Other addresses are learned from the source of a new flow, an echo request, or a DHCP or neighbour discovery message:
   virtual machines, addresses that a program moves between hosts, and networks behind a router that translates nothing.
   The longest unheard gives way at `LEARNED_LIMIT`.
3. A neighbour that is unknown, as a virtual machine that a forward leads to and that has sent nothing, is asked for, at
   most once a second, and its frames go to the broadcast address meanwhile.
4. A MAC address that asks for a lease is given one address for ever: the one that the network has placed it at, or one
   that `allot` returns. At `LEASES_LIMIT` the others get none.

The host answers for the addresses of the gateway alone, since hosts of the network reach each other without it. A host
that is configured already gets no router advertisement, which would give it another address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Addressed, Guest
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.flow.translation import Addresses
from gpasst.packet.address import BROADCAST_MAC, UNSPECIFIED, is_link_local, is_loopback, is_multicast
from gpasst.records import replace

LEARNED_LIMIT = 4096  # neighbours
LEASES_LIMIT = 1024  # MAC addresses that ask for a lease without being placed
ASKED_LIMIT = 64  # neighbours asked for in a second
OWN_PREFIX_BYTES = 2  # of the MAC addresses of a network's own hosts and gateway
ADDRESS_BITS = 8  # of each byte of an address

# Returns the IPv4 and the IPv6 address, 4 and 16 bytes, for a MAC address that asks for a lease, None for each that
# there is none of.
Allot = Callable[[bytes], tuple[bytes | None, bytes | None]]


class SharedAddresses(Addresses):
    """The translation of one family for all hosts of a network.

    :param network: the family's network; its address is nobody's.
    :param heard: takes note of a source address that a host uses.
    """

    __slots__ = ("_heard", "_prefix", "_shift")

    def __init__(self, network: FamilyNetwork, heard: Callable[[bytes], None]) -> None:
        super().__init__(network)
        self._heard = heard
        self._shift = len(network.gateway) * ADDRESS_BITS - network.prefix
        self._prefix = int.from_bytes(network.gateway, "big") >> self._shift

    def learn(self, source: bytes) -> None:
        """Record a source address that the sender of the frame at hand uses."""
        if source != UNSPECIFIED[self.network.family] and not is_loopback(source) and not is_multicast(source):
            self._heard(source)

    def leased(self, address: bytes) -> None:
        """Do nothing: a lease is placed when it is made."""

    def shown(self, source: bytes) -> bytes:
        """Return the address under which hosts know a node; see `Addresses.shown`.

        A node that they would look for on their own link is shown as the gateway.
        """
        inside = int.from_bytes(source, "big") >> self._shift == self._prefix
        if inside or is_loopback(source) or is_link_local(source):
            return self.network.host_loopback or self.network.gateway
        return source


class Guests(Guest):
    """The hosts of a network.

    :param network: the network without an address of its own.
    :param allot: chooses addresses for leases.
    """

    many = True

    def __init__(self, network: GuestNetwork, allot: Allot) -> None:
        super().__init__(network)
        for family, addresses in self.addresses.items():
            self.addresses[family] = SharedAddresses(addresses.network, self._heard)
        self.stamp = object()
        self._routers = self.routers
        self._allotted = 0
        self._placed: dict[bytes, bytes] = {}
        self._learned: OrderedDict[bytes, bytes] = OrderedDict()
        self._networks: dict[bytes, GuestNetwork] = {}
        self._unconfigured: set[bytes] = set()
        self._allot = allot
        self._asked: set[bytes] = set()

    @property
    def advertised(self) -> bool:
        """Whether router solicitations of the sender of the frame at hand are answered.

        Not those of configured hosts: of this network, or of a part of it in another process, by their addresses.
        """
        return self.mac in self._unconfigured or not self.mac.startswith(self.network.host_mac[:OWN_PREFIX_BYTES])

    def place(self, mac: bytes, ip4: bytes | None, ip6: bytes | None, configured: bool = True) -> GuestNetwork:
        """Enter a host of the network; return the network with its addresses, which it may lease.

        :param mac: its MAC address, 6 bytes.
        :param ip4: its IPv4 address, None without one.
        :param ip6: its IPv6 address of global scope, None without one.
        :param configured: whether it has these addresses without asking for them.
        """
        if not configured:
            self._unconfigured.add(mac)
        network = self.network
        own = self._networks[mac] = replace(
            network,
            ip4=replace(network.ip4, address=ip4) if network.ip4 else None,
            ip6=replace(network.ip6, address=ip6) if network.ip6 else None,
        )
        for address in (ip4, ip6):
            if address:
                if (self._learned.pop(address, None) or self._placed.get(address, mac)) != mac:
                    self.stamp = object()
                self._placed[address] = mac
        return own

    def placed(self, mac: bytes) -> bool:
        """Return whether a host is placed at a MAC address, 6 bytes."""
        return mac in self._networks

    def learn_mac(self, mac: bytes) -> None:
        """Take note that the frame at hand comes from `mac`, 6 bytes."""
        self.mac = mac

    def mac_of(self, address: bytes) -> bytes:
        """Return where frames to a host go, 6 bytes; the broadcast address while that is unknown."""
        return self._neighbour(address) or BROADCAST_MAC

    def readdress(self, header: Addressed, address: bytes) -> None:
        """Send the frames of a flow where its end is now; while that is unknown, they are addressed anew each time."""
        mac = self._neighbour(address)
        header.readdress(mac or BROADCAST_MAC, self.stamp if mac else None)

    def resolves(self, address: bytes) -> bool:
        """Return whether an address, 4 or 16 bytes, is the gateway's."""
        return address in self._routers

    def leased(self) -> GuestNetwork:
        """Return the network with the addresses that the sender of the frame at hand may lease.

        :raises PacketError: `Drop.LEASES`, if none is left.
        """
        mac = self.mac
        network = self._networks.get(mac)
        if network is None:
            ip4, ip6 = self._allot(mac) if self._allotted < LEASES_LIMIT else (None, None)
            if not ip4 and not ip6:
                raise PacketError(Drop.LEASES)
            self._allotted += 1
            network = self.place(mac, ip4, ip6, configured=False)
        return network

    def scan(self, now: int) -> None:
        """Let neighbours that have not answered be asked for again; called once a second."""
        del now
        self._asked.clear()

    def _neighbour(self, address: bytes) -> bytes | None:
        mac = self._placed.get(address) or self._learned.get(address)
        if mac is None and address not in self._asked and len(self._asked) < ASKED_LIMIT:
            self._asked.add(address)
            self.ask(address)
        return mac

    def _heard(self, address: bytes) -> None:
        learned, mac = self._learned, self.mac
        if address in self._placed or address in self._routers:
            return
        if learned.get(address, mac) != mac:
            self.stamp = object()
        learned[address] = mac
        learned.move_to_end(address)
        if len(learned) > LEARNED_LIMIT:
            learned.popitem(last=False)
