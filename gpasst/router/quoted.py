"""The packet that an ICMP error is about (RFC 792, RFC 4443), as a router needs it to pass the error on."""

from __future__ import annotations

from typing import Final

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import V4
from gpasst.records import dataclass
from gpasst.router.view import View
from gpasst.services.echo import PROTOCOLS
from gpasst.wire import ECHO_CODEC, ICMP_ERROR_CODEC, IPV4_CODEC, IPV6_CODEC, PROTOCOL_TCP, PROTOCOL_UDP

_TRANSPORT_BYTES: Final = 8  # that an error quotes at least (RFC 792)
_IHL_UNIT: Final = 4  # bytes (RFC 791, section 3.1)
_IDENTIFIER: Final = ECHO_CODEC.offset("identifier")


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quoted packet.

    :ivar protocol: IP protocol number: TCP, UDP, ICMP or ICMPv6.
    :ivar source: its source address.
    :ivar source_port: its source port, or the identifier of an echo.
    :ivar destination: its destination address.
    :ivar destination_port: its destination port, or the identifier of an echo.
    :ivar at: offset of its transport header in the error.
    """

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    at: int

    @property
    def echo(self) -> bool:
        """Whether it is of an echo exchange."""
        return self.protocol not in (PROTOCOL_TCP, PROTOCOL_UDP)

    @property
    def ends(self) -> tuple[bytes, int, bytes, int]:
        """Its addresses and ports; an echo has its identifier in the place of the source port."""
        return self.source, self.source_port, self.destination, 0 if self.echo else self.destination_port


def quoted(error: View) -> Quoted:
    """Parse the packet that an error quotes.

    :param error: an ICMP or ICMPv6 error.
    :raises PacketError: `Drop.MALFORMED_ICMP`; `Drop.GUEST_ERROR` for a later fragment or another protocol.
    """
    message, family = bytes(error.packet.payload), error.packet.family
    start = ICMP_ERROR_CODEC.size
    codec = IPV4_CODEC if family == V4 else IPV6_CODEC
    if len(message) < start + codec.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    fields = codec.unpack_from(message, start)
    size = _IHL_UNIT * fields["ihl"] if family == V4 else codec.size
    if fields["version"] != family or size < codec.size:
        raise PacketError(Drop.MALFORMED_ICMP)
    protocol = fields["protocol"] if family == V4 else fields["next_header"]
    if protocol not in (PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOLS[family]) or fields.get("fragment_offset"):
        raise PacketError(Drop.GUEST_ERROR)
    at = start + size
    if len(message) < at + _TRANSPORT_BYTES:
        raise PacketError(Drop.MALFORMED_ICMP)
    if protocol == PROTOCOLS[family]:
        identifier = int.from_bytes(message[at + _IDENTIFIER : at + _IDENTIFIER + 2], "big")
        return Quoted(protocol, fields["source"], identifier, fields["destination"], identifier, at)
    source_port, port = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
    return Quoted(protocol, fields["source"], source_port, fields["destination"], port, at)
