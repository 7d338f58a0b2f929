"""TCP frames of the guest: to their connections, past the backlog, where these are known.

Theory of operation: `frame` reads the few fields that make a frame an ordinary TCP segment, and finds its connection by
the raw bytes of addresses and ports, as `gpasst.path.fastpath` does for UDP. Its data goes to the socket at once, from
where it lies. Acknowledgements and everything else wait until the reader has read its batch and calls
`TcpSockets.run`.

A segment of no connection comes by the backlog (`gpasst.path.dispatch`), and so do fragments and packets with IP
options or extension headers: `outbound` opens a connection, or refuses the segment.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.flow.key import PORTS_BYTES, down_key
from gpasst.link.port import Link
from gpasst.linux import UIO_MAXIOV
from gpasst.packet.address import family_of, is_loopback
from gpasst.packet.icmp_error import Reported
from gpasst.packet.parse import Packet
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.tcp.connection import Connection
from gpasst.tcp.reset import reset
from gpasst.tcp.segment import OFFSET_MASK, OFFSET_SHIFT, SEQUENCE_MASK, Offer, Segment, parse, parse_options
from gpasst.tcp.table import ConnectionTable
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_CODEC,
    IPV6_VERSION,
    PROTOCOL_TCP,
    STREAM_LEAD_BYTES,
    TCP4,
    TCP6,
    TCP_ACK,
    TCP_CODEC,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
    VIRTIO_NET_CODEC,
)

MTU_LEAST = {4: 68, 6: 1280}  # bytes (RFC 791, section 3.2; RFC 8201, section 4)
HEADERS = {4: IPV4_CODEC.size + TCP_CODEC.size, 6: IPV6_CODEC.size + TCP_CODEC.size}  # bytes of a packet

_pick4 = TCP4.picker(
    "ethernet.ethertype",
    "ip.version",
    "ip.total_length",
    "ip.flags",
    "ip.protocol",
    "tcp.sequence",
    "tcp.acknowledgement",
    "tcp.data_offset",
    "tcp.flags",
    "tcp.window",
).unpack_from
_pick6 = TCP6.picker(
    "ip.version",
    "ip.payload_length",
    "ip.next_header",
    "tcp.sequence",
    "tcp.acknowledgement",
    "tcp.data_offset",
    "tcp.flags",
    "tcp.window",
).unpack_from
_KEY4 = TCP4.offset("ip.source"), TCP4.offset("tcp.sequence")
_KEY6 = TCP6.offset("ip.source"), TCP6.offset("tcp.sequence")
_IP4, _IP6 = TCP4.offset("ip.version"), TCP6.offset("ip.version")
_TCP4, _TCP6 = TCP4.offset("tcp.source"), TCP6.offset("tcp.source")
_HEADER = TCP_CODEC.size
_VERSION_SHIFT = 28  # of the version in the first word of an IPv6 header

# The same places in a frame without virtio-net header.
_VIRTIO = VIRTIO_NET_CODEC.size
_TYPE = slice(TCP4.offset("ethernet.ethertype") - _VIRTIO, _IP4 - _VIRTIO)
_IPV4, _IPV6 = (kind.to_bytes(2, "big") for kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6))
_PROTOCOL4, _PROTOCOL6 = TCP4.offset("ip.protocol") - _VIRTIO, TCP6.offset("ip.next_header") - _VIRTIO
_FLOW4, _FLOW6 = (slice(start - _VIRTIO, end - _VIRTIO) for start, end in (_KEY4, _KEY6))
_NO_OFFER = Offer()

# All headers of a frame on a stream, from its length on, but identification and checksums, which differ within a flow.
_REPEATING = {
    4: struct.Struct(
        f">{TCP4.offset('ip.identification') - STREAM_LEAD_BYTES}s2x"
        f"{TCP4.offset('ip.checksum') - TCP4.offset('ip.flags')}s2x"
        f"{TCP4.offset('tcp.sequence') - TCP4.offset('ip.source')}sI5sBH"
    ).unpack_from,
    6: struct.Struct(f">{TCP6.offset('tcp.sequence') - STREAM_LEAD_BYTES}sI5sBH").unpack_from,
}
_HEADERS = {4: TCP4.size, 6: TCP6.size}
_GO_ON = TCP_ACK | TCP_PSH
_FOLLOWING = UIO_MAXIOV - 1  # frames that one call takes behind the first


class TcpFrames:
    """Hands the guest's segments to their connections.

    :param table: the connections.
    :param sockets: does their work.
    :param opener: opens new ones.
    :param link: where a RST for a segment of no connection is written.
    :param guest: the guest.
    :param counters: where drops are counted.
    :ivar queue: connections with work.
    :ivar run: does it (`TcpSockets.follow`).
    :ivar ask: lets it be done in a step of its own (`TcpSockets.ask`).
    """

    def __init__(
        self,
        table: ConnectionTable,
        sockets: TcpSockets,
        opener: TcpOpener,
        link: Link,
        guest: Guest,
        counters: Counters,
    ) -> None:
        self._by_key = table.by_key
        self._sockets = sockets
        self._opener = opener
        self._link = link
        self._guest = guest
        self._counters = counters
        self._clock = sockets.clock
        self.run = sockets.follow
        self.ask = sockets.ask
        self.queue = sockets.queue

    def frame(self, buffer: bytearray | memoryview, view: memoryview, at: int, size: int, end_of_all: int = 0) -> int:
        """Take a frame, and those behind it that go on with its data.

        :param buffer: where the frame lies.
        :param view: the same.
        :param at: where its virtio-net header begins, or would.
        :param size: bytes from there to the end of the frame.
        :param end_of_all: where the frames end that stand one behind the other, each behind its length; 0 where a
            frame stands alone.
        :return: how many frames it was; 0 if it is no segment of a known connection.
        """
        if size < _TCP4 + _HEADER:
            return 0
        ethertype, version, total, fragment, protocol, sequence, acknowledgement, offset, flags, window = _pick4(
            buffer, at
        )
        if ethertype == ETHERTYPE_IPV4:
            if protocol != PROTOCOL_TCP or version != IPV4_VERSION_IHL or fragment & IPV4_FRAGMENT_MASK:
                return 0
            connection = self._by_key.get(bytes(buffer[at + _KEY4[0] : at + _KEY4[1]]))
            start, end = _TCP4, _IP4 + total
        elif ethertype == ETHERTYPE_IPV6 and size >= _TCP6 + _HEADER:
            word, total, protocol, sequence, acknowledgement, offset, flags, window = _pick6(buffer, at)
            if protocol != PROTOCOL_TCP or word >> _VERSION_SHIFT != IPV6_VERSION:
                return 0
            connection = self._by_key.get(bytes(buffer[at + _KEY6[0] : at + _KEY6[1]]))
            start, end = _TCP6, _TCP6 + total
        else:
            return 0
        if connection is None:
            return 0
        data = start + ((offset & OFFSET_MASK) >> OFFSET_SHIFT)
        if data < start + _HEADER or not data <= end <= size:
            self._counters.drop(Drop.MALFORMED_TCP)
            return 1
        payload = view[at + data : at + end]
        if connection.established:
            work = connection.take(sequence, acknowledgement, flags, window, payload, self._clock())
        else:
            options = bytes(buffer[at + start + _HEADER : at + data])
            segment = Segment(sequence, acknowledgement, flags, window, payload, options)
            work = connection.segment(segment, _offer(segment), self._clock())
        more: list[memoryview] = []
        if end_of_all and connection.fresh and data == start + _HEADER and end == size and not flags & ~_GO_ON:
            more = self._following(connection, buffer, view, at, size, end_of_all)
        self._follow(connection, work, more)
        return 1 + len(more)

    def _following(
        self,
        connection: Connection,
        buffer: bytearray | memoryview,
        view: memoryview,
        at: int,
        size: int,
        end_of_all: int,
    ) -> list[memoryview]:
        """Return the data of the frames that go on with that of a frame on a stream, of the same size and headers.

        :param size: bytes of the frame, with the virtio-net header that a stream lacks.
        """
        family = connection.family
        pick, headers = _REPEATING[family], _HEADERS[family]
        step, length = size - STREAM_LEAD_BYTES, size - headers
        first = at + STREAM_LEAD_BYTES
        *before, sequence, behind, _, window = pick(buffer, first)
        most = (connection.receiver.window.edge - connection.receiver.next & SEQUENCE_MASK) // length
        found: list[memoryview] = []
        for following in range(first + step, end_of_all - step + 1, step):
            *head, number, acknowledgement, flags, field = pick(buffer, following)
            sequence = sequence + length & SEQUENCE_MASK
            if (
                head != before
                or number != sequence
                or acknowledgement != behind
                or field != window
                or flags & ~_GO_ON
                or not flags & TCP_ACK
                or len(found) == min(most, _FOLLOWING)
            ):
                break
            data = following + headers - STREAM_LEAD_BYTES
            found.append(view[data : data + length])
        return found if found and connection.receiver.extend(length * len(found)) else []

    def knows(self, frame: bytes) -> bool:
        """Return whether a frame, from its destination MAC address on, is a segment of a known connection.

        :param frame: without IP options, fragments or extension headers; one that is cut short is none.
        """
        kind = frame[_TYPE]
        if kind == _IPV4:
            return frame[_FLOW4] in self._by_key and frame[_PROTOCOL4] == PROTOCOL_TCP
        return kind == _IPV6 and frame[_FLOW6] in self._by_key and frame[_PROTOCOL6] == PROTOCOL_TCP

    def outbound(self, packet: Packet) -> None:
        """Take a packet that may be of no connection.

        :raises PacketError: if it is malformed, or of no connection and opens none.
        """
        segment = parse(packet.payload)
        key = packet.source + packet.destination + bytes(packet.payload[:PORTS_BYTES])
        connection = self._by_key.get(key)
        if connection is not None:
            self._follow(connection, connection.segment(segment, _offer(segment), self._clock()))
            self._sockets.ask()
        elif segment.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN:
            self._opener.outbound(packet, segment, key)
        elif not segment.flags & TCP_RST:
            self._refuse(packet)

    def too_big(self, reported: Reported) -> None:
        """Let a connection send smaller segments, since one did not fit into a link of the guest.

        What the error quotes must be in flight, so that nobody can slow down a connection who does not see it
        (RFC 5927, section 4.1). Nothing but that connection has smaller segments then.

        :raises PacketError: `Drop.GUEST_ERROR`, if it is about no segment in flight, or its MTU is below the least.
        """
        key = down_key(reported.destination, reported.source, reported.destination_port, reported.source_port)
        connection = self._by_key.get(key)
        family, mtu = family_of(reported.source), reported.problem.parameter
        if connection is None or mtu < MTU_LEAST[family] or not connection.sender.flies(reported.sequence):
            raise PacketError(Drop.GUEST_ERROR)
        self._follow(connection, connection.narrow(mtu - HEADERS[family]))
        self._sockets.ask()

    def _refuse(self, packet: Packet) -> None:
        """Answer a segment of no connection with a RST.

        :raises PacketError: always.
        """
        if is_loopback(packet.source) or is_loopback(packet.destination):
            raise PacketError(Drop.LOOPBACK_ADDRESS)
        frame = reset(packet, self._guest.mac, self._guest.network.host_mac)
        if frame is not None:
            self._link.write_frame(frame)
        raise PacketError(Drop.TCP)

    def _follow(self, connection: Connection, work: int, more: Sequence[memoryview] = ()) -> None:
        """Offer to the socket what a segment has brought, and `more` behind it; add the work that follows."""
        if connection.fresh:
            work |= self._sockets.offer(connection, more)
        if work:
            self._sockets.mark(connection, work)


def _offer(segment: Segment) -> Offer:
    """Return what a segment offers, if it is a SYN."""
    return parse_options(segment.options) if segment.flags & TCP_SYN else _NO_OFFER
