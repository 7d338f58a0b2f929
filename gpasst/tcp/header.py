"""The headers of upward segments: built once a connection, patched for each run.

Theory of operation: all segments of one connection share addresses and ports. `Header` keeps the bytes from virtio-net
to TCP with the sums of what does not change. `prepare` writes the numbers, flags and window of a run; the link then
asks for the header of the whole run, where it offloads, or of one segment after the other.

Where the link offloads, the checksum field holds the folded sum of the pseudo header, not complemented, and the kernel
adds the rest (linux/virtio_net.h, VIRTIO_NET_HDR_F_NEEDS_CSUM). A computed TCP checksum of 0 is sent as 0: unlike UDP
there is no "not computed" (RFC 9293, section 3.1).

IPv4 forbids fragments, so the identification may be 0 (RFC 6864, section 4.1).
"""

from __future__ import annotations

import struct

from gpasst.packet import checksum
from gpasst.packet.address import UNSPECIFIED, V4, V6
from gpasst.tcp.segment import DATA_OFFSET_UNIT, SEQUENCE_MASK, TCP_BYTES, Offer
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAME_MINIMUM_BYTES,
    HOP_LIMIT,
    IPV4_DONT_FRAGMENT,
    PROTOCOL_TCP,
    STREAM_LENGTH_BYTES,
    TCP4,
    TCP6,
    TCP_CODEC,
    TCP_OPTION_MSS,
    TCP_OPTION_NOP,
    TCP_OPTION_WINDOW_SCALE,
    TCP_SYN_OPTIONS_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
)

SIZES = {V4: TCP4.size - VIRTIO_NET_CODEC.size, V6: TCP6.size - VIRTIO_NET_CODEC.size}
"""Bytes from the Ethernet header to the payload, by family."""

_VIRTIO = VIRTIO_NET_CODEC.size
_IP4_BYTES = 20
_MAC = TCP4.offset("ethernet.destination")
_MACS = slice(_MAC, _MAC + 12)
_LENGTH = {V4: TCP4.offset("ip.total_length"), V6: TCP6.offset("ip.payload_length")}
_CHECKSUM4 = TCP4.offset("ip.checksum")
_IP4 = slice(TCP4.offset("ip.version"), TCP4.offset("tcp.source"))
_ADDRESSES = {
    V4: slice(TCP4.offset("ip.source"), TCP4.offset("tcp.sequence")),
    V6: slice(TCP6.offset("ip.source"), TCP6.offset("tcp.sequence")),
}
_TCP = {V4: TCP4.offset("tcp.source"), V6: TCP6.offset("tcp.source")}
_SEQUENCE, _OFFSET = TCP_CODEC.offset("sequence"), TCP_CODEC.offset("data_offset")
_FLAGS, _CHECKSUM = TCP_CODEC.offset("flags"), TCP_CODEC.offset("checksum")
_GSO = {V4: VIRTIO_NET_HDR_GSO_TCPV4, V6: VIRTIO_NET_HDR_GSO_TCPV6}
_FIXED = ("tcp.source", "tcp.destination", "tcp.sequence", "tcp.acknowledgement", "tcp.flags", "tcp.window")


def _template(family: int) -> bytes:
    ip: dict[str, int | bytes] = {"ip.source": UNSPECIFIED[family], "ip.destination": UNSPECIFIED[family]}
    if family == V4:
        codec, ethertype = TCP4, ETHERTYPE_IPV4
        ip |= {"ip.total_length": 0, "ip.flags": IPV4_DONT_FRAGMENT, "ip.ttl": HOP_LIMIT, "ip.protocol": PROTOCOL_TCP}
    else:
        codec, ethertype = TCP6, ETHERTYPE_IPV6
        ip |= {"ip.payload_length": 0, "ip.next_header": PROTOCOL_TCP, "ip.hop_limit": HOP_LIMIT}
    ethernet: dict[str, int | bytes] = {
        "ethernet.destination": bytes(6),
        "ethernet.source": bytes(6),
        "ethernet.ethertype": ethertype,
    }
    return codec.pack(**{**ethernet, **ip, **dict.fromkeys(_FIXED, 0)})


