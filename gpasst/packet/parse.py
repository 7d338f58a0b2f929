"""What a frame from the guest is: Ethernet and IP taken apart, with every doubt resolved against the sender.

Pure. The data path recognises ordinary UDP by itself and comes here for all else. Only `PacketError` leaves here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
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


@dataclass(frozen=True, slots=True)
class Fragment:
    """What tells one fragment's place.

    :ivar identification: of the datagram, 16 or 32 bits.
    :ivar offset: bytes from the start of the datagram's payload.
    :ivar more: whether others follow.
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
    :ivar payload: what follows the IP header and its extensions, without padding.
    :ivar hop_limit: TTL or hop limit.
    :ivar fragment: set if the payload is a piece of a datagram.
    :ivar tos: TOS or traffic class: DSCP and ECN bits.
    """

    family: int
    source: bytes
    destination: bytes
    protocol: int
    payload: memoryview
    hop_limit: int
    fragment: Fragment | None = None
    tos: int = 0

    @property
    def tos_ttl(self) -> int:
        """TOS and TTL, or traffic class and hop limit, as one number (`gpasst.udp.headers`)."""
        return self.tos << 8 | self.hop_limit


def parse_ip(frame: memoryview) -> Packet:
    """Take an Ethernet frame that carries IPv4 or IPv6 apart.

    :param frame: from the destination MAC address on.
    :raises PacketError: if it is not what it says.
    """
    size = ETHERNET_CODEC.size
    ethertype = int.from_bytes(frame[size - 2 : size], "big")
    return _parse4(frame[size:]) if ethertype == ETHERTYPE_IPV4 else _parse6(frame[size:])


def _parse4(data: memoryview) -> Packet:
    if len(data) < IPV4_CODEC.size:
        raise PacketError(Drop.MALFORMED_IP)
    header = IPV4_CODEC.unpack_from(data)
    start, total = 4 * header["ihl"], header["total_length"]
    # What follows the packet is Ethernet padding.
    if header["version"] != 4 or not IPV4_CODEC.size <= start <= total <= len(data):
        raise PacketError(Drop.MALFORMED_IP)
    offset, more = 8 * header["fragment_offset"], bool(header["flags"] & IPV4_MORE_FRAGMENTS)
    return Packet(
        4,
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
    if header["version"] != 6 or header["payload_length"] > len(payload):
        raise PacketError(Drop.MALFORMED_IP)
    payload = payload[: header["payload_length"]]
    protocol, fragment = header["next_header"], None
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol == IPV6_FRAGMENT_HEADER:
            if len(payload) < IPV6_FRAGMENT_CODEC.size:
                raise PacketError(Drop.MALFORMED_IP)
            piece = IPV6_FRAGMENT_CODEC.unpack_from(payload)
            protocol, payload = piece["next_header"], payload[IPV6_FRAGMENT_CODEC.size :]
            if piece["offset"] or piece["more"]:
                fragment = Fragment(piece["identification"], 8 * piece["offset"], bool(piece["more"]))
                break
        elif protocol in IPV6_EXTENSIONS:
            if len(payload) < IPV6_EXTENSION_CODEC.size:
                raise PacketError(Drop.MALFORMED_IP)
            extension = IPV6_EXTENSION_CODEC.unpack_from(payload)
            # RFC 4302, section 2.2: this one counts in 4-byte units, less 2.
            unit = 4 * (extension["length"] + 2) if protocol == IPV6_AUTHENTICATION else 8 * (extension["length"] + 1)
            if unit > len(payload):
                raise PacketError(Drop.MALFORMED_IP)
            protocol, payload = extension["next_header"], payload[unit:]
        else:
            break
    else:
        raise PacketError(Drop.MALFORMED_IP)
    return Packet(
        6,
        header["source"],
        header["destination"],
        protocol,
        payload,
        header["hop_limit"],
        fragment,
        header["traffic_class"],
    )


def parse_udp(payload: memoryview) -> tuple[int, int, memoryview]:
    """Take a UDP datagram apart: source port, destination port, data.

    :raises PacketError: if its length field says less than its header or more than there is (E-26).
    """
    if len(payload) < UDP_CODEC.size:
        raise PacketError(Drop.MALFORMED_UDP)
    header = UDP_CODEC.unpack_from(payload)
    if not UDP_CODEC.size <= header["length"] <= len(payload):
        raise PacketError(Drop.MALFORMED_UDP)
    return header["source"], header["destination"], payload[UDP_CODEC.size : header["length"]]
