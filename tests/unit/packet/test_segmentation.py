"""Superframes cut into the frames that a wire would carry."""

from __future__ import annotations

from typing import Protocol

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.formats import IPV4, IPV6, UDP, VIRTIO_NET_CODEC
from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet import checksum
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import complete, cut, shape
from gpasst.udp.header import Header
from tests.support.addresses import ip
from tests.support.families import FAMILIES
from tests.support.superframes import tcp_superframe, udp_superframe

GUEST = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
SOURCE = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
ETHERNET_SIZE = 14
VIRTIO_SIZE = VIRTIO_NET_CODEC.size


class Make(Protocol):
    """Makes a superframe."""

    def __call__(self, family: int, payload: bytes, segment: int, *, identification: int) -> bytes: ...


def superframe(family: int, payload: bytes, segment: int) -> bytes:
    header = Header(family, b"\x02" * 6, b"\x04" * 6, SOURCE[family], GUEST[family], 123, 33000)
    return bytes(header.fill(len(payload), segment)) + payload


def verified(frame: bytes, family: int, identification: int = 0, options: int = 0) -> bytes:
    """Check all lengths and checksums of a frame; return its payload."""
    packet = frame[ETHERNET_SIZE:]
    if family == 4:
        ip4 = IPV4.parse(packet)
        size = 4 * ip4.ihl
        assert size == IPV4.sizeof() + options
        assert ip4.total_length == len(packet)
        assert ip4.identification == identification
        assert checksum.ones_sum(packet[:size]) == 0xFFFF
    else:
        size = IPV6.sizeof()
        assert IPV6.parse(packet).payload_length == len(packet) - size
    datagram = packet[size:]
    udp = UDP.parse(datagram)
    assert (udp.source, udp.destination, udp.length) == (123, 33000, len(datagram))
    if family == 6 or udp.checksum:
        pseudo = checksum.pseudo_sum(SOURCE[family], GUEST[family], 17) + len(datagram)
        assert checksum.ones_sum(datagram, pseudo) == 0xFFFF
        assert udp.checksum != 0
    return datagram[UDP.sizeof() :]


