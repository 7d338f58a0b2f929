"""Translation of addresses between the guest's network and the host's.

Theory of operation: a few addresses of the guest's network mean another one on the host: the gateway (or
``--map-host-loopback``) is the host's loopback, ``--dns-forward`` its resolver, ``--map-guest-addr`` the host's address
that equals the guest's own. `outbound` checks the addresses and ports of a flow that the guest opens, and translates
its destination with `to_host`; `to_guest` translates the source of one that opens towards the guest, and chooses the
guest's address that receives it. The rules are those of every protocol; what has no multicast says so.

1. They are called once for a flow, when it is new, and the result is stored with it. Answers to a translated query
   therefore need no rule of their own, and carry the address that was queried.
2. The resolver takes precedence over the gateway. Port 53 of the gateway leads to the resolver too if that is on the
   host's loopback (127.0.0.53), where the guest cannot name it, unless the user chose the address that stands for
   loopback. Otherwise the gateway is the host's loopback on every port.
3. Loopback and unspecified addresses never cross the tap (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.3).
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.host_facts import LIMITED_BROADCAST
from gpasst.flow.network import FamilyNetwork
from gpasst.packet.address import (
    LOOPBACK,
    UNSPECIFIED,
    is_interface_local,
    is_link_local,
    is_loopback,
    is_multicast,
    is_v4_mapped,
)
from gpasst.records import dataclass

DNS_PORT = 53  # RFC 1035
DNS_PORTS = (DNS_PORT, 853)  # the second for DNS over TLS, DTLS and QUIC (RFC 7858, RFC 8094, RFC 9250)


@dataclass(frozen=True, slots=True)
class Target:
    """The destination, on the host's side, of a flow that the guest opens.

    :ivar address: 4 or 16 bytes.
    :ivar scope: interface index for a link-local address, else 0.
    :ivar own: whether it is the host itself.
    """

    address: bytes
    scope: int
    own: bool


@dataclass(frozen=True, slots=True)
class GuestView:
    """The addresses, on the guest's side, of a flow that opens towards the guest.

    :ivar source: address that the guest sees as the sender's.
    :ivar destination: address of the guest that receives it.
    """

    source: bytes
    destination: bytes


class Addresses:
    """The translation of one address family, and the guest's own addresses.

    :ivar network: the family's network.
    :ivar seen: the guest's latest address, for IPv6 of global scope; None while unknown.
    :ivar link_local: the guest's latest IPv6 link-local address, None while unknown.
    """

    __slots__ = ("_of_host", "link_local", "network", "seen")

    def __init__(self, network: FamilyNetwork, link_local: bytes | None = None) -> None:
        self.network = network
        standing = network.gateway, network.link_local, network.host_loopback, network.guest_alias, network.dns_forward
        self._of_host = frozenset(standing) - {network.address}
        self.seen = network.address
        self.link_local = link_local

    def learn(self, source: bytes) -> None:
        """Record a source address that the guest uses; an address that the user chose is not replaced.

        The gateway's, and those that stand for the host, are nobody else's: what is sent to the guest would lead back.
        """
        if source == UNSPECIFIED[self.network.family] or is_loopback(source) or is_multicast(source):
            return
        if source in self._of_host:
            return
        if is_link_local(source):
            self.link_local = source
        elif not self.network.explicit:
            self.seen = source

    def leased(self, address: bytes) -> None:
        """Take note that the guest has leased an address."""
        self.seen = address

    def outbound(
        self, source: bytes, source_port: int, destination: bytes, port: int, multicast: bool = True
    ) -> Target:
        """Learn the source of a new flow of the guest, and translate its destination.

        :param source: 4 or 16 bytes, as in the guest's packet.
        :param source_port: source port.
        :param destination: 4 or 16 bytes, likewise.
        :param port: destination port.
        :param multicast: whether the protocol has multicast and broadcast; TCP has neither (RFC 9293, section 3.9.2.3).
        :raises PacketError: for an address or a port that must not cross the tap.
        """
        if is_loopback(source):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        if source == UNSPECIFIED[self.network.family] or is_multicast(source):
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        if not source_port:
            raise PacketError(Drop.SOURCE_PORT_ZERO)
        if not port:
            raise PacketError(Drop.DESTINATION_PORT_ZERO)
        if not multicast and (is_multicast(destination) or destination == LIMITED_BROADCAST):
            raise PacketError(Drop.NOT_UNICAST)
        self.learn(source)
        return self.to_host(destination, port)

    def to_host(self, destination: bytes, port: int) -> Target:
        """Translate a destination of the guest.

        :param destination: 4 or 16 bytes, as in the guest's packet.
        :param port: destination port.
        :raises PacketError: for an address that must not cross the tap.
        """
        network = self.network
        if destination == UNSPECIFIED[network.family]:
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        if is_loopback(destination) or is_v4_mapped(destination):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        if is_interface_local(destination):
            raise PacketError(Drop.MULTICAST_SCOPE)
        if port in DNS_PORTS:
            if network.resolver and destination == network.dns_forward:
                return self._target(network.resolver)
            if network.gateway_resolver and destination == network.host_loopback and port == DNS_PORT:
                return self._target(network.gateway_resolver)
        if destination == network.host_loopback:
            return Target(LOOPBACK[network.family], 0, own=True)
        if destination == network.guest_alias and network.address:
            return self._target(network.address)
        return self._target(destination)

    def to_guest(self, source: bytes, destination: bytes = b"") -> GuestView:
        """Translate the source of a new flow towards the guest.

        :param source: 4 or 16 bytes, as received from the host's socket.
        :param destination: the guest's address that a rule or a mapping names; empty where there is none.
        :raises PacketError: while no address of the guest is known.
        """
        shown = self.shown(source)
        own = destination or (self.link_local if is_link_local(shown) else self.seen or self.link_local)
        if own is None:
            raise PacketError(Drop.NO_GUEST_ADDRESS)
        return GuestView(shown, own)

    def shown(self, source: bytes) -> bytes:
        """Return the address under which the guest knows a node that the host knows as `source`, 4 or 16 bytes."""
        if is_loopback(source):
            return self._stand_in()
        if source in (self.seen, self.network.address):
            return self.network.guest_alias or self._stand_in()
        return source

    def _stand_in(self) -> bytes:
        """Return the address that stands for a sender on the host itself, even if ``--no-map-gw`` maps none back."""
        network = self.network
        stand_in = network.host_loopback or network.gateway
        if network.link_local and not network.loopback_chosen and not is_link_local(stand_in):
            return network.link_local
        return stand_in

    def _target(self, address: bytes) -> Target:
        own = is_loopback(address) or address in self.network.host_addresses
        return Target(address, self.network.index if is_link_local(address) else 0, own)
