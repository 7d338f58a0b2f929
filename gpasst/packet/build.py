"""IP and Ethernet around what a service answers."""

from __future__ import annotations

from gpasst.formats import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    HOP_LIMIT,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_UDP,
    UDP_CODEC,
)
from gpasst.packet import checksum


def wrap(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
) -> bytes:
    """Put `payload` into an IP packet of the addresses' family, and that into an Ethernet frame.

    :param destination_mac: the guest's, 6 bytes.
    :param source_mac: the host's as the guest sees it, 6 bytes.
    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param protocol: IP protocol number of `payload`.
    :param payload: transport header and data, checksum complete.
    """
    ethertype = ETHERTYPE_IPV4 if len(source) == 4 else ETHERTYPE_IPV6
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
    """Put `payload` into an IP packet; the parameters are those of `wrap`.

    :param tos: TOS or traffic class.
    :param hop_limit: TTL or hop limit.
    :param flags: of IPv4, such as `IPV4_DONT_FRAGMENT`.
    """
    if len(source) == 4:
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
    """Put `data` into a UDP datagram, and that into a frame as `wrap` does.

    Over IPv4 the checksum is 0, "not computed" (RFC 768); over IPv6 there must be one (RFC 8200, section 8.1).
    """
    fields = {"source": source_port, "destination": destination_port, "length": UDP_CODEC.size + len(data)}
    datagram = UDP_CODEC.pack(checksum=0, **fields) + data
    if len(source) == 16:
        value = checksum.udp(checksum.pseudo_sum6(source, destination, PROTOCOL_UDP), datagram)
        datagram = UDP_CODEC.pack(checksum=value, **fields) + data
    return wrap(destination_mac, source_mac, source, destination, PROTOCOL_UDP, datagram)


def with_checksum(packet: bytes, field: int, source: bytes, destination: bytes, protocol: int) -> bytes:
    """Complete the checksum of a transport packet that has a pseudo header (RFC 9293, section 3.1; RFC 8200, 8.1).

    :param packet: header and data, the checksum zero.
    :param field: offset of the checksum in bytes.
    """
    pseudo_sum = checksum.pseudo_sum4 if len(source) == 4 else checksum.pseudo_sum6
    value = checksum.transport(pseudo_sum(source, destination, protocol), packet)
    return packet[:field] + value.to_bytes(2, "big") + packet[field + 2 :]
