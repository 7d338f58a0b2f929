"""ICMP and ICMPv6 errors: what tells the sender of a packet that it could not be delivered (RFC 792, RFC 4443).

Theory of operation: an error is a `Problem` and the start of the packet that met it. The packet crossed the proxy, so
whoever is told gets it quoted as it sent it, with its own view of the addresses: `quoted_udp` and `quoted_echo` build
it, `message` puts the problem before it, and `frame` makes it what the guest reads. `parse` takes an error of the
guest's apart.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
    ECHO_CODEC,
    HOP_LIMIT,
    ICMP_CODEC,
    ICMP_ERROR_CODEC,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_HOST_UNREACHABLE,
    ICMP_NET_UNREACHABLE,
    ICMP_PARAMETER_PROBLEM,
    ICMP_PORT_UNREACHABLE,
    ICMP_TIME_EXCEEDED,
    ICMP_UNREACHABLE,
    ICMPV6_ADDRESS_UNREACHABLE,
    ICMPV6_ERROR_CODEC,
    ICMPV6_NO_ROUTE,
    ICMPV6_PACKET_TOO_BIG,
    ICMPV6_PARAMETER_PROBLEM,
    ICMPV6_PORT_UNREACHABLE,
    ICMPV6_TIME_EXCEEDED,
    ICMPV6_UNREACHABLE,
    IPV4_CODEC,
    IPV4_DONT_FRAGMENT,
    IPV6_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    UDP_CODEC,
)
from gpasst.packet import checksum
from gpasst.packet.build import ip_packet, with_checksum, wrap
from gpasst.packet.parse import Packet

TYPES = {
    4: frozenset({ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED, ICMP_PARAMETER_PROBLEM}),
    6: frozenset({ICMPV6_UNREACHABLE, ICMPV6_PACKET_TOO_BIG, ICMPV6_TIME_EXCEEDED, ICMPV6_PARAMETER_PROBLEM}),
}
"""Types that are passed on. Others are meant for whoever sent the packet on the way (redirect) or obsolete (quench)."""

MESSAGE_BYTES = {4: 576, 6: 1280}
"""Most bytes of a whole error: RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 (c)."""

_CHECKSUM = slice(ICMP_CODEC.offset("checksum"), ICMP_CODEC.offset("checksum") + 2)
_QUOTED = ICMP_ERROR_CODEC.size
_POINTER_SHIFT = 8  # of the one byte that points into an IPv4 header (RFC 792) within the 16 bits before the MTU


@dataclass(frozen=True, slots=True)
class Problem:
    """What an ICMP or ICMPv6 error says went wrong.

    :ivar type: one of `TYPES`.
    :ivar code: its code.
    :ivar parameter: the next hop's MTU in bytes, or the offset of what is wrong in the quoted packet; else 0.
    """

    type: int
    code: int
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """An error that quotes a UDP datagram.

    :ivar problem: what it says.
    :ivar source: address that the datagram came from, 4 or 16 bytes.
    :ivar destination: address that it went to.
    :ivar source_port: its source port.
    :ivar destination_port: its destination port.
    :ivar payload: the start of its payload, as far as it is quoted.
    """

    problem: Problem
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    payload: bytes


CLOSED_PORT = {
    4: Problem(ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE),
    6: Problem(ICMPV6_UNREACHABLE, ICMPV6_PORT_UNREACHABLE),
}

REFUSED = {
    (4, errno.ENETUNREACH): Problem(ICMP_UNREACHABLE, ICMP_NET_UNREACHABLE),
    (4, errno.EHOSTUNREACH): Problem(ICMP_UNREACHABLE, ICMP_HOST_UNREACHABLE),
    (6, errno.ENETUNREACH): Problem(ICMPV6_UNREACHABLE, ICMPV6_NO_ROUTE),
    (6, errno.EHOSTUNREACH): Problem(ICMPV6_UNREACHABLE, ICMPV6_ADDRESS_UNREACHABLE),
}
"""What a router would say, by family and errno, where the host's own kernel does not let a datagram out."""


def too_big(family: int, mtu: int) -> Problem:
    """Say that a packet exceeds the next hop's MTU, in bytes (RFC 1191, section 4; RFC 4443, section 3.2)."""
    if family == 6:
        return Problem(ICMPV6_PACKET_TOO_BIG, 0, mtu)
    return Problem(ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, mtu)


def expired(family: int, problem: Problem) -> bool:
    """Tell whether the problem is that a packet was forwarded too often, or its fragments were not complete in time."""
    return problem.type == (ICMPV6_TIME_EXCEEDED if family == 6 else ICMP_TIME_EXCEEDED)


def message(family: int, problem: Problem, quoted: bytes) -> bytes:
    """Build an error as a raw socket sends it.

    :param family: 4 or 6.
    :param problem: what it says.
    :param quoted: the packet that met it, from its IP header on; cut to what an error may hold.
    :return: the message; an ICMPv6 checksum is left to the kernel (RFC 3542, section 3.1).
    """
    if family == 6:
        quoted = quoted[: MESSAGE_BYTES[6] - IPV6_CODEC.size - ICMPV6_ERROR_CODEC.size]
        return ICMPV6_ERROR_CODEC.pack(type=problem.type, code=problem.code, parameter=problem.parameter) + quoted
    quoted = quoted[: MESSAGE_BYTES[4] - IPV4_CODEC.size - ICMP_ERROR_CODEC.size]
    fields = {"type": problem.type, "code": problem.code}
    if problem.type == ICMP_PARAMETER_PROBLEM:
        fields["unused"] = (problem.parameter & 0xFF) << _POINTER_SHIFT
    elif problem.type == ICMP_UNREACHABLE and problem.code == ICMP_FRAGMENTATION_NEEDED:
        fields["mtu"] = min(problem.parameter, 0xFFFF)
    built = bytearray(ICMP_ERROR_CODEC.pack(**fields) + quoted)
    built[_CHECKSUM] = checksum.internet(built).to_bytes(2, "big")
    return bytes(built)


