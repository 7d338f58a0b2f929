"""Segmentation of superframes into the frames that a wire would carry.

Theory of operation: the capture file and links without offloads need single frames with complete checksums, where the
tap carries superframes whose checksums are left to the kernel (virtio-net header). So each segment is cut from its
superframe (`gpasst.packet.superframe`), and its checksum completed.

The segments between the first and the last differ in their payload, in identification, sequence number and checksums,
and in nothing else. So their headers are made once, and only these fields are written, whose parts of the sums are
added (RFC 1071, section 2): a superframe may have hundreds of segments.

Where a header contradicts its frame, nothing can be completed, and the frame is yielded as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gpasst.packet import checksum
from gpasst.packet.superframe import IP, VIRTIO, Buffer, Shape, complete, cut, shape
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    TCP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

_GSO_TYPE = VIRTIO_NET_CODEC.offset("gso_type")
_ETHERTYPE = VIRTIO + ETHERNET_CODEC.offset("ethertype")
_IP = IP - VIRTIO  # offset in a frame without virtio-net header; so are those below
_IDENTIFICATION = _IP + IPV4_CODEC.offset("identification")
_CHECKSUM4 = _IP + IPV4_CODEC.offset("checksum")
_SEQUENCE = TCP_CODEC.offset("sequence")
_WORD = checksum.ONES
_LONG = 0xFFFFFFFF
_WORD_BITS = 16
_IHL_MASK, _IHL_UNIT = 0xF, 4  # bytes (RFC 791, section 3.1)
_word = struct.Struct(">H")
_long = struct.Struct(">I")


def split(data: Buffer) -> Iterator[bytes]:
    """Yield the Ethernet frames of a superframe, or the one frame, with complete checksums.

    :param data: virtio-net header and frame, as they cross the tap. Any bytes do; without a whole header there is no
        frame.
    """
    if len(data) < VIRTIO:
        return
    data = bytes(data)
    whole = shape(data)
    if whole.count == 1:
        yield complete(data, whole)
        return
    yield complete(cut(data, whole, 0, 1), whole)
    yield from _between(data, whole)
    yield complete(cut(data, whole, whole.count - 1, whole.count), whole)


def _between(data: bytes, whole: Shape) -> Iterator[bytes]:
    """Yield the frames of a superframe but the first and the last."""
    size, start, field = whole.size, whole.start - VIRTIO, whole.field - VIRTIO
    piece = memoryview(cut(data, whole, 1, 2))[VIRTIO:]
    end = whole.payload - VIRTIO
    head = bytearray(piece[:end])
    four = data[_ETHERTYPE] << 8 | data[_ETHERTYPE + 1] == ETHERTYPE_IPV4
    tcp = data[_GSO_TYPE] != VIRTIO_NET_HDR_GSO_UDP_L4
    identification = sequence = base4 = 0
    if four:
        (identification,) = _word.unpack_from(head, _IDENTIFICATION)
        head[_IDENTIFICATION : _IDENTIFICATION + 2] = head[_CHECKSUM4 : _CHECKSUM4 + 2] = bytes(2)
        base4 = checksum.ones_sum(head[_IP : _IP + _IHL_UNIT * (head[_IP] & _IHL_MASK)])
    if tcp:
        (sequence,) = _long.unpack_from(head, start + _SEQUENCE)
        _long.pack_into(head, start + _SEQUENCE, 0)
    # With the sum of the pseudo header, which stands in the place of the checksum.
    base = checksum.ones_sum(head[start:])
    payloads = memoryview(data)[whole.payload :]
    for at in range(size, (whole.count - 1) * size, size):
        total = base
        if four:
            _word.pack_into(head, _IDENTIFICATION, identification)
            _word.pack_into(head, _CHECKSUM4, _WORD ^ checksum.fold(base4 + identification))
            identification = identification + 1 & _WORD
        if tcp:
            _long.pack_into(head, start + _SEQUENCE, sequence)
            total += (sequence >> _WORD_BITS) + (sequence & _WORD)
            sequence = sequence + size & _LONG
        payload = payloads[at : at + size]
        _word.pack_into(head, field, checksum.internet(payload, total) or _WORD)
        yield b"".join((head, payload))