_TEMPLATES = {family: _template(family) for family in (V4, V6)}

_IP4_SUM = checksum.ones_sum(_TEMPLATES[V4][_IP4])  # of a header without addresses and length

_put_length = struct.Struct(">I").pack_into
_put_word = struct.Struct(">H").pack_into
_put_numbers = struct.Struct(">IIBBH").pack_into
_put_options = TCP_SYN_OPTIONS_CODEC.layout.pack
_MSS_OPTION = TCP_OPTION_MSS, 4
_SCALE_OPTION = TCP_OPTION_NOP, TCP_OPTION_WINDOW_SCALE, 3
_put_virtio = VIRTIO_NET_CODEC.layout.pack_into
_WORD_BITS = 16
_WORD_OFFSET = 5 << 4  # data offset of a header without options, in its place


class Header:
    """Virtio-net, Ethernet, IP and TCP header of one connection's upward segments.

    :param destination_mac: the guest's, 6 bytes.
    :param source_mac: the host's as the guest sees it, 6 bytes.
    :param key: the connection's key: the guest's address, the remote's as the guest sees it, both ports.
    :ivar family: 4 or 6.
    :ivar stamp: of the guest (`gpasst.flow.guest`) when they were addressed last; `readdress` changes it.
    :ivar size: bytes from the Ethernet header to the payload.
    :ivar repeats: False, since sequence numbers differ.
    """

    protocol = "tcp"
    repeats = False

    __slots__ = ("_base", "_ip_sum", "_pseudo", "_segment", "_sequence", "_total", "buffer", "family", "stamp")

    def __init__(self, destination_mac: bytes, source_mac: bytes, key: bytes) -> None:
        half = len(key) // 2 - 2
        family = V4 if half == len(UNSPECIFIED[V4]) else V6
        guest, remote, ports = key[:half], key[half : 2 * half], key[2 * half :]
        self.family = family
        self.stamp: object = destination_mac
        buffer = self.buffer = bytearray(_TEMPLATES[family])
        buffer[_MACS] = destination_mac + source_mac
        buffer[_ADDRESSES[family]] = remote + guest + ports[2:] + ports[:2]
        # One sum of all addresses; and the header's sum, which has the same ones.
        addresses = checksum.ones_sum(key[: 2 * half])
        self._pseudo = addresses + PROTOCOL_TCP
        self._ip_sum = addresses + _IP4_SUM
        self._total = self._segment = -1
        self._sequence = 0
        self._base = -1  # sum of the TCP header but sequence number and checksum, and of the pseudo header

    @property
    def size(self) -> int:
        """Bytes from the Ethernet header to the payload."""
        return SIZES[self.family]

    def readdress(self, destination_mac: bytes, stamp: object) -> None:
        """Send to another MAC address from now on; see `gpasst.flow.guest.Addressed`."""
        self.stamp = stamp
        self.buffer[_MAC : _MAC + 6] = destination_mac

    def prepare(self, sequence: int, acknowledgement: int, flags: int, window: int) -> None:
        """Write what the next run differs in.

        :param sequence: of its first byte.
        :param window: as in the header: scaled.
        """
        self._sequence = sequence
        self._base = -1
        _put_numbers(self.buffer, _TCP[self.family] + _SEQUENCE, sequence, acknowledgement, _WORD_OFFSET, flags, window)

    def fill(self, total: int, segment: int) -> bytearray:
        """Return the header of a superframe for a link that offloads.

        :param total: payload bytes.
        :param segment: payload bytes of each segment but perhaps the last; `total` or more for a single one.
        """
        if total == self._total and segment == self._segment:
            return self.buffer
        self._total, self._segment = total, segment
        family = self.family
        start = self._lengths(total + TCP_BYTES)
        begin = start - _VIRTIO
        if segment >= total:
            kind, header, size = VIRTIO_NET_HDR_GSO_NONE, 0, 0
        else:
            kind, header, size = _GSO[family], begin + TCP_BYTES, segment
        # In the order of the declaration; a dictionary of names would cost as much as the system call.
        _put_virtio(self.buffer, 0, VIRTIO_NET_HDR_F_NEEDS_CSUM, kind, header, size, begin, _CHECKSUM)
        _put_word(self.buffer, start + _CHECKSUM, checksum.fold(self._pseudo + total + TCP_BYTES))
        return self.buffer

    def fill_complete(self, payload: bytes | bytearray | memoryview, offset: int = 0) -> bytearray:
        """Return the header of one segment for a link that offloads nothing: its checksums are final.

        :param payload: the segment.
        :param offset: bytes of the run before it.
        """
        self._segment = -1
        self.buffer[:_VIRTIO] = bytes(_VIRTIO)
        self._complete(payload, offset)
        return self.buffer

    def _complete(self, payload: bytes | bytearray | memoryview, offset: int) -> None:
        """Write the fields in which the segments of a run differ."""
        buffer, start, size = self.buffer, _TCP[self.family], len(payload)
        if self._base < 0 or size != self._total:
            self._total = size
            self._lengths(size + TCP_BYTES)
            _put_length(buffer, start + _SEQUENCE, 0)
            _put_word(buffer, start + _CHECKSUM, 0)
            # The header has an even number of bytes, so the sums of both parts add up.
            self._base = checksum.ones_sum(buffer[start:], self._pseudo + size + TCP_BYTES)
        sequence = (self._sequence + offset) & SEQUENCE_MASK
        _put_length(buffer, start + _SEQUENCE, sequence)
        part = self._base + (sequence >> _WORD_BITS) + (sequence & checksum.ONES)
        _put_word(buffer, start + _CHECKSUM, checksum.internet(payload, part))

    def framed(self, length: int, payload: bytes | memoryview | None = None, offset: int = 0) -> tuple[bytes, bytes]:
        """Return the bytes before and behind one segment on a link that is a stream: there is no offload.

        :param length: payload bytes.
        :param payload: the segment.
        :param offset: bytes of the run before it.
        :return: the frame's length in 4 bytes and all headers; padding up to the minimum size of a frame.
        """
        assert payload is not None
        # A superframe has no length of one segment.
        self._segment = -1
        buffer = self.buffer
        self._complete(payload, offset)
        frame = SIZES[self.family] + length
        padded = max(frame, FRAME_MINIMUM_BYTES)
        # The last bytes of the virtio-net header, which a stream does not have, make room for the length.
        _put_length(buffer, _VIRTIO - STREAM_LENGTH_BYTES, padded)
        return bytes(buffer[_VIRTIO - STREAM_LENGTH_BYTES :]), bytes(padded - frame)

    def synchronise(self, flags: int, sequence: int, acknowledgement: int, window: int, offer: Offer) -> bytes:
        """Return the Ethernet frame of a SYN with its options, complete.

        :param flags: TCP_SYN, or TCP_SYN | TCP_ACK.
        :param window: not scaled (RFC 7323, section 2.2).
        :param offer: the options.
        """
        options = _put_options(*_MSS_OPTION, offer.mss, *_SCALE_OPTION, offer.scale or 0)
        if offer.scale is None:
            options = options[: TCP_SYN_OPTIONS_CODEC.offset("padding")]
        self.prepare(sequence, acknowledgement, flags, window)
        self.buffer[_TCP[self.family] + _OFFSET] = (TCP_BYTES + len(options)) // DATA_OFFSET_UNIT << 4
        # The options stand where the payload would.
        return bytes(self.fill_complete(options)[_VIRTIO:]) + options

    def _lengths(self, length: int) -> int:
        """Patch the IP header for `length` bytes of TCP; return the offset of the TCP header."""
        family = self.family
        if family == V4:
            total = length + _IP4_BYTES
            _put_word(self.buffer, _LENGTH[V4], total)
            _put_word(self.buffer, _CHECKSUM4, 0xFFFF ^ checksum.fold(self._ip_sum + total))
        else:
            _put_word(self.buffer, _LENGTH[V6], length)
        return _TCP[family]
