"""Superframes cut into shorter ones, held against the frames that the whole would become on a wire (under 3 s)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, VIRTIO_NET_CODEC, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import Shape, complete, cut, shape
from tests.support.families import FAMILIES
from tests.support.superframes import CWR, tcp_superframe, udp_superframe

VIRTIO = VIRTIO_NET_CODEC.size
Make = Callable[[int, bytes, int], bytes]
KINDS = pytest.mark.parametrize("make", [udp_superframe, tcp_superframe])


def pieces(data: bytes, ends: list[int]) -> list[bytearray]:
    """Cut a superframe before each of these segments."""
    whole = shape(data)
    bounds = sorted({0, whole.count, *(end % whole.count for end in ends)})
    return [cut(data, whole, first, end) for first, end in pairwise(bounds)]


@FAMILIES
@given(
    tcp=st.booleans(),
    segment=st.integers(1, 1500),
    count=st.integers(1, 40),
    short=st.integers(0, 1499),
    ends=st.lists(st.integers(0, 1000), max_size=6),
    flags=st.sampled_from([TCP_ACK, TCP_ACK | TCP_PSH, TCP_ACK | TCP_PSH | TCP_FIN, TCP_ACK | CWR]),
    identification=st.sampled_from([0, 7, 0xFFFE]),
)
def test_pieces_become_the_frames_of_the_whole(
    family: int,
    tcp: bool,
    segment: int,
    count: int,
    short: int,
    ends: list[int],
    flags: int,
    identification: int,
) -> None:
    payload = bytes(range(251)) * 250
    payload = payload[: min(count * segment - short % segment, 60000)]
    if tcp:
        data = tcp_superframe(family, payload, segment, flags, identification)
    else:
        data = udp_superframe(family, payload, segment, identification)
    cuts = pieces(data, ends)
    assert [frame for piece in cuts for frame in split(piece)] == list(split(data))
    for piece in cuts:
        virtio = VIRTIO_NET_CODEC.unpack_from(piece)
        assert (virtio["gso_type"] == VIRTIO_NET_HDR_GSO_NONE) == (shape(piece).count == 1)


@FAMILIES
def test_only_the_first_piece_says_that_the_window_was_reduced(family: int) -> None:
    data = bytearray(tcp_superframe(family, bytes(5000), 1000, TCP_ACK | CWR))
    data[1] |= VIRTIO_NET_HDR_GSO_ECN
    kinds = [VIRTIO_NET_CODEC.unpack_from(piece)["gso_type"] for piece in pieces(bytes(data), [2])]
    assert [bool(kind & VIRTIO_NET_HDR_GSO_ECN) for kind in kinds] == [True, False]


@FAMILIES
@KINDS
def test_a_cut_of_a_cut_is_a_cut(family: int, make: Make) -> None:
    data = make(family, bytes(range(200)) * 50, 999)
    whole = shape(data)
    part = cut(data, whole, 2, 9)
    assert cut(part, shape(part), 3, 5) == cut(data, whole, 5, 7)
    assert cut(part, shape(part), 6, 7) == cut(data, whole, 8, 9)


@FAMILIES
@KINDS
def test_the_whole_stays_as_it_is(family: int, make: Make) -> None:
    data = make(family, bytes(3000), 1000)
    assert cut(data, shape(data), 0, 3) == data
    assert shape(data).count == 3


def test_a_complete_frame_is_one_segment_and_stays_as_it_is() -> None:
    data = bytes(VIRTIO) + bytes(range(64))
    assert shape(data) == Shape(0, 0, len(data), 0, 1)
    assert complete(data, shape(data)) == data[VIRTIO:]


@pytest.mark.parametrize(
    ("family", "size", "segment", "start"),
    [(4, 1000, 1, 34), (6, 65000, 500, 54), (4, 1000, 500, 33), (6, 1000, 500, 53), (4, 1000, 500, 1035)],
)
def test_a_superframe_that_no_kernel_makes_counts_as_one(family: int, size: int, segment: int, start: int) -> None:
    data = bytearray(udp_superframe(family, bytes(size), segment))
    virtio = VIRTIO_NET_CODEC.unpack_from(data)
    data[:VIRTIO] = VIRTIO_NET_CODEC.pack(**{**virtio, "checksum_start": start})
    assert shape(data).count == 1
    assert cut(data, shape(data), 0, 1) == data