@FAMILIES
@given(
    segment=st.integers(1, 1500),
    count=st.integers(2, 64),
    short=st.integers(0, 1499),
    seed=st.binary(min_size=1, max_size=7),
)
def test_every_segment_is_a_frame_of_its_own(family: int, segment: int, count: int, short: int, seed: bytes) -> None:
    total = min(count * segment - short % segment, 65487)
    payload = (seed * total)[:total]
    frames = list(split(superframe(family, payload, segment)))
    pieces = [verified(frame, family, index) for index, frame in enumerate(frames)]
    assert b"".join(pieces) == payload
    assert all(len(piece) == segment for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= segment
    assert {frame[:ETHERNET_SIZE] for frame in frames} == {frames[0][:ETHERNET_SIZE]}


@FAMILIES
@pytest.mark.parametrize("make", [udp_superframe, tcp_superframe])
@given(
    segment=st.integers(1, 300),
    total=st.integers(1, 5000),
    seed=st.binary(min_size=1, max_size=7),
    identification=st.integers(0, 0xFFFF),
)
@example(segment=100, total=1000, seed=b"x", identification=0xFFFE)
@example(segment=99, total=990, seed=b"\0", identification=0)
def test_each_frame_is_a_segment_that_is_cut_alone(
    family: int, make: Make, segment: int, total: int, seed: bytes, identification: int
) -> None:
    data = make(family, (seed * total)[:total], segment, identification=identification)
    whole = shape(data)
    assert list(split(data)) == [complete(cut(data, whole, number, number + 1), whole) for number in range(whole.count)]


@FAMILIES
@given(payload=st.binary(max_size=300))
def test_one_datagram_is_one_frame(family: int, payload: bytes) -> None:
    data = superframe(family, payload, len(payload))
    (frame,) = split(data)
    assert verified(frame, family) == payload
    if family == 4:
        # Nothing was left to the kernel.
        assert frame == data[VIRTIO_SIZE:]


@FAMILIES
def test_the_longest_superframe(family: int) -> None:
    payload = bytes(range(256)) * 256
    payload = payload[: 65507 if family == 4 else 65487]
    frames = list(split(superframe(family, payload, 1024)))
    assert b"".join(verified(frame, family, index) for index, frame in enumerate(frames)) == payload


def test_a_zero_checksum_is_sent_as_ones() -> None:
    header = Header(6, b"\x02" * 6, b"\x04" * 6, ip("fe80::1"), ip("fe80::5054:ff:fe12:3456"), 40000, 5000)
    (frame,) = split(bytes(header.fill(2, 2)) + b"\xcf\x52")
    assert frame[-4:] == b"\xff\xff\xcf\x52"
    frames = list(split(bytes(header.fill(4, 2)) + b"\xcf\x52" * 2))
    assert [frame[-4:] for frame in frames] == [b"\xff\xff\xcf\x52"] * 2


def test_complete_frames_are_left_alone() -> None:
    frame = bytes(range(64))
    assert list(split(bytes(VIRTIO_SIZE) + frame)) == [frame]
    assert list(split(memoryview(bytearray(VIRTIO_SIZE) + frame))) == [frame]


def test_identifications_count_on_from_the_first_and_options_stay() -> None:
    payload = bytes(range(30))
    whole = bytearray(superframe(4, payload, 10))
    at = VIRTIO_SIZE + ETHERNET_SIZE
    # A guest's frame may have options (here 4 no-operations) and any identification.
    packet = bytearray(whole[at : at + 20]) + b"\1\1\1\1" + whole[at + 20 :]
    packet[0] = 0x46
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[4:6] = b"\xff\xff"
    virtio = VIRTIO_NET_CODEC.unpack_from(whole)
    start, header = virtio["checksum_start"] + 4, virtio["header_length"] + 4
    data = VIRTIO_NET_CODEC.pack(**{**virtio, "checksum_start": start, "header_length": header})
    frames = list(split(data + whole[VIRTIO_SIZE:at] + packet))
    pieces = [
        verified(frame, 4, identification, options=4)
        for frame, identification in zip(frames, (0xFFFF, 0, 1), strict=True)
    ]
    assert b"".join(pieces) == payload


def test_a_checksum_beyond_the_frame_is_not_written() -> None:
    virtio = VIRTIO_NET_CODEC.pack(flags=1, checksum_start=60, checksum_offset=6)
    frame = bytes(range(64))
    assert list(split(virtio + frame)) == [frame]


HEADERS = st.builds(
    lambda flags, kind, length, size, start, offset: VIRTIO_NET_CODEC.pack(
        flags=flags, gso_type=kind, header_length=length, gso_size=size, checksum_start=start, checksum_offset=offset
    ),
    st.sampled_from([0, 1, 1, 1, 2, 3]),
    st.sampled_from([0, 1, 3, 4, 5, 5, 5, 0x85]),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 2, 1400]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 14, 33, 34, 54, 58, 64]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 6, 7, 16]) | st.integers(0, 0xFFFF),
)
FRAMES = st.binary(max_size=120) | st.builds(
    lambda family, size, cut: superframe(family, bytes(size), max(1, size))[VIRTIO_SIZE : VIRTIO_SIZE + cut],
    st.sampled_from([4, 6]),
    st.integers(0, 65487),
    st.sampled_from([10, 20, 40, 60, 1 << 17]),
)


@given(HEADERS, FRAMES | st.just(b"\x08" * 70000))
@example(
    VIRTIO_NET_CODEC.pack(flags=1, gso_type=5, gso_size=1, checksum_start=34, checksum_offset=6), b"\x08\0" * 35000
)
@settings(deadline=None)
def test_any_header_before_any_frame_raises_nothing(header: bytes, frame: bytes) -> None:
    frames = list(split(header + frame))
    assert len(frames) <= UDP_MAX_SEGMENTS
    assert all(len(cut) <= len(frame) for cut in frames)
    if len(frames) == 1:
        assert len(frames[0]) == len(frame)


@pytest.mark.parametrize("size", range(VIRTIO_SIZE))
def test_without_a_whole_header_there_is_no_frame(size: int) -> None:
    assert list(split(bytes(size))) == []


@pytest.mark.parametrize(
    ("family", "size", "segment", "start"),
    [(4, 1000, 1, 34), (6, 65000, 500, 54), (4, 1000, 500, 33), (6, 1000, 500, 53), (4, 1000, 500, 1035)],
)
def test_a_superframe_that_no_kernel_makes_is_left_alone(family: int, size: int, segment: int, start: int) -> None:
    data = bytearray(superframe(family, bytes(size), segment))
    virtio = VIRTIO_NET_CODEC.unpack_from(data)
    data[:VIRTIO_SIZE] = VIRTIO_NET_CODEC.pack(**{**virtio, "checksum_start": start})
    assert list(split(data)) == [data[VIRTIO_SIZE:]]
