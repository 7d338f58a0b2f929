"""Addresses and ports of a frame, rewritten in place: checksums follow by what has changed (RFC 1624).

Theory of operation: a checksum is the complement of a sum, so with the difference of the words that change it is right
again, whatever else the frame holds; a superframe of 64 KiB costs what a datagram costs. Where the guest leaves the
checksum to the device (NEEDS_CSUM), its field holds the sum of the pseudo header, not complemented: the addresses
change it, and the ports do not.
"""

from __future__ import annotations

import struct
from typing import Final

from gpasst.packet.checksum import ONES, fold, internet, ones_sum
from gpasst.packet.superframe import IP, VIRTIO, Buffer, put_word
from gpasst.wire import (
    ECHO_CODEC,
    ETHERNET_CODEC,
    ICMP_CODEC,
    ICMP_ERROR_CODEC,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
)

ETHERNET: Final = slice(VIRTIO, VIRTIO + ETHERNET_CODEC.size)
ADDRESSES4: Final = slice(IP + IPV4_CODEC.offset("source"), IP + IPV4_CODEC.size)
ADDRESSES6: Final = slice(IP + IPV6_CODEC.offset("source"), IP + IPV6_CODEC.size)
TTL: Final = IP + IPV4_CODEC.offset("ttl")
HOP_LIMIT6: Final = IP + IPV6_CODEC.offset("hop_limit")
PORTS_BYTES: Final = 4

_CHECKSUM4: Final = IP + IPV4_CODEC.offset("checksum")
HOP_DIFFERENCE: Final = ONES ^ (1 << 8)  # of the word that begins with the TTL, which is one less
_FIELDS: Final = {
    PROTOCOL_TCP: TCP_CODEC.offset("checksum"),
    PROTOCOL_UDP: UDP_CODEC.offset("checksum"),
    PROTOCOL_ICMP: ICMP_CODEC.offset("checksum"),
}
_IDENTIFIER: Final = ECHO_CODEC.offset("identifier")
_QUOTED: Final = ICMP_ERROR_CODEC.size  # offset of the packet that an error quotes
_FLAGS: Final = VIRTIO_NET_CODEC.offset("flags")

_ports = struct.Struct(">HH").pack
_word = struct.Struct(">H").unpack_from


class Patch:
    """New addresses and ports of an IPv4 flow.

    :param protocol: IP protocol number: TCP, UDP or ICMP.
    :param old: source address, source port, destination address, destination port as they are now.
    :param new: as they are to be. The ports of an echo are its identifier, and nothing.
    :ivar addresses: the new ones, one behind the other.
    :ivar difference: of the sum of the addresses.
    :ivar ports: the new ones, as they stand in the transport header.
    :ivar ports_difference: of their sum.
    :ivar field: offset of the checksum in the transport header.
    :ivar icmp: whether it is of an echo.
    :ivar udp: whether it is of UDP.
    """

    __slots__ = ("addresses", "difference", "field", "icmp", "ports", "ports_difference", "udp")

    def __init__(self, protocol: int, old: tuple[bytes, int, bytes, int], new: tuple[bytes, int, bytes, int]) -> None:
        self.addresses = new[0] + new[2]
        self.difference = ones_sum(self.addresses) + (ONES ^ ones_sum(old[0] + old[2]))
        self.icmp = protocol == PROTOCOL_ICMP
        self.udp = protocol == PROTOCOL_UDP
        self.field = _FIELDS[protocol]
        self.ports = new[1].to_bytes(2, "big") if self.icmp else _ports(new[1], new[3])
        self.ports_difference = new[1] + new[3] + 2 * ONES - old[1] - old[3]

    def apply(self, frame: bytearray, at: int) -> None:
        """Rewrite a frame.

        :param frame: from its virtio-net header on.
        :param at: offset of its transport header, which is whole.
        """
        address(frame, self.addresses, self.difference)
        field = at + self.field
        if self.icmp:
            start = at + _IDENTIFIER
            frame[start : start + len(self.ports)] = self.ports
            put_word(frame, field, adjusted(_word(frame, field)[0], self.ports_difference))
            return
        frame[at : at + PORTS_BYTES] = self.ports
        (value,) = _word(frame, field)
        if frame[_FLAGS] & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            put_word(frame, field, fold(value + self.difference))
        elif value or not self.udp:
            # 0 stands for no checksum (RFC 768).
            value = adjusted(value, self.difference + self.ports_difference)
            put_word(frame, field, value or ONES if self.udp else value)


def readdressed(data: Buffer, at: int, message: bytes, source: bytes, destination: bytes) -> bytes:
    """Return an IPv4 frame with another message of the same length, and other addresses.

    :param data: virtio-net header and frame.
    :param at: offset of the message.
    :param message: the ICMP message in its place.
    :param source: 4 bytes.
    :param destination: 4 bytes.
    """
    frame = bytearray(data[:at]) + message
    addresses = source + destination
    address(frame, addresses, ones_sum(addresses) + (ONES ^ ones_sum(frame[ADDRESSES4])))
    return bytes(frame)


def address(frame: bytearray, addresses: bytes, difference: int) -> None:
    """Write the addresses of an IPv4 header, and let its checksum follow.

    :param addresses: source and destination.
    :param difference: of their sum.
    """
    frame[ADDRESSES4] = addresses
    put_word(frame, _CHECKSUM4, adjusted(_word(frame, _CHECKSUM4)[0], difference))


def adjusted(value: int, difference: int) -> int:
    """Return a checksum after words have changed (RFC 1624, section 3, equation 3)."""
    return ONES ^ fold((ONES ^ value) + difference)


def hop4(frame: bytearray) -> None:
    """Lower the TTL of an IPv4 frame by one."""
    frame[TTL] -= 1
    put_word(frame, _CHECKSUM4, adjusted(_word(frame, _CHECKSUM4)[0], HOP_DIFFERENCE))


def requoted(
    message: bytes, at: int, protocol: int, old: tuple[bytes, int, bytes, int], new: tuple[bytes, int, bytes, int]
) -> bytes:
    """Return an ICMP error whose quoted packet has other ends (RFC 5508, REQ-3 to REQ-5).

    :param message: the error, from its type on.
    :param at: offset of the quoted packet's transport header, of which 8 bytes are quoted at least.
    :param protocol: of the quoted packet: TCP, UDP or ICMP.
    :param old: the quoted packet's source address, source port, destination address and destination port.
    :param new: as they are to be.
    """
    # The quoted packet is patched as if it were a frame.
    lead = IP - _QUOTED
    frame = bytearray(lead) + message
    frame += bytes(max(0, lead + at + TCP_CODEC.size - len(frame)))
    Patch(protocol, old, new).apply(frame, lead + at)
    built = frame[lead : lead + len(message)]
    put_word(built, ICMP_CODEC.offset("checksum"), 0)
    put_word(built, ICMP_CODEC.offset("checksum"), internet(built))
    return bytes(built)
