"""Resets for the guest: the answer of a closed port to a segment of no connection (RFC 9293, section 3.10.7.1), and the
reset that takes the place of a segment.
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.parse import Packet
from gpasst.tcp.segment import DATA_OFFSET_UNIT, SEQUENCE_MASK
from gpasst.wire import PROTOCOL_TCP, TCP_ACK, TCP_CODEC, TCP_FIN, TCP_RST, TCP_SYN


def reset(packet: Packet, guest_mac: bytes, host_mac: bytes) -> bytes | None:
    """Build the reset that answers a TCP segment.

    :param packet: a packet with the segment.
    :param guest_mac: destination of the reset, 6 bytes.
    :param host_mac: the host's as the guest sees it, 6 bytes.
    :return: the reset's frame, from the address that the segment was sent to; None if the segment is a reset itself.
    :raises PacketError: `Drop.MALFORMED_TCP`, if the segment is malformed.
    """
    segment = TCP_CODEC.parse(packet.payload, Drop.MALFORMED_TCP)
    flags = segment["flags"]
    if flags & TCP_RST:
        return None
    length = max(0, len(packet.payload) - DATA_OFFSET_UNIT * segment["data_offset"])
    length += bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
    acknowledges = flags & TCP_ACK
    header = TCP_CODEC.pack(
        source=segment["destination"],
        destination=segment["source"],
        sequence=segment["acknowledgement"] if acknowledges else 0,
        acknowledgement=0 if acknowledges else (segment["sequence"] + length) & SEQUENCE_MASK,
        flags=TCP_RST if acknowledges else TCP_RST | TCP_ACK,
        window=0,
    )
    source, destination = packet.destination, packet.source
    complete = with_checksum(header, TCP_CODEC.offset("checksum"), source, destination, PROTOCOL_TCP)
    return wrap(guest_mac, host_mac, source, destination, PROTOCOL_TCP, complete)


def reset_instead(packet: Packet, guest_mac: bytes, host_mac: bytes) -> bytes | None:
    """Build the reset that the guest gets instead of a segment: it has the number that the guest expects.

    No other one is taken at once (RFC 5961, section 3.2).

    :param packet: a packet to the guest with the segment; the other parameters, the result and errors as of `reset`.
    """
    segment = TCP_CODEC.parse(packet.payload, Drop.MALFORMED_TCP)
    if segment["flags"] & TCP_RST:
        return None
    header = TCP_CODEC.pack(
        source=segment["source"],
        destination=segment["destination"],
        sequence=segment["sequence"],
        acknowledgement=segment["acknowledgement"],
        flags=TCP_RST | segment["flags"] & TCP_ACK,
        window=0,
    )
    source, destination = packet.source, packet.destination
    complete = with_checksum(header, TCP_CODEC.offset("checksum"), source, destination, PROTOCOL_TCP)
    return wrap(guest_mac, host_mac, source, destination, PROTOCOL_TCP, complete)
