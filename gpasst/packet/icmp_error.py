"""ICMP and ICMPv6 errors: a report to the sender of a packet that could not be delivered (RFC 792, RFC 4443).

Theory of operation: an error consists of a `Problem` and the start of the packet that caused it. That packet crossed
the proxy, so the error quotes it as its sender sent it, with the sender's view of the addresses: `quoted_udp` and
`quoted_echo` build the quoted packet, `message` puts the problem before it, and `frame` builds the guest's frame.
`parse` reads an error that the guest sent.
"""

from __future__ import annotations

import struct

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet import checksum
from gpasst.packet.address import V4, V6, family_of
from gpasst.packet.build import ip_packet, with_checksum, wrap
from gpasst.packet.parse import Packet
from gpasst.records import dataclass
from gpasst.wire import (
    ECHO_CODEC,
    HOP_LIMIT,
    ICMP_CODEC,
    ICMP_ERROR_CODEC,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_PARAMETER_PROBLEM,
    ICMP_PORT_UNREACHABLE,
    ICMP_TIME_EXCEEDED,
    ICMP_UNREACHABLE,
    ICMPV6_ERROR_CODEC,
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
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    UDP_CODEC,
)

TYPES = {
    4: frozenset({ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED, ICMP_PARAMETER_PROBLEM}),
    6: frozenset({ICMPV6_UNREACHABLE, ICMPV6_PACKET_TOO_BIG, ICMPV6_TIME_EXCEEDED, ICMPV6_PARAMETER_PROBLEM}),
}
"""Types that are passed on. A redirect concerns the link it was sent on only; source quench is obsolete (RFC 6633)."""

MESSAGE_BYTES = {4: 576, 6: 1280}
"""Maximum bytes of a whole error: RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 (c)."""

_CHECKSUM = slice(ICMP_CODEC.offset("checksum"), ICMP_CODEC.offset("checksum") + 2)
_QUOTED = ICMP_ERROR_CODEC.size  # offset of the quoted packet; the same for ICMPv6
_POINTER_SHIFT = 8  # a parameter problem's pointer is the first byte of the 16 bits before the MTU (RFC 792)
_POINTER_MASK = 0xFF
_MTU_MAXIMUM = 0xFFFF  # 16 bits (RFC 1191, section 4)
_TRANSPORT_BYTES = 8  # of the quoted packet, that an error has at least (RFC 792)
_IHL_UNIT = 4  # bytes (RFC 791, section 3.1)

_ports_and_sequence = struct.Struct(">HHI").unpack_from


@dataclass(frozen=True, slots=True)
class Problem:
    """Type and parameter of an ICMP or ICMPv6 error.

    :ivar type: one of `TYPES`.
    :ivar code: the type's code.
    :ivar parameter: the next hop's MTU in bytes, or the offset of the faulty byte in the quoted packet; else 0.
    """

    type: int
    code: int
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """An error that quotes a UDP datagram or a TCP segment.

    :ivar problem: the error.
    :ivar source: source address of the datagram or segment, 4 or 16 bytes.
    :ivar destination: its destination address.
    :ivar source_port: its source port.
    :ivar destination_port: its destination port.
    :ivar payload: the start of a datagram's payload, as far as it is quoted; nothing of a segment.
    :ivar protocol: IP protocol number.
    :ivar sequence: a segment's sequence number.
    """

    problem: Problem
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    payload: bytes
    protocol: int = PROTOCOL_UDP
    sequence: int = 0


CLOSED_PORT = {
    4: Problem(ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE),
    6: Problem(ICMPV6_UNREACHABLE, ICMPV6_PORT_UNREACHABLE),
}


def too_big(family: int, mtu: int) -> Problem:
    """Return the problem of a packet that exceeds the next hop's MTU (RFC 1191, section 4; RFC 4443, section 3.2).

    :param family: 4 or 6.
    :param mtu: in bytes.
    """
    if family == V6:
        return Problem(ICMPV6_PACKET_TOO_BIG, 0, mtu)
    return Problem(ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, mtu)


def expired(family: int, problem: Problem) -> bool:
    """Return whether the problem is "time exceeded": the hop limit reached 0, or a fragment did not come in time."""
    return problem.type == (ICMPV6_TIME_EXCEEDED if family == V6 else ICMP_TIME_EXCEEDED)


def lowers_path_mtu(family: int, problem: Problem) -> bool:
    """Return whether the problem is "fragmentation needed" or "packet too big", which changes a receiver's routing."""
    if family == V6:
        return problem.type == ICMPV6_PACKET_TOO_BIG
    return (problem.type, problem.code) == (ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED)


def message(family: int, problem: Problem, quoted: bytes) -> bytes:
    """Build an error as a raw socket sends it.

    :param family: 4 or 6.
    :param problem: the error.
    :param quoted: the packet that caused it, from its IP header on; truncated to the maximum of an error.
    :return: the message; an ICMPv6 checksum is left to the kernel (RFC 3542, section 3.1).
    """
    if family == V6:
        quoted = quoted[: MESSAGE_BYTES[V6] - IPV6_CODEC.size - ICMPV6_ERROR_CODEC.size]
        return ICMPV6_ERROR_CODEC.pack(type=problem.type, code=problem.code, parameter=problem.parameter) + quoted
    quoted = quoted[: MESSAGE_BYTES[V4] - IPV4_CODEC.size - ICMP_ERROR_CODEC.size]
    fields = {"type": problem.type, "code": problem.code}
    if problem.type == ICMP_PARAMETER_PROBLEM:
        fields["unused"] = (problem.parameter & _POINTER_MASK) << _POINTER_SHIFT
    elif problem.type == ICMP_UNREACHABLE and problem.code == ICMP_FRAGMENTATION_NEEDED:
        fields["mtu"] = min(problem.parameter, _MTU_MAXIMUM)
    built = bytearray(ICMP_ERROR_CODEC.pack(**fields) + quoted)
    built[_CHECKSUM] = checksum.internet(built).to_bytes(2, "big")
    return bytes(built)


