"""Segmentation of superframes into the frames that a wire would carry.

Theory of operation: the capture file needs single frames with complete checksums, where the tap carries superframes
whose checksums are left to the kernel (virtio-net header). A table by GSO type yields the segments of a superframe with
their transport headers; lengths and identification of IP, and all checksums, are then the same for every transport.
Each segment gets the fields that the kernel would give it (net/ipv4/udp_offload.c: __udp_gso_segment;
net/ipv4/tcp_offload.c: tcp_gso_segment; net/ipv4/af_inet.c: inet_gso_segment).

Where a header contradicts its frame, nothing can be completed, and the frame is yielded as it is. A guest with raw
sockets may write such a header, and one that asks for thousands of segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet import checksum
from gpasst.records import dataclass
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    IPV6_CODEC,
    TCP_CODEC,
    TCP_FIN,
    TCP_PSH,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

_IP = ETHERNET_CODEC.size  # offset of the IP header in a frame
_ETHERTYPE = ETHERNET_CODEC.offset("ethertype")
_LENGTH4 = _IP + IPV4_CODEC.offset("total_length")
_IDENTIFICATION = _IP + IPV4_CODEC.offset("identification")
_CHECKSUM4 = _IP + IPV4_CODEC.offset("checksum")
_LENGTH6 = _IP + IPV6_CODEC.offset("payload_length")
_IHL_UNIT = 4  # bytes (RFC 791, section 3.1)
_LENGTH_MAXIMUM = 0xFFFF  # bytes that a length field can say
_WORD_BYTES = 2
_NIBBLE = 4  # bits
_NUMBER_BYTES = 4  # of a sequence number
_WORD = checksum.ONES
_SEQUENCE_MASK = 0xFFFFFFFF
_TCP_SEGMENTS = 1024  # of a superframe; more than there are of 64 bytes, less than which no stack sends
_TCP_CWR = 0x80  # RFC 3168, section 6.1


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
    size, transport = virtio["gso_size"], _TRANSPORTS.get(virtio["gso_type"] & ~VIRTIO_NET_HDR_GSO_ECN)
    if transport is None or not size:
        yield _complete(frame, start, field)
        return
    payload = transport.payload(frame, start)
    if not _divisible(frame, start, field, payload, transport.most * size):
        yield frame
        return
    # The field holds the sum of the pseudo header with the superframe's length; each segment has a length of its own.
    pseudo = _word(frame, field) + (_WORD - (len(frame) - start) % _WORD)
    for index, segment in enumerate(transport.segments(frame, start, payload, size)):
        _patch_ip(segment, index)
        _put_word(segment, field, checksum.fold(pseudo + len(segment) - start))
        yield _complete(bytes(segment), start, field)


@dataclass(frozen=True, slots=True)
class _Transport:
    """What cutting depends on.

    :ivar payload: returns the offset of the payload in a frame with a transport header at an offset; 0 for none.
    :ivar segments: yields the segments of a superframe, given the offsets of transport header and payload, and the
        payload bytes of each but perhaps the last.
    :ivar most: how many segments a superframe may have.
    """

    payload: Callable[[bytes, int], int]
    segments: Callable[[bytes, int, int, int], Iterator[bytearray]]
    most: int


def _divisible(frame: bytes, start: int, field: int, payload: int, most: int) -> bool:
    """Return whether a superframe can be cut: its headers are whole, and its lengths and segments are possible.

    :param frame: the superframe.
    :param start: offset of its transport header.
    :param field: offset of its checksum.
    :param payload: offset of its payload.
    :param most: bytes of payload that it may have.
    """
    ip = IPV4_CODEC if len(frame) > _IP and _word(frame, _ETHERTYPE) == ETHERTYPE_IPV4 else IPV6_CODEC
    return (
        _IP + ip.size <= start <= field <= payload - _WORD_BYTES
        and payload < len(frame) <= _IP + _LENGTH_MAXIMUM
        and len(frame) - payload <= most
    )


def _udp_segments(frame: bytes, start: int, payload: int, size: int) -> Iterator[bytearray]:
    """Yield the segments of a UDP superframe, each with the headers and its own UDP length."""
    for at in range(payload, len(frame), size):
        segment = bytearray(frame[:payload] + frame[at : at + size])
        _put_word(segment, start + UDP_CODEC.offset("length"), len(segment) - start)
        yield segment


def _tcp_payload(frame: bytes, start: int) -> int:
    """Return the offset of the payload behind a TCP header; 0 for a header that is not whole."""
    at = start + TCP_CODEC.offset("data_offset")
    size = (frame[at] >> _NIBBLE) * _IHL_UNIT if at < len(frame) else 0
    return start + size if size >= TCP_CODEC.size else 0


def _tcp_segments(frame: bytes, start: int, payload: int, size: int) -> Iterator[bytearray]:
    """Yield the segments of a TCP superframe: FIN and PSH belong to the last, CWR to the first."""
    flags = start + TCP_CODEC.offset("flags")
    sequence = start + TCP_CODEC.offset("sequence")
    number = int.from_bytes(frame[sequence : sequence + _NUMBER_BYTES], "big")
    for at in range(payload, len(frame), size):
        segment = bytearray(frame[:payload] + frame[at : at + size])
        own = (number + at - payload) & _SEQUENCE_MASK
        segment[sequence : sequence + _NUMBER_BYTES] = own.to_bytes(_NUMBER_BYTES, "big")
        if at + size < len(frame):
            segment[flags] &= ~(TCP_FIN | TCP_PSH)
        if at > payload:
            segment[flags] &= ~_TCP_CWR
        yield segment


_TCP = _Transport(_tcp_payload, _tcp_segments, _TCP_SEGMENTS)
_TRANSPORTS = {
    VIRTIO_NET_HDR_GSO_UDP_L4: _Transport(lambda _, start: start + UDP_CODEC.size, _udp_segments, UDP_MAX_SEGMENTS),
    VIRTIO_NET_HDR_GSO_TCPV4: _TCP,
    VIRTIO_NET_HDR_GSO_TCPV6: _TCP,
}


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
