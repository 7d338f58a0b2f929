"""The headers of upward frames: built once a peer, patched once a superframe.

Theory of operation: all datagrams of one peer share every header byte but the lengths and checksums. `Header` keeps
those bytes, from virtio-net to UDP, with the sums of what does not change, and patches the rest only when a superframe
differs in size from the one before.

TOS and TTL are kept as one number, ``tos_ttl``: TOS (traffic class) times 256 plus TTL (hop limit). The TOS holds DSCP
and ECN bits (RFC 2474, RFC 3168).

A UDP checksum over IPv4 is left out (0, "not computed": RFC 768) unless the kernel computes it for a superframe; over
IPv6 it is always there (RFC 8200, section 8.1), computed by the kernel where the link offloads it.
"""

from __future__ import annotations

import struct

from gpasst.packet import checksum
from gpasst.packet.address import IP4_BYTES, V4, V6
from gpasst.wire import (
    FRAME_MINIMUM_BYTES,
    HOP_LIMIT,
    PROTOCOL_UDP,
    UDP4,
    UDP6,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    udp4_template,
    udp6_template,
)

VIRTIO_SIZE = VIRTIO_NET_CODEC.size
UDP_SIZE = UDP_CODEC.size
TTL_MASK = 0xFF  # of tos_ttl
DEFAULT_TOS_TTL = 64  # TOS or traffic class 0, TTL or hop limit 64: the defaults of most systems
IP4_SIZE = 20  # bytes, without options

_MAC = UDP4.offset("ethernet.destination")
_IP = UDP4.offset("ip.version")
_TOS4 = UDP4.offset("ip.tos")
_TTL4 = UDP4.offset("ip.ttl")
_HOPS6 = UDP6.offset("ip.hop_limit")
_VERSION6 = 0x6000
_LENGTH4 = UDP4.offset("ip.total_length")
_CHECKSUM4 = UDP4.offset("ip.checksum")
_LENGTH6 = UDP6.offset("ip.payload_length")
_UDP4 = UDP4.offset("udp.source")
_UDP6 = UDP6.offset("udp.source")
_UDP_LENGTH = UDP_CODEC.offset("length")
_UDP_CHECKSUM = UDP_CODEC.offset("checksum")

NO_FRAMING = (-1, (b"", b""))

_put_length = struct.Struct(">I").pack_into
_put_word = struct.Struct(">H").pack_into
_put_virtio = VIRTIO_NET_CODEC.layout.pack_into
_put_words = struct.Struct(">HH").pack_into


