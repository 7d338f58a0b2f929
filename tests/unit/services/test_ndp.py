"""Neighbour discovery: replies, router advertisements and when they are sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.formats import ARP_CODEC, NDP_ADVERTISEMENT, NDP_OPTIONS, NDP_ROUTER_ADVERTISEMENT, NDP_SOLICITATION
from gpasst.packet import checksum, dns_names
from gpasst.packet.parse import Packet, parse_ip
from gpasst.services import arp, ndp
from tests.support.addresses import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    HOST_LINK_LOCAL,
    HOST_MAC,
    ip,
)
from tests.support.questions import ICMPV6, SERVER, packet, router, router_solicitation, solicitation, theirs
from tests.support.replies import opened, refused


@pytest.mark.parametrize("target", [GATEWAY6, "2001:db8::77", "fe80::77", SERVER[6]])
@pytest.mark.parametrize("source", [GUEST6, GUEST_LINK_LOCAL])
def test_every_ipv6_address_is_at_the_hosts_mac(target: str, source: str) -> None:
    answer = opened(ndp.answer(router(), solicitation(target, source), GUEST_MAC, theirs))
    assert (answer.source, answer.destination, answer.protocol) == (ip(GATEWAY6), ip(source), ICMPV6)
    fields = NDP_ADVERTISEMENT.parse(answer.payload)
    assert (fields.type, fields.code, fields.flags, fields.target) == (136, 0, 0xE0, ip(target))
    (option,) = NDP_OPTIONS.parse(bytes(answer.payload[24:]))
    assert (option.type, option.length, option.mac) == (2, 1, HOST_MAC)


@pytest.mark.parametrize(
    ("target", "source"),
    [(GUEST6, GUEST_LINK_LOCAL), (GUEST_LINK_LOCAL, GUEST6), (GUEST6, "::"), ("2001:db8::77", "::")],
)
def test_addresses_of_the_guest_do_not_look_taken(target: str, source: str) -> None:
    assert ndp.answer(router(), solicitation(target, source), GUEST_MAC, theirs) is None


@pytest.mark.parametrize("hop_limit", [0, 64, 254])
@pytest.mark.parametrize("message", [solicitation(GATEWAY6), router_solicitation()])
def test_neighbour_discovery_from_beyond_the_link_is_refused(message: Packet, hop_limit: int) -> None:
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), replace(message, hop_limit=hop_limit), GUEST_MAC, theirs)


@pytest.mark.parametrize("kind", [133, 135])
@given(data=st.binary(max_size=30))
def test_malformed_solicitations_are_refused(kind: int, data: bytes) -> None:
    size = 8 if kind == 133 else 24
    payload = bytes((kind,)) + data
    message = packet(6, ICMPV6, payload)
    if len(payload) < size or payload[1] or (kind == 135 and payload[8] == 0xFF):
        with refused(Drop.MALFORMED_NDP):
            ndp.answer(router(), message, GUEST_MAC, theirs)
    else:
        ndp.answer(router(), message, GUEST_MAC, theirs)


@pytest.mark.parametrize("code", [1, 255])
@pytest.mark.parametrize("message", [solicitation(GATEWAY6), router_solicitation()])
def test_solicitations_have_code_zero(message: Packet, code: int) -> None:
    payload = bytearray(message.payload)
    payload[1] = code
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), replace(message, payload=memoryview(payload)), GUEST_MAC, theirs)


@pytest.mark.parametrize("target", ["ff02::1", "ff02::1:ff00:1", "ff0e::1"])
def test_groups_are_not_solicited(target: str) -> None:
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), solicitation(target), GUEST_MAC, theirs)


@pytest.mark.parametrize("kind", [134, 136])
def test_advertisements_of_the_guest_are_swallowed(kind: int) -> None:
    assert ndp.answer(router(), packet(6, ICMPV6, bytes((kind,))), GUEST_MAC, theirs) is None


def test_a_router_without_default_route_has_no_lifetime() -> None:
    answer = opened(ndp.answer(router(routed=False), router_solicitation(), GUEST_MAC, theirs))
    assert NDP_ROUTER_ADVERTISEMENT.parse(answer.payload).lifetime == 0


def test_all_options_of_a_router_advertisement_in_order() -> None:
    resolvers = (ip("2001:db8::53"), ip("2001:db8::54"))
    described = router(mtu=1400, search=("example.org", "b.example."), resolvers=resolvers)
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, theirs))
    assert (answer.source, answer.destination) == (ip(GATEWAY6), ip(GUEST_LINK_LOCAL))
    fields = NDP_ROUTER_ADVERTISEMENT.parse(answer.payload)
    assert (fields.type, fields.code, fields.hop_limit, fields.flags) == (134, 0, 255, 0x80)
    assert (fields.lifetime, fields.reachable, fields.retransmit) == (65535, 0, 0)
    prefix, mtu, rdnss, dnssl, link = NDP_OPTIONS.parse(bytes(answer.payload[16:]))
    assert (prefix.type, prefix.length, prefix.prefix_length, prefix.flags) == (3, 4, 64, 0xC0)
    assert (prefix.valid, prefix.preferred, prefix.prefix) == (0xFFFFFFFF, 0xFFFFFFFF, ip("2001:db8::"))
    assert (mtu.type, mtu.mtu) == (5, 1400)
    assert (rdnss.type, rdnss.length, rdnss.lifetime) == (25, 5, 0xFFFFFFFF)
    assert tuple(rdnss.addresses) == resolvers
    labels = b"\7example\3org\0\1b\7example\0"
    assert (dnssl.type, dnssl.length, dnssl.lifetime) == (31, 1 + (len(labels) + 7) // 8, 0xFFFFFFFF)
    assert dnssl.labels.rstrip(b"\0") == labels.rstrip(b"\0")
    assert (link.type, link.mac) == (1, HOST_MAC)


@pytest.mark.parametrize(
    ("described", "kinds"),
    [
        (router(), [3, 5, 1]),
        (router(mtu=0), [3, 1]),
        (router(address=None), [5, 1]),
        (router(search=("example.org",)), [3, 5, 1]),
        (router(resolvers=(ip("2001:db8::53"),)), [3, 5, 25, 1]),
    ],
)
def test_options_are_left_out_where_there_is_nothing_to_say(described: ndp.Router, kinds: list[int]) -> None:
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, theirs))
    assert [option.type for option in NDP_OPTIONS.parse(bytes(answer.payload[16:]))] == kinds


def test_aligned_search_lists_get_no_padding() -> None:
    answer = opened(
        ndp.answer(
            router(search=("example",), mtu=0, resolvers=(ip("2001:db8::53"),)),
            router_solicitation("::"),
            GUEST_MAC,
            theirs,
        )
    )
    assert answer.destination == ip("ff02::1")
    dnssl = NDP_OPTIONS.parse(bytes(answer.payload[16:]))[2]
    assert dnssl.labels == b"\7example\0".ljust(16, b"\0")
    assert dns_names.encode_name("abcdef") == b"\6abcdef\0"
    assert NDP_OPTIONS.build([{"type": 31, "lifetime": 1, "labels": dns_names.encode_name("abcdef")}])[1] == 2


def test_a_search_list_beyond_the_options_room_is_cut_between_names() -> None:
    many = tuple(f"{number:03}.{'a' * 60}.example" for number in range(40))
    described = router(search=many, mtu=0, resolvers=(ip("2001:db8::53"),))
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, theirs))
    dnssl = NDP_OPTIONS.parse(bytes(answer.payload[16:]))[2]
    size = len(dns_names.encode_name(many[0]))
    assert dnssl.length <= 255
    assert dnssl.labels.rstrip(b"\0").count(b"\7example") == ndp.DNSSL_BYTES // size


def test_a_router_may_be_silent() -> None:
    silent = router(advertise=False)
    assert ndp.answer(silent, router_solicitation(), GUEST_MAC, theirs) is None
    assert ndp.answer(silent, solicitation(GATEWAY6), GUEST_MAC, theirs)


def test_a_global_gateway_answers_from_the_hosts_link_local_address() -> None:
    described = router(gateway="2001:db8::1")
    for message in (router_solicitation(), solicitation("2001:db8::1")):
        assert opened(ndp.answer(described, message, GUEST_MAC, theirs)).source == ip(HOST_LINK_LOCAL)


def test_many_resolvers_are_cut() -> None:
    described = router(mtu=0, resolvers=tuple(ip(f"2001:db8::{number:x}") for number in range(200)))
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, theirs))
    rdnss = NDP_OPTIONS.parse(bytes(answer.payload[16:]))[1]
    assert (rdnss.length, len(rdnss.addresses), rdnss.addresses[126]) == (255, 127, ip("2001:db8::7e"))


def sent(frame: bytes, group: str) -> Packet:
    """Take a frame to a group apart; check its link addresses and checksum."""
    packed = ip(group)
    assert frame[:12] == b"\x33\x33" + packed[-4:] + HOST_MAC
    message = parse_ip(memoryview(frame))
    assert (message.source, message.destination, message.hop_limit) == (ip(GATEWAY6), packed, 255)
    start = checksum.pseudo_sum(message.source, message.destination, ICMPV6) + len(message.payload)
    assert checksum.ones_sum(message.payload, start) == 0xFFFF
    return message


def test_unsolicited_advertisements_are_the_same_as_others() -> None:
    described = router(resolvers=(ip("2001:db8::53"),))
    message = sent(ndp.unsolicited(described), "ff02::1")
    asked = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, theirs))
    # But for the checksum, in which the destination takes part.
    assert bytes(message.payload[4:]) == bytes(asked.payload[4:])
    assert message.payload[:2] == asked.payload[:2]


def test_the_guest_is_asked_for_its_addresses() -> None:
    network = router().network
    message = sent(ndp.solicitation(network, ip(GUEST_LINK_LOCAL)), "ff02::1:ff12:3456")
    fields = NDP_SOLICITATION.parse(message.payload)
    assert (fields.type, fields.code, fields.target) == (135, 0, ip(GUEST_LINK_LOCAL))
    (option,) = NDP_OPTIONS.parse(bytes(message.payload[24:]))
    assert (option.type, option.length, option.mac) == (1, 1, HOST_MAC)
    frame = arp.request(HOST_MAC, ip(GATEWAY4), ip(GUEST4))
    assert frame[:14] == b"\xff" * 6 + HOST_MAC + b"\x08\x06"
    fields = ARP_CODEC.unpack_from(frame, 14)
    assert (len(frame), fields["operation"], fields["sender_mac"], fields["target_mac"]) == (42, 1, HOST_MAC, bytes(6))
    assert (fields["sender_ip"], fields["target_ip"]) == (ip(GATEWAY4), ip(GUEST4))


def test_advertisements_come_often_at_first_and_seldom_later() -> None:
    asked = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 200.0

    schedule = ndp.Schedule(1000, uniform)
    assert not schedule.due(999)
    due = [now for now in range(1000, 2000) if schedule.due(now)]
    # RFC 4861, section 6.2.4: the first three at most 16 seconds apart.
    assert due == [1000, 1016, 1032, 1232, 1432, 1632, 1832]
    # Section 6.2.1: between a third of the longest interval and that, 600 seconds.
    assert set(asked) == {(198.0, 600.0)}
