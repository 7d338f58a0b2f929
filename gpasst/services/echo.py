"""ICMP and ICMPv6 echo: between the guest's requests and the messages of the host's ping sockets.

A ping socket (Linux 3.0; 3.11 for IPv6) sends the message of an echo request under an identifier that the kernel may
change, so a reply gets the guest's own identifier back.
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet import checksum
from gpasst.packet.address import V4, V6, family_of
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.parse import Packet
from gpasst.records import dataclass
from gpasst.wire import (
    ECHO_CODEC,
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    ICMPV6_ECHO_REPLY,
    ICMPV6_ECHO_REQUEST,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
)

PROTOCOLS = {V4: PROTOCOL_ICMP, V6: PROTOCOL_ICMPV6}
REQUESTS = {V4: ICMP_ECHO_REQUEST, V6: ICMPV6_ECHO_REQUEST}
REPLIES = {V4: ICMP_ECHO_REPLY, V6: ICMPV6_ECHO_REPLY}
_CHECKSUM = ECHO_CODEC.offset("checksum")
_CHECKSUM_END = ECHO_CODEC.offset("identifier")


@dataclass(frozen=True, slots=True)
class Request:
    """An echo request of the guest.

    :ivar identifier: of the echo flow that it belongs to, 16 bits.
    :ivar sequence: its number in that flow, 16 bits.
    :ivar message: the message from type to the end of the data.
    """

    identifier: int
    sequence: int
    message: bytes


def parse_request(packet: Packet) -> Request:
    """Parse an echo request.

    :param packet: an ICMP or ICMPv6 packet.
    :raises PacketError: `Drop.ICMP_TYPE` if it is another message, `Drop.MALFORMED_ICMP` if it is too short.
    """
    payload = packet.payload
    if not payload or payload[0] != REQUESTS[packet.family]:
        raise PacketError(Drop.ICMP_TYPE)
    if len(payload) < ECHO_CODEC.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    echo = ECHO_CODEC.unpack_from(payload)
    return Request(echo["identifier"], echo["sequence"], bytes(payload))


def sequence_of(message: bytes) -> int:
    """Return the sequence number of a reply.

    :param message: the reply as the ping socket received it, at least 8 bytes.
    """
    sequence: int = ECHO_CODEC.unpack_from(message)["sequence"]
    return sequence


def reply(message: bytes, identifier: int, source: bytes, guest: bytes, guest_mac: bytes, host_mac: bytes) -> bytes:
    """Build the frame of an echo reply.

    :param message: the reply as the ping socket received it, at least 8 bytes.
    :param identifier: the guest's identifier.
    :param source: the address that the guest's request was sent to, 4 or 16 bytes.
    :param guest: the guest's address, as long as `source`.
    :param guest_mac: 6 bytes.
    :param host_mac: the host's as the guest sees it, 6 bytes.
    """
    family = family_of(source)
    echo = ECHO_CODEC.unpack_from(message)
    header = ECHO_CODEC.pack(type=REPLIES[family], identifier=identifier, sequence=echo["sequence"])
    packet = header + message[ECHO_CODEC.size :]
    if family == V6:
        packet = with_checksum(packet, _CHECKSUM, source, guest, PROTOCOL_ICMPV6)
    else:
        packet = packet[:_CHECKSUM] + checksum.internet(packet).to_bytes(2, "big") + packet[_CHECKSUM_END:]
    return wrap(guest_mac, host_mac, source, guest, PROTOCOLS[family], packet)
