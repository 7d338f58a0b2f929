"""Superframes of a flow, as they cross the tap, and the check that a receiver makes of a frame's checksums."""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
    IPV4_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_UDP,
    TCP_ACK,
    TCP_CODEC,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
)
from gpasst.packet import checksum
from gpasst.packet.parse import Packet, parse_ip
from gpasst.tcp.header import Header as TcpHeader
from gpasst.udp.header import Header as UdpHeader
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.connections import KEY

CWR = 0x80  # TCP flag
SOURCE = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
GUEST = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
IP = VIRTIO_NET_CODEC.size + 14  # offset of the IP header
CHECKSUMS = {1: 2, 6: TCP_CODEC.offset("checksum"), 17: UDP_CODEC.offset("checksum"), 58: 2}  # by protocol


def udp_superframe(family: int, payload: bytes, segment: int, identification: int = 0) -> bytes:
    """Return datagrams of `segment` bytes, of which the last may be shorter; one alone if they are no more."""
    header = UdpHeader(family, GUEST_MAC, HOST_MAC, SOURCE[family], GUEST[family], 123, 33000)
    return _identified(bytes(header.fill(len(payload), segment)) + payload, family, identification)


def tcp_superframe(family: int, payload: bytes, segment: int, flags: int = TCP_ACK, identification: int = 0) -> bytes:
    """Return segments likewise, whose sequence numbers wrap."""
    header = TcpHeader(GUEST_MAC, HOST_MAC, KEY[family])
    header.prepare(0xFFFFFF00, 7, flags, 999)
    return _identified(bytes(header.fill(len(payload), segment)) + payload, family, identification)


def _identified(data: bytes, family: int, identification: int) -> bytes:
    """Return a frame with another identification, of IPv4."""
    if family != 4:
        return data
    changed = bytearray(data)
    at = IP + IPV4_CODEC.offset("identification")
    changed[at : at + 2] = identification.to_bytes(2, "big")
    at = IP + IPV4_CODEC.offset("checksum")
    changed[at : at + 2] = bytes(2)
    changed[at : at + 2] = checksum.internet(changed[IP : IP + IPV4_CODEC.size]).to_bytes(2, "big")
    return bytes(changed)


def parsed(frame: bytes) -> Packet:
    """Return the packet of a complete Ethernet frame."""
    return parse_ip(memoryview(frame))


def sound(frame: bytes) -> bool:
    """Return whether a receiver would find all checksums of a complete Ethernet frame right, and lengths possible."""
    try:
        packet = parsed(frame)
    except PacketError as error:
        assert error.reason is Drop.MALFORMED_IP
        return False
    if packet.family == 4 and checksum.ones_sum(frame[14:34]) != checksum.ONES:
        return False
    at = CHECKSUMS[packet.protocol]
    if packet.protocol == PROTOCOL_UDP and not any(packet.payload[at : at + 2]):
        return packet.family == 4
    pseudo = 0
    if packet.protocol != PROTOCOL_ICMP:
        pseudo = checksum.pseudo_sum(packet.source, packet.destination, packet.protocol) + len(packet.payload)
    return checksum.ones_sum(packet.payload, pseudo) == checksum.ONES
