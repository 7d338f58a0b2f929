"""What is answered on behalf of the network: ARP, neighbour discovery, TCP and echo."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
    ARP_CODEC,
    ECHO_CODEC,
    ETHERNET_CODEC,
    ICMP_CODEC,
    NDP_ADVERTISEMENT,
    NDP_OPTIONS,
    NDP_ROUTER_ADVERTISEMENT,
    NDP_SOLICITATION,
    TCP_CODEC,
)
from gpasst.packet import checksum, dns_names
from gpasst.packet.parse import Packet, parse_ip
from gpasst.services import arp, echo, ndp
from gpasst.tcp import reset
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
from tests.support.families import FAMILIES
from tests.support.questions import (
    GUEST,
    ICMP,
    ICMPV6,
    OWN,
    REPLY,
    REQUEST,
    SERVER,
    TCP,
    packet,
    request,
    router,
    router_solicitation,
    solicitation,
)

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def opened(frame: bytes | None, pseudo_header: bool = True) -> Packet:
    """Take an answer's frame apart; check link addresses, lengths and checksums."""
    assert frame is not None
    assert frame[:12] == GUEST_MAC + HOST_MAC
    answer = parse_ip(memoryview(frame))
    size = 20 if answer.family == 4 else 40
    assert len(answer.payload) == len(frame) - ETHERNET_CODEC.size - size
    assert answer.hop_limit == 255
    if answer.family == 4:
        assert checksum.ones_sum(frame[14:34]) == 0xFFFF
    start = 0
    if pseudo_header:
        start = checksum.pseudo_sum(answer.source, answer.destination, answer.protocol) + len(answer.payload)
    assert checksum.ones_sum(answer.payload, start) == 0xFFFF
    return answer


def refused(reason: Drop) -> pytest.RaisesExc[PacketError]:
    return pytest.raises(PacketError, match=re.escape(reason.value))


# ARP


@pytest.mark.parametrize(("target", "sender"), [(GATEWAY4, GUEST4), ("203.0.113.5", GUEST4), (GATEWAY4, "0.0.0.0")])
def test_every_address_is_at_the_hosts_mac(target: str, sender: str) -> None:
    frame = arp.answer(request(target, sender), HOST_MAC, ip(GUEST4))
    assert frame is not None
    assert len(frame) == 42
    assert frame[:14] == GUEST_MAC + HOST_MAC + b"\x08\x06"
    assert ARP_CODEC.unpack_from(frame, 14) == {
        "hardware": 1,
        "protocol": 0x0800,
        "hardware_length": 6,
        "protocol_length": 4,
        "operation": 2,
        "sender_mac": HOST_MAC,
        "sender_ip": ip(target),
        "target_mac": GUEST_MAC,
        "target_ip": ip(sender),
    }


@pytest.mark.parametrize(
    "payload",
    [
        request(GUEST4),
        request(GUEST4, "0.0.0.0"),
        request("192.0.2.5", "192.0.2.5"),
        request(GATEWAY4, operation=2),
        request(GATEWAY4, operation=3),
        request(GATEWAY4, hardware=6),
        request(GATEWAY4, protocol=0x86DD),
        request(GATEWAY4, hardware_length=8),
        request(GATEWAY4, protocol_length=16),
    ],
)
def test_arp_that_is_not_answered(payload: memoryview) -> None:
    assert arp.answer(payload, HOST_MAC, ip(GUEST4)) is None


def test_arp_probes_of_other_addresses_and_padding() -> None:
    # 0.0.0.0 as both ends is no announcement.
    assert arp.answer(request("0.0.0.0", "0.0.0.0"), HOST_MAC, ip(GUEST4))
    assert arp.answer(memoryview(bytes(request(GATEWAY4)) + bytes(18)), HOST_MAC, None)


@given(st.binary(max_size=27))
def test_short_arp_is_malformed(data: bytes) -> None:
    with refused(Drop.MALFORMED_ARP):
        arp.answer(memoryview(data), HOST_MAC, None)


# Neighbour discovery


@pytest.mark.parametrize("target", [GATEWAY6, "2001:db8::77", "fe80::77", SERVER[6]])
@pytest.mark.parametrize("source", [GUEST6, GUEST_LINK_LOCAL])
def test_every_ipv6_address_is_at_the_hosts_mac(target: str, source: str) -> None:
    answer = opened(ndp.answer(router(), solicitation(target, source), GUEST_MAC, OWN))
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
    assert ndp.answer(router(), solicitation(target, source), GUEST_MAC, OWN) is None


@pytest.mark.parametrize("hop_limit", [0, 64, 254])
@pytest.mark.parametrize("message", [solicitation(GATEWAY6), router_solicitation()])
def test_neighbour_discovery_from_beyond_the_link_is_refused(message: Packet, hop_limit: int) -> None:
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), replace(message, hop_limit=hop_limit), GUEST_MAC, OWN)


