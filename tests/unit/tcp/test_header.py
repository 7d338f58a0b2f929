"""Headers of upward segments: worked ones byte for byte, and scapy's for any values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.packet.segmentation import split
from gpasst.tcp import reset
from gpasst.tcp.header import Header
from gpasst.tcp.segment import Offer, parse, parse_options
from tests.support.addresses import GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.connections import ACK, FIN, FIRST, IRS, ISS, KEY, OUR_FIRST, PSH, RST, SYN
from tests.support.families import FAMILIES
from tests.support.need import need_module
from tests.support.questions import TCP, packet

ECE, CWR = 0x40, 0x80
VIRTIO = 10  # bytes
IP = 14  # offset in a frame
SIZES = {4: 54, 6: 74}  # bytes, Ethernet to TCP
NUMBERS = st.integers(0, 2**32 - 1)
WORDS = st.integers(0, 2**16 - 1)
SYN_OF_THE_GUEST = """
    45 00 00 30 00 00 40 00 40 06 4e 89 c0 00 02 02 c6 33 64 09
    9c 40 00 50 10 00 00 00 00 00 00 00 70 02 fa f0 f0 57 00 00 02 04 05 b4 01 03 03 07
"""
SYN_ACK = """
    45 00 00 30 00 00 40 00 ff 06 8f 88 c6 33 64 09 c0 00 02 02
    00 50 9c 40 20 00 00 00 10 00 00 01 70 12 ff ff cb 36 00 00 02 04 05 b4 01 03 03 08
"""
HELLO = """
    45 00 00 2d 00 00 40 00 ff 06 8f 8b c6 33 64 09 c0 00 02 02
    00 50 9c 40 20 00 00 01 10 00 00 01 50 18 08 00 ab 23 00 00 68 65 6c 6c 6f
"""
SUPERFRAME = """
    45 00 0b e0 00 00 40 00 ff 06 83 d8 c6 33 64 09 c0 00 02 02
    00 50 9c 40 20 00 00 01 10 00 00 01 50 18 08 00 f8 11 00 00
