"""ICMP and ICMPv6 errors: what tells the sender of a datagram that it could not be delivered (RFC 792, RFC 4443)."""

from __future__ import annotations

from gpasst import checksum
from gpasst.formats import (
    ICMP_CODEC,
    ICMP_ERROR_CODEC,
    ICMP_PORT_UNREACHABLE,
    ICMP_UNREACHABLE,
    ICMPV6_ERROR_CODEC,
    ICMPV6_PORT_UNREACHABLE,
    ICMPV6_UNREACHABLE,
    PROTOCOL_UDP,
    UDP_CODEC,
)
from gpasst.services.wrap import ip_packet

_CHECKSUM = slice(ICMP_CODEC.offset("checksum"), ICMP_CODEC.offset("checksum") + 2)


def port_unreachable(source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    """Build the message that a closed port is answered with, as a raw socket sends it.

    :param source: who sent the datagram, 4 or 16 bytes.
    :param source_port: from where.
    :param destination: to whom, as long as `source`.
    :param destination_port: the closed port.
    :return: the message; an ICMPv6 checksum is left to the kernel (RFC 3542, section 3.1).
    """
    udp = UDP_CODEC.pack(source=source_port, destination=destination_port, length=UDP_CODEC.size)
    quoted = ip_packet(source, destination, PROTOCOL_UDP, udp)
    if len(source) == 16:
        return ICMPV6_ERROR_CODEC.pack(type=ICMPV6_UNREACHABLE, code=ICMPV6_PORT_UNREACHABLE) + quoted
    message = bytearray(ICMP_ERROR_CODEC.pack(type=ICMP_UNREACHABLE, code=ICMP_PORT_UNREACHABLE) + quoted)
    message[_CHECKSUM] = checksum.internet(message).to_bytes(2, "big")
    return bytes(message)