class Header:
    """Virtio-net, Ethernet, IP and UDP header of one peer's upward frames.

    :param family: 4 or 6.
    :param destination_mac: the guest's, 6 bytes.
    :param source_mac: the host's as the guest sees it, 6 bytes.
    :param source: address that the guest sees as sender.
    :param destination: the guest's address.
    :param source_port: port that the guest sees as sender.
    :param destination_port: the guest's port.
    :ivar stamp: of the guest (`gpasst.flow.guest`) when they were addressed last; `readdress` changes it.
    :ivar tos_ttl: their TOS and TTL; TOS 0 and TTL 255 until a socket reports others.
    :ivar size: bytes from the Ethernet header to the payload.
    """

    protocol = "udp"

    __slots__ = (
        "buffer",
        "family",
        "framing",
        "ip_sum",
        "pseudo",
        "segment",
        "size",
        "stamp",
        "tos_ttl",
        "total",
    )

    def __init__(
        self,
        family: int,
        destination_mac: bytes,
        source_mac: bytes,
        source: bytes,
        destination: bytes,
        source_port: int,
        destination_port: int,
    ) -> None:
        template = udp4_template if family == V4 else udp6_template
        self.family = family
        self.stamp: object = destination_mac
        self.tos_ttl = HOP_LIMIT
        self.buffer = bytearray(
            template(destination_mac, source_mac, source, destination, source_port, destination_port)
        )
        self.size = len(self.buffer) - VIRTIO_SIZE
        start = _UDP4 if family == V4 else _UDP6
        self.pseudo = checksum.pseudo_sum(source, destination, PROTOCOL_UDP)
        self.ip_sum = checksum.ones_sum(self.buffer[_IP:start]) if family == V4 else 0
        self.total = self.segment = -1
        self.framing: tuple[int, tuple[bytes, bytes]] = NO_FRAMING

    def between(self, source_port: int, destination_port: int, stamp: object) -> Header:
        """Return a copy for other ports, which takes a tenth of the time of new headers.

        :param source_port: port that the guest sees as sender.
        :param destination_port: the guest's port.
        :param stamp: of the guest now.
        """
        copy = Header.__new__(Header)
        copy.family, copy.size, copy.tos_ttl, copy.stamp = self.family, self.size, self.tos_ttl, stamp
        copy.pseudo, copy.ip_sum = self.pseudo, self.ip_sum
        copy.total = copy.segment = -1
        copy.framing = NO_FRAMING
        copy.buffer = bytearray(self.buffer)
        _put_words(copy.buffer, _UDP4 if self.family == V4 else _UDP6, source_port, destination_port)
        return copy

    @property
    def repeats(self) -> bool:
        """Whether datagrams of one size have equal headers where nothing is offloaded."""
        # A checksum, which IPv6 demands, differs with the payload.
        return self.family == V4

    def readdress(self, destination_mac: bytes, stamp: object) -> None:
        """Send to another MAC address from now on; see `gpasst.flow.guest.Addressed`."""
        self.stamp = stamp
        self.buffer[_MAC : _MAC + 6] = destination_mac
        self.framing = NO_FRAMING

    def set_tos_ttl(self, tos_ttl: int) -> None:
        """Send with another TOS and TTL, or traffic class and hop limit, from now on."""
        buffer = self.buffer
        self.tos_ttl = tos_ttl
        self.total = self.segment = -1
        self.framing = NO_FRAMING
        if self.family == V6:
            # Between the version and the flow label, which is 0.
            _put_word(buffer, _IP, _VERSION6 | tos_ttl >> 8 << 4)
            buffer[_HOPS6] = tos_ttl & TTL_MASK
            return
        # RFC 1624: what no longer counts is added as its complement.
        old = buffer[_TOS4] + (buffer[_TTL4] << 8)
        buffer[_TOS4], buffer[_TTL4] = tos_ttl >> 8, tos_ttl & TTL_MASK
        self.ip_sum = checksum.fold(self.ip_sum + 2 * 0xFFFF - old + (tos_ttl >> 8) + ((tos_ttl & TTL_MASK) << 8))

    def fill(self, total: int, segment: int) -> bytearray:
        """Return the header of a superframe for a link that offloads.

        :param total: payload bytes, all datagrams together.
        :param segment: payload bytes of each datagram but perhaps the last; `total` or more for a single one.
        """
        if total == self.total and segment == self.segment:
            return self.buffer
        single = segment >= total
        length = total + UDP_SIZE
        if single and self.segment >= self.total >= 0:
            # From one lone datagram to the next, what says that it is one stays.
            self.total, self.segment = total, segment
            start = self._lengths(length)
            _put_words(
                self.buffer,
                start + _UDP_LENGTH,
                length,
                checksum.fold(self.pseudo + length) if self.family == V6 else 0,
            )
            return self.buffer
        self.total, self.segment = total, segment
        offloaded = not single or self.family == V6
        start = self._lengths(length)
        # In the order of the declaration; a dictionary of names would cost as much as the system call.
        if single:
            if offloaded:
                begin = start - VIRTIO_SIZE
                _put_virtio(
                    self.buffer, 0, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, 0, 0, begin, _UDP_CHECKSUM
                )
            else:
                self.buffer[:VIRTIO_SIZE] = bytes(VIRTIO_SIZE)
        else:
            begin, size = start - VIRTIO_SIZE, start - VIRTIO_SIZE + UDP_SIZE
            _put_virtio(
                self.buffer,
                0,
                VIRTIO_NET_HDR_F_NEEDS_CSUM,
                VIRTIO_NET_HDR_GSO_UDP_L4,
                size,
                segment,
                begin,
                _UDP_CHECKSUM,
            )
        partial = checksum.fold(self.pseudo + length) if offloaded else 0
        _put_words(self.buffer, start + _UDP_LENGTH, length, partial)
        return self.buffer

    def fill_complete(self, payload: bytes | bytearray | memoryview, offset: int = 0) -> bytearray:
        """Return the header of one datagram for a link that offloads nothing: its checksums are final.

        :param payload: the datagram.
        :param offset: its place in the run, which no field of UDP depends on.
        """
        return self._complete(len(payload), payload)

    def _complete(self, size: int, payload: bytes | bytearray | memoryview) -> bytearray:
        """Fill in lengths and checksums of a datagram of `size` bytes; only IPv6 looks at `payload`."""
        length = size + UDP_SIZE
        self.total = self.segment = -1
        start = self._lengths(length)
        self.buffer[:VIRTIO_SIZE] = bytes(VIRTIO_SIZE)
        _put_words(self.buffer, start + _UDP_LENGTH, length, 0)
        if self.family == V6:
            segment = bytes(self.buffer[start:]) + payload
            _put_word(self.buffer, start + _UDP_CHECKSUM, checksum.udp(self.pseudo, segment))
        return self.buffer

    def framed(self, length: int, payload: bytes | memoryview | None = None, offset: int = 0) -> tuple[bytes, bytes]:
        """Return the bytes before and behind one datagram on a link that is a stream: there is no offload.

        :param length: payload bytes.
        :param payload: the datagram itself; needed for IPv6, which has a checksum over it.
        :param offset: its place in the run, which no field of UDP depends on.
        :return: the frame's length in 4 bytes and all headers; padding up to the minimum size of a frame.
        """
        if self.family == V6:
            assert payload is not None
            self._complete(length, payload)
        elif self.framing[0] == length:
            return self.framing[1]
        else:
            self._complete(length, b"")
        frame = len(self.buffer) - VIRTIO_SIZE + length
        padded = max(frame, FRAME_MINIMUM_BYTES)
        # The last bytes of the virtio-net header, which a stream does not have, make room for the length.
        _put_length(self.buffer, VIRTIO_SIZE - 4, padded)
        done = bytes(self.buffer[VIRTIO_SIZE - 4 :]), bytes(padded - frame)
        self.framing = length, done
        return done

    def _lengths(self, length: int) -> int:
        """Patch the IP header for `length` bytes of UDP; return the offset of the UDP header."""
        if self.family == V6:
            _put_word(self.buffer, _LENGTH6, length)
            return _UDP6
        _put_word(self.buffer, _LENGTH4, length + IP4_SIZE)
        _put_word(self.buffer, _CHECKSUM4, 0xFFFF ^ checksum.fold(self.ip_sum + length + IP4_SIZE))
        return _UDP4


NO_HEADER = Header(V4, bytes(6), bytes(6), bytes(IP4_BYTES), bytes(IP4_BYTES), 0, 0)
"""In the place of headers that are not made yet; whoever compares its TOS and TTL finds them different from any."""
NO_HEADER.tos_ttl = -1
