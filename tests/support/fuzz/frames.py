"""Frames that are nearly right: headers that fit each other, with any values in them."""

from __future__ import annotations

from collections.abc import Sequence

from gpasst.formats import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
)
from tests.support.fuzz.choices import Choices

PORTS = (0, 53, 67, 68, 80, 546, 547, 5000, 5001, 40000)
PROTOCOLS = (PROTOCOL_UDP, PROTOCOL_TCP, PROTOCOL_ICMP, PROTOCOL_ICMPV6, 2, 255)
FRAGMENTS = (0, 0, 0, 1, 2, 185, 8191)  # units of 8 bytes
EXTENSIONS = (0, 43, 44, 51, 60)
PAYLOAD_LIMIT = 2048  # bytes
KINDS4 = (8, 0, 3, 11, 12)  # of ICMP
KINDS6 = (128, 129, 1, 2, 3, 4, 133, 134, 135, 136, 130)


def any_frame(choices: Choices, to: bytes, sender: bytes, addresses: Sequence[bytes]) -> bytes:
    """Return a frame.

    :param choices: what its fields are read from.
    :param to: destination MAC address.
    :param sender: source MAC address.
    :param addresses: packed addresses of both families, of which it has two.
    """
    source = choices.pick(addresses)
    same = [address for address in addresses if len(address) == len(source)]
    head, destination = to + sender, choices.pick(same)
    protocol = choices.pick(PROTOCOLS)
    if len(source) == IPV4_CODEC.fields["source"].size:
        if not choices.number(16):
            arp = bytes.fromhex("0001080006040001") if choices.flag() else bytes.fromhex("0001080006040002")
            return head + ETHERTYPE_ARP.to_bytes(2, "big") + arp + sender + source + to + destination
        payload = segment(choices, protocol, KINDS4)
        options = bytes(4 * choices.pick((0, 0, 0, 1, 10)))
        fragment, flags = choices.pick(FRAGMENTS), choices.pick((0, 0, 2, 1))
        ip = IPV4_CODEC.pack(
            ihl=5 + len(options) // 4,
            tos=choices.number(4),
            total_length=(IPV4_CODEC.size + len(options) + len(payload)) & 0xFFFF,
            identification=choices.number(4),
            flags=flags,
            fragment_offset=fragment,
            ttl=choices.pick((64, 1, 0, 255)),
            protocol=protocol,
            checksum=0,
            source=source,
            destination=destination,
        )
        return head + ETHERTYPE_IPV4.to_bytes(2, "big") + ip + options + payload
    payload = segment(choices, protocol, KINDS6)
    for _ in range(choices.pick((0, 0, 0, 1, 2, 9))):
        kind = choices.pick(EXTENSIONS)
        length = 0 if kind == 44 else choices.pick((0, 1))
        payload = bytes((protocol, length)) + choices.exactly(8 * length + 6) + payload
        protocol = kind
    ip = IPV6_CODEC.pack(
        traffic_class=choices.number(4),
        flow_label=0,
        payload_length=len(payload) & 0xFFFF,
        next_header=protocol,
        hop_limit=choices.pick((255, 64, 1, 0)),
        source=source,
        destination=destination,
    )
    return head + ETHERTYPE_IPV6.to_bytes(2, "big") + ip + payload


def segment(choices: Choices, protocol: int, kinds: Sequence[int]) -> bytes:
    """Return the payload of a packet.

    :param kinds: types of ICMP messages.
    """
    data = choices.piece(PAYLOAD_LIMIT)
    if protocol == PROTOCOL_UDP:
        length = choices.pick((UDP_CODEC.size + len(data), 0, 8, 65535))
        return UDP_CODEC.pack(source=choices.pick(PORTS), destination=choices.pick(PORTS), length=length) + data
    if protocol == PROTOCOL_TCP:
        return (
            TCP_CODEC.pack(
                source=choices.pick(PORTS),
                destination=choices.pick(PORTS),
                sequence=choices.number(1 << 32),
                acknowledgement=choices.number(1 << 32),
                data_offset=choices.pick((5, 5, 5, 6, 10, 15, 0)),
                flags=choices.pick((2, 16, 18, 17, 4, 20, 24, 0, 255)),
                window=choices.pick((65535, 0, 1)),
            )
            + data
        )
    if protocol in (PROTOCOL_ICMP, PROTOCOL_ICMPV6):
        return bytes((choices.pick(kinds), choices.number(5))) + data
    return data
