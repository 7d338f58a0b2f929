"""Headers of upward frames, against frames built field by field."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import UDP4_FRAME, UDP6_FRAME
from gpasst.packet import checksum
from gpasst.udp.header import Header
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES, LARGEST
from tests.support.headers import GUEST, SOURCE, header

HEADERS = {4: 52, 6: 72}  # bytes, virtio-net to UDP
VIRTIO = 10  # bytes
MACS = st.binary(min_size=6, max_size=6)
PORTS = st.integers(0, 65535)


def word_sum(data: bytes) -> int:
    """Add 16-bit words with end-around carry, in the words of RFC 1071."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(family: int, source: bytes, guest: bytes, length: int) -> bytes:
    tail = struct.pack(">BBH", 0, 17, length) if family == 4 else struct.pack(">IHBB", length, 0, 0, 17)
    return source + guest + tail


def built(
    family: int,
    macs: tuple[bytes, bytes],
    ends: tuple[bytes, bytes, int, int],
    size: int,
    udp_checksum: int,
    virtio: dict[str, int],
    tos_ttl: int = 255,
) -> bytes:
    """Build a header from its declaration; the IPv4 checksum by adding words."""
    source, guest, port, guest_port = ends
    fields: dict[str, dict[str, Any]] = {
        "virtio": virtio,
        "ethernet": {"destination": macs[0], "source": macs[1], "ethertype": 0x0800 if family == 4 else 0x86DD},
        "udp": {"source": port, "destination": guest_port, "length": size + 8, "checksum": udp_checksum},
    }
    addresses = {"source": source, "destination": guest}
    if family == 6:
        hops = {"traffic_class": tos_ttl >> 8, "hop_limit": tos_ttl & 255}
        fields["ip"] = {"payload_length": size + 8, "next_header": 17, **hops, **addresses}
        frame: bytes = UDP6_FRAME.build(fields)
        return frame
    hops = {"tos": tos_ttl >> 8, "ttl": tos_ttl & 255}
    fields["ip"] = {"total_length": size + 28, "protocol": 17, **hops, **addresses}
    blank = UDP4_FRAME.build(fields)
    fields["ip"]["checksum"] = 0xFFFF ^ word_sum(blank[24:44])
    frame = UDP4_FRAME.build(fields)
    return frame


def offload(family: int, size: int, segment: int) -> dict[str, int]:
    """Give what the virtio-net header must say of a superframe."""
    transport = HEADERS[family] - VIRTIO - 8
    if segment < size:
        return {
            "flags": 1,
            "gso_type": 5,
            "header_length": transport + 8,
            "gso_size": segment,
            "checksum_start": transport,
            "checksum_offset": 6,
        }
    return {"flags": 1, "checksum_start": transport, "checksum_offset": 6} if family == 6 else {}


@FAMILIES
@given(data=st.data())
def test_patched_headers_equal_those_built_anew(family: int, data: st.DataObject) -> None:
    width = len(SOURCE[family])
    address = st.binary(min_size=width, max_size=width)
    macs = data.draw(st.tuples(MACS, MACS))
    ends = data.draw(st.tuples(address, address, PORTS, PORTS))
    source, guest, port, guest_port = ends
    one = Header(family, *macs, source, guest, port, guest_port)
    limit = LARGEST[family]
    for size, segment in data.draw(
        st.lists(st.tuples(st.integers(0, limit), st.integers(1, limit)), min_size=1, max_size=6)
    ):
        single = segment >= size
        partial = 0
        if family == 6 or not single:
            partial = word_sum(pseudo(family, *ends[:2], size + 8))
        expected = built(family, macs, ends, size, partial, offload(family, size, segment))
        assert one.fill(size, segment) == expected


@FAMILIES
@given(payloads=st.lists(st.binary(max_size=99), min_size=1, max_size=5))
def test_complete_headers_need_no_offload(family: int, payloads: list[bytes]) -> None:
    one = header(family)
    ends = SOURCE[family], GUEST[family], 40000, 5000
    for payload in payloads:
        value = 0
        if family == 6:
            words = struct.pack(">4H", 40000, 5000, len(payload) + 8, 0) + payload
            value = 0xFFFF ^ word_sum(pseudo(6, *ends[:2], len(words)) + words) or 0xFFFF
        assert one.fill_complete(payload) == built(family, (GUEST_MAC, HOST_MAC), ends, len(payload), value, {})


