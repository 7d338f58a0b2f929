"""Building packets and frames that gpasst itself originates: Ethernet, IP and UDP headers around a payload."""

from __future__ import annotations

from gpasst.packet import checksum
from gpasst.packet.address import V4, V6, family_of
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    HOP_LIMIT,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_UDP,
    UDP_CODEC,
)


def wrap(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
) -> bytes:
    """Build an Ethernet frame with an IP packet of the addresses' family.

    :param destination_mac: 6 bytes.
    :param source_mac: 6 bytes.
    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param protocol: IP protocol number of `payload`.
    :param payload: transport header and data, checksum complete.
    """
    ethertype = ETHERTYPE_IPV4 if family_of(source) == V4 else ETHERTYPE_IPV6
    ethernet = ETHERNET_CODEC.pack(destination=destination_mac, source=source_mac, ethertype=ethertype)
    return ethernet + ip_packet(source, destination, protocol, payload)


def ip_packet(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    tos: int = 0,
    hop_limit: int = HOP_LIMIT,
    flags: int = 0,
) -> bytes:
    """Build an IP packet of the addresses' family.

    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param protocol: IP protocol number of `payload`.
    :param payload: transport header and data, checksum complete.
    :param tos: TOS or traffic class.
    :param hop_limit: TTL or hop limit.
    :param flags: of IPv4, such as `IPV4_DONT_FRAGMENT`; ignored for IPv6.
    """
    if family_of(source) == V4:
        fields: dict[str, int | bytes] = {
            "tos": tos,
            "total_length": IPV4_CODEC.size + len(payload),
            "flags": flags,
            "ttl": hop_limit,
            "protocol": protocol,
            "source": source,
            "destination": destination,
        }
        blank = IPV4_CODEC.pack(checksum=0, **fields)
        return IPV4_CODEC.pack(checksum=checksum.internet(blank), **fields) + payload
    header = IPV6_CODEC.pack(
        traffic_class=tos,
        payload_length=len(payload),
        next_header=protocol,
        hop_limit=hop_limit,
        source=source,
        destination=destination,
    )
    return header + payload


def wrap_udp(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
    data: bytes,
) -> bytes:
    """Build an Ethernet frame with a UDP datagram.

    Over IPv4 the checksum is 0, "not computed" (RFC 768); over IPv6 it is mandatory (RFC 8200, section 8.1).

    :param destination_mac: 6 bytes.
    :param source_mac: 6 bytes.
    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param source_port: 0 to 65535.
    :param destination_port: 0 to 65535.
    :param data: payload of the datagram.
    """
    fields = {"source": source_port, "destination": destination_port, "length": UDP_CODEC.size + len(data)}
    datagram = UDP_CODEC.pack(checksum=0, **fields) + data
    if family_of(source) == V6:
        value = checksum.udp(checksum.pseudo_sum(source, destination, PROTOCOL_UDP), datagram)
        datagram = UDP_CODEC.pack(checksum=value, **fields) + data
    return wrap(destination_mac, source_mac, source, destination, PROTOCOL_UDP, datagram)


def with_checksum(packet: bytes, field: int, source: bytes, destination: bytes, protocol: int) -> bytes:
    """Return a transport packet with its checksum, which includes a pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).

    :param packet: transport header and data, the checksum zero.
    :param field: offset of the checksum in bytes.
    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param protocol: IP protocol number of `packet`.
    """
    value = checksum.transport(checksum.pseudo_sum(source, destination, protocol), packet)
    return packet[:field] + value.to_bytes(2, "big") + packet[field + 2 :]