"""


def header(family: int = 4) -> Header:
    return Header(GUEST_MAC, HOST_MAC, KEY[family])


def prepared(sequence: int, acknowledgement: int, flags: int, window: int = 0x800, family: int = 4) -> Header:
    made = header(family)
    made.prepare(sequence, acknowledgement, flags, window)
    return made


def tcp(frame: bytes, family: int = 4) -> bytes:
    """Return what stands behind the IP header of a frame."""
    return frame[IP + (20 if family == 4 else 40) :]


def complete(made: Header, payload: bytes = b"", offset: int = 0) -> bytes:
    """Return the frame of one segment for a link that offloads nothing."""
    return bytes(made.fill_complete(payload, offset))[VIRTIO:] + payload


def test_the_syn_of_a_guest() -> None:
    segment = parse(memoryview(bytes.fromhex(SYN_OF_THE_GUEST)[20:]))
    assert (segment.sequence, segment.acknowledgement, segment.flags, segment.window) == (IRS, 0, SYN, 64240)
    assert parse_options(segment.options) == Offer(1460, 7)


def test_the_syn_with_acknowledgement() -> None:
    frame = header().synchronise(SYN | ACK, ISS, FIRST, 65535, Offer(1460, 8))
    assert frame == GUEST_MAC + HOST_MAC + b"\x08\x00" + bytes.fromhex(SYN_ACK)


def test_data() -> None:
    frame = complete(prepared(OUR_FIRST, FIRST, PSH | ACK), b"hello")
    assert frame == GUEST_MAC + HOST_MAC + b"\x08\x00" + bytes.fromhex(HELLO)


def test_data_on_a_stream_is_padded() -> None:
    head, pad = prepared(OUR_FIRST, FIRST, PSH | ACK).framed(5, b"hello")
    assert (head[:4], head[18:] + b"hello", pad) == (b"\0\0\0\x3c", bytes.fromhex(HELLO), b"\0")
    head, pad = prepared(OUR_FIRST, FIRST, PSH | ACK).framed(7, b"hello..")
    assert (head[:4], pad) == (b"\0\0\0\x3d", b"")


@pytest.mark.parametrize(
    ("made", "octets"),
    [
        (prepared(0x20000006, FIRST, FIN | ACK), "00509c40 20000006 10000001 5011 0800 eefc 0000"),
        (prepared(0, FIRST, RST | ACK, 0), "00509c40 00000000 10000001 5014 0000 1700 0000"),
        (prepared(0x20000006, 0, RST, 0), "00509c40 20000006 00000000 5004 0000 070b 0000"),
    ],
    ids=["the FIN", "the RST that answers the SYN", "the RST that answers an acknowledgement"],
)
def test_a_segment_without_data(made: Header, octets: str) -> None:
    assert tcp(complete(made)) == bytes.fromhex(octets)


@pytest.mark.parametrize(
    ("asked", "octets"),
    [
        (bytes.fromhex(SYN_OF_THE_GUEST)[20:], "00509c40 00000000 10000001 5014 0000 1700 0000"),
        (
            bytes.fromhex("9c400050 10000001 20000006 5010 ffff 0000 0000"),
            "00509c40 20000006 00000000 5004 0000 070b 0000",
        ),
    ],
    ids=["a SYN", "an acknowledgement"],
)
def test_the_reset_of_no_connection(asked: bytes, octets: str) -> None:
    frame = reset.reset(packet(4, TCP, asked), GUEST_MAC, HOST_MAC)
    assert frame is not None
    assert tcp(frame) == bytes.fromhex(octets)


def test_the_syn_of_a_forward_over_ipv6() -> None:
    key = ip(GUEST_LINK_LOCAL) + ip("fe80::1") + (5000).to_bytes(2, "big") + (41000).to_bytes(2, "big")
    frame = Header(GUEST_MAC, HOST_MAC, key).synchronise(SYN, 0x30000000, 0, 65535, Offer(1440, 8))
    assert tcp(frame, 6) == bytes.fromhex("a0281388 30000000 00000000 7002 ffff 1fbc 0000 020405a0 01030308")


def test_a_superframe() -> None:
    made = prepared(OUR_FIRST, FIRST, PSH | ACK)
    filled = bytes(made.fill(3000, 1460))
    assert filled[:VIRTIO] == bytes.fromhex("01 01 36 00 b4 05 22 00 10 00")
    assert filled[VIRTIO + IP :] == bytes.fromhex(SUPERFRAME)


@pytest.mark.parametrize(
    ("family", "total", "segment", "octets"),
    [
        (6, 3000, 1440, "01 04 4a 00 a0 05 36 00 10 00"),
        (4, 1460, 1460, "01 00 00 00 00 00 22 00 10 00"),
        (6, 0, 0, "01 00 00 00 00 00 36 00 10 00"),
    ],
    ids=["a superframe over IPv6", "one segment", "no data"],
)
def test_what_is_left_to_the_kernel(family: int, total: int, segment: int, octets: str) -> None:
    made = prepared(OUR_FIRST, FIRST, ACK, family=family)
    assert bytes(made.fill(total, segment))[:VIRTIO] == bytes.fromhex(octets)


@FAMILIES
def test_a_header_serves_one_kind_of_run_after_the_other(family: int) -> None:
    runs = [(3000, 1400), (3000, 1400), (0, 0), (1400, 1400), (3000, 1400)]
    kept = header(family)
    for number, (total, segment) in enumerate(runs):
        kept.prepare(number, 7, ACK, 9)
        assert kept.fill(total, segment) == prepared(number, 7, ACK, 9, family).fill(total, segment)
        kept.prepare(number, 7, ACK, 9)
        assert complete(kept, b"data") == complete(prepared(number, 7, ACK, 9, family), b"data")
        kept.synchronise(SYN, 1, 2, 3, Offer(1000, 8))


@FAMILIES
def test_another_address_of_the_guest(family: int) -> None:
    made = prepared(1, 2, ACK, family=family)
    before = complete(made)
    made.readdress(b"\2abcde", stamp := object())
    assert made.stamp is stamp
    assert complete(made) == b"\2abcde" + before[6:]


@pytest.fixture(scope="module")
def scapy() -> Any:
    for name in ("scapy.layers.inet", "scapy.layers.inet6"):
        need_module(name)
    return need_module("scapy.all")


def expected(scapy: Any, family: int, identification: int, payload: bytes, **fields: Any) -> bytes:
    """Return the frame that scapy builds."""
    key = KEY[family]
    half = len(key) // 2 - 2
    guest, remote = (scapy.inet_ntop(10 if family == 6 else 2, key[at : at + half]) for at in (0, half))
    network = (
        scapy.IP(src=remote, dst=guest, ttl=255, flags="DF", id=identification)
        if family == 4
        else scapy.IPv6(src=remote, dst=guest, hlim=255)
    )
    ethernet = scapy.Ether(dst=GUEST_MAC.hex(":"), src=HOST_MAC.hex(":"))
    built: bytes = scapy.raw(ethernet / network / scapy.TCP(sport=80, dport=40000, **fields) / payload)
    return built


@FAMILIES
@settings(max_examples=40, deadline=None)
@given(NUMBERS, NUMBERS, st.integers(0, 255), WORDS, st.binary(max_size=100), st.integers(0, 5000))
def test_any_segment(
    scapy: Any, family: int, sequence: int, acknowledgement: int, flags: int, window: int, payload: bytes, offset: int
) -> None:
    frame = complete(prepared(sequence, acknowledgement, flags, window, family), payload, offset)
    number = (sequence + offset) % 2**32
    assert frame == expected(scapy, family, 0, payload, seq=number, ack=acknowledgement, flags=flags, window=window)


@FAMILIES
@settings(max_examples=20, deadline=None)
@given(NUMBERS, NUMBERS, WORDS, st.integers(88, 65535), st.none() | st.integers(1, 14))
def test_any_syn(
    scapy: Any, family: int, sequence: int, acknowledgement: int, window: int, mss: int, scale: int | None
) -> None:
    frame = header(family).synchronise(SYN | ACK, sequence, acknowledgement, window, Offer(mss, scale))
    options: list[tuple[str, Any]] = [("MSS", mss)]
    if scale is not None:
        options += [("NOP", None), ("WScale", scale)]
    fields = {"seq": sequence, "ack": acknowledgement, "flags": "SA", "window": window, "options": options}
    assert frame == expected(scapy, family, 0, b"", **fields)


@FAMILIES
@settings(max_examples=25, deadline=None)
@given(
    sequence=NUMBERS,
    window=WORDS,
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN, ACK | PSH | CWR, ACK | FIN | CWR | ECE]),
    segment=st.integers(88, 3000),
    count=st.integers(1, 12),
    short=st.integers(0, 87),
    seed=st.binary(min_size=1, max_size=7),
)
def test_any_superframe_is_cut_into_segments(
    scapy: Any, family: int, sequence: int, window: int, flags: int, segment: int, count: int, short: int, seed: bytes
) -> None:
    total = count * segment - short
    payload = (seed * total)[:total]
    frames = list(split(bytes(prepared(sequence, 99, flags, window, family).fill(total, segment)) + payload))
    cuts = [*range(0, total, segment), total]
    assert len(frames) == len(cuts) - 1
    for index, (frame, (start, end)) in enumerate(zip(frames, pairwise(cuts), strict=True)):
        own = flags
        if end < total:
            own &= ~(FIN | PSH)
        if index:
            own &= ~CWR
        number = (sequence + start) % 2**32
        assert frame == expected(scapy, family, index, payload[start:end], seq=number, ack=99, flags=own, window=window)
        # A link that offloads nothing gets the same segments, but for the identification.
        alone = complete(prepared(sequence, 99, own, window, family), payload[start:end], start)
        assert tcp(alone, family) == tcp(frame, family)


@FAMILIES
@pytest.mark.parametrize("segment", [1440, 65480])
def test_the_longest_superframe_is_cut(family: int, segment: int) -> None:
    total = min(65535 - SIZES[family] + IP, 65495)
    payload = bytes(range(256)) * 256
    filled = bytes(prepared(1, 2, ACK, family=family).fill(total, segment))
    frames = list(split(filled + payload[:total]))
    assert b"".join(frame[SIZES[family] :] for frame in frames) == payload[:total]
    assert len(frames) == -(-total // segment)
