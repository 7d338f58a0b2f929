"""TCP is not carried yet: what is no RST is answered with one, so that nobody waits (RFC 9293, 3.10.7.1)."""

from __future__ import annotations

from gpasst.codec import parse_untrusted
from gpasst.counters import Drop
from gpasst.formats import PROTOCOL_TCP, TCP, TCP_ACK, TCP_CODEC, TCP_FIN, TCP_RST, TCP_SYN
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.parse import Packet


def reset(packet: Packet, guest_mac: bytes, host_mac: bytes) -> bytes | None:
    """Answer a TCP segment with a RST, as the address it was sent to would for a closed port.

    :return: the frame, or None if the segment is a RST itself.
    :raises PacketError: if the segment is malformed.
    """
    segment = parse_untrusted(TCP, packet.payload, Drop.MALFORMED_TCP)
    if segment.flags & TCP_RST:
        return None
    length = max(0, len(packet.payload) - 4 * segment.data_offset)
    length += bool(segment.flags & TCP_SYN) + bool(segment.flags & TCP_FIN)
    acknowledges = segment.flags & TCP_ACK
    header = TCP_CODEC.pack(
        source=segment.destination,
        destination=segment.source,
        sequence=segment.acknowledgement if acknowledges else 0,
        acknowledgement=0 if acknowledges else (segment.sequence + length) & 0xFFFFFFFF,
        flags=TCP_RST if acknowledges else TCP_RST | TCP_ACK,
        window=0,
    )
    source, destination = packet.destination, packet.source
    complete = with_checksum(header, TCP_CODEC.offset("checksum"), source, destination, PROTOCOL_TCP)
    return wrap(guest_mac, host_mac, source, destination, PROTOCOL_TCP, complete)
