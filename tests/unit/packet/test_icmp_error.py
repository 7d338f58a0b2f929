"""ICMP errors field by field and what is refused; scapy reads what is built and builds what is read."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet import icmp_error
from gpasst.packet.icmp_error import MESSAGE_BYTES, Problem, Reported
from gpasst.packet.parse import Packet, parse_ip
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.need import need_module

GUEST = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
PEER = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
ROUTER = {4: ip("203.0.113.1"), 6: ip("2001:db8:2::1")}
GUEST_PORT, PORT = 40000, 53
IP_SIZE = {4: 20, 6: 40}
PROBLEMS = [
    (4, Problem(3, 0)),
    (4, Problem(3, 1)),
    (4, Problem(3, 3)),
    (4, Problem(3, 4, 1280)),
    (4, Problem(3, 13)),
    (4, Problem(11, 0)),
    (4, Problem(12, 0, 20)),
    (6, Problem(1, 0)),
    (6, Problem(1, 4)),
    (6, Problem(2, 0, 1280)),
    (6, Problem(3, 0)),
    (6, Problem(4, 1, 40)),
]
TABLE = pytest.mark.parametrize(("family", "problem"), PROBLEMS, ids=lambda value: str(value))


def scapy() -> Any:
    return need_module("scapy.all")


def quoted(family: int, payload: bytes = b"payload", **fields: int) -> bytes:
    return icmp_error.quoted_udp(GUEST[family], GUEST_PORT, PEER[family], PORT, payload, **fields)


def frame(family: int, problem: Problem, payload: bytes = b"payload", **fields: int) -> bytes:
    built = icmp_error.message(family, problem, quoted(family, payload, **fields))
    return icmp_error.frame(GUEST_MAC, HOST_MAC, ROUTER[family], GUEST[family], built)


@TABLE
def test_scapy_reads_what_is_built(family: int, problem: Problem) -> None:
    s = scapy()
    frame_ = frame(family, problem, tos=0xB9, hop_limit=3)
    read = s.Ether(frame_)
    assert (read.dst, read.src) == ("52:54:00:12:34:56", "9a:55:9a:55:9a:55")
    outer = read[s.IP] if family == 4 else read[s.IPv6]
    assert (ip(outer.src), ip(outer.dst)) == (ROUTER[family], GUEST[family])
    # Building it anew computes lengths and checksums.
    again = read.copy()
    for layer in (outer.__class__, outer.payload.__class__):
        for name in ("chksum", "cksum", "len", "plen"):
            if name in again[layer].fields and layer is not s.IPv6:
                delattr(again[layer], name)
    assert bytes(again) == frame_
    if family == 4:
        message = outer.payload
        assert (message.type, message.code) == (problem.type, problem.code)
        if problem.type != 11:
            assert (message.nexthopmtu if problem.type == 3 else message.ptr) == problem.parameter
        inner, udp = message[s.IPerror], message[s.UDPerror]
        assert (inner.tos, inner.ttl, inner.flags) == (0xB9, 3, "DF")
    else:
        message = outer.payload
        assert (message.type, message.code) == (problem.type, problem.code)
        if problem.type in (2, 4):
            assert (message.mtu if problem.type == 2 else message.ptr) == problem.parameter
        inner, udp = message[s.IPerror6], message[s.UDPerror]
        assert (inner.tc, inner.hlim) == (0xB9, 3)
    assert (ip(inner.src), ip(inner.dst)) == (GUEST[family], PEER[family])
    assert (udp.sport, udp.dport, udp.len) == (GUEST_PORT, PORT, 15)
    assert bytes(udp.payload) == b"payload"


@FAMILIES
@given(size=st.integers(0, 3000))
def test_no_error_is_longer_than_allowed(family: int, size: int) -> None:
    built = frame(family, Problem(3, 0), bytes(size))
    assert len(built) - 14 == min(2 * IP_SIZE[family] + 16 + size, MESSAGE_BYTES[family])
    packet = parse_ip(memoryview(built))
    assert len(packet.payload) + IP_SIZE[family] == len(built) - 14


def test_an_mtu_that_does_not_fit_is_cut() -> None:
    built = icmp_error.message(4, Problem(3, 4, 100_000), quoted(4))
    assert built[6:8] == b"\xff\xff"


@TABLE
@given(payload=st.binary(max_size=300))
def test_what_is_built_can_be_read_back(family: int, problem: Problem, payload: bytes) -> None:
    packet = parse_ip(memoryview(frame(family, problem, payload)))
    expected = Reported(problem, GUEST[family], PEER[family], GUEST_PORT, PORT, payload)
    assert icmp_error.parse(packet) == expected


@FAMILIES
def test_what_scapy_builds_is_read(family: int) -> None:
    s = scapy()
    if family == 4:
        inner = s.IP(src="198.51.100.9", dst="192.0.2.2", options=[s.IPOption_NOP()] * 4) / s.UDP(sport=53, dport=7)
        packet = s.Ether() / s.IP(src="192.0.2.2", dst="198.51.100.9") / s.ICMP(type=3, code=4, nexthopmtu=1400) / inner
        problem = Problem(3, 4, 1400)
    else:
        inner = s.IPv6(src="2001:db8:1::9", dst="2001:db8::2") / s.UDP(sport=53, dport=7)
        packet = s.Ether() / s.IPv6(src="2001:db8::2", dst="2001:db8:1::9") / s.ICMPv6PacketTooBig(mtu=1400) / inner
        problem = Problem(2, 0, 1400)
    read = icmp_error.parse(parse_ip(memoryview(bytes(packet))))
    assert read == Reported(problem, PEER[family], GUEST[family], 53, 7, b"")


@FAMILIES
def test_of_a_segment_ports_and_sequence_number_are_read(family: int) -> None:
    """An error need not quote more of it."""
    segment = struct.pack(">HHI", 80, 40000, 0xFFFFFFF0)
    problem = icmp_error.too_big(family, 1400)
    inner = icmp_error.quoted_packet(PEER[family], GUEST[family], 6, segment)
    expected = Reported(problem, PEER[family], GUEST[family], 80, 40000, b"", 6, 0xFFFFFFF0)
    whole = icmp_error.message(family, problem, inner)
    assert icmp_error.parse(packet_of(family, whole)) == expected
    assert icmp_error.parse(packet_of(family, whole + bytes(12) + b"data")) == expected
    with pytest.raises(PacketError, match=Drop.MALFORMED_ICMP.value):
        icmp_error.parse(packet_of(family, whole[:-1]))


def packet_of(family: int, payload: bytes) -> Packet:
    protocol = 1 if family == 4 else 58
    return Packet(family, GUEST[family], PEER[family], protocol, memoryview(payload), 64)


@FAMILIES
def test_cut_errors_are_malformed_at_every_byte(family: int) -> None:
    whole = icmp_error.message(family, Problem(3, 0), quoted(family, b""))
    assert icmp_error.parse(packet_of(family, whole)) is not None
    for length in range(1, len(whole)):
        with pytest.raises(PacketError) as caught:
            icmp_error.parse(packet_of(family, whole[:length]))
        assert caught.value.reason is Drop.MALFORMED_ICMP


@FAMILIES
def test_errors_about_other_packets_are_nobodys(family: int) -> None:
    whole = bytearray(icmp_error.message(family, Problem(3, 0), quoted(family)))
    protocol = 8 + (9 if family == 4 else 6)
    whole[protocol] = 132  # SCTP
    assert icmp_error.parse(packet_of(family, bytes(whole))) is None


def test_a_later_fragment_shows_no_ports() -> None:
    whole = bytearray(icmp_error.message(4, Problem(11, 1), quoted(4)))
    whole[8 + 7] = 1
    assert icmp_error.parse(packet_of(4, bytes(whole))) is None


@FAMILIES
@pytest.mark.parametrize("version", [0, 5, 15])
def test_other_versions_are_malformed(family: int, version: int) -> None:
    whole = bytearray(icmp_error.message(family, Problem(3, 0), quoted(family)))
    whole[8] = version << 4 | whole[8] & 15
    with pytest.raises(PacketError, match=Drop.MALFORMED_ICMP.value):
        icmp_error.parse(packet_of(family, bytes(whole)))


@FAMILIES
@given(payload=st.binary(max_size=120), keep=st.integers(0, 60))
def test_arbitrary_bytes_raise_nothing_else(family: int, payload: bytes, keep: int) -> None:
    whole = icmp_error.message(family, Problem(3, 0), quoted(family))
    try:
        icmp_error.parse(packet_of(family, whole[:keep] + payload))
    except PacketError as error:
        assert error.reason is Drop.MALFORMED_ICMP


@FAMILIES
def test_quoted_echo_requests_have_the_guests_identifier(family: int) -> None:
    request = struct.pack(">BBHHH", 8 if family == 4 else 128, 0, 0x1234, 777, 5) + b"data"
    built = icmp_error.quoted_echo(GUEST[family], PEER[family], request, 4242, 1)
    assert built[IP_SIZE[family] :] == request[:4] + struct.pack(">HH", 4242, 5) + b"data"
    with pytest.raises(PacketError, match=Drop.MALFORMED_ICMP.value):
        icmp_error.quoted_echo(GUEST[family], PEER[family], request[:7], 4242, 1)
