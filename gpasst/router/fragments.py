"""Fragmentation of IPv4 packets that are longer than the next link allows (RFC 791, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gpasst.packet.parse import OFFSET_UNIT
from gpasst.packet.superframe import IP, VIRTIO, put_word, seal4
from gpasst.wire import IPV4_CODEC, IPV4_MORE_FRAGMENTS, VIRTIO_NET_BLANK

_FLAGS_SHIFT: Final = 13  # bits of the offset below the flags (RFC 791, section 3.1)
_OFFSET_MASK: Final = (1 << _FLAGS_SHIFT) - 1
_LENGTH: Final = IP + IPV4_CODEC.offset("total_length")
_IDENTIFICATION: Final = IP + IPV4_CODEC.offset("identification")
_FRAGMENT: Final = IP + IPV4_CODEC.offset("flags")


def fragments(frame: bytes, at: int, end: int, mtu: int, identification: int | None) -> Iterator[bytearray]:
    """Yield the fragments of a packet, each a frame behind a virtio-net header.

    :param frame: an IPv4 frame with complete checksums, from its Ethernet header on, which may be fragmented.
    :param at: offset of the payload of its packet.
    :param end: offset behind its packet.
    :param mtu: bytes of the longest packet.
    :param identification: of the datagram, 16 bits; None for that in the frame.
    """
    head = bytearray(VIRTIO_NET_BLANK + frame[:at])
    word = head[_FRAGMENT] << 8 | head[_FRAGMENT + 1]
    offset, last = (word & _OFFSET_MASK) * OFFSET_UNIT, not word >> _FLAGS_SHIFT & IPV4_MORE_FRAGMENTS
    if identification is not None:
        put_word(head, _IDENTIFICATION, identification)
    size = (mtu - (at + VIRTIO - IP)) // OFFSET_UNIT * OFFSET_UNIT
    for start in range(at, end, size):
        piece = head + frame[start : min(start + size, end)]
        more = start + size < end or not last
        put_word(piece, _FRAGMENT, more << _FLAGS_SHIFT | (offset + start - at) // OFFSET_UNIT)
        put_word(piece, _LENGTH, len(piece) - IP)
        seal4(piece)
        yield piece
