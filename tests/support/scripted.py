"""A guest without a kernel: a test that speaks Ethernet over passt mode's UNIX socket, as qemu does for its machine.

Every frame that it reads is checked: its length, its addresses, its checksums and its padding.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from tests.support.families import FAMILY
from tests.support.lab import HOST4, HOST6, PATIENCE

if TYPE_CHECKING:
    from typing_extensions import Self

MAC = bytes.fromhex("525400123456")
HOST_MAC = bytes.fromhex("9a559a559a55")
BROADCAST = b"\xff" * 6
MTU = 65520  # what DHCP and router advertisements say
MINIMUM_PAYLOAD = 60  # bytes of a frame
IP4, ARP, IP6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
UDP, FRAGMENT = 17, 44


class Datagram(NamedTuple):
    """A UDP datagram as the guest reads it."""

    payload: bytes
    sender: tuple[str, int]
    port: int


def ones_sum(data: bytes) -> int:
    """The sum of 16-bit words with end-around carry, which is what is left of a division by 65535."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def udp_packets(source: str, port: int, target: str, target_port: int, payload: bytes, mtu: int = MTU) -> list[bytes]:
    """Return the frames of one datagram, several if it does not fit the MTU."""
    ends = packed(source) + packed(target)
    length = len(payload) + 8
    head = struct.pack(">HHH", port, target_port, length)
    # Over both families the pseudo header's sum is that of the addresses, the length and the protocol.
    total = ones_sum(ends + struct.pack(">HH", UDP, length) + head + b"\0\0" + payload)
    segment = head + ((0xFFFF - total) or 0xFFFF).to_bytes(2, "big") + payload
    identification = ones_sum(segment[:64])
    room = (mtu - (20 if len(ends) == 8 else 48)) // 8 * 8
    if len(segment) + (20 if len(ends) == 8 else 40) <= mtu:
        room = len(segment)
    frames = []
    for at in range(0, len(segment), room):
        piece = segment[at : at + room]
        more = at + room < len(segment)
        if len(ends) == 8:
            fields = (0x45, 0, len(piece) + 20, identification, more << 13 | at // 8, 64, UDP)
            base = struct.pack(">BBHHHBB", *fields)
            checksum = 0xFFFF - ones_sum(base + ends)
            packet = base + checksum.to_bytes(2, "big") + ends + piece
        elif room < len(segment):
            extension = struct.pack(">BBHI", UDP, 0, at | more, identification)
            packet = struct.pack(">IHBB", 6 << 28, len(piece) + 8, FRAGMENT, 64) + ends + extension + piece
        else:
            packet = struct.pack(">IHBB", 6 << 28, len(piece), UDP, 64) + ends + piece
        frames.append((IP4 if len(ends) == 8 else IP6) + packet)
    return frames


def parse_udp(frame: bytes) -> Datagram | None:
    """Check a frame's lengths, checksums and padding, and return its datagram, None if it has none."""
    kind, packet = frame[12:14], frame[14:]
    if kind == IP4:
        assert packet[0] == 0x45
        assert ones_sum(packet[:20]) == 0, "the checksum makes the sum zero"
        (size,) = struct.unpack(">H", packet[2:4])
        assert packet[6:8] in (b"\0\0", b"\x40\0"), "no fragment"
        protocol, ends, start, family = packet[9], packet[12:20], 20, 4
    elif kind == IP6:
        (size,) = struct.unpack(">H", packet[4:6])
        size += 40
        protocol, ends, start, family = packet[6], packet[8:40], 40, 6
    else:
        return None
    if protocol != UDP:
        return None
    assert len(packet) == max(size, MINIMUM_PAYLOAD - 14)
    assert not any(packet[size:]), "padding"
    source, port, length, checksum = struct.unpack(">HHHH", packet[start : start + 8])
    assert length == size - start
    assert checksum or family == 4
    if checksum:
        assert ones_sum(ends + struct.pack(">HH", UDP, length) + packet[start:size]) == 0
    address = socket.inet_ntop(FAMILY[family], ends[: len(ends) // 2])
    return Datagram(packet[start + 8 : size], (address, source), port)


class Guest:
    """One end of a stream of frames.

    :ivar sent: the frames it sent.
    :ivar read: the frames it read.
    """

    def __init__(self, sock: socket.socket, mac: bytes = MAC) -> None:
        sock.settimeout(PATIENCE)
        self.socket = sock
        self.mac = mac
        self.addresses = {4: HOST4, 6: HOST6}
        self.sent: list[bytes] = []
        self.read: list[bytes] = []
        self._left = b""

    @classmethod
    def connect(cls, path: str | Path, mac: bytes = MAC) -> Self:
        """Connect to a listening socket."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock, mac)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send frames from the EtherType on, in as few calls as the socket takes."""
        whole = [HOST_MAC + self.mac + frame for frame in frames]
        self.sent += whole
        self.socket.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in whole))

    def datagrams(self, port: int, to: tuple[str, int], *payloads: bytes, mtu: int = MTU) -> list[bytes]:
        """Return the frames of datagrams from the guest's `port`, for `send`."""
        own = self.addresses[6 if ":" in to[0] else 4]
        return [frame for payload in payloads for frame in udp_packets(own, port, *to, payload, mtu)]

    def sendto(self, port: int, to: tuple[str, int], *payloads: bytes) -> None:
        """Send datagrams from the guest's `port`."""
        self.send(*self.datagrams(port, to, *payloads))

    def frame(self) -> bytes:
        """Read one frame.

        :raises EOFError: if there is none, and will be none.
        """
        length = int.from_bytes(self._take(4), "big")
        assert MINIMUM_PAYLOAD <= length <= 65535 + 54
        frame = self._take(length)
        assert frame[6:12] == HOST_MAC
        self.read.append(frame)
        return frame

    def await_frame(self, wanted: Callable[[bytes], bool]) -> bytes:
        """Read up to a frame that is wanted."""
        while not wanted(frame := self.frame()):
            pass
        return frame

    def recv(self) -> Datagram:
        """Read up to a UDP datagram."""
        while True:
            frame = self.frame()
            found = parse_udp(frame)
            if found:
                assert frame[:6] in (self.mac, BROADCAST), "to this guest, or to whoever it is"
                return found

    def ended(self) -> bool:
        """Read up to the end of the stream; tell whether it came between two frames."""
        try:
            while True:
                self.frame()
        except EOFError:
            return not self._left

    def _take(self, size: int) -> bytes:
        while len(self._left) < size:
            data = self.socket.recv(max(1 << 18, size))
            if not data:
                raise EOFError
            self._left += data
        taken, self._left = self._left[:size], self._left[size:]
        return taken
