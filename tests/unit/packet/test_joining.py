"""Frames of UDP that are joined to a superframe, which cuts into the same frames again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.packet import checksum
from gpasst.packet.joining import HEADERS, joinable, repeating, seal
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import shape
from gpasst.udp.header import Header
from gpasst.wire import PROTOCOL_UDP, UDP4, UDP6, VIRTIO_NET_CODEC, VIRTIO_NET_HDR_F_NEEDS_CSUM
from tests.support.addresses import ip
from tests.support.families import FAMILIES

ROOM = 200  # bytes of a buffer behind a frame
DESTINATION = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
SOURCE = {4: ip("192.0.2.3"), 6: ip("2001:db8::3")}
START = {4: UDP4.offset("udp.source"), 6: UDP6.offset("udp.source")}


def sent(family: int, payload: bytes, number: int = 0) -> bytearray:
    """Return a frame as a kernel sends it by a tap: its UDP checksum is left undone."""
    header = Header(family, b"\x02" * 6, b"\x04" * 6, SOURCE[family], DESTINATION[family], 123, 33000)
    frame = bytearray(header.fill(len(payload), len(payload))) + payload
    start, length = START[family], len(frame) - START[family]
    virtio = VIRTIO_NET_CODEC.pack(
        flags=VIRTIO_NET_HDR_F_NEEDS_CSUM, checksum_start=start - VIRTIO_NET_CODEC.size, checksum_offset=6
    )
    frame[: len(virtio)] = virtio
    pseudo = checksum.pseudo_sum(SOURCE[family], DESTINATION[family], PROTOCOL_UDP)
    frame[start + 6 : start + 8] = checksum.fold(pseudo + length).to_bytes(2, "big")
    if family == 4:
        at, word = UDP4.offset("ip.identification"), UDP4.offset("ip.checksum")
        frame[at : at + 2] = number.to_bytes(2, "big")
        frame[word : word + 2] = bytes(2)
        ip4 = frame[UDP4.offset("ip.version") : start]
        frame[word : word + 2] = checksum.internet(ip4).to_bytes(2, "big")
    return frame


def in_buffer(frame: bytes | bytearray) -> tuple[bytearray, int]:
    return bytearray(frame) + bytes(ROOM), len(frame)


@FAMILIES
@given(size=st.integers(1, 1472), count=st.integers(2, 40), first=st.integers(0, 60000), seed=st.binary(min_size=1))
def test_a_superframe_cuts_into_what_was_joined(family: int, size: int, count: int, first: int, seed: bytes) -> None:
    payloads = [(seed * size)[number % len(seed) :][:size].ljust(size, b".") for number in range(count)]
    frames = [sent(family, payload, first + number) for number, payload in enumerate(payloads)]
    buffer, length = in_buffer(frames[0])
    assert joinable(buffer, length) == family
    pattern = repeating(family, 0)
    assert all(pattern(frame, 0) == pattern(buffer, 0) for frame in frames)
    joined = frames[0] + b"".join(payloads[1:])
    seal(joined, family, size, size * count)
    assert shape(joined).count == count
    assert list(split(joined)) == [whole for frame in frames for whole in split(frame)]


def changed(family: int, name: str, value: int, size: int = 1) -> bytearray:
    frame = sent(family, b"payload")
    at = (UDP4 if family == 4 else UDP6).offset(name)
    frame[at : at + size] = value.to_bytes(size, "big")
    return frame


@pytest.mark.parametrize(
    "frame",
    [
        *(changed(family, "virtio.flags", flags) for family in (4, 6) for flags in (0, 2)),
        *(changed(family, "virtio.gso_type", 5) for family in (4, 6)),
        *(changed(family, "ethernet.ethertype", 0x8100, 2) for family in (4, 6)),
        *(changed(family, "udp.length", length, 2) for family in (4, 6) for length in (14, 16)),
        changed(4, "ip.version", 0x46),
        changed(4, "ip.flags", 0x2000, 2),
        changed(4, "ip.flags", 1, 2),
        changed(4, "ip.total_length", 34, 2),
        changed(4, "ip.protocol", 6),
        changed(6, "ip.version", 0x40),
        changed(6, "ip.payload_length", 14, 2),
        changed(6, "ip.next_header", 0),
        *(sent(family, b"") for family in (4, 6)),
        *(sent(family, b"payload") + b"padding" for family in (4, 6)),
        *(sent(family, b"payload")[:-1] for family in (4, 6)),
        *(sent(family, b"payload")[: HEADERS[family] - 1] for family in (4, 6)),
        bytearray(24),
    ],
    ids=lambda frame: frame.hex(),
)
def test_other_frames_are_left_alone(frame: bytearray) -> None:
    buffer, length = in_buffer(frame)
    assert joinable(buffer, length) == 0


@FAMILIES
def test_frames_of_one_flow_and_size_repeat_each_other(family: int) -> None:
    """Whatever their identification and checksums are."""
    read = repeating(family, 0)
    one, other = sent(family, b"abcd"), sent(family, b"efgh", number=9)
    one[HEADERS[family] - 1] ^= 1
    assert read(one, 0) == read(other, 0) == read(bytearray(bytes(5)) + one, 5)


@FAMILIES
def test_any_other_difference_ends_a_run(family: int) -> None:
    read = repeating(family, 0)
    first = sent(family, b"abcd")
    ip4 = UDP4.offset("ip.version")
    ignored = {ip4 + at for at in (4, 5, 10, 11)} if family == 4 else set()
    ignored |= {HEADERS[family] - 2, HEADERS[family] - 1}
    for at in range(HEADERS[family]):
        changed = bytearray(first)
        changed[at] ^= 1
        assert (read(changed, 0) == read(first, 0)) == (at in ignored), at
