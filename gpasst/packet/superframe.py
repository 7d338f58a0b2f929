"""Superframes: a run of segments behind one set of headers, cut into shorter runs.

Theory of operation: a superframe crosses the tap behind a virtio-net header, which says how the kernel would segment
it. `shape` reads that. `cut` returns some of its segments as a superframe of their own, or as a single frame; like the
superframe, it leaves its transport checksum to the kernel. Each cut has the fields that the kernel would write
(net/ipv4/udp_offload.c: __udp_gso_segment; net/ipv4/tcp_offload.c: tcp_gso_segment; net/ipv4/af_inet.c:
inet_gso_segment):

1. lengths of its own, in the headers of IP and UDP, and in the sum of the pseudo header;
2. the identification of IPv4 counted on from the first segment;
3. the sequence number of its first byte; FIN and PSH only with the last segment, CWR only with the first.

NOTE: where a header contradicts its frame, nothing can be cut: the frame counts as one. A guest with raw sockets may
write such a header, and one that asks for thousands of segments.
"""

from __future__ import annotations

from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet import checksum
from gpasst.records import dataclass
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    IPV6_CODEC,
    TCP_CODEC,
    TCP_CWR,
    TCP_FIN,
    TCP_PSH,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

VIRTIO = VIRTIO_NET_CODEC.size
"""Offset of the Ethernet header."""
IP = VIRTIO + ETHERNET_CODEC.size
"""Offset of the IP header."""

