"""Ordinary UDP frames of known peers, told by one look at their headers.

Theory of operation: `look` reads the few fields that make a frame an ordinary one (no options, no fragment, lengths
that agree) and finds its peer by the raw bytes of its addresses and ports. `repeating` reads everything that frames of
one flow and size have in common, so that a run of them is told by comparing it.

The declared structures begin with a virtio-net header. On a stream there is none; the frame's length stands where its
last bytes would be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from gpasst.formats import ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_UDP, UDP4, UDP6
from gpasst.udp.mapping import Peer, Table

HEADERS = {4: UDP4.size, 6: UDP6.size}  # bytes before the payload, virtio-net header included

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
_CLASS_SHIFT = 12  # from the place of the traffic class in the first word to that in a mark
_IP4 = UDP4.offset("ip.version")
_KEY4 = UDP4.offset("ip.source"), UDP4.offset("udp.length")
_KEY6 = UDP6.offset("ip.source"), UDP6.offset("udp.length")
_PAYLOAD4, _PAYLOAD6 = HEADERS[4], HEADERS[6]
_UNFRAGMENTED = 0x3FFF  # more-fragments bit and offset

Repeating = Callable[[bytearray, int], tuple[bytes, ...]]


def repeating(family: int, lead: int) -> Repeating:
    """Give what reads all headers of a frame but that which differs within a flow: identification and checksums.

    :param family: 4 or 6.
    :param lead: offset in the headers where the reading begins.
    """
    if family == 6:
        return struct.Struct(f"{UDP6.offset('udp.checksum') - lead}s").unpack_from
    return struct.Struct(
        f"{UDP4.offset('ip.identification') - lead}s2x{UDP4.offset('ip.checksum') - UDP4.offset('ip.flags')}s2x"
        f"{UDP4.offset('udp.checksum') - UDP4.offset('ip.source')}s"
    ).unpack_from


class FastPath:
    """The peers of one guest, as frames name them.

    :param tables: the guest's tables by family; none where UDP is not carried.
    """

    def __init__(self, tables: dict[int, Table]) -> None:
        nothing = Table()
        four, six = tables.get(4, nothing), tables.get(6, nothing)
        self._down4, self._activity4 = four.down, four.activity
        self._down6, self._activity6 = six.down, six.activity

    def lookup(self, buffer: bytearray, at: int, size: int) -> tuple[Peer, int, int] | None:
        """Look for the peer of a frame, which then counts as active.

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
                version == 0x45
                and protocol == PROTOCOL_UDP
                and not fragment & _UNFRAGMENTED
                and 8 <= length <= total - 20 <= size - _IP4 - 20
            ):
                peer = self._down4.get(bytes(buffer[at + _KEY4[0] : at + _KEY4[1]]))
                if peer is not None:
                    self._activity4[peer.byte] |= peer.bit
                    tos_ttl = tos << 8 | ttl
                    if tos_ttl != peer.tos_ttl:
                        peer.set_tos_ttl(tos_ttl)
                    return peer, _PAYLOAD4, length - 8
        elif ethertype == ETHERTYPE_IPV6 and size >= _PAYLOAD6:
            flow, total, protocol, ttl, length = _pick6(buffer, at)
            if protocol == PROTOCOL_UDP and 8 <= length <= total <= size - _PAYLOAD6 + 8:
                peer = self._down6.get(bytes(buffer[at + _KEY6[0] : at + _KEY6[1]]))
                if peer is not None:
                    self._activity6[peer.byte] |= peer.bit
                    tos_ttl = flow >> _CLASS_SHIFT & 0xFF00 | ttl
                    if tos_ttl != peer.tos_ttl:
                        peer.set_tos_ttl(tos_ttl)
                    return peer, _PAYLOAD6, length - 8
        return None
