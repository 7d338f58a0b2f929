from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.packet import checksum

WORDS = st.integers(0, 0xFFFF)
FE80_1 = bytes.fromhex("fe800000000000000000000000000001")
GUEST6 = bytes.fromhex("fe80000000000000505400fffe123456")


def naive_sum(data: bytes, start: int = 0) -> int:
    """RFC 1071 word by word, in its own words."""
    if len(data) % 2:
        data += b"\0"
    total = start
    for (word,) in struct.iter_unpack(">H", data):
        total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize(
    ("total", "folded"),
    [(0, 0), (0xFFFF, 0xFFFF), (0x10000, 1), (0x2C835, 0xC837), (0x1FFFF, 1), (0xFFFFFFFF, 0xFFFF)],
)
def test_fold(total: int, folded: int) -> None:
    assert checksum.fold(total) == folded


def test_example_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.ones_sum(data) == 0xDDF2
    assert checksum.internet(data) == 0x220D


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("450000210000 0000ff110000 c0000201 c0000202", 0x37C8),
        ("450000470000 0000ff110000 c0000235 c0000202", 0x376E),
    ],
)
def test_ipv4_header(header: str, expected: int) -> None:
    data = bytes.fromhex(header)
    assert checksum.internet(data) == expected
    assert checksum.ones_sum(data, expected) == 0xFFFF


def test_ipv4_header_from_the_constant_part() -> None:
    constant = bytes.fromhex("45000000 00000000 ff110000 00000000 c0000202")
    assert checksum.internet(b"\0\x21\xc0\0\x02\x01", checksum.ones_sum(constant)) == 0x37C8


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ("9c401388000e0000 68656c6c6f36", 0x8B42),
        ("9c401388000a0000 cf52", 0xFFFF),
    ],
)
def test_udp_over_ipv6(segment: str, expected: int) -> None:
    pseudo = checksum.pseudo_sum(FE80_1, GUEST6, 17)
    assert checksum.udp(pseudo, bytes.fromhex(segment)) == expected


def test_only_udp_avoids_zero() -> None:
    pseudo = checksum.pseudo_sum(FE80_1, GUEST6, 17)
    assert checksum.transport(pseudo, bytes.fromhex("9c401388000a0000cf52")) == 0


def test_pseudo_header_of_ipv4() -> None:
    source, destination, segment = b"\xc0\0\x02\x01", b"\xc0\0\x02\x02", b"\x9c\x40\x1b\x58\0\x0d\0\0hello"
    whole = source + destination + b"\0\x11\0\x0d" + segment
    assert checksum.udp(checksum.pseudo_sum(source, destination, 17), segment) == 0xFFFF ^ naive_sum(whole)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 65535])
def test_zero_only_for_zeros(data: bytes) -> None:
    assert checksum.ones_sum(data) == 0
    assert checksum.ones_sum(data + b"\xff\xff" if len(data) % 2 == 0 else data, 0xFFFF) == 0xFFFF


def test_largest_datagram() -> None:
    data = bytes(range(256)) * 255 + bytes(227)
    assert checksum.ones_sum(data) == naive_sum(data)
    assert checksum.transport(7, data + data) == 0xFFFF ^ naive_sum(data + data, 7 + 2 * len(data))


# Bytes of 0 and 255 make the two zeros of one's complement likely.
DATA = st.binary(max_size=200) | st.lists(st.sampled_from([0, 255]), max_size=40).map(bytes)


@given(DATA, st.integers(0, 1 << 40))
def test_sum_agrees_with_the_naive_one(data: bytes, start: int) -> None:
    expected = naive_sum(data, start)
    assert checksum.ones_sum(data, start) == expected
    assert checksum.ones_sum(bytearray(data), start) == expected
    assert checksum.ones_sum(memoryview(data), start) == expected
    assert checksum.internet(data, start) == 0xFFFF ^ expected


@given(DATA, st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(0, 255))
def test_transport_agrees_with_the_naive_one(data: bytes, source: bytes, destination: bytes, protocol: int) -> None:
    whole = source + destination + struct.pack(">II", len(data), protocol) + data
    expected = 0xFFFF ^ naive_sum(whole)
    assert checksum.transport(checksum.pseudo_sum(source, destination, protocol), data) == expected
    assert checksum.udp(checksum.pseudo_sum(source, destination, protocol), data) == (expected or 0xFFFF)
    assert checksum.fold(checksum.pseudo_sum(source[:4], destination[:4], protocol)) == naive_sum(
        source[:4] + destination[:4] + bytes([0, protocol])
    )
