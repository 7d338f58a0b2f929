"""UDP frames of one flow and size, joined to a superframe.

Theory of operation: frames of a tap whose checksums are left to the kernel carry nothing that a superframe of them
lacks, so a run of them may cross as one, and the kernel that takes it cuts it again (see `gpasst.packet.superframe`).
Their payloads stand one behind the other, behind the headers of the first. `joinable` recognises the first frame,
`repeating` the next ones, and `seal` makes its headers those of the superframe.

A frame is joined only if the other end cannot see the difference: no IP options or extension headers, no fragment, no
padding, and a checksum that is not computed yet. Identification is counted on from that of the first by the kernel, as
its sender counts for a connected socket; that of a datagram which may not be fragmented means nothing (RFC 6864,
section 4.1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from gpasst.packet import checksum
from gpasst.packet.address import V4, V6
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_VERSION,
    PROTOCOL_UDP,
    UDP4,
    UDP6,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

HEADERS = {V4: UDP4.size, V6: UDP6.size}
"""Bytes before the payload, virtio-net header included, by family."""

RUN_BYTES = 65487
"""Payload bytes of a superframe of either family at most: an IPv6 packet of 65535 bytes without its headers."""

GSO_TYPE = UDP4.offset("virtio.gso_type")
"""Offset of the kind of superframe."""

_VIRTIO = VIRTIO_NET_CODEC.size
_PLAIN = bytes((VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE))
_PROTOCOL4 = UDP4.offset("ip.protocol")
_PROTOCOL6 = UDP6.offset("ip.next_header")
_LENGTH4, _CHECKSUM4 = UDP4.offset("ip.total_length"), UDP4.offset("ip.checksum")
_LENGTH6 = UDP6.offset("ip.payload_length")
_UDP_LENGTH4, _UDP_LENGTH6 = UDP4.offset("udp.length"), UDP6.offset("udp.length")
_IP4_BYTES, _UDP_BYTES = IPV4_CODEC.size, UDP_CODEC.size
_VERSION_SHIFT = 28  # of the version in the first word of an IPv6 header
_WORD = 0xFFFF

_pick4 = UDP4.picker("ethernet.ethertype", "ip.version", "ip.total_length", "ip.flags", "udp.length").unpack_from
_pick6 = UDP6.picker("ethernet.ethertype", "ip.version", "ip.payload_length", "udp.length").unpack_from
_plain = struct.Struct("2s").unpack_from
_word = struct.Struct(">H")
_words = struct.Struct(">HH")
_gso = struct.Struct("<BHH")  # type, header length and size

Repeating = Callable[[bytearray | memoryview, int], tuple[bytes, ...]]


def repeating(family: int, lead: int) -> Repeating:
    """Return a function that reads all headers of a frame but identification and checksums, which differ within a flow.

    :param family: 4 or 6.
    :param lead: offset in the headers where the reading begins.
    """
    if family == V6:
        return struct.Struct(f"{UDP6.offset('udp.checksum') - lead}s").unpack_from
    return struct.Struct(
        f"{UDP4.offset('ip.identification') - lead}s2x{UDP4.offset('ip.checksum') - UDP4.offset('ip.flags')}s2x"
        f"{UDP4.offset('udp.checksum') - UDP4.offset('ip.source')}s"
    ).unpack_from


def joinable(buffer: bytearray, size: int) -> int:
    """Return the family of a frame that others may be joined to, 0 for one to which none may.

    :param buffer: begins with the frame, behind its virtio-net header.
    :param size: bytes of both, at least those of an Ethernet header.
    """
    if buffer[_PROTOCOL4] == PROTOCOL_UDP and size > UDP4.size and _plain(buffer) == (_PLAIN,):
        ethertype, version, total, fragment, length = _pick4(buffer)
        if (
            ethertype == ETHERTYPE_IPV4
            and version == IPV4_VERSION_IHL
            and not fragment & IPV4_FRAGMENT_MASK
            and length == total - _IP4_BYTES == size - UDP4.size + _UDP_BYTES
        ):
            return V4
    if buffer[_PROTOCOL6] == PROTOCOL_UDP and size > UDP6.size and _plain(buffer) == (_PLAIN,):
        ethertype, flow, total, length = _pick6(buffer)
        if (
            ethertype == ETHERTYPE_IPV6
            and flow >> _VERSION_SHIFT == IPV6_VERSION
            and length == total == size - UDP6.size + _UDP_BYTES
        ):
            return V6
    return 0


def seal(buffer: bytearray, family: int, segment: int, total: int) -> None:
    """Make the headers of a frame those of the superframe whose payload stands behind them.

    :param buffer: begins with the frame, behind its virtio-net header; `joinable` has returned its family.
    :param family: 4 or 6.
    :param segment: payload bytes of the frame, and of each one that was joined.
    :param total: payload bytes in all.
    """
    more = total - segment
    _gso.pack_into(buffer, GSO_TYPE, VIRTIO_NET_HDR_GSO_UDP_L4, HEADERS[family] - _VIRTIO, segment)
    if family == V4:
        length, at = _LENGTH4, _UDP_LENGTH4
        (sum4,) = _word.unpack_from(buffer, _CHECKSUM4)
        # RFC 1624, equation 3; the pseudo header's sum stands without a complement.
        _word.pack_into(buffer, _CHECKSUM4, _WORD ^ checksum.fold((_WORD ^ sum4) + more))
    else:
        length, at = _LENGTH6, _UDP_LENGTH6
    (bytes_before,) = _word.unpack_from(buffer, length)
    _word.pack_into(buffer, length, bytes_before + more)
    before, pseudo = _words.unpack_from(buffer, at)
    _words.pack_into(buffer, at, before + more, checksum.fold(pseudo + more))
