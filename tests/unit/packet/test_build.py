"""Packets and frames that gpasst originates, read back by the declarations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import IPV4_CODEC, IPV4_DONT_FRAGMENT, IPV6_CODEC, UDP_CODEC
from gpasst.packet import build, checksum
from gpasst.packet.parse import parse_ip, parse_udp
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES

SOURCE = {4: ip("192.0.2.1"), 6: ip("2001:db8::1")}
DESTINATION = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
ODD = 99  # a protocol that nothing here knows


def test_ipv4_headers() -> None:
    built = build.ip_packet(SOURCE[4], DESTINATION[4], ODD, b"data", tos=0xB8, hop_limit=7, flags=IPV4_DONT_FRAGMENT)
    fields = IPV4_CODEC.unpack_from(built)
    assert (fields["version"], fields["ihl"], fields["total_length"], fields["flags"]) == (4, 5, 24, IPV4_DONT_FRAGMENT)
    assert (fields["tos"], fields["ttl"], fields["protocol"]) == (0xB8, 7, ODD)
    assert (fields["source"], fields["destination"]) == (SOURCE[4], DESTINATION[4])
    assert checksum.ones_sum(built[:20]) == 0xFFFF
    assert built[20:] == b"data"


def test_ipv6_headers() -> None:
    built = build.ip_packet(SOURCE[6], DESTINATION[6], ODD, b"data", tos=0xB8, hop_limit=7)
    fields = IPV6_CODEC.unpack_from(built)
    assert (fields["version"], fields["payload_length"], fields["flow_label"]) == (6, 4, 0)
    assert (fields["traffic_class"], fields["hop_limit"], fields["next_header"]) == (0xB8, 7, ODD)
    assert (fields["source"], fields["destination"]) == (SOURCE[6], DESTINATION[6])
    assert built[40:] == b"data"


@FAMILIES
def test_packets_leave_with_the_hop_limit_of_neighbour_discovery(family: int) -> None:
    frame = build.wrap(GUEST_MAC, HOST_MAC, SOURCE[family], DESTINATION[family], ODD, b"data")
    assert frame[:14] == GUEST_MAC + HOST_MAC + (b"\x08\x00" if family == 4 else b"\x86\xdd")
    packet = parse_ip(memoryview(frame))
    assert (packet.hop_limit, packet.tos, packet.protocol, bytes(packet.payload)) == (255, 0, ODD, b"data")


@FAMILIES
@given(data=st.binary(max_size=60))
def test_udp_has_a_checksum_where_it_must(family: int, data: bytes) -> None:
    frame = build.wrap_udp(GUEST_MAC, HOST_MAC, SOURCE[family], DESTINATION[family], 53, 40000, data)
    packet = parse_ip(memoryview(frame))
    source, destination, payload = parse_udp(packet.payload)
    assert (source, destination, bytes(payload)) == (53, 40000, data)
    if family == 4:
        assert UDP_CODEC.unpack_from(packet.payload)["checksum"] == 0
    else:
        pseudo = checksum.pseudo_sum(packet.source, packet.destination, packet.protocol) + len(packet.payload)
        assert checksum.ones_sum(packet.payload, pseudo) == 0xFFFF


@pytest.mark.parametrize("field", [2, 6])
@FAMILIES
@given(data=st.binary(min_size=4, max_size=40))
def test_checksums_are_completed_in_place(family: int, field: int, data: bytes) -> None:
    zeroed = bytes(8) + data
    built = build.with_checksum(zeroed, field, SOURCE[family], DESTINATION[family], ODD)
    pseudo = checksum.pseudo_sum(SOURCE[family], DESTINATION[family], ODD) + len(built)
    assert checksum.ones_sum(built, pseudo) == 0xFFFF
    assert built[:field] + bytes(2) + built[field + 2 :] == zeroed
