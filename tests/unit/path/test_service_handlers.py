"""The handlers of services: replies reach the link, and what a message shows of the guest's addresses is learned."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.flow.guests import Guests
from gpasst.packet.dhcp_wire import DHCP_COOKIE
from gpasst.path.service_handlers import ServiceHandlers, disabled
from gpasst.records import replace
from gpasst.services import dhcpv6
from tests.support.addresses import GATEWAY4, GUEST4, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.networks import family_network, guest_network
from tests.support.questions import packet, request, router, router_solicitation, solicitation

TCP = 6
SYN = struct.pack(">HHIIBBHHH", 1025, 80, 7, 0, 0x50, 0x02, 0, 0, 0)
OTHER4, OTHER6 = "192.0.2.77", "2001:db8::77"
HOST4, HOST6 = "192.0.2.66", "2001:db8::66"
CONFIGURED = b"\x02\x67\0\0\0\x66"


class Link:
    """A guest's end that keeps what is written."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)


class Case:
    def __init__(self, **services: Any) -> None:
        self.link, self.guest = Link(), Guest(guest_network(mtu=0), GUEST_MAC)
        self.handlers = ServiceHandlers(cast(Any, self.link), self.guest, **services)


def test_arp_is_answered_to_who_asked() -> None:
    case = Case()
    case.handlers.arp(request(GATEWAY4))
    (frame,) = case.link.frames
    assert frame[6:12] == HOST_MAC


def test_where_no_reply_is_due_nothing_is_written() -> None:
    case = Case()
    case.handlers.arp(request(GUEST4))
    assert case.link.frames == []


def test_a_solicitation_is_answered_and_its_source_is_learned() -> None:
    case = Case(router=router())
    case.handlers.ndp(solicitation("fe80::77", source=OTHER6))
    assert case.guest.addresses[6].seen == ip(OTHER6)
    case.handlers.ndp(solicitation("fe80::77", source=GUEST_LINK_LOCAL))
    assert case.guest.addresses[6].link_local == ip(GUEST_LINK_LOCAL)
    assert len(case.link.frames) == 2


def test_the_guests_own_addresses_do_not_look_taken() -> None:
    case = Case(router=router())
    case.handlers.ndp(solicitation(GUEST6, source=GUEST_LINK_LOCAL))
    assert case.link.frames == []


@pytest.mark.parametrize("service", ["dhcp", "dhcpv6"])
def test_leases_that_are_not_served_are_dropped(service: str) -> None:
    case = Case()
    family = 4 if service == "dhcp" else 6
    with pytest.raises(PacketError) as caught:
        getattr(case.handlers, service)(packet(family, 17, b""), memoryview(b""))
    assert caught.value.reason is Drop.SERVICE
    assert case.link.frames == []


def test_discovery_that_is_switched_off_is_dropped_but_learned_from() -> None:
    case = Case()
    with pytest.raises(PacketError) as caught:
        case.handlers.ndp(solicitation("fe80::77", source=OTHER6))
    assert caught.value.reason is Drop.DISCOVERY
    assert case.guest.addresses[6].seen == ip(OTHER6)


def test_a_protocol_that_is_switched_off() -> None:
    with pytest.raises(PacketError) as caught:
        disabled(packet(4, TCP, SYN))
    assert caught.value.reason is Drop.PROTOCOL_DISABLED


class Lan:
    """The services of a network's gateway, with one host that is configured and one that asks."""

    def __init__(self) -> None:
        network = guest_network(ip4=family_network(4, address=None), ip6=family_network(6, address=None))
        self.link, self.guests = Link(), Guests(network, lambda mac: (None, None))
        self.guests.place(CONFIGURED, ip(HOST4), ip(HOST6))
        self.guests.place(GUEST_MAC, ip(OTHER4), ip(OTHER6), configured=False)
        identifier = dhcpv6.duid(HOST_MAC, 1)
        self.handlers = ServiceHandlers(
            cast(Any, self.link), self.guests, router(), True, dhcpv6.Server(self.guests.network, identifier)
        )

    def answers(self, mac: bytes, handler: str, *message: Any) -> list[bytes]:
        """Let a message come from a MAC address; return the frames that answer it."""
        self.link.frames.clear()
        self.guests.learn_mac(mac)
        getattr(self.handlers, handler)(*message)
        return list(self.link.frames)


def test_arp_of_hosts_is_answered_for_the_gateway_alone() -> None:
    lan = Lan()
    assert len(lan.answers(CONFIGURED, "arp", request(GATEWAY4))) == 1
    assert lan.answers(CONFIGURED, "arp", request(OTHER4)) == []


def test_each_host_leases_its_own_address() -> None:
    lan = Lan()
    discover = bytes((1, 1, 6)) + bytes(233) + DHCP_COOKIE + b"\x35\1\1\xff"
    solicit = b"\1abc" + b"\0\1\0\4duid" + b"\0\3\0\x0ciaid" + bytes(8)
    asked = packet(6, 17, b"", source=GUEST_LINK_LOCAL, to="ff02::1:2")
    for mac, own4, own6 in ((CONFIGURED, HOST4, HOST6), (GUEST_MAC, OTHER4, OTHER6)):
        (offer,) = lan.answers(mac, "dhcp", packet(4, 17, b"", source="0.0.0.0"), memoryview(discover))
        assert ip(own4) in offer
        (advertise,) = lan.answers(mac, "dhcpv6", asked, memoryview(solicit))
        assert advertise[:6] == mac
        assert ip(own6) in advertise
    with pytest.raises(PacketError) as caught:
        lan.answers(HOST_MAC, "dhcp", packet(4, 17, b"", source="0.0.0.0"), memoryview(discover))
    assert caught.value.reason is Drop.LEASES


def test_a_router_is_advertised_to_hosts_that_are_not_configured() -> None:
    lan = Lan()
    lan.guests.network = replace(lan.guests.network, host_mac=CONFIGURED[:5] + b"\1")
    assert lan.answers(CONFIGURED, "ndp", router_solicitation()) == []
    (frame,) = lan.answers(GUEST_MAC, "ndp", router_solicitation())
    assert frame[:6] == GUEST_MAC
