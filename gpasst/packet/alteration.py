"""Changes that a network makes to a frame on its way: a bit that flips, and a mark of congestion.

Theory of operation: frames stand behind a virtio-net header, as they cross the tap. A receiver finds a flipped bit by
its checksum, so `corrupt` completes that first; what was sent without one (UDP over IPv4, RFC 768) gets one. With
`valid` the checksum is the right one for the changed payload: as of damage that happens where checksums do not protect,
in the memory of a middlebox. Fragments and protocols without a checksum have none to be wrong.
"""

from __future__ import annotations

from gpasst.errors import PacketError
from gpasst.packet import checksum
from gpasst.packet.address import V4
from gpasst.packet.parse import Packet, parse_ip
from gpasst.packet.superframe import IP, VIRTIO, Buffer, complete, put_word, seal4, shape
from gpasst.records import dataclass
from gpasst.wire import (
    ECHO_CODEC,
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP_CODEC,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
    VIRTIO_NET_BLANK,
)

CONGESTION_EXPERIENCED = 3  # the ECN field of a marked packet (RFC 3168, section 5)

_HEADERS = {
    PROTOCOL_UDP: (UDP_CODEC.size, UDP_CODEC.offset("checksum")),
    PROTOCOL_TCP: (TCP_CODEC.size, TCP_CODEC.offset("checksum")),
    PROTOCOL_ICMP: (ECHO_CODEC.size, ICMP_CODEC.offset("checksum")),
    PROTOCOL_ICMPV6: (ECHO_CODEC.size, ICMP_CODEC.offset("checksum")),
}
_ETHERTYPES = ETHERTYPE_IPV4, ETHERTYPE_IPV6
_TYPE = slice(VIRTIO + ETHERNET_CODEC.offset("ethertype"), IP)
_TOS = IP + IPV4_CODEC.offset("tos")
_CLASS = IP + 1  # the low half of the traffic class is the high half of this byte (RFC 8200, section 3)
_CLASS_SHIFT = 4
_OFFSET = TCP_CODEC.offset("data_offset")
_OFFSET_SHIFT, _OFFSET_UNIT = 4, 4  # bits; bytes (RFC 9293, section 3.1)
_WORD_BYTES = 2
_BITS = 8


@dataclass(frozen=True, slots=True)
class _Transport:
    """The upper-layer packet of a frame.

    :ivar packet: the IP packet.
    :ivar start: its offset, in bytes from the virtio-net header on.
    :ivar data: offset of its payload.
    :ivar end: offset behind it.
    :ivar field: offset of its checksum, 0 if it has none.
    """

    packet: Packet
    start: int
    data: int
    end: int
    field: int


def corrupt(data: Buffer, bit: int, valid: bool) -> bytes:
    """Return a single frame with one bit flipped.

    :param data: virtio-net header and frame.
    :param bit: any number of at least 0, which chooses the bit: of the transport packet but its checksum, or of the
        payload alone if `valid`; of a frame that is no IP packet, of all behind the Ethernet header.
    :param valid: whether the checksum is right for the changed frame. A frame without payload stays as it is then.
    """
    frame = bytearray(VIRTIO_NET_BLANK)
    frame += complete(bytes(data), shape(data))
    found = _transport(frame)
    if found is None:
        if not valid:
            _flip(frame, IP, len(frame), 0, bit)
        return bytes(frame)
    unchecked = not found.field or (
        found.packet.protocol == PROTOCOL_UDP and not any(frame[found.field : found.field + _WORD_BYTES])
    )
    if not valid:
        if found.field and unchecked:
            _seal(frame, found)
        _flip(frame, found.start, found.end, found.field, bit)
    elif found.data < found.end:
        _flip(frame, found.data, found.end, 0, bit)
        if not unchecked:
            _seal(frame, found)
    return bytes(frame)


def protected(data: Buffer) -> bool:
    """Return whether a receiver finds damage of a complete frame by a checksum.

    :param data: virtio-net header and frame.
    """
    found = _transport(bytearray(data))
    return found is not None and found.field > 0


def mark_congestion(data: Buffer) -> bytes:
    """Return a frame or superframe with the mark of a congested router (RFC 3168, section 5).

    A frame whose transport does not understand the mark stays as it is.

    :param data: virtio-net header and frame.
    """
    ethertype = int.from_bytes(data[_TYPE], "big")
    changed = bytearray(data)
    if ethertype == ETHERTYPE_IPV4 and len(data) >= IP + IPV4_CODEC.size and changed[_TOS] & CONGESTION_EXPERIENCED:
        changed[_TOS] |= CONGESTION_EXPERIENCED
        seal4(changed)
    elif ethertype == ETHERTYPE_IPV6 and len(data) >= IP + IPV6_CODEC.size:
        mark = CONGESTION_EXPERIENCED << _CLASS_SHIFT
        if changed[_CLASS] & mark:
            changed[_CLASS] |= mark
    return bytes(changed)


def _transport(frame: bytearray) -> _Transport | None:
    """Return the upper-layer packet of a frame behind a virtio-net header, None if it is no whole IP packet."""
    if len(frame) <= IP or int.from_bytes(frame[_TYPE], "big") not in _ETHERTYPES:
        return None
    try:
        packet = parse_ip(memoryview(bytes(frame))[VIRTIO:])
    except PacketError:
        return None
    if packet.family == V4:
        at = IP + IPV4_CODEC.offset("total_length")
        end = IP
    else:
        at = IP + IPV6_CODEC.offset("payload_length")
        end = IP + IPV6_CODEC.size
    end += int.from_bytes(frame[at : at + _WORD_BYTES], "big")
    start = end - len(packet.payload)
    header, field = _HEADERS.get(packet.protocol, (0, 0))
    if packet.fragment or start + header > end:
        header = field = 0
    data = start + header
    if packet.protocol == PROTOCOL_TCP and header:
        data = min(end, start + (frame[start + _OFFSET] >> _OFFSET_SHIFT) * _OFFSET_UNIT)
    return _Transport(packet, start, data, end, start + field if field else 0)


def _flip(frame: bytearray, start: int, end: int, field: int, bit: int) -> None:
    """Flip one bit of the bytes from `start` to before `end`, but none of the two at `field`, if that is not 0."""
    size = end - start - (_WORD_BYTES if field else 0)
    if size <= 0:
        return
    number, place = divmod(bit % (size * _BITS), _BITS)
    at = start + number
    if field and at >= field:
        at += _WORD_BYTES
    frame[at] ^= 1 << place


def _seal(frame: bytearray, found: _Transport) -> None:
    """Write the checksum of the upper-layer packet."""
    packet = found.packet
    put_word(frame, found.field, 0)
    segment = memoryview(frame)[found.start : found.end]
    if packet.protocol == PROTOCOL_ICMP:
        value = checksum.internet(segment)
    else:
        pseudo = checksum.pseudo_sum(packet.source, packet.destination, packet.protocol)
        value = checksum.transport(pseudo, segment)
        if packet.protocol == PROTOCOL_UDP:
            value = value or checksum.ONES
    segment.release()
    put_word(frame, found.field, value)
