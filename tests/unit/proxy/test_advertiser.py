"""What the host sends unasked: questions to a new guest, and router advertisements once it has spoken."""

from __future__ import annotations

from typing import Any, cast

from gpasst.counters import Counters
from gpasst.flow.guest import Guest
from gpasst.packet.address import BROADCAST_MAC
from gpasst.proxy.advertiser import Advertiser
from gpasst.services import ndp
from tests.support.addresses import GUEST_MAC
from tests.support.networks import guest_network

ARP, IPV6 = b"\x08\x06", b"\x86\xdd"
ADVERTISEMENT = 134  # ICMPv6 type, behind Ethernet and IPv6


class Link:
    """A guest's end that keeps what is written."""

    def __init__(self) -> None:
        self.ready = True
        self.frames: list[bytes] = []

    def write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)


class Case:
    def __init__(self, advertised: bool = True) -> None:
        network = guest_network(mtu=0)
        self.link, self.guest, self.counters = Link(), Guest(network, GUEST_MAC), Counters()
        router = ndp.Router(network, True, 0) if advertised else None
        self.advertiser = Advertiser(cast(Any, self.link), self.guest, router, self.counters, lambda: 1000)

    def advertised(self, now: int) -> int:
        """Scan; return how many advertisements that sent."""
        before = len(self.link.frames)
        self.advertiser.scan(now)
        fresh = self.link.frames[before:]
        assert all(frame[12:14] == IPV6 and frame[14 + 40] == ADVERTISEMENT for frame in fresh)
        return len(fresh)


def test_a_new_guest_is_asked_for_its_mac_address_at_everybodys() -> None:
    case = Case()
    case.advertiser.greet()
    assert [frame[12:14] for frame in case.link.frames] == [ARP, IPV6]
    assert case.link.frames[0][:6] == BROADCAST_MAC
    assert case.guest.mac == BROADCAST_MAC


def test_nothing_is_advertised_before_the_guest_has_spoken() -> None:
    case = Case()
    assert case.advertised(1000) == case.advertised(5000) == 0
    case.counters.frames_down += 1
    assert case.advertised(5000) == 1


def test_nothing_is_advertised_while_nobody_is_there() -> None:
    case = Case()
    case.counters.frames_down += 1
    case.link.ready = False
    assert case.advertised(1000) == 0
    case.link.ready = True
    assert case.advertised(1000) == 1


def test_the_first_ones_are_16_seconds_apart_at_most_and_then_10_minutes() -> None:
    """RFC 4861, section 6.2.4."""
    case = Case()
    case.counters.frames_down += 1
    sent = [now for now in range(1000, 4000) if case.advertised(now)]
    first, second, third, *rest = sent
    assert (first, second - first <= 17, third - second <= 17) == (1000, True, True)
    assert rest
    assert all(198 <= later - earlier <= 601 for earlier, later in zip([third, *rest], rest, strict=False))


def test_a_new_guest_is_advertised_to_at_once() -> None:
    case = Case()
    case.counters.frames_down += 1
    assert (case.advertised(1000), case.advertised(1001)) == (1, 0)
    case.advertiser.greet()
    assert case.advertised(1001) == 1


def test_without_a_router_there_is_nothing_to_advertise() -> None:
    case = Case(advertised=False)
    case.counters.frames_down += 1
    assert case.advertised(1000) == case.advertised(9000) == 0
