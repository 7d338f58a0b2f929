"""The fast path: ordinary UDP frames of known peers, recognised by one look at their headers.

Theory of operation: `FastPath.lookup` reads the few fields that make a frame an ordinary one (no options, no fragment,
lengths that agree) and finds its peer by the raw bytes of its addresses and ports.

The declared structures begin with a virtio-net header. On a stream there is none; the frame's length stands where its
last bytes would be.

`may_matter` is for frames that are dropped unless their flow is known or they are for a service: it compares less.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet.dhcp_wire import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.packet.joining import GSO_TYPE, HEADERS
from gpasst.switch.framing import FRAME_MINIMUM
from gpasst.udp.mapping import Peer
from gpasst.udp.table import Table
from gpasst.wire import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_VERSION,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    STREAM_LEAD_BYTES,
    STREAM_LENGTH_BYTES,
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
_TYPE_LOW = UDP4.offset("ip.version") - 1  # the low byte of the EtherType
_IPV6_LOW, _ARP_LOW = ETHERTYPE_IPV6 & 0xFF, ETHERTYPE_ARP & 0xFF
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
PASSED_BYTES = 1 << 13  # of a stream, that are looked at before anything else
_STREAM_TYPE_LOW = _TYPE_LOW - STREAM_LEAD_BYTES
_STREAM_KEY4, _STREAM_KEY6 = ((start - STREAM_LEAD_BYTES, end - STREAM_LEAD_BYTES) for start, end in (_KEY4, _KEY6))
_STREAM_PROTOCOL4, _STREAM_PROTOCOL6 = (at + STREAM_LENGTH_BYTES for at in (_PROTOCOL4, _PROTOCOL6))
_DHCP, _DHCPV6 = (port.to_bytes(2, "big") for port in (DHCP_SERVER_PORT, DHCPV6_SERVER_PORT))
_length = struct.Struct(">I").unpack_from
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
    :param connections: those of TCP, by keys of the same layout.
    :ivar tables: the first, empty ones where UDP is not carried.
    """

    def __init__(self, tables: dict[int, Table], connections: Mapping[bytes, object] | None = None) -> None:
        self._connections = connections if connections is not None else {}
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

    def may_matter(self, buffer: Buffer, at: int) -> bool:
        """Return whether a frame may be one of a known flow, or for a service: where it is none, that is certain.

        :param buffer: where the frame lies, and the longest key behind its headers, whatever it consists of.
        :param at: where its virtio-net header begins, or would.
        """
        return self._may_matter(bytes(buffer[at + STREAM_LEAD_BYTES : at + _KEY6[1]]), 0)

    def _may_matter(self, data: bytes, place: int) -> bool:
        """Return the same; `place` is where the length of the frame stands, or would."""
        low = data[place + _STREAM_TYPE_LOW]
        if low == _IPV6_LOW:
            key = data[place + _STREAM_KEY6[0] : place + _STREAM_KEY6[1]]
            if key in self._down6 or key.endswith(_DHCPV6):
                return True
            return data[place + _STREAM_PROTOCOL6] == PROTOCOL_ICMPV6 or key in self._connections
        key = data[place + _STREAM_KEY4[0] : place + _STREAM_KEY4[1]]
        if key in self._down4 or key.endswith(_DHCP):
            return True
        return low == _ARP_LOW or data[place + _STREAM_PROTOCOL4] == PROTOCOL_ICMP or key in self._connections

    def pass_over(self, view: memoryview, at: int, end: int) -> tuple[int, int]:
        """Pass over frames of a stream as long as they do not matter: see `may_matter`.

        :param view: where they lie, each behind its length.
        :param at: where the length of the first one begins.
        :param end: where what has been received ends; no more than `PASSED_BYTES` are looked at.
        :return: where the first frame begins that was not passed over, and how many were.
        """
        data = view[at : min(end, at + PASSED_BYTES)].tobytes()
        matters = self._may_matter
        place = passed = 0
        last = len(data) - _STREAM_KEY6[1]
        while place <= last:
            (length,) = _length(data, place)
            if not FRAME_MINIMUM <= length <= len(data) - place - STREAM_LENGTH_BYTES or matters(data, place):
                break
            place += STREAM_LENGTH_BYTES + length
            passed += 1
        return at + place, passed

    def knows(self, frame: bytes) -> bool:
        """Return whether a frame, from its destination MAC address on, is UDP of a known peer.

        A first fragment of one is, too.
        """
        kind = frame[_TYPE]
        if kind == _IPV4:
            return frame[_FLOW4] in self._down4 and frame[_PROTOCOL4] == PROTOCOL_UDP
        return kind == _IPV6 and frame[_FLOW6] in self._down6 and frame[_PROTOCOL6] == PROTOCOL_UDP