def frame(guest_mac: bytes, host_mac: bytes, offender: bytes, guest: bytes, built: bytes) -> bytes:
    """Build the frame of an error for the guest.

    :param guest_mac: the guest's, 6 bytes.
    :param host_mac: the host's as the guest sees it, 6 bytes.
    :param offender: address of the node that reports the error, as the guest sees it; 4 or 16 bytes.
    :param guest: the guest's address.
    :param built: the error as `message` builds it.
    """
    if family_of(offender) == V4:
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

    :param source: its source address, 4 or 16 bytes.
    :param source_port: its source port.
    :param destination: its destination address, as long as `source`.
    :param destination_port: its destination port.
    :param payload: the known start of its payload; the length fields count no more than that.
    :param tos: its TOS or traffic class.
    :param hop_limit: its TTL or hop limit.
    """
    length = UDP_CODEC.size + len(payload)
    udp = UDP_CODEC.pack(source=source_port, destination=destination_port, length=length) + payload
    return quoted_packet(source, destination, PROTOCOL_UDP, udp, tos, hop_limit)


def quoted_echo(source: bytes, destination: bytes, request: bytes, identifier: int, hop_limit: int) -> bytes:
    """Build the echo request that an error quotes, from its IP header on.

    :param source: its source address, 4 or 16 bytes.
    :param destination: its destination address, as long as `source`.
    :param request: the known start of its message, at least the header.
    :param identifier: the identifier that its sender chose.
    :param hop_limit: its TTL or hop limit.
    :raises PacketError: `Drop.MALFORMED_ICMP`, if `request` is shorter than the header.
    """
    if len(request) < ECHO_CODEC.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    fields = ECHO_CODEC.unpack_from(request)
    fields["identifier"] = identifier
    protocol = PROTOCOL_ICMP if family_of(source) == V4 else PROTOCOL_ICMPV6
    return quoted_packet(
        source, destination, protocol, ECHO_CODEC.pack(**fields) + request[ECHO_CODEC.size :], 0, hop_limit
    )


def quoted_packet(
    source: bytes, destination: bytes, protocol: int, payload: bytes, tos: int = 0, hop_limit: int = HOP_LIMIT
) -> bytes:
    """Build the packet that an error quotes, from its IP header on.

    It has the don't-fragment bit: a router reports "fragmentation needed" only for such a packet (RFC 1191, section 4).
    """
    return ip_packet(source, destination, protocol, payload, tos, hop_limit, IPV4_DONT_FRAGMENT)


def port_unreachable(source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    """Build a closed port's answer to a datagram, as a raw socket sends it.

    :param source: the datagram's source address, 4 or 16 bytes.
    :param source_port: its source port.
    :param destination: its destination address, as long as `source`.
    :param destination_port: the closed port.
    :return: as `message` returns.
    """
    family = family_of(source)
    return message(family, CLOSED_PORT[family], quoted_udp(source, source_port, destination, destination_port))


def parse(packet: Packet) -> Reported | None:
    """Parse an ICMP or ICMPv6 error of the guest.

    :param packet: a packet whose payload begins with one of `TYPES`.
    :return: the error, None if it quotes another protocol or a fragment without ports.
    :raises PacketError: `Drop.MALFORMED_ICMP`, if the error or the quoted header is malformed.
    """
    payload = bytes(packet.payload)
    if len(payload) < _QUOTED:
        raise PacketError(Drop.MALFORMED_ICMP)
    problem = _problem(packet.family, payload)
    quoted = payload[_QUOTED:]
    codec = IPV4_CODEC if packet.family == V4 else IPV6_CODEC
    if len(quoted) < codec.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    header = codec.unpack_from(quoted)
    if header["version"] != packet.family:
        raise PacketError(Drop.MALFORMED_ICMP)
    start, protocol = codec.size, header.get("next_header")
    if packet.family == V4:
        start, protocol = _IHL_UNIT * header["ihl"], header["protocol"]
        if start < codec.size:
            raise PacketError(Drop.MALFORMED_ICMP)
        if header["fragment_offset"]:
            return None
    # Frames to the guest have no extension headers, so the quoted packet has none.
    if protocol not in (PROTOCOL_UDP, PROTOCOL_TCP):
        return None
    if len(quoted) < start + _TRANSPORT_BYTES:
        raise PacketError(Drop.MALFORMED_ICMP)
    source_port, destination_port, sequence = _ports_and_sequence(quoted, start)
    segment = protocol == PROTOCOL_TCP
    return Reported(
        problem,
        header["source"],
        header["destination"],
        source_port,
        destination_port,
        b"" if segment else quoted[start + UDP_CODEC.size :],
        protocol,
        sequence if segment else 0,
    )


def _problem(family: int, payload: bytes) -> Problem:
    """Return the problem that an error of at least 8 bytes reports."""
    if family == V6:
        fields = ICMPV6_ERROR_CODEC.unpack_from(payload)
        return Problem(fields["type"], fields["code"], fields["parameter"])
    fields = ICMP_ERROR_CODEC.unpack_from(payload)
    parameter = 0
    if fields["type"] == ICMP_PARAMETER_PROBLEM:
        parameter = fields["unused"] >> _POINTER_SHIFT
    elif fields["type"] == ICMP_UNREACHABLE and fields["code"] == ICMP_FRAGMENTATION_NEEDED:
        parameter = fields["mtu"]
    return Problem(fields["type"], fields["code"], parameter)
