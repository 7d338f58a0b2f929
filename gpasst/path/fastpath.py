"""The fast path: ordinary UDP frames of known peers, recognised by one look at their headers.

Theory of operation: `FastPath.lookup` reads the few fields that make a frame an ordinary one (no options, no fragment,
lengths that agree) and finds its peer by the raw bytes of its addresses and ports.

The declared structures begin with a virtio-net header. On a stream there is none; the frame's length stands where its
last bytes would be.
"""

from __future__ import annotations

import struct

from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet.joining import GSO_TYPE, HEADERS
from gpasst.udp.mapping import Peer
from gpasst.udp.table import Table
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
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

_pick4 = UDP4.picker(
    "ethernet.ethertype",
    "ip.version",
    "ip.tos",
    "ip.total_length",
    "ip.flags",
    "ip.ttl",
    "ip.protocol",
    "udp.length",
).unpack_from
_pick6 = UDP6.picker("ip.version", "ip.payload_length", "ip.next_header", "ip.hop_limit", "udp.length").unpack_from
_VERSION_SHIFT = 28  # of the version in the first word of an IPv6 header
_CLASS_SHIFT = 12  # from the place of the traffic class in the first word to its place in tos_ttl
_TOS_MASK = 0xFF00  # of tos_ttl
_KEY4 = UDP4.offset("ip.source"), UDP4.offset("udp.length")
_KEY6 = UDP6.offset("ip.source"), UDP6.offset("udp.length")
_PAYLOAD4, _PAYLOAD6 = HEADERS[4], HEADERS[6]
_IP4_BYTES, _UDP = IPV4_CODEC.size, UDP_CODEC.size
_BEFORE_UDP4, _BEFORE_UDP6 = _PAYLOAD4 - _UDP, _PAYLOAD6 - _UDP

# The same places in a frame without virtio-net header.
_VIRTIO = VIRTIO_NET_CODEC.size
_TYPE = slice(UDP4.offset("ethernet.ethertype") - _VIRTIO, UDP4.offset("ip.version") - _VIRTIO)
_IPV4, _IPV6 = (kind.to_bytes(2, "big") for kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6))
_PROTOCOL4, _PROTOCOL6 = UDP4.offset("ip.protocol") - _VIRTIO, UDP6.offset("ip.next_header") - _VIRTIO
_FLOW4, _FLOW6 = (slice(start - _VIRTIO, end - _VIRTIO) for start, end in (_KEY4, _KEY6))

_GSO_SIZE = UDP4.offset("virtio.gso_size")
_SUPERFRAME_HEADERS = 256  # bytes before a superframe's payload at most, options and extension headers included
_gso_size = struct.Struct("<H").unpack_from

Buffer = bytearray | memoryview


def udp_segment(buffer: Buffer, size: int) -> int:
    """Return the segment size of a UDP superframe, 0 for other frames, -1 for one that has to be dropped.

    That has no segment size, or more segments than the kernel makes, each of which would take a call where the host's
    kernel cannot segment.

    :param buffer: begins with the frame's virtio-net header.
    :param size: bytes of the frame with that header.
    """
    if buffer[GSO_TYPE] != VIRTIO_NET_HDR_GSO_UDP_L4:
        return 0
    (segment,) = _gso_size(buffer, _GSO_SIZE)
    if not segment or size > UDP_MAX_SEGMENTS * segment + _SUPERFRAME_HEADERS:
        return -1
    return int(segment)


class FastPath:
    """The peers of one guest, as frames name them.

    :param tables: the guest's tables by family; none where UDP is not carried.
    :ivar tables: the same, empty ones where UDP is not carried.
    """

    def __init__(self, tables: dict[int, Table]) -> None:
        nothing = Table()
        self.tables = {4: nothing, 6: nothing, **tables}
        four, six = self.tables[4], self.tables[6]
        self._down4, self._activity4 = four.down, four.activity
        self._down6, self._activity6 = six.down, six.activity

    def lookup(self, buffer: Buffer, at: int, size: int) -> tuple[Peer, int, int] | None:
        """Look up the peer of a frame, which then counts as active.

        :param buffer: where the frame lies.
        :param at: where its virtio-net header begins, or would.
        :param size: bytes from there to the end of the frame.
        :return: the peer, bytes of the headers and bytes of the payload; None for any other frame.
        """
        if size < _PAYLOAD4:
            return None
        ethertype, version, tos, total, fragment, ttl, protocol, length = _pick4(buffer, at)
        if ethertype == ETHERTYPE_IPV4:
            if (
                version == IPV4_VERSION_IHL
                and protocol == PROTOCOL_UDP
                and not fragment & IPV4_FRAGMENT_MASK
                and _UDP <= length <= total - _IP4_BYTES <= size - _BEFORE_UDP4
            ):
                peer = self._down4.get(bytes(buffer[at + _KEY4[0] : at + _KEY4[1]]))
                if peer is not None:
                    self._activity4[peer.byte] |= peer.bit
                    tos_ttl = tos << 8 | ttl
                    if tos_ttl != peer.tos_ttl:
                        peer.set_tos_ttl(tos_ttl)
                    return peer, _PAYLOAD4, length - _UDP
        elif ethertype == ETHERTYPE_IPV6 and size >= _PAYLOAD6:
            flow, total, protocol, ttl, length = _pick6(buffer, at)
            if (
                flow >> _VERSION_SHIFT == IPV6_VERSION
                and protocol == PROTOCOL_UDP
                and _UDP <= length <= total <= size - _BEFORE_UDP6
            ):
                peer = self._down6.get(bytes(buffer[at + _KEY6[0] : at + _KEY6[1]]))
                if peer is not None:
                    self._activity6[peer.byte] |= peer.bit
                    tos_ttl = flow >> _CLASS_SHIFT & _TOS_MASK | ttl
                    if tos_ttl != peer.tos_ttl:
                        peer.set_tos_ttl(tos_ttl)
                    return peer, _PAYLOAD6, length - _UDP
        return None

    def knows(self, frame: bytes) -> bool:
        """Return whether a frame, from its destination MAC address on, is UDP of a known peer.

        A first fragment of one is, too.
        """
        kind = frame[_TYPE]
        if kind == _IPV4:
            return frame[_FLOW4] in self._down4 and frame[_PROTOCOL4] == PROTOCOL_UDP
        return kind == _IPV6 and frame[_FLOW6] in self._down6 and frame[_PROTOCOL6] == PROTOCOL_UDP
