"""ARP (RFC 826): the addresses that are the host's on the link resolve to the host's MAC address.

Of a single guest these are all but its own (`gpasst.flow.guest`). The guest then sends all its packets to the link,
whatever prefix it believes to be local. Announcements and probes for its own address (RFC 5227) get no reply, which
would signal a conflict.
"""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Drop
from gpasst.packet.address import BROADCAST_MAC, IP4_BYTES
from gpasst.wire import (
    ARP_CODEC,
    ARP_ETHERNET,
    ARP_REPLY,
    ARP_REQUEST,
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
)

MAC_BYTES = 6


def answer(payload: memoryview, host_mac: bytes, resolves: Callable[[bytes], bool]) -> bytes | None:
    """Build the reply to an ARP request.

    :param payload: payload of the request's frame.
    :param host_mac: the MAC address of the reply, 6 bytes.
    :param resolves: returns whether an address, 4 bytes, resolves to that.
    :return: the reply's frame; None for a reply, an announcement, or a request for another address, hardware or
        protocol.
    :raises PacketError: `Drop.MALFORMED_ARP`, if the request is malformed.
    """
    request = ARP_CODEC.parse(payload, Drop.MALFORMED_ARP)
    kind = tuple(request[name] for name in ("hardware", "protocol", "hardware_length", "protocol_length"))
    if kind != (ARP_ETHERNET, ETHERTYPE_IPV4, MAC_BYTES, IP4_BYTES) or request["operation"] != ARP_REQUEST:
        return None
    sender, target = request["sender_ip"], request["target_ip"]
    announced = any(sender) and sender == target
    if announced or not resolves(target):
        return None
    ethernet = ETHERNET_CODEC.pack(destination=request["sender_mac"], source=host_mac, ethertype=ETHERTYPE_ARP)
    return ethernet + ARP_CODEC.pack(
        operation=ARP_REPLY,
        sender_mac=host_mac,
        sender_ip=target,
        target_mac=request["sender_mac"],
        target_ip=sender,
    )


def request(host_mac: bytes, sender: bytes, target: bytes) -> bytes:
    """Build the frame of a request, whose reply reveals the guest's MAC address before the guest sends anything.

    :param host_mac: the host's as the guest sees it, 6 bytes.
    :param sender: the guest's gateway, which stands for the host, 4 bytes.
    :param target: the guest's address, 4 bytes.
    """
    ethernet = ETHERNET_CODEC.pack(destination=BROADCAST_MAC, source=host_mac, ethertype=ETHERTYPE_ARP)
    return ethernet + ARP_CODEC.pack(
        operation=ARP_REQUEST,
        sender_mac=host_mac,
        sender_ip=sender,
        target_mac=bytes(MAC_BYTES),
        target_ip=target,
    )