@pytest.mark.parametrize("kind", [133, 135])
@given(data=st.binary(max_size=30))
def test_malformed_solicitations_are_refused(kind: int, data: bytes) -> None:
    size = 8 if kind == 133 else 24
    payload = bytes((kind,)) + data
    message = packet(6, ICMPV6, payload)
    if len(payload) < size or payload[1] or (kind == 135 and payload[8] == 0xFF):
        with refused(Drop.MALFORMED_NDP):
            ndp.answer(router(), message, GUEST_MAC, OWN)
    else:
        ndp.answer(router(), message, GUEST_MAC, OWN)


@pytest.mark.parametrize("code", [1, 255])
@pytest.mark.parametrize("message", [solicitation(GATEWAY6), router_solicitation()])
def test_solicitations_have_code_zero(message: Packet, code: int) -> None:
    payload = bytearray(message.payload)
    payload[1] = code
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), replace(message, payload=memoryview(payload)), GUEST_MAC, OWN)


@pytest.mark.parametrize("target", ["ff02::1", "ff02::1:ff00:1", "ff0e::1"])
def test_groups_are_not_solicited(target: str) -> None:
    with refused(Drop.MALFORMED_NDP):
        ndp.answer(router(), solicitation(target), GUEST_MAC, OWN)


@pytest.mark.parametrize("kind", [134, 136])
def test_advertisements_of_the_guest_are_swallowed(kind: int) -> None:
    assert ndp.answer(router(), packet(6, ICMPV6, bytes((kind,))), GUEST_MAC, OWN) is None


def test_all_options_of_a_router_advertisement_in_order() -> None:
    resolvers = (ip("2001:db8::53"), ip("2001:db8::54"))
    described = router(mtu=1400, search=("example.org", "b.example."), resolvers=resolvers)
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, OWN))
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
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, OWN))
    assert [option.type for option in NDP_OPTIONS.parse(bytes(answer.payload[16:]))] == kinds


def test_aligned_search_lists_get_no_padding() -> None:
    answer = opened(
        ndp.answer(
            router(search=("example",), mtu=0, resolvers=(ip("2001:db8::53"),)),
            router_solicitation("::"),
            GUEST_MAC,
            OWN,
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
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, OWN))
    dnssl = NDP_OPTIONS.parse(bytes(answer.payload[16:]))[2]
    size = len(dns_names.encode_name(many[0]))
    assert dnssl.length <= 255
    assert dnssl.labels.rstrip(b"\0").count(b"\7example") == ndp.DNSSL_BYTES // size


def test_a_router_may_be_silent() -> None:
    silent = router(advertise=False)
    assert ndp.answer(silent, router_solicitation(), GUEST_MAC, OWN) is None
    assert ndp.answer(silent, solicitation(GATEWAY6), GUEST_MAC, OWN)


def test_a_global_gateway_answers_from_the_hosts_link_local_address() -> None:
    described = router(gateway="2001:db8::1")
    for message in (router_solicitation(), solicitation("2001:db8::1")):
        assert opened(ndp.answer(described, message, GUEST_MAC, OWN)).source == ip(HOST_LINK_LOCAL)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("example.org", b"\7example\3org\0"),
        ("example.org.", b"\7example\3org\0"),
        ("bücher.example", b"\x0dxn--bcher-kva\7example\0"),
        ("_tcp.example", b"\4_tcp\7example\0"),
        ("x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
        (".", b"\0"),
    ],
)
def test_names_in_wire_format(name: str, encoded: bytes) -> None:
    assert dns_names.encode_name(name) == encoded


def test_many_resolvers_are_cut() -> None:
    described = router(mtu=0, resolvers=tuple(ip(f"2001:db8::{number:x}") for number in range(200)))
    answer = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, OWN))
    rdnss = NDP_OPTIONS.parse(bytes(answer.payload[16:]))[1]
    assert (rdnss.length, len(rdnss.addresses), rdnss.addresses[126]) == (255, 127, ip("2001:db8::7e"))


def test_names_that_repeat_are_compressed() -> None:
    # RFC 3397 has this example.
    encoded = dns_names.compress_names(["eng.apple.com.", "marketing.apple.com."], 99)
    assert encoded == b"\3eng\5apple\3com\0\x09marketing\xc0\x04"
    assert dns_names.compress_names(["a.example", "example", "b.a.example"], 99) == b"\1a\7example\0\xc0\2\1b\xc0\0"
    assert dns_names.compress_names(["a.example", "b.example"], 14) == b"\1a\7example\0"
    assert dns_names.compress_names(["a.example", "b.test", "c.example"], 15) == b"\1a\7example\0\1c\xc0\2"
    assert dns_names.compress_names(["example"], 8) == b""


