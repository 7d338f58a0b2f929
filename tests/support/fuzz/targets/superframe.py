"""Superframes: their shape, the frames that they are cut into, joining, and the changes of weather."""

from __future__ import annotations

from gpasst.packet import joining
from gpasst.packet.alteration import corrupt, mark_congestion, protected
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import VIRTIO, Shape, complete, cut, shape
from gpasst.wire import (
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from tests.support.fuzz.choices import Choices

KINDS = (
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_TCPV4 | 0x80,
    0x7F,
)
STARTS = (34, 54, 0, 14, 38, 74, 65535)  # of the transport header behind the virtio-net header
FIELDS = (6, 16, 0, 2, 65535)  # of the checksum in it
SEGMENTS = 1024


def take(data: bytes) -> None:
    """Cut a frame, join it, and change it."""
    choices = Choices(data)
    head = VIRTIO_NET_CODEC.pack(
        flags=choices.pick((VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 255)),
        gso_type=choices.pick(KINDS),
        header_length=choices.number(1 << 16),
        gso_size=choices.number(1 << 16),
        checksum_start=choices.pick(STARTS),
        checksum_offset=choices.pick(FIELDS),
    )
    repeats = 1 + choices.number(64)
    bit, valid, first = choices.number(1 << 16), choices.flag(), choices.number(1 << 10)
    wire = head + choices.take(120) + choices.rest() * repeats
    whole = shape(wire)
    assert 1 <= whole.count <= SEGMENTS
    assert len(complete(wire, whole)) == len(wire) - VIRTIO
    frames = list(split(wire))
    assert len(frames) == whole.count
    assert sum(len(frame) - (whole.payload - VIRTIO) for frame in frames) == len(wire) - whole.payload
    first %= whole.count
    piece = cut(wire, whole, first, whole.count)
    assert [frame[whole.payload - VIRTIO :] for frame in split(piece)] == [
        frame[whole.payload - VIRTIO :] for frame in frames[first:]
    ]
    assert len(mark_congestion(wire)) == len(wire)
    protected(wire)
    if whole.count == 1:
        assert len(corrupt(wire, bit, valid)) == len(wire)
    if len(wire) >= VIRTIO + 14:
        _join(bytearray(wire), whole)


def _join(buffer: bytearray, whole: Shape) -> None:
    """Make a superframe of a frame and its like, as a switch does."""
    size = len(buffer)
    buffer += bytes(80)  # what is behind a frame in its buffer
    family = joining.joinable(buffer, size)
    # The kernel, which alone writes these headers, has the checksum of a datagram in its place.
    if not family or (whole.start, whole.field) != (joining.HEADERS[family] - 8, joining.HEADERS[family] - 2):
        return
    segment = size - joining.HEADERS[family]
    single = bytes(buffer[:size])
    joined = bytearray(single + single[joining.HEADERS[family] :])
    if len(joined) - VIRTIO > 65535:
        return
    joining.seal(joined, family, segment, 2 * segment)
    assert len(list(split(bytes(joined)))) == 2
