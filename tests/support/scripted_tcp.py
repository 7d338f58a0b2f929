"""TCP of a guest without a kernel: segments that a test chooses, over passt mode's UNIX socket.

`Talker` is one end of a connection. It does nothing by itself; what it reads is checked as `tests.support.scripted`
checks frames.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN
from tests.support.families import FAMILY
from tests.support.scripted import IP4, IP6, MINIMUM_PAYLOAD, Guest, ones_sum, packed

TCP = 6
HEADER = struct.Struct(">HHIIBBHHH")
MASK = 0xFFFFFFFF
ISN = 0xFFFFFF00  # so that the numbers wrap soon
WINDOW = 0xFFFF
DATA = TCP_ACK | TCP_PSH
END = TCP_ACK | TCP_FIN
REFUSAL = TCP_RST | TCP_ACK


class Segment(NamedTuple):
    """A TCP segment as the guest reads it; numbers are as on the wire."""

    source: tuple[str, int]
    port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    options: bytes
    payload: bytes


def tcp_frame(
    ends: tuple[str, str],
    ports: tuple[int, int],
    numbers: tuple[int, int],
    flags: int,
    window: int = WINDOW,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """Return the frame of a segment, from the EtherType on; `options` fill whole words."""
    pair = packed(ends[0]) + packed(ends[1])
    offset = (HEADER.size + len(options)) // 4 << 4
    head = HEADER.pack(*ports, numbers[0] & MASK, numbers[1] & MASK, offset, flags, window, 0, 0) + options
    length = len(head) + len(payload)
    total = ones_sum(pair + struct.pack(">HH", TCP, length) + head + payload)
    segment = head[:16] + (0xFFFF - total).to_bytes(2, "big") + head[18:] + payload
    if len(pair) == 8:
        base = struct.pack(">BBHHHBB", 0x45, 0, length + 20, 0, 0x4000, 64, TCP)
        return IP4 + base + (0xFFFF - ones_sum(base + pair)).to_bytes(2, "big") + pair + segment
    return IP6 + struct.pack(">IHBB", 6 << 28, length, TCP, 64) + pair + segment


def parse_tcp(frame: bytes) -> Segment | None:
    """Check a frame's lengths, checksums and padding, and return its segment, None if it has none."""
    kind, packet = frame[12:14], frame[14:]
    if kind == IP4 and packet[9] == TCP:
        assert packet[0] == 0x45
        assert packet[6:8] in (b"\0\0", b"\x40\0"), "no fragment"
        assert ones_sum(packet[:20]) == 0, "the checksum makes the sum zero"
        (size,) = struct.unpack(">H", packet[2:4])
        start, pair, family = 20, packet[12:20], 4
    elif kind == IP6 and packet[6] == TCP:
        size = int.from_bytes(packet[4:6], "big") + 40
        start, pair, family = 40, packet[8:40], 6
    else:
        return None
    assert len(packet) == max(size, MINIMUM_PAYLOAD - 14)
    assert not any(packet[size:]), "padding"
    segment = packet[start:size]
    assert ones_sum(pair + struct.pack(">HH", TCP, len(segment)) + segment) == 0
    source, port, sequence, acknowledgement, offset, flags, window, _, urgent = HEADER.unpack_from(segment)
    assert urgent == 0
    data = offset >> 4 << 2
    address = socket.inet_ntop(FAMILY[family], pair[: len(pair) // 2])
    options = segment[HEADER.size : data]
    return Segment((address, source), port, sequence, acknowledgement, flags, window, options, segment[data:])


def read_tcp(guest: Guest) -> Segment:
    """Read up to a segment."""
    while True:
        segment = parse_tcp(guest.frame())
        if segment:
            return segment


class Talker:
    """The guest's end of a connection that the guest opened.

    :ivar sequence: the number of its next byte.
    :ivar expected: the number of the remote end's next byte.
    """

    def __init__(self, guest: Guest, family: int, port: int, target: tuple[str, int], options: bytes = b"") -> None:
        self.guest = guest
        self.ends = guest.addresses[family], target[0]
        self.ports = port, target[1]
        self.target = target
        self.options = options
        self.sequence, self.expected = ISN, 0
        self.window = WINDOW

    def say(
        self, flags: int, payload: bytes = b"", ahead: int = 0, acknowledges: int = 0, options: bytes = b""
    ) -> None:
        """Send a segment, whose numbers may be beside those that are right; `sequence` stays."""
        numbers = self.sequence + ahead, self.expected + acknowledges
        self.guest.send(tcp_frame(self.ends, self.ports, numbers, flags, self.window, payload, options))

    def hear(self) -> Segment:
        """Read a segment of this connection; `expected` stays."""
        while True:
            segment = read_tcp(self.guest)
            if segment.source == self.target and segment.port == self.ports[0]:
                return segment

    def open(self) -> Segment:
        """Make the handshake; return the remote end's part."""
        self.say(TCP_SYN, options=self.options)
        answer = self.hear()
        assert answer.flags == TCP_SYN | TCP_ACK
        self.sequence = (self.sequence + 1) & MASK
        assert answer.acknowledgement == self.sequence
        self.expected = (answer.sequence + 1) & MASK
        self.say(TCP_ACK)
        return answer

    def tell(self, payload: bytes, flags: int = DATA) -> None:
        """Send data in its place."""
        self.say(flags, payload)
        self.sequence = (self.sequence + len(payload) + bool(flags & TCP_FIN)) & MASK

    def acknowledged(self) -> Segment:
        """Read up to the acknowledgement of all that was sent."""
        while (segment := self.hear()).acknowledgement != self.sequence:
            assert (self.sequence - segment.acknowledgement) & MASK < 1 << 31, "of what was not sent"
        return segment

    def listen(self, size: int, acknowledges: bool = True) -> bytes:
        """Read data in its place, each segment acknowledged."""
        data = b""
        while len(data) < size:
            segment = self.hear()
            if not segment.payload:
                continue
            assert segment.sequence == self.expected, "in order"
            data += segment.payload
            self.expected = (self.expected + len(segment.payload)) & MASK
            if acknowledges:
                self.say(TCP_ACK)
        return data
