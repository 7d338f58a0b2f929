"""Parsing of frames from the guest: Ethernet, IP and UDP. Anything malformed or ambiguous is rejected.

The fast path parses ordinary UDP by itself; all other frames come here. Only `PacketError` leaves this module.
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    IPV4_MORE_FRAGMENTS,
    IPV6_AUTHENTICATION,
    IPV6_CODEC,
    IPV6_EXTENSION_CODEC,
    IPV6_EXTENSIONS,
    IPV6_FRAGMENT_CODEC,
    IPV6_FRAGMENT_HEADER,
    UDP_CODEC,
)

MAX_EXTENSIONS = 8  # headers; RFC 8504, section 5.3 lets a node limit the chain
IHL_UNIT = 4  # bytes; of IPv4's header length (RFC 791, section 3.1)
OFFSET_UNIT = 8  # bytes; of fragment offsets and extension headers (RFC 791, section 3.1; RFC 8200, section 4)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment's place in its datagram.

    :ivar identification: of the datagram, 16 or 32 bits.
    :ivar offset: bytes from the start of the datagram's payload.
    :ivar more: whether more fragments follow.
    """

    identification: int
    offset: int
    more: bool


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet from the guest.

    :ivar family: 4 or 6.
    :ivar source: 4 or 16 bytes.
    :ivar destination: 4 or 16 bytes.
    :ivar protocol: IP protocol number of `payload`.
    :ivar payload: the bytes behind the IP header and its extensions, without Ethernet padding.
    :ivar hop_limit: TTL or hop limit.
    :ivar fragment: set if the packet is a fragment.
    :ivar tos: TOS or traffic class: DSCP and ECN bits.
    :ivar segment: payload bytes of each segment of a superframe but perhaps the last, 0 for a single packet.
    """

    family: int
    source: bytes
    destination: bytes
    protocol: int
    payload: memoryview
    hop_limit: int
    fragment: Fragment | None = None
    tos: int = 0
    segment: int = 0

    @property
    def tos_ttl(self) -> int:
        """TOS and TTL, or traffic class and hop limit, as one number (`gpasst.udp.headers`)."""
        return self.tos << 8 | self.hop_limit


def parse_ip(frame: memoryview) -> Packet:
    """Parse an Ethernet frame that carries IPv4 or IPv6.

    :param frame: from the destination MAC address on, at least an Ethernet header with one of the two EtherTypes.
    :raises PacketError: `Drop.MALFORMED_IP`, if the IP header or an extension header is malformed.
    """
    size = ETHERNET_CODEC.size
    ethertype = int.from_bytes(frame[size - 2 : size], "big")
    return _parse4(frame[size:]) if ethertype == ETHERTYPE_IPV4 else _parse6(frame[size:])


def _parse4(data: memoryview) -> Packet:
    if len(data) < IPV4_CODEC.size:
        raise PacketError(Drop.MALFORMED_IP)
    header = IPV4_CODEC.unpack_from(data)
    start, total = IHL_UNIT * header["ihl"], header["total_length"]
    # Bytes behind the packet are Ethernet padding.
    if header["version"] != V4 or not IPV4_CODEC.size <= start <= total <= len(data):
        raise PacketError(Drop.MALFORMED_IP)
    offset, more = OFFSET_UNIT * header["fragment_offset"], bool(header["flags"] & IPV4_MORE_FRAGMENTS)
    return Packet(
        V4,
        header["source"],
        header["destination"],
        header["protocol"],
        data[start:total],
        header["ttl"],
        Fragment(header["identification"], offset, more) if offset or more else None,
        header["tos"],
    )


def _parse6(data: memoryview) -> Packet:
    if len(data) < IPV6_CODEC.size:
        raise PacketError(Drop.MALFORMED_IP)
    header = IPV6_CODEC.unpack_from(data)
    payload = data[IPV6_CODEC.size :]
    if header["version"] != V6 or header["payload_length"] > len(payload):
        raise PacketError(Drop.MALFORMED_IP)
    payload = payload[: header["payload_length"]]
    protocol, fragment, extensions = header["next_header"], None, 0
    while protocol in IPV6_EXTENSIONS and fragment is None:
        extensions += 1
        if extensions > MAX_EXTENSIONS:
            raise PacketError(Drop.MALFORMED_IP)
        if protocol == IPV6_FRAGMENT_HEADER:
            protocol, payload, fragment = _fragment_header(payload)
        else:
            protocol, payload = _extension(protocol, payload)
    return Packet(
        V6,
        header["source"],
        header["destination"],
        protocol,
        payload,
        header["hop_limit"],
        fragment,
        header["traffic_class"],
    )


def _fragment_header(payload: memoryview) -> tuple[int, memoryview, Fragment | None]:
    """Parse a fragment header; return the next header, the bytes behind it, and the fragment.

    An atomic fragment (RFC 6946) is a whole packet: it has no `Fragment`.
    """
    if len(payload) < IPV6_FRAGMENT_CODEC.size:
        raise PacketError(Drop.MALFORMED_IP)
    header = IPV6_FRAGMENT_CODEC.unpack_from(payload)
    offset, more = OFFSET_UNIT * header["offset"], bool(header["more"])
    fragment = Fragment(header["identification"], offset, more) if offset or more else None
    return header["next_header"], payload[IPV6_FRAGMENT_CODEC.size :], fragment


def _extension(protocol: int, payload: memoryview) -> tuple[int, memoryview]:
    """Parse an extension header of type `protocol`; return the next header and the bytes behind it."""
    if len(payload) < IPV6_EXTENSION_CODEC.size:
        raise PacketError(Drop.MALFORMED_IP)
    header = IPV6_EXTENSION_CODEC.unpack_from(payload)
    size = OFFSET_UNIT * (header["length"] + 1)
    if protocol == IPV6_AUTHENTICATION:
        size = 4 * (header["length"] + 2)  # counts units of 4 bytes, less 2 (RFC 4302, section 2.2)
    if size > len(payload):
        raise PacketError(Drop.MALFORMED_IP)
    return header["next_header"], payload[size:]


def parse_udp(payload: memoryview) -> tuple[int, int, memoryview]:
    """Parse a UDP datagram; return source port, destination port and data.

    :param payload: the datagram; bytes beyond its length field are ignored.
    :raises PacketError: `Drop.MALFORMED_UDP`, if its length field is below the header's size (RFC 768) or beyond the
        payload.
    """
    if len(payload) < UDP_CODEC.size:
        raise PacketError(Drop.MALFORMED_UDP)
    header = UDP_CODEC.unpack_from(payload)
    if not UDP_CODEC.size <= header["length"] <= len(payload):
        raise PacketError(Drop.MALFORMED_UDP)
    return header["source"], header["destination"], payload[UDP_CODEC.size : header["length"]]
