"""ICMP and ICMPv6 echo: requests of the guest become messages for the host's ping sockets, and answers frames."""

from __future__ import annotations

from dataclasses import dataclass

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import (
    ECHO_CODEC,
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    ICMPV6_ECHO_REPLY,
    ICMPV6_ECHO_REQUEST,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
)
from gpasst.packet import checksum
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.parse import Packet

PROTOCOLS = {4: PROTOCOL_ICMP, 6: PROTOCOL_ICMPV6}
REQUESTS = {4: ICMP_ECHO_REQUEST, 6: ICMPV6_ECHO_REQUEST}
REPLIES = {4: ICMP_ECHO_REPLY, 6: ICMPV6_ECHO_REPLY}
_CHECKSUM = ECHO_CODEC.offset("checksum")


@dataclass(frozen=True, slots=True)
class Request:
    """An echo request of the guest.

    :ivar identifier: which exchange it belongs to, 16 bits.
    :ivar sequence: its number in that exchange, 16 bits.
    :ivar message: the message from type to the end of the data.
    """

    identifier: int
    sequence: int
    message: bytes


def parse_request(packet: Packet) -> Request:
    """Take an echo request apart.

    :raises PacketError: if it is another message or too short.
    """
    payload = packet.payload
    if not payload or payload[0] != REQUESTS[packet.family]:
        raise PacketError(Drop.ICMP_TYPE)
    if len(payload) < ECHO_CODEC.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    echo = ECHO_CODEC.unpack_from(payload)
    return Request(echo["identifier"], echo["sequence"], bytes(payload))


def sequence_of(message: bytes) -> int:
    """Give the sequence number of a reply that a ping socket received."""
    sequence: int = ECHO_CODEC.unpack_from(message)["sequence"]
    return sequence


def reply(message: bytes, identifier: int, source: bytes, guest: bytes, guest_mac: bytes, host_mac: bytes) -> bytes:
    """Build the frame of an echo reply.

    :param message: the reply as the ping socket received it.
    :param identifier: the guest's identifier, restored (the kernel may have chosen another).
    :param source: address the guest asked.
    :param guest: the guest's address.
    """
    family = 4 if len(source) == 4 else 6
    echo = ECHO_CODEC.unpack_from(message)
    header = ECHO_CODEC.pack(type=REPLIES[family], identifier=identifier, sequence=echo["sequence"])
    packet = header + message[ECHO_CODEC.size :]
    if family == 6:
        packet = with_checksum(packet, _CHECKSUM, source, guest, PROTOCOL_ICMPV6)
    else:
        packet = packet[:_CHECKSUM] + checksum.internet(packet).to_bytes(2, "big") + packet[_CHECKSUM + 2 :]
    return wrap(guest_mac, host_mac, source, guest, PROTOCOLS[family], packet)
