"""Segmentation of superframes into the frames that a wire would carry.

Theory of operation: the capture file needs single frames with complete checksums, where the tap carries superframes
whose checksums are left to the kernel (virtio-net header). A table by GSO type yields the segments of a superframe with
their transport headers; lengths and identification of IP, and all checksums, are then the same for every transport.
Each segment gets the fields that the kernel would give it (net/ipv4/udp_offload.c: __udp_gso_segment;
net/ipv4/af_inet.c: inet_gso_segment).

Where a header contradicts its frame, nothing can be completed, and the frame is yielded as it is. A guest with raw
sockets may write such a header, and one that asks for thousands of segments.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpasst.formats import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    IPV6_CODEC,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet import checksum

_IP = ETHERNET_CODEC.size  # offset of the IP header in a frame
_ETHERTYPE = ETHERNET_CODEC.offset("ethertype")
_LENGTH4 = _IP + IPV4_CODEC.offset("total_length")
_IDENTIFICATION = _IP + IPV4_CODEC.offset("identification")
_CHECKSUM4 = _IP + IPV4_CODEC.offset("checksum")
_LENGTH6 = _IP + IPV6_CODEC.offset("payload_length")
_IHL_UNIT = 4  # bytes (RFC 791, section 3.1)
_LENGTH_MAXIMUM = 0xFFFF  # bytes that a length field can say
_WORD_BYTES = 2
_WORD = checksum.ONES


def split(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Yield the Ethernet frames of a superframe, or the one frame, with complete checksums.

    :param data: virtio-net header and frame, as they cross the tap. Any bytes do; without a whole header there is no
        frame.
    """
    if len(data) < VIRTIO_NET_CODEC.size:
        return
    virtio = VIRTIO_NET_CODEC.unpack_from(data)
    frame = bytes(data[VIRTIO_NET_CODEC.size :])
    start, field = virtio["checksum_start"], virtio["checksum_start"] + virtio["checksum_offset"]
    if not virtio["flags"] & VIRTIO_NET_HDR_F_NEEDS_CSUM or field + _WORD_BYTES > len(frame):
        yield frame
        return
    size, segments = virtio["gso_size"], _SEGMENTS.get(virtio["gso_type"])
    if segments is None or not size:
        yield _complete(frame, start, field)
        return
    if not _divisible(frame, start, field, size):
        yield frame
        return
    # The field holds the sum of the pseudo header with the superframe's length; each segment has a length of its own.
    pseudo = _word(frame, field) + (_WORD - (len(frame) - start) % _WORD)
    for index, segment in enumerate(segments(frame, start, size)):
        _patch_ip(segment, index)
        _put_word(segment, field, checksum.fold(pseudo + len(segment) - start))
        yield _complete(bytes(segment), start, field)


def _divisible(frame: bytes, start: int, field: int, size: int) -> bool:
    """Return whether a superframe can be cut: its headers are whole, and its lengths and segments are possible.

    :param frame: the superframe.
    :param start: offset of its transport header.
    :param field: offset of its checksum.
    :param size: payload bytes of each segment but perhaps the last.
    """
    ip = IPV4_CODEC if len(frame) > _IP and _word(frame, _ETHERTYPE) == ETHERTYPE_IPV4 else IPV6_CODEC
    payload = start + UDP_CODEC.size
    return (
        _IP + ip.size <= start <= field <= payload - _WORD_BYTES
        and payload < len(frame) <= _IP + _LENGTH_MAXIMUM
        and len(frame) - payload <= UDP_MAX_SEGMENTS * size
    )


def _udp_segments(frame: bytes, start: int, size: int) -> Iterator[bytearray]:
    """Yield the segments of a UDP superframe, each with the headers and its own UDP length.

    :param frame: the superframe.
    :param start: offset of its UDP header.
    :param size: payload bytes of each segment but perhaps the last.
    """
    payload = start + UDP_CODEC.size
    for at in range(payload, len(frame), size):
        segment = bytearray(frame[:payload] + frame[at : at + size])
        _put_word(segment, start + UDP_CODEC.offset("length"), len(segment) - start)
        yield segment


_SEGMENTS = {VIRTIO_NET_HDR_GSO_UDP_L4: _udp_segments}


def _patch_ip(frame: bytearray, index: int) -> None:
    """Write the length of a segment's IP header and, for IPv4, its identification and checksum.

    :param frame: the segment with a copy of the superframe's IP header.
    :param index: number of the segment in the superframe.
    """
    if _word(frame, _ETHERTYPE) != ETHERTYPE_IPV4:
        _put_word(frame, _LENGTH6, len(frame) - _IP - IPV6_CODEC.size)
        return
    _put_word(frame, _LENGTH4, len(frame) - _IP)
    _put_word(frame, _IDENTIFICATION, (_word(frame, _IDENTIFICATION) + index) & _WORD)
    _put_word(frame, _CHECKSUM4, 0)
    ihl = IPV4_CODEC.unpack_from(frame, _IP)["ihl"]
    _put_word(frame, _CHECKSUM4, checksum.internet(frame[_IP : _IP + _IHL_UNIT * ihl]))


def _complete(frame: bytes, start: int, field: int) -> bytes:
    """Return a frame with its transport checksum, computed from `start` on; `field` holds its pseudo header's sum."""
    value = checksum.internet(frame[start:]) or _WORD
    return frame[:field] + value.to_bytes(_WORD_BYTES, "big") + frame[field + _WORD_BYTES :]


def _word(buffer: bytes | bytearray, at: int) -> int:
    """Return the 16-bit word at an offset in bytes."""
    return int.from_bytes(buffer[at : at + _WORD_BYTES], "big")


def _put_word(buffer: bytearray, at: int, word: int) -> None:
    """Write a 16-bit word at an offset in bytes."""
    buffer[at : at + _WORD_BYTES] = word.to_bytes(_WORD_BYTES, "big")
