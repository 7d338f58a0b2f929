"""The way of a flow: how its frames are found by their raw bytes, and how they leave."""

from __future__ import annotations

from typing import Final

from gpasst.packet.address import V4
from gpasst.packet.superframe import IP, Buffer
from gpasst.router.patch import ADDRESSES4, ADDRESSES6, ETHERNET, HOP_LIMIT6, PORTS_BYTES, hop4
from gpasst.router.policy import Path
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_VERSION_IHL,
    IPV6_CODEC,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

TYPE_AT: Final = ETHERNET.stop - 2
_LEAST: Final = {PROTOCOL_TCP: TCP_CODEC.size, PROTOCOL_UDP: UDP_CODEC.size}
_PROTOCOL4: Final = IP + IPV4_CODEC.offset("protocol")
_PROTOCOL6: Final = IP + IPV6_CODEC.offset("next_header")
_FRAGMENT: Final = IP + IPV4_CODEC.offset("flags")
_FRAGMENT_MASK: Final = 0x3F  # of the first byte of flags and offset: more fragments, and the offset's upper bits
_KEY4: Final = slice(ADDRESSES4.start, ADDRESSES4.stop + PORTS_BYTES)
_KEY6: Final = slice(ADDRESSES6.start, ADDRESSES6.stop + PORTS_BYTES)
_OFFSET: Final = TCP_CODEC.offset("data_offset")
_GSO_TYPE: Final = VIRTIO_NET_CODEC.offset("gso_type")
_GSO_SIZE: Final = slice(VIRTIO_NET_CODEC.offset("gso_size"), VIRTIO_NET_CODEC.offset("gso_size") + 2)
_OFFSET_UNIT: Final = 4  # bytes of a TCP header's length (RFC 9293, section 3.1)
_NIBBLE: Final = 4  # bits

Key = tuple[int, int, bytes]
"""Side, protocol, addresses and ports of a way."""


def key_of(side: int, data: Buffer) -> tuple[Key | None, int]:
    """Return the key of the way of a frame, None for a frame that has none, and the offset of its transport header."""
    size = len(data)
    ethertype = data[TYPE_AT] << 8 | data[TYPE_AT + 1]
    if ethertype == ETHERTYPE_IPV4 and size > _KEY4.stop:
        if data[IP] != IPV4_VERSION_IHL or data[_FRAGMENT] & _FRAGMENT_MASK or data[_FRAGMENT + 1]:
            return None, 0
        protocol, at, ends = data[_PROTOCOL4], ADDRESSES4.stop, _KEY4
    elif ethertype == ETHERTYPE_IPV6 and size > _KEY6.stop:
        protocol, at, ends = data[_PROTOCOL6], ADDRESSES6.stop, _KEY6
    else:
        return None, 0
    least = _LEAST.get(protocol)
    if least is None or size < at + least:
        return None, 0
    return (side, protocol, bytes(data[ends])), at


def longest(data: Buffer, at: int) -> int:
    """Return the bytes of a packet, or of the longest segment of a superframe with its headers.

    :param at: offset of the transport header.
    """
    kind = data[_GSO_TYPE]
    if not kind or at + TCP_CODEC.size > len(data):
        return len(data) - IP
    header = UDP_CODEC.size
    if kind != VIRTIO_NET_HDR_GSO_UDP_L4:
        header = (data[at + _OFFSET] >> _NIBBLE) * _OFFSET_UNIT
    return min(len(data), at + header + int.from_bytes(data[_GSO_SIZE], "little")) - IP


def forwarded(data: Buffer, header: bytes, way: Path, at: int, family: int) -> bytearray:
    """Return a frame as it leaves.

    :param header: the Ethernet header to the next hop.
    :param at: offset of the transport header.
    """
    frame = bytearray(data)
    frame[ETHERNET] = header
    if family == V4:
        hop4(frame)
    else:
        frame[HOP_LIMIT6] -= 1
    if way.patch is not None:
        way.patch.apply(frame, at)
    return frame
