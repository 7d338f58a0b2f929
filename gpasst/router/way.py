"""The way of a flow: how its frames are found by their raw bytes, and how they leave."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from gpasst.packet.checksum import ONES, fold
from gpasst.packet.superframe import IP, Buffer
from gpasst.router.patch import ADDRESSES4, ADDRESSES6, ETHERNET, HOP_DIFFERENCE, HOP_LIMIT6, PORTS_BYTES, TTL
from gpasst.router.policy import Path
from gpasst.router.session import OUT
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_VERSION_IHL,
    IPV6_CODEC,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    TCP_FIN,
    TCP_RST,
    TCP_SYN,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
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

_FLAGS: Final = TCP_CODEC.offset("flags")
_CHANGING: Final = TCP_SYN | TCP_FIN | TCP_RST  # flags of segments that change what is known of a connection
_VIRTIO_FLAGS: Final = VIRTIO_NET_CODEC.offset("flags")

_hops = struct.Struct(">BBH").unpack_from  # TTL, protocol and checksum, which stand one behind the other
_put_hops = struct.Struct(">BBH").pack_into
_put_ends = struct.Struct(f">BBH{_KEY4.stop - _KEY4.start}s").pack_into  # with what follows up to the ports
_word = struct.Struct(">H").unpack_from
_put_word = struct.Struct(">H").pack_into

Key = tuple[int, int, bytes]
"""Side, protocol, addresses and ports of a way."""


def key_of(side: int, data: Buffer) -> Key | None:
    """Return the key of the way of a frame, None for a frame that has none."""
    size = len(data)
    ethertype = data[TYPE_AT] << 8 | data[TYPE_AT + 1]
    if ethertype == ETHERTYPE_IPV4 and size > _KEY4.stop:
        if data[IP] != IPV4_VERSION_IHL or data[_FRAGMENT] & _FRAGMENT_MASK or data[_FRAGMENT + 1]:
            return None
        protocol, at, ends = data[_PROTOCOL4], ADDRESSES4.stop, _KEY4
    elif ethertype == ETHERTYPE_IPV6 and size > _KEY6.stop:
        protocol, at, ends = data[_PROTOCOL6], ADDRESSES6.stop, _KEY6
    else:
        return None
    least = _LEAST.get(protocol)
    if least is None or size < at + least:
        return None
    return side, protocol, bytes(data[ends])


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


class Way:
    """The way of a flow of UDP or TCP: all that its frames have in common, so that each costs little.

    :param path: how they leave.
    :param at: offset of their transport header.
    :param protocol: IP protocol number.
    :param mtu: bytes of the longest packet where they leave.
    :param refreshes: whether they keep their session.
    :param find: returns the Ethernet header to a next hop at a time, None for an unknown one.
    :param send: takes the frames.
    """

    __slots__ = (
        "_at",
        "_checksum",
        "_difference",
        "_direction",
        "_ends",
        "_field",
        "_find",
        "_flags",
        "_four",
        "_mtu",
        "_next_hop",
        "_pseudo",
        "_refreshes",
        "_send",
        "_session",
        "_udp",
    )

    def __init__(
        self,
        path: Path,
        at: int,
        protocol: int,
        mtu: int,
        refreshes: bool,
        find: Callable[[bytes, float], bytes | None],
        send: Callable[[Buffer], None],
    ) -> None:
        patch = path.patch
        self._at = at
        self._four = at == ADDRESSES4.stop
        self._mtu = mtu
        self._refreshes = refreshes
        self._find = find
        self._next_hop = path.next_hop
        self._send = send
        self._session = path.session
        self._flags = at + _FLAGS if protocol == PROTOCOL_TCP and path.session is not None else 0
        self._direction = OUT if path.outward else OUT << 1
        self._udp = protocol == PROTOCOL_UDP
        self._ends = patch.addresses + patch.ports if patch else b""
        self._field = at + patch.field if patch else 0
        # Folded, so that a sum with one of these has to be folded once.
        self._difference = fold(HOP_DIFFERENCE + (patch.difference if patch else 0))
        self._pseudo = fold(patch.difference) if patch else 0
        self._checksum = fold(patch.difference + patch.ports_difference) if patch else 0

    def forward(self, data: Buffer, now: float) -> bool:
        """Forward a frame; return False for one that is special in any way, and is left alone.

        :param data: virtio-net header and frame, found by the key of this way.
        :param now: seconds.
        """
        four, session = self._four, self._session
        if data[TTL if four else HOP_LIMIT6] <= 1:
            return False
        if len(data) - IP > self._mtu and longest(data, self._at) > self._mtu:
            return False
        if session is not None:
            if now - session.last > session.timeout:
                return False
            if self._flags and (data[self._flags] & _CHANGING or not session.seen & self._direction):
                return False
        header = self._find(self._next_hop, now)
        if header is None:
            return False
        if session is not None and self._refreshes:
            session.last = now
            if session.mapping is not None:
                session.mapping.last = now
        frame = bytearray(data)
        frame[ETHERNET] = header
        if four:
            self._rewrite(frame)
        else:
            frame[HOP_LIMIT6] -= 1
        self._send(frame)
        return True

    def _rewrite(self, frame: bytearray) -> None:
        """Lower the TTL of an IPv4 frame and patch it, as `gpasst.router.patch` does, in fewer steps."""
        hops, protocol, value = _hops(frame, TTL)
        value = (ONES ^ value) + self._difference
        value = ONES ^ (value - ONES if value > ONES else value)
        if not self._ends:
            _put_hops(frame, TTL, hops - 1, protocol, value)
            return
        _put_ends(frame, TTL, hops - 1, protocol, value, self._ends)
        (value,) = _word(frame, self._field)
        if frame[_VIRTIO_FLAGS] & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            value += self._pseudo
            _put_word(frame, self._field, value - ONES if value > ONES else value)
        elif value or not self._udp:
            value = (ONES ^ value) + self._checksum
            value = ONES ^ (value - ONES if value > ONES else value)
            _put_word(frame, self._field, value or ONES if self._udp else value)