def test_pointers_reach_14_bits_only() -> None:
    many = [f"{number:04}{'x' * 50}.example" for number in range(400)] + ["399.test", "a.399.test"]
    encoded = dns_names.compress_names(many, 1 << 16)
    assert len(encoded) > 0x4000
    assert encoded.endswith(b"\x03399\4test\0\1a\x03399\4test\0")


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
    asked = opened(ndp.answer(described, router_solicitation(), GUEST_MAC, OWN))
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


# TCP


def segment(flags: int, data: bytes = b"", **fields: int) -> bytes:
    values = {"source": 50000, "destination": 80, "sequence": 1000, "acknowledgement": 2000, "window": 99, **fields}
    return TCP_CODEC.pack(flags=flags, **values) + data


@FAMILIES
@pytest.mark.parametrize(
    ("payload", "flags", "sequence", "acknowledgement"),
    [
        (segment(SYN), RST | ACK, 0, 1001),
        (segment(SYN, b"fast open"), RST | ACK, 0, 1010),
        (segment(SYN, sequence=0xFFFFFFFF), RST | ACK, 0, 0),
        (segment(SYN, b"\2\4\5\xb4" + b"data", data_offset=6), RST | ACK, 0, 1005),
        (segment(FIN, b"data"), RST | ACK, 0, 1005),
        (segment(PSH, b"data"), RST | ACK, 0, 1004),
        (segment(0), RST | ACK, 0, 1000),
        (segment(ACK), RST, 2000, 0),
        (segment(ACK | PSH, b"data"), RST, 2000, 0),
        (segment(SYN | ACK), RST, 2000, 0),
        (segment(FIN | ACK, b"data"), RST, 2000, 0),
        (segment(SYN, data_offset=15), RST | ACK, 0, 1001),
    ],
)
def test_tcp_is_reset(family: int, payload: bytes, flags: int, sequence: int, acknowledgement: int) -> None:
    answer = opened(reset.reset(packet(family, TCP, payload), GUEST_MAC, HOST_MAC))
    assert (answer.source, answer.destination) == (ip(SERVER[family]), ip(GUEST[family]))
    assert answer.protocol == TCP
    fields = TCP_CODEC.unpack_from(answer.payload)
    assert (fields["source"], fields["destination"]) == (80, 50000)
    assert (fields["flags"], fields["sequence"]) == (flags, sequence)
    assert (fields["acknowledgement"], fields["window"], fields["data_offset"]) == (acknowledgement, 0, 5)
    assert len(answer.payload) == 20


@FAMILIES
@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, RST | FIN | ACK])
def test_resets_are_not_answered(family: int, flags: int) -> None:
    assert reset.reset(packet(family, TCP, segment(flags)), GUEST_MAC, HOST_MAC) is None


@given(st.binary(max_size=19))
def test_short_tcp_is_malformed(data: bytes) -> None:
    with refused(Drop.MALFORMED_TCP):
        reset.reset(packet(4, TCP, data), GUEST_MAC, HOST_MAC)


# Echo


@FAMILIES
@given(identifier=st.integers(0, 65535), sequence=st.integers(0, 65535), data=st.binary(max_size=99))
def test_echo_there_and_back(family: int, identifier: int, sequence: int, data: bytes) -> None:
    protocol = ICMP if family == 4 else ICMPV6
    message = ECHO_CODEC.pack(type=REQUEST[family], identifier=identifier, sequence=sequence) + data
    asked = echo.parse_request(packet(family, protocol, message))
    assert (asked.identifier, asked.sequence, asked.message) == (identifier, sequence, message)
    # The kernel puts its own identifier, and checksum, into what a ping socket receives.
    kernels = ECHO_CODEC.pack(type=REPLY[family], checksum=0x1234, identifier=7, sequence=sequence) + data
    assert echo.sequence_of(kernels) == sequence
    frame = echo.reply(kernels, identifier, ip(SERVER[family]), ip(GUEST[family]), GUEST_MAC, HOST_MAC)
    answer = opened(frame, pseudo_header=family == 6)
    assert (answer.source, answer.destination) == (ip(SERVER[family]), ip(GUEST[family]))
    assert answer.protocol == protocol
    fields = ECHO_CODEC.unpack_from(answer.payload)
    assert (fields["type"], fields["code"]) == (REPLY[family], 0)
    assert (fields["identifier"], fields["sequence"]) == (identifier, sequence)
    assert bytes(answer.payload[8:]) == data


@FAMILIES
def test_other_messages_are_no_echo_requests(family: int) -> None:
    for kind in {*range(256)} - {REQUEST[family]}:
        with refused(Drop.ICMP_TYPE):
            echo.parse_request(packet(family, ICMP, ICMP_CODEC.pack(type=kind) + bytes(4)))
    with refused(Drop.ICMP_TYPE):
        echo.parse_request(packet(family, ICMP, b""))
    with refused(Drop.MALFORMED_ICMP):
        echo.parse_request(packet(family, ICMP, bytes((REQUEST[family],)) + bytes(6)))
