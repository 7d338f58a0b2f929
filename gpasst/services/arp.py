"""ARP (RFC 826): every address but the guest's own is at the host's MAC address (context 2)."""

from __future__ import annotations

from gpasst.codec import parse_untrusted
from gpasst.counters import Drop
from gpasst.formats import (
    ARP,
    ARP_CODEC,
    ARP_ETHERNET,
    ARP_REPLY,
    ARP_REQUEST,
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
)
from gpasst.packet.address import BROADCAST_MAC


def answer(payload: memoryview, host_mac: bytes, guest_address: bytes | None) -> bytes | None:
    """Answer an ARP request.

    :param payload: the frame's payload.
    :param host_mac: what every address resolves to, 6 bytes.
    :param guest_address: the address assigned to the guest, which must not look taken.
    :return: the answer's frame, or None where none is due.
    :raises PacketError: if the request is malformed.
    """
    request = parse_untrusted(ARP, payload, Drop.MALFORMED_ARP)
    usual = (request.hardware, request.protocol, request.hardware_length, request.protocol_length)
    if usual != (ARP_ETHERNET, ETHERTYPE_IPV4, 6, 4) or request.operation != ARP_REQUEST:
        return None
    announced = any(request.sender_ip) and request.sender_ip == request.target_ip
    if announced or request.target_ip == guest_address:
        return None
    ethernet = ETHERNET_CODEC.pack(destination=request.sender_mac, source=host_mac, ethertype=ETHERTYPE_ARP)
    return ethernet + ARP_CODEC.pack(
        operation=ARP_REPLY,
        sender_mac=host_mac,
        sender_ip=request.target_ip,
        target_mac=request.sender_mac,
        target_ip=request.sender_ip,
    )


def request(host_mac: bytes, sender: bytes, target: bytes) -> bytes:
    """Build the frame that asks who has an address; the answer tells the guest's MAC address before it speaks.

    :param host_mac: the host's as the guest sees it, 6 bytes.
    :param sender: address that stands for the host, the guest's gateway.
    :param target: the guest's address.
    """
    ethernet = ETHERNET_CODEC.pack(destination=BROADCAST_MAC, source=host_mac, ethertype=ETHERTYPE_ARP)
    return ethernet + ARP_CODEC.pack(
        operation=ARP_REQUEST,
        sender_mac=host_mac,
        sender_ip=sender,
        target_mac=bytes(6),
        target_ip=target,
    )