def frame(guest_mac: bytes, host_mac: bytes, offender: bytes, guest: bytes, built: bytes) -> bytes:
    """Build the frame of an error for the guest.

    :param guest_mac: the guest's, 6 bytes.
    :param host_mac: the host's as the guest sees it, 6 bytes.
    :param offender: whoever reports the error, as the guest sees it; 4 or 16 bytes.
    :param guest: the guest's address.
    :param built: the error as `message` gives it.
    """
    if len(offender) == 4:
        return wrap(guest_mac, host_mac, offender, guest, PROTOCOL_ICMP, built)
    built = with_checksum(built, _CHECKSUM.start, offender, guest, PROTOCOL_ICMPV6)
    return wrap(guest_mac, host_mac, offender, guest, PROTOCOL_ICMPV6, built)


def quoted_udp(
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    payload: bytes = b"",
    tos: int = 0,
    hop_limit: int = HOP_LIMIT,
) -> bytes:
    """Build the UDP datagram that an error quotes, from its IP header on.

    :param source: who sent it, 4 or 16 bytes.
    :param source_port: from where.
    :param destination: to whom, as long as `source`.
    :param destination_port: to where.
    :param payload: as much of its payload as is known; the length fields say no more either.
    :param tos: its TOS or traffic class.
    :param hop_limit: its TTL or hop limit.
    """
    length = UDP_CODEC.size + len(payload)
    udp = UDP_CODEC.pack(source=source_port, destination=destination_port, length=length) + payload
    return _quoted(source, destination, PROTOCOL_UDP, udp, tos, hop_limit)


def quoted_echo(source: bytes, destination: bytes, request: bytes, identifier: int, hop_limit: int) -> bytes:
    """Build the echo request that an error quotes, from its IP header on.

    :param source: who sent it, 4 or 16 bytes.
    :param destination: to whom, as long as `source`.
    :param request: as much of its message as is known, at least the header.
    :param identifier: its identifier.
    :param hop_limit: its TTL or hop limit.
    :raises PacketError: if there is not even the header.
    """
    if len(request) < ECHO_CODEC.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    fields = ECHO_CODEC.unpack_from(request)
    fields["identifier"] = identifier
    protocol = PROTOCOL_ICMP if len(source) == 4 else PROTOCOL_ICMPV6
    return _quoted(source, destination, protocol, ECHO_CODEC.pack(**fields) + request[ECHO_CODEC.size :], 0, hop_limit)


def _quoted(source: bytes, destination: bytes, protocol: int, payload: bytes, tos: int, hop_limit: int) -> bytes:
    """Put `payload` into the IP header that an error quotes; a router that had to cut it was not allowed to."""
    return ip_packet(source, destination, protocol, payload, tos, hop_limit, IPV4_DONT_FRAGMENT)


def port_unreachable(source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    """Build the message that a closed port is answered with, as a raw socket sends it.

    :param source: who sent the datagram, 4 or 16 bytes.
    :param source_port: from where.
    :param destination: to whom, as long as `source`.
    :param destination_port: the closed port.
    :return: as `message`.
    """
    family = 4 if len(source) == 4 else 6
    return message(family, CLOSED_PORT[family], quoted_udp(source, source_port, destination, destination_port))


def parse(packet: Packet) -> Reported | None:
    """Take an ICMP or ICMPv6 error of the guest apart.

    :param packet: a packet whose payload begins with one of `TYPES`.
    :return: what it reports, None if that is not of UDP or does not show the ports.
    :raises PacketError: `Drop.MALFORMED_ICMP`, if it is not what it says.
    """
    payload = bytes(packet.payload)
    if len(payload) < _QUOTED:
        raise PacketError(Drop.MALFORMED_ICMP)
    problem = _problem(packet.family, payload)
    quoted = payload[_QUOTED:]
    codec = IPV4_CODEC if packet.family == 4 else IPV6_CODEC
    if len(quoted) < codec.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    header = codec.unpack_from(quoted)
    if header["version"] != packet.family:
        raise PacketError(Drop.MALFORMED_ICMP)
    start, protocol = codec.size, header.get("next_header")
    if packet.family == 4:
        start, protocol = 4 * header["ihl"], header["protocol"]
        if start < codec.size:
            raise PacketError(Drop.MALFORMED_ICMP)
        if header["fragment_offset"]:
            return None
    # Frames to the guest have no extension headers, so there is nothing to step over in what it quotes.
    if protocol != PROTOCOL_UDP:
        return None
    # The ports and the length are what 8 bytes of payload must hold (RFC 792).
    if len(quoted) < start + UDP_CODEC.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    udp = UDP_CODEC.unpack_from(quoted, start)
    return Reported(
        problem,
        header["source"],
        header["destination"],
        udp["source"],
        udp["destination"],
        quoted[start + UDP_CODEC.size :],
    )


def _problem(family: int, payload: bytes) -> Problem:
    """Read what an error says went wrong."""
    if family == 6:
        fields = ICMPV6_ERROR_CODEC.unpack_from(payload)
        return Problem(fields["type"], fields["code"], fields["parameter"])
    fields = ICMP_ERROR_CODEC.unpack_from(payload)
    parameter = 0
    if fields["type"] == ICMP_PARAMETER_PROBLEM:
        parameter = fields["unused"] >> _POINTER_SHIFT
    elif fields["type"] == ICMP_UNREACHABLE and fields["code"] == ICMP_FRAGMENTATION_NEEDED:
        parameter = fields["mtu"]
    return Problem(fields["type"], fields["code"], parameter)