@FAMILIES
@given(sizes=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000), st.booleans()), max_size=8))
def test_the_order_of_fills_does_not_matter(family: int, sizes: list[tuple[int, int, bool]]) -> None:
    used = header(family)
    for size, segment, complete in sizes:
        if complete:
            assert used.fill_complete(bytes(size)) == header(family).fill_complete(bytes(size))
        else:
            assert used.fill(size, segment) == header(family).fill(size, segment)


@FAMILIES
def test_the_largest_datagrams_fit(family: int) -> None:
    payload = bytes(LARGEST[family])
    one = header(family)
    assert bytes(one.fill(len(payload), len(payload)))[-4:-2] == struct.pack(">H", len(payload) + 8)
    filled = bytes(one.fill_complete(payload))
    if family == 4:
        assert filled[26:28] == b"\xff\xff"
    else:
        assert filled[28:30] == b"\xff\xff"


@pytest.mark.parametrize(
    ("payload", "value"), [(b"hello6", 0x8B42), (b"\xcf\x52", 0xFFFF), (b"\xcf\x53", 0xFFFE), (b"", 0xCF56)]
)
def test_checksums_over_ipv6(payload: bytes, value: int) -> None:
    filled = bytes(header(6).fill_complete(payload))
    assert int.from_bytes(filled[-2:], "big") == value
    segment = filled[-8:] + payload
    assert word_sum(pseudo(6, SOURCE[6], GUEST[6], len(segment)) + segment) == 0xFFFF


@pytest.mark.parametrize(("source", "size", "value"), [("192.0.2.1", 5, 0x37C8), ("192.0.2.53", 43, 0x376E)])
def test_checksums_of_ipv4_headers(source: str, size: int, value: int) -> None:
    one = Header(4, GUEST_MAC, HOST_MAC, ip(source), GUEST[4], 40000, 7000)
    assert bytes(one.fill(size, size))[34:36] == value.to_bytes(2, "big")
    assert checksum.ones_sum(bytes(one.fill(size, size))[24:44]) == 0xFFFF


@FAMILIES
@given(payload=st.binary(min_size=1, max_size=200), segment=st.integers(1, 300))
def test_a_partial_sum_needs_only_the_segment_added(family: int, payload: bytes, segment: int) -> None:
    """What the kernel does with NEEDS_CSUM: it sums from the UDP header on, the field included."""
    one = bytes(header(family).fill(len(payload), segment))
    if one[0] & 1:
        udp = one[-8:] + payload
        blank = udp[:6] + b"\0\0" + udp[8:]
        value = 0xFFFF ^ word_sum(udp)
        complete = blank[:6] + (value or 0xFFFF).to_bytes(2, "big") + blank[8:]
        assert word_sum(pseudo(family, SOURCE[family], GUEST[family], len(udp)) + complete) == 0xFFFF
    else:
        assert family == 4
        assert one[-2:] == b"\0\0"


@FAMILIES
def test_a_new_mac_address_changes_nothing_else(family: int) -> None:
    one = header(family)
    before = bytes(one.fill(100, 100))
    one.readdress(b"\x02\0\0\0\0\x07", None)
    after = bytes(one.fill(100, 100))
    assert after == before[:VIRTIO] + b"\x02\0\0\0\0\x07" + before[VIRTIO + 6 :]


MARKS = st.integers(0, 0xFFFF) | st.sampled_from([0, 64, 255, 0x0140, 0x0240, 0x0340, 0xB840, 0xFFFF])


@FAMILIES
@given(steps=st.lists(st.tuples(MARKS, st.integers(0, 3000), st.integers(1, 3000)), min_size=1, max_size=6))
def test_marks_are_patched_like_those_built_anew(family: int, steps: list[tuple[int, int, int]]) -> None:
    one = header(family)
    ends = SOURCE[family], GUEST[family], 40000, 5000
    for tos_ttl, size, segment in steps:
        if tos_ttl != one.tos_ttl:
            one.set_tos_ttl(tos_ttl)
        assert one.tos_ttl == tos_ttl
        partial = 0
        if family == 6 or segment < size:
            partial = word_sum(pseudo(family, *ends[:2], size + 8))
        expected = built(family, (GUEST_MAC, HOST_MAC), ends, size, partial, offload(family, size, segment), tos_ttl)
        assert one.fill(size, segment) == expected
