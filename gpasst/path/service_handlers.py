"""The handlers of what the guest needs beside its flows: ARP, neighbour discovery, DHCP, DHCPv6.

Theory of operation: `gpasst.services` has the rules as pure functions. Here their answers are written to the link, and
the guest's addresses that a message shows are learned. A service that is switched off drops its messages.
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.link.port import Link
from gpasst.packet.parse import Packet
from gpasst.records import replace
from gpasst.services import arp, dhcp, dhcpv6, ndp


class ServiceHandlers:
    """Answers of the services.

    :param link: where answers are written.
    :param guest: the guest.
    :param router: answers neighbour discovery; None where that is switched off.
    :param dhcp_served: whether DHCP is.
    :param dhcpv6_server: answers DHCPv6, None where that is switched off.
    """

    def __init__(
        self,
        link: Link,
        guest: Guest,
        router: ndp.Router | None = None,
        dhcp_served: bool = False,
        dhcpv6_server: dhcpv6.Server | None = None,
    ) -> None:
        self._link = link
        self._guest = guest
        self._router = router
        self._silent = replace(router, advertise=False) if router else None
        self._dhcp_served = dhcp_served
        self._dhcpv6_server = dhcpv6_server

    def arp(self, payload: memoryview) -> None:
        """Answer ARP.

        :raises PacketError: if the request is malformed.
        """
        guest = self._guest
        self._write(arp.answer(payload, guest.network.host_mac, guest.resolves))

    def ndp(self, packet: Packet) -> None:
        """Answer neighbour and router solicitations, and learn the address that they come from.

        :raises PacketError: if the message is malformed or not served.
        """
        self._guest.addresses[6].learn(packet.source)
        router = self._router if self._guest.advertised else self._silent
        if router is None:
            raise PacketError(Drop.DISCOVERY)
        self._write(ndp.answer(router, packet, self._guest.mac, self._guest.resolves))

    def dhcp(self, packet: Packet, data: memoryview) -> None:
        """Answer DHCP and BOOTP, and learn the address that a renewing client uses.

        :param data: payload of the UDP datagram.
        :raises PacketError: if the message is malformed or not served.
        """
        if not self._dhcp_served:
            raise PacketError(Drop.SERVICE)
        self._guest.addresses[4].learn(packet.source)
        network = self._guest.leased()
        if network.ip4 is None or network.ip4.address is None:
            raise PacketError(Drop.LEASES)
        self._write(dhcp.answer(network, data, self._guest.mac))

    def dhcpv6(self, packet: Packet, data: memoryview) -> None:
        """Answer DHCPv6; from then on the leased address counts as the guest's.

        :param data: payload of the UDP datagram.
        :raises PacketError: if the message is malformed or not served.
        """
        if self._dhcpv6_server is None:
            raise PacketError(Drop.SERVICE)
        addresses = self._guest.addresses[6]
        addresses.learn(packet.source)
        network = self._guest.leased()
        server = replace(self._dhcpv6_server, network=network)
        answer = dhcpv6.answer(server, packet, data, self._guest.mac)
        if answer and network.ip6 and network.ip6.address:
            addresses.leased(network.ip6.address)
        self._write(answer)

    def _write(self, frame: bytes | None) -> None:
        if frame:
            self._link.write_frame(frame)


def disabled(packet: Packet) -> None:
    """Drop a packet of a protocol that an option switches off.

    :raises PacketError: always.
    """
    raise PacketError(Drop.PROTOCOL_DISABLED)
