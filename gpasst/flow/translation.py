"""Which address stands for which.

Theory of operation: the guest's network has a few addresses that mean something else on the host: the gateway (or
``--map-host-loopback``) is the host's loopback, ``--dns-forward`` its resolver, ``--map-guest-addr`` the host's address
that equals the guest's own. `to_host` chooses what a datagram from the guest is sent to; `to_guest` chooses what the
guest sees as the sender of one from the host, and which of its addresses gets it.

1. Both are asked once for a peer, when it is first seen; the answer is stored with it (errata D2). Answers to a
   translated query therefore need no rule of their own, and carry the address that was asked.
2. The resolver comes before the gateway (E-34). Port 53 of the gateway leads to the resolver too, unless the user chose
   the address that stands for loopback.
3. Loopback and unspecified addresses never cross the tap (E-30).
"""

from __future__ import annotations

from dataclasses import dataclass

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import FamilyNetwork
from gpasst.packet.address import LOOPBACK, UNSPECIFIED, is_link_local, is_loopback, is_multicast, is_v4_mapped

DNS_PORTS = (53, 853)  # DNS (RFC 1035) and DNS over DTLS or QUIC (RFC 8094, RFC 9250)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a datagram from the guest goes.

    :ivar address: 4 or 16 bytes.
    :ivar scope: interface index for a link-local address, else 0.
    :ivar own: whether it is the host itself.
    """

    address: bytes
    scope: int
    own: bool


@dataclass(frozen=True, slots=True)
class GuestView:
    """How a datagram from the host looks to the guest.

    :ivar source: address that the guest sees as sender.
    :ivar destination: address of the guest that gets it.
    """

    source: bytes
    destination: bytes


class Addresses:
    """The rules of one address family, and what is known of the guest's own addresses.

    :ivar seen: the guest's latest address; for IPv6 of global scope. None while unknown.
    :ivar link_local: the guest's latest IPv6 link-local address, None while unknown.
    """

    __slots__ = ("link_local", "network", "seen")

    def __init__(self, network: FamilyNetwork, link_local: bytes | None = None) -> None:
        self.network = network
        self.seen = network.address
        self.link_local = link_local

    def learn(self, source: bytes) -> None:
        """Take note of a source address that the guest uses (context 1.3; E-19 of upstream: `-a` is authoritative)."""
        if source == UNSPECIFIED[self.network.family] or is_loopback(source) or is_multicast(source):
            return
        if is_link_local(source):
            self.link_local = source
        elif not self.network.explicit:
            self.seen = source

    def to_host(self, destination: bytes, port: int) -> Target:
        """Choose the target of a new peer that the guest addresses.

        :param destination: 4 or 16 bytes, as in the guest's packet.
        :param port: destination port.
        :raises PacketError: for an address that must not cross the tap.
        """
        network = self.network
        if destination == UNSPECIFIED[network.family]:
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        if is_loopback(destination) or is_v4_mapped(destination):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        if network.resolver and port in DNS_PORTS:
            through_gateway = destination == network.host_loopback and network.gateway_resolves and port == 53
            if destination == network.dns_forward or through_gateway:
                return self._target(network.resolver)
        if destination == network.host_loopback:
            return Target(LOOPBACK[network.family], 0, own=True)
        if destination == network.guest_alias and network.address:
            return self._target(network.address)
        return self._target(destination)

    def to_guest(self, source: bytes) -> GuestView:
        """Choose how a new peer that addresses the guest looks to it.

        :param source: 4 or 16 bytes, as received from the host's socket.
        :raises PacketError: while no address of the guest is known.
        """
        network = self.network
        shown = source
        if is_loopback(source):
            shown = self._stand_in()
        elif source in (self.seen, network.address):
            shown = network.guest_alias or self._stand_in()
        destination = self.link_local if is_link_local(shown) else self.seen or self.link_local
        if destination is None:
            raise PacketError(Drop.NO_GUEST_ADDRESS)
        return GuestView(shown, destination)

    def _stand_in(self) -> bytes:
        """Give the address that stands for a sender on the host itself, even where it is not mapped back (E-31)."""
        network = self.network
        stand_in = network.host_loopback or network.gateway
        if network.link_local and network.gateway_resolves and not is_link_local(stand_in):
            return network.link_local
        return stand_in

    def _target(self, address: bytes) -> Target:
        own = is_loopback(address) or address in self.network.host_addresses
        return Target(address, self.network.index if is_link_local(address) else 0, own)
