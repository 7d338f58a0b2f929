"""What becomes of a frame from the guest that is not an ordinary UDP datagram of a known peer.

Theory of operation: the frame is taken apart (`link.packets`), its fragments are joined (`link.fragments`), and it is
handed to whoever is responsible: a service answers it, the guest path sets up a peer for it, or it is dropped under its
reason. Whoever drives this sends what is left over: datagrams for peers that are known by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.network import GuestNetwork
from gpasst.formats import (
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)
from gpasst.packet import icmp_error
from gpasst.packet.address import is_loopback
from gpasst.packet.dhcp_formats import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.packet.parse import Packet, parse_ip, parse_udp
from gpasst.packet.reassembly import Reassembly
from gpasst.path.fastpath import FastPath
from gpasst.services import arp, dhcp, dhcpv6, ndp
from gpasst.tcp import reset
from gpasst.udp.mapping import Peer
from gpasst.udp.nat import UdpNat

SERVICE_PORTS = {4: DHCP_SERVER_PORT, 6: DHCPV6_SERVER_PORT}

Datagrams = tuple[tuple[Peer, memoryview], ...]
NOTHING: Datagrams = ()


class Link(Protocol):
    """The guest's end, as far as services need it."""

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""


@dataclass(frozen=True, slots=True)
class Services:
    """Who answers what; what is None or false is dropped.

    :ivar router: answers neighbour discovery.
    :ivar leases: the network that DHCP leases.
    :ivar leases6: answers DHCPv6.
    :ivar echo: takes the guest's echo requests.
    :ivar tcp: whether TCP is answered with RST.
    :ivar udp: whether UDP is carried.
    :ivar errors: takes the guest's ICMP errors.
    """

    router: ndp.Router | None = None
    leases: GuestNetwork | None = None
    leases6: dhcpv6.Server | None = None
    echo: Callable[[Packet], None] | None = None
    tcp: bool = True
    udp: bool = True
    errors: Callable[[Packet], None] | None = None


class Dispatch:
    """Hands frames to whoever is responsible.

    :param link: where services answer.
    :param path: the guest path.
    :param services: the services.
    :param counters: where drops are counted.
    :param now: gives monotonic seconds.
    :ivar known: tells ordinary frames that need not come here.
    """

    def __init__(
        self, link: Link, path: UdpNat, services: Services, counters: Counters, now: Callable[[], int]
    ) -> None:
        self._link = link
        self._path = path
        self._services = services
        self._counters = counters
        self._now = now
        self._reassembly = Reassembly()
        self.known = FastPath(path.tables if services.udp else {})

    def frame(self, frame: memoryview) -> Datagrams:
        """Take care of any frame; give the datagrams that it leaves to be sent, with their peers."""
        try:
            return self._frame(frame)
        except PacketError as error:
            self._counters.drop(error.reason)
            return NOTHING

    def scan(self, now: int) -> None:
        """Let go of fragments whose rest has not come by `now`, in monotonic seconds."""
        lost = self._reassembly.scan(now)
        if lost:
            self._counters.drop(Drop.FRAGMENT_TIMEOUT, lost)

    def _frame(self, frame: memoryview) -> Datagrams:
        if len(frame) < ETHERNET_CODEC.size:
            raise PacketError(Drop.FRAME_SHORT)
        ethernet = ETHERNET_CODEC.unpack_from(frame)
        ethertype, path = ethernet["ethertype"], self._path
        family = 6 if ethertype == ETHERTYPE_IPV6 else 4
        if ethertype not in (ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            raise PacketError(Drop.ETHERTYPE)
        if family not in path.addresses:
            raise PacketError(Drop.FAMILY_DISABLED)
        path.learn_mac(ethernet["source"])
        if ethertype == ETHERTYPE_ARP:
            answer = arp.answer(frame[ETHERNET_CODEC.size :], path.network.host_mac, path.addresses[4].network.address)
            if answer:
                self._link.write_frame(answer)
            return NOTHING
        packet: Packet | None = parse_ip(frame)
        assert packet is not None
        if packet.fragment:
            packet = self._reassembly.add(packet, self._now())
        return self._packet(packet) if packet else NOTHING

    def _packet(self, packet: Packet) -> Datagrams:
        """Hand a whole packet to whoever is responsible for its protocol."""
        if packet.protocol == PROTOCOL_UDP:
            return self._udp(packet)
        if packet.protocol == PROTOCOL_TCP:
            self._tcp(packet)
        elif packet.protocol == (PROTOCOL_ICMP if packet.family == 4 else PROTOCOL_ICMPV6):
            self._icmp(packet)
        else:
            raise PacketError(Drop.PROTOCOL)
        return NOTHING

    def _udp(self, packet: Packet) -> Datagrams:
        guest_port, port, data = parse_udp(packet.payload)
        if port == SERVICE_PORTS[packet.family]:
            self._lease(packet, data)
            return NOTHING
        if not self._services.udp:
            raise PacketError(Drop.PROTOCOL_DISABLED)
        path = self._path
        peer = path.tables[packet.family].down.get(packet.source + packet.destination + packet.payload[:4])
        if peer is None:
            peer = path.outbound(packet.family, packet.source, packet.destination, guest_port, port)
        tos_ttl = packet.tos_ttl
        if tos_ttl != peer.tos_ttl:
            peer.set_tos_ttl(tos_ttl)
        return ((peer, data),)

    def _lease(self, packet: Packet, data: memoryview) -> None:
        """Answer DHCP or DHCPv6, and take note of the addresses that this tells (context 1.3.3, 4.2.1 and 4.2.5)."""
        path, services = self._path, self._services
        addresses = path.addresses[packet.family]
        if packet.family == 4:
            if services.leases is None:
                raise PacketError(Drop.SERVICE)
            addresses.learn(packet.source)
            answer = dhcp.answer(services.leases, data, path.guest_mac)
        else:
            if services.leases6 is None:
                raise PacketError(Drop.SERVICE)
            addresses.learn(packet.source)
            answer = dhcpv6.answer(services.leases6, packet, data, path.guest_mac)
            if answer and addresses.network.address:
                addresses.seen = addresses.network.address
        if answer:
            self._link.write_frame(answer)

    def _tcp(self, packet: Packet) -> None:
        if not self._services.tcp:
            raise PacketError(Drop.PROTOCOL_DISABLED)
        if is_loopback(packet.source) or is_loopback(packet.destination):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        answer = reset.reset(packet, self._path.guest_mac, self._path.network.host_mac)
        if answer:
            self._link.write_frame(answer)
        raise PacketError(Drop.TCP)

    def _icmp(self, packet: Packet) -> None:
        services = self._services
        if packet.family == 6 and packet.payload and packet.payload[0] in ndp.TYPES:
            addresses = self._path.addresses[6]
            addresses.learn(packet.source)
            if services.router:
                own = (addresses.network.address, addresses.link_local, addresses.seen)
                answer = ndp.answer(services.router, packet, self._path.guest_mac, own)
                if answer:
                    self._link.write_frame(answer)
            return
        if services.errors and packet.payload and packet.payload[0] in icmp_error.TYPES[packet.family]:
            services.errors(packet)
            return
        if services.echo is None:
            raise PacketError(Drop.PROTOCOL_DISABLED)
        services.echo(packet)