_ETHERTYPE = VIRTIO + ETHERNET_CODEC.offset("ethertype")
_LENGTH4 = IP + IPV4_CODEC.offset("total_length")
_IDENTIFICATION = IP + IPV4_CODEC.offset("identification")
_CHECKSUM4 = IP + IPV4_CODEC.offset("checksum")
_LENGTH6 = IP + IPV6_CODEC.offset("payload_length")
_UDP_LENGTH = UDP_CODEC.offset("length")
_OFFSET, _SEQUENCE, _FLAGS = (TCP_CODEC.offset(name) for name in ("data_offset", "sequence", "flags"))
_GSO_TYPE, _GSO_SIZE = VIRTIO_NET_CODEC.offset("gso_type"), VIRTIO_NET_CODEC.offset("gso_size")
_GSO = slice(_GSO_SIZE, _GSO_SIZE + 2)
_IHL_UNIT = 4  # bytes (RFC 791, section 3.1)
_LENGTH_MAXIMUM = 0xFFFF  # bytes that a length field can say
_WORD_BYTES = 2
_BYTE_MASK = 0xFF
_NIBBLE = 4  # bits
_NUMBER_BYTES = 4  # of a sequence number
_WORD = checksum.ONES
_SEQUENCE_MASK = 0xFFFFFFFF
_TCP_SEGMENTS = 1024  # of a superframe; more than there are of 64 bytes, less than which no stack sends
_TCP_TYPES = VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the parts of a superframe stand, in bytes from its virtio-net header on.

    :ivar start: offset of the transport header; 0 if no checksum is left to the kernel.
    :ivar field: offset of the checksum; 0 likewise.
    :ivar payload: offset of the payload; that behind the last byte for a frame that cannot be cut.
    :ivar size: payload bytes of each segment but perhaps the last.
    :ivar count: how many segments there are, 1 for a single frame.
    """

    start: int
    field: int
    payload: int
    size: int
    count: int


def shape(data: Buffer) -> Shape:
    """Return the shape of a superframe, or of a single frame.

    :param data: virtio-net header and frame, as they cross the tap. Any bytes do, from a whole virtio-net header on.
    """
    virtio, length = VIRTIO_NET_CODEC.unpack_from(data), len(data)
    start = VIRTIO + virtio["checksum_start"]
    field = start + virtio["checksum_offset"]
    if not virtio["flags"] & VIRTIO_NET_HDR_F_NEEDS_CSUM or field + _WORD_BYTES > length:
        return Shape(0, 0, length, 0, 1)
    kind, size = virtio["gso_type"] & ~VIRTIO_NET_HDR_GSO_ECN, virtio["gso_size"]
    if kind == VIRTIO_NET_HDR_GSO_UDP_L4:
        payload, most = start + UDP_CODEC.size, UDP_MAX_SEGMENTS
    elif kind in _TCP_TYPES:
        payload, most = _tcp_payload(data, start), _TCP_SEGMENTS
    else:
        return Shape(start, field, length, 0, 1)
    if not size:
        return Shape(start, field, length, 0, 1)
    ip = IPV4_CODEC if length > IP and _word(data, _ETHERTYPE) == ETHERTYPE_IPV4 else IPV6_CODEC
    if (
        IP + ip.size <= start <= field <= payload - _WORD_BYTES
        and payload < length <= IP + _LENGTH_MAXIMUM
        and length - payload <= most * size
    ):
        return Shape(start, field, payload, size, -(-(length - payload) // size))
    # Its headers contradict it, so not even its checksum can be completed.
    return Shape(0, 0, length, 0, 1)


def _tcp_payload(data: Buffer, start: int) -> int:
    """Return the offset of the payload behind a TCP header; 0 for a header that is not whole."""
    at = start + _OFFSET
    size = (data[at] >> _NIBBLE) * _IHL_UNIT if at < len(data) else 0
    return start + size if size >= TCP_CODEC.size else 0


def cut(data: Buffer, shape: Shape, first: int, end: int) -> bytearray:
    """Return the segments from `first` to before `end` of a superframe, as a superframe or single frame of their own.

    :param data: virtio-net header and frame, as they cross the tap.
    :param shape: its shape.
    :param first: 0 to `shape.count` - 1.
    :param end: `first` + 1 to `shape.count`.
    """
    payload, size, start, field = shape.payload, shape.size, shape.start, shape.field
    if end - first == shape.count:
        return bytearray(data)
    piece = bytearray(data[:payload])
    piece += data[payload + first * size : payload + end * size]
    length = len(piece) - start
    # The field holds the sum of the pseudo header with the superframe's length; each piece has a length of its own.
    put_word(piece, field, checksum.fold(_word(data, field) + _WORD - (len(data) - start) % _WORD + length))
    if data[_GSO_TYPE] == VIRTIO_NET_HDR_GSO_UDP_L4:
        put_word(piece, start + _UDP_LENGTH, length)
    else:
        number, flags = start + _SEQUENCE, start + _FLAGS
        own = int.from_bytes(data[number : number + _NUMBER_BYTES], "big") + first * size & _SEQUENCE_MASK
        piece[number : number + _NUMBER_BYTES] = own.to_bytes(_NUMBER_BYTES, "big")
        if end < shape.count:
            piece[flags] &= ~(TCP_FIN | TCP_PSH)
        if first:
            piece[flags] &= ~TCP_CWR
            piece[_GSO_TYPE] &= ~VIRTIO_NET_HDR_GSO_ECN
    if end - first == 1:
        piece[_GSO_TYPE] = VIRTIO_NET_HDR_GSO_NONE
        piece[_GSO] = bytes(_WORD_BYTES)
    if _word(piece, _ETHERTYPE) == ETHERTYPE_IPV4:
        put_word(piece, _LENGTH4, len(piece) - IP)
        put_word(piece, _IDENTIFICATION, _word(piece, _IDENTIFICATION) + first & _WORD)
        seal4(piece)
    else:
        put_word(piece, _LENGTH6, len(piece) - IP - IPV6_CODEC.size)
    return piece


def seal4(data: bytearray) -> None:
    """Write the checksum of the IPv4 header of a frame behind its virtio-net header."""
    put_word(data, _CHECKSUM4, 0)
    size = _IHL_UNIT * (data[IP] & (1 << _NIBBLE) - 1)
    put_word(data, _CHECKSUM4, checksum.internet(data[IP : IP + size]))


def complete(data: bytes | bytearray, shape: Shape) -> bytes:
    """Return the Ethernet frame of a single frame, without its virtio-net header, its transport checksum complete.

    :param data: virtio-net header and frame.
    :param shape: its shape; only where the checksum is matters.
    """
    start, field = shape.start, shape.field
    if not field:
        return bytes(data[VIRTIO:])
    # The field holds the pseudo header's sum.
    value = checksum.internet(memoryview(data)[start:]) or _WORD
    return b"".join((data[VIRTIO:field], value.to_bytes(_WORD_BYTES, "big"), data[field + _WORD_BYTES :]))


def _word(buffer: Buffer, at: int) -> int:
    """Return the 16-bit word at an offset in bytes."""
    return buffer[at] << 8 | buffer[at + 1]


def put_word(buffer: bytearray, at: int, word: int) -> None:
    """Write a 16-bit word at an offset in bytes."""
    buffer[at] = word >> 8
    buffer[at + 1] = word & _BYTE_MASK
