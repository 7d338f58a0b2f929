"""A frame as a router sees it: its packet, and where the transport header stands."""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import V4, V6
from gpasst.packet.parse import Packet, parse_ip
from gpasst.packet.superframe import IP, VIRTIO, Buffer
from gpasst.records import dataclass
from gpasst.router.patch import PORTS_BYTES
from gpasst.services.echo import PROTOCOLS, REPLIES, REQUESTS
from gpasst.wire import (
    ECHO_CODEC,
    IPV4_CODEC,
    IPV4_DONT_FRAGMENT,
    IPV6_CODEC,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
)

_FLAGS_AT = TCP_CODEC.offset("flags")
_IDENTIFIER = ECHO_CODEC.offset("identifier")
_FLAGS_SHIFT = 5  # bits of the fragment offset in the first byte of its word (RFC 791, section 3.1)
_IHL_UNIT = 4  # bytes
_IHL_MASK = 0xF  # of an IPv4 header's first byte
_LENGTH6 = slice(IP + IPV6_CODEC.offset("payload_length"), IP + IPV6_CODEC.offset("payload_length") + 2)
_FRAGMENT_AT = IP + IPV4_CODEC.offset("flags")


@dataclass(frozen=True, slots=True)
class View:
    """A frame that a router received.

    :ivar data: virtio-net header and frame.
    :ivar packet: the packet in it.
    :ivar at: offset of the transport header in `data`.
    :ivar source_port: of UDP or TCP; the identifier of an echo; else 0.
    :ivar destination_port: of UDP or TCP, else 0.
    :ivar flags: TCP flags.
    :ivar kind: type of an ICMP message, else -1.
    """

    data: Buffer
    packet: Packet
    at: int
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    kind: int = -1

    @property
    def echo(self) -> bool:
        """Whether it is an echo request or reply."""
        family = self.packet.family
        return self.kind in (REQUESTS[family], REPLIES[family])

    @property
    def whole(self) -> bytes:
        """The packet from its IP header on, as an error quotes it."""
        return bytes(self.data[IP : self.end])

    @property
    def end(self) -> int:
        """Offset behind the packet; padding may follow."""
        return self.at + len(self.packet.payload)

    @property
    def fragmentable(self) -> bool:
        """Whether a router may fragment it (RFC 791, section 2.3; RFC 8200, section 4.5)."""
        return self.packet.family == V4 and not self.data[_FRAGMENT_AT] >> _FLAGS_SHIFT & IPV4_DONT_FRAGMENT

    @property
    def later_fragment(self) -> bool:
        """Whether it is a fragment without the transport header."""
        return self.packet.fragment is not None and self.packet.fragment.offset > 0


def view(data: Buffer) -> View:
    """Parse a frame that carries IPv4 or IPv6.

    :param data: virtio-net header and frame, at least an Ethernet header.
    :raises PacketError: if the packet is malformed.
    """
    packet = parse_ip(memoryview(data)[VIRTIO:])
    payload, protocol = packet.payload, packet.protocol
    at = _start(data, packet)
    if packet.fragment is not None and packet.fragment.offset:
        return View(data, packet, at)
    if protocol == PROTOCOL_UDP:
        if len(payload) < UDP_CODEC.size:
            raise PacketError(Drop.MALFORMED_UDP)
        return View(data, packet, at, *_ports(payload))
    if protocol == PROTOCOL_TCP:
        if len(payload) < TCP_CODEC.size:
            raise PacketError(Drop.MALFORMED_TCP)
        return View(data, packet, at, *_ports(payload), payload[_FLAGS_AT])
    if protocol == PROTOCOLS[packet.family]:
        if len(payload) < ECHO_CODEC.size:
            raise PacketError(Drop.MALFORMED_ICMP)
        kind = payload[0]
        echo = kind in (REQUESTS[packet.family], REPLIES[packet.family])
        identifier = int.from_bytes(payload[_IDENTIFIER : _IDENTIFIER + 2], "big") if echo else 0
        return View(data, packet, at, identifier, 0, 0, kind)
    return View(data, packet, at)


def _start(data: Buffer, packet: Packet) -> int:
    """Return the offset of the payload of a packet in its frame."""
    if packet.family == V6:
        # Extension headers were skipped, and what lies behind the packet is padding.
        end = IP + IPV6_CODEC.size + int.from_bytes(data[_LENGTH6], "big")
        return end - len(packet.payload)
    return IP + _IHL_UNIT * (data[IP] & _IHL_MASK)


def _ports(payload: memoryview) -> tuple[int, int]:
    half = PORTS_BYTES // 2
    return int.from_bytes(payload[:half], "big"), int.from_bytes(payload[half:PORTS_BYTES], "big")
