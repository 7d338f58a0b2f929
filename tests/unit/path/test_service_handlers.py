"""The handlers of services: replies reach the link, and what a message shows of the guest's addresses is learned."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.path.service_handlers import ServiceHandlers, disabled
from tests.support.addresses import GATEWAY4, GUEST4, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.networks import guest_network
from tests.support.questions import packet, request, router, solicitation

TCP = 6
SYN = struct.pack(">HHIIBBHHH", 1025, 80, 7, 0, 0x50, 0x02, 0, 0, 0)
OTHER6 = "2001:db8::77"


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
