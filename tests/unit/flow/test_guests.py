"""The hosts behind one gateway: who is where, who may lease what, and under which address they know others."""

from __future__ import annotations

import pytest

from gpasst.counters import Drop
from gpasst.flow.guest import Guest
from gpasst.flow.guests import LEARNED_LIMIT, LEASES_LIMIT, Guests
from gpasst.flow.translation import GuestView
from gpasst.packet.address import BROADCAST_MAC
from gpasst.records import replace
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.networks import family_network, guest_network
from tests.support.replies import refused

A, B, C = (bytes((2, 0x67, 10, 77, 0, last)) for last in (2, 3, 4))
HOST = {4: ("10.77.0.2", "10.77.0.3"), 6: ("fd77::2", "fd77::3")}
STRANGER = {4: "10.77.0.200", 6: "fd77::c8"}
GATEWAY = {4: "10.77.0.1", 6: "fd77::1"}
FAR = {4: "203.0.113.5", 6: "2001:db8:5::5"}


class Lan:
    """Two hosts that are placed, and what was asked of the network beside."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.left: list[tuple[bytes | None, bytes | None]] = [(ip("10.77.0.100"), ip("fd77::64"))]
        self.guests = Guests(
            guest_network(
                ip4=family_network(4, address=None, gateway=GATEWAY[4], host_loopback=GATEWAY[4]),
                ip6=family_network(6, address=None, gateway=GATEWAY[6], host_loopback=GATEWAY[6], link_local="fe80::1"),
            ),
            lambda mac: self.left.pop() if self.left else (None, None),
        )
        self.guests.ask = self.asked.append
        for mac, ip4, ip6 in zip((A, B), HOST[4], HOST[6], strict=True):
            self.guests.place(mac, ip(ip4), ip(ip6))

    def hear(self, mac: bytes, address: str) -> None:
        """Let a frame of a new flow come from a host."""
        packed = ip(address)
        self.guests.learn_mac(mac)
        self.guests.addresses[4 if len(packed) == 4 else 6].learn(packed)


class Header:
    """The headers of a flow to one address."""

    def __init__(self, lan: Lan, address: str) -> None:
        self.guests, self.address = lan.guests, ip(address)
        self.mac = b""
        self.stamp: object = None

    def readdress(self, destination_mac: bytes, stamp: object) -> None:
        self.mac, self.stamp = destination_mac, stamp

    def used(self) -> bytes:
        """Use them as the data path does; return where the frame goes."""
        if self.stamp is not self.guests.stamp:
            self.guests.readdress(self, self.address)
        return self.mac


@FAMILIES
def test_frames_go_to_the_host_that_has_the_address(family: int) -> None:
    lan = Lan()
    assert [lan.guests.mac_of(ip(address)) for address in HOST[family]] == [A, B]
    assert lan.asked == []


@FAMILIES
def test_no_frame_takes_the_address_of_a_placed_host_or_the_gateway_away(family: int) -> None:
    lan = Lan()
    lan.hear(B, HOST[family][0])
    lan.hear(B, GATEWAY[family])
    assert lan.guests.mac_of(ip(HOST[family][0])) == A
    assert lan.guests.mac_of(ip(GATEWAY[family])) == BROADCAST_MAC


@FAMILIES
def test_an_address_moves_to_the_host_that_was_heard_last(family: int) -> None:
    lan = Lan()
    lan.hear(A, STRANGER[family])
    header = Header(lan, STRANGER[family])
    assert header.used() == A
    stamp = lan.guests.stamp
    lan.hear(A, STRANGER[family])
    lan.hear(C, FAR[family])
    assert lan.guests.stamp is stamp, "nothing has moved, so no header is written anew"
    lan.hear(B, STRANGER[family])
    assert header.used() == B


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1"])
def test_what_is_no_address_of_a_host_is_not_learned(address: str) -> None:
    lan = Lan()
    lan.hear(C, address)
    assert lan.guests.mac_of(ip(address)) == BROADCAST_MAC


@FAMILIES
def test_an_unknown_neighbour_is_asked_for_once_a_second_until_it_answers(family: int) -> None:
    lan = Lan()
    header = Header(lan, STRANGER[family])
    assert [header.used(), header.used()] == [BROADCAST_MAC] * 2
    assert lan.asked == [ip(STRANGER[family])]
    lan.guests.scan(1)
    assert header.used() == BROADCAST_MAC
    assert lan.asked == [ip(STRANGER[family])] * 2
    lan.hear(C, STRANGER[family])
    assert header.used() == C


def test_the_neighbour_that_was_not_heard_for_longest_gives_way() -> None:
    lan = Lan()
    numbers = [f"198.18.{number >> 8}.{number & 255}" for number in range(LEARNED_LIMIT + 1)]
    lan.hear(C, numbers[0])
    lan.hear(C, numbers[1])
    lan.hear(C, numbers[0])
    for address in numbers[2:]:
        lan.hear(C, address)
    assert lan.guests.mac_of(ip(numbers[0])) == C
    assert lan.guests.mac_of(ip(numbers[1])) == BROADCAST_MAC


@FAMILIES
def test_an_address_that_is_placed_anew_is_at_its_new_host(family: int) -> None:
    lan = Lan()
    header = Header(lan, HOST[family][0])
    assert header.used() == A
    lan.guests.place(C, ip(HOST[4][0]), ip(HOST[6][0]))
    assert header.used() == C


def test_only_hosts_that_are_not_configured_get_router_advertisements() -> None:
    lan = Lan()
    lan.guests.network = replace(lan.guests.network, host_mac=bytes((2, 0x67, 10, 77, 0, 1)))
    lan.guests.place(C, ip("10.77.0.4"), ip("fd77::4"), configured=False)
    advertised = {}
    for mac in (A, C, bytes((2, 0x67, 10, 77, 0, 9)), GUEST_MAC):
        lan.guests.learn_mac(mac)
        advertised[mac] = lan.guests.advertised
    assert list(advertised.values()) == [False, True, False, True]


@FAMILIES
def test_the_gateway_alone_is_resolved(family: int) -> None:
    guests = Lan().guests
    assert guests.resolves(ip(GATEWAY[family]))
    assert guests.resolves(ip("fe80::1"))
    for address in (*HOST[family], STRANGER[family], FAR[family]):
        assert not guests.resolves(ip(address))


def test_a_placed_host_leases_its_own_addresses() -> None:
    lan = Lan()
    lan.guests.learn_mac(B)
    network = lan.guests.leased()
    assert network.ip4 and network.ip6
    assert (network.ip4.address, network.ip6.address) == (ip(HOST[4][1]), ip(HOST[6][1]))
    assert (network.ip4.gateway, network.host_mac) == (ip(GATEWAY[4]), HOST_MAC)


def test_another_mac_address_leases_one_address_for_ever_and_is_placed_there() -> None:
    lan = Lan()
    lan.guests.learn_mac(C)
    network = lan.guests.leased()
    assert network.ip4
    assert network.ip4.address == ip("10.77.0.100")
    assert lan.guests.leased() is network
    assert lan.guests.mac_of(ip("10.77.0.100")) == lan.guests.mac_of(ip("fd77::64")) == C
    lan.guests.learn_mac(GUEST_MAC)
    with refused(Drop.LEASES):
        lan.guests.leased()


def test_mac_addresses_without_number_do_not_lease_without_limit() -> None:
    lan = Lan()
    lan.left = [(ip(f"10.{number >> 8}.{number & 255}.9"), None) for number in range(LEASES_LIMIT + 1)]
    for number in range(LEASES_LIMIT):
        lan.guests.learn_mac(b"\2\2" + number.to_bytes(4, "big"))
        lan.guests.leased()
    lan.guests.learn_mac(C)
    with refused(Drop.LEASES):
        lan.guests.leased()
    assert len(lan.left) == 1


@FAMILIES
def test_the_outside_is_shown_as_it_is_and_the_inside_as_the_gateway(family: int) -> None:
    addresses = Lan().guests.addresses[family]
    host = ip(HOST[family][0])
    assert addresses.to_guest(ip(FAR[family]), host) == GuestView(ip(FAR[family]), host)
    for source in ("127.0.0.1" if family == 4 else "::1", STRANGER[family], *(["fe80::9"] if family == 6 else [])):
        assert addresses.to_guest(ip(source), host) == GuestView(ip(GATEWAY[family]), host)


@FAMILIES
def test_a_flow_to_no_host_in_particular_has_nowhere_to_go(family: int) -> None:
    lan = Lan()
    lan.hear(A, HOST[family][0])
    lan.guests.addresses[family].leased(ip(HOST[family][0]))
    with refused(Drop.NO_GUEST_ADDRESS):
        lan.guests.addresses[family].to_guest(ip(FAR[family]))


def test_a_single_guest_is_at_one_mac_address_whatever_its_address() -> None:
    guest = Guest(guest_network(), GUEST_MAC)
    assert guest.mac_of(ip(FAR[4])) is guest.stamp is guest.mac
    assert guest.leased() is guest.network
