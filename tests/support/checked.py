"""The guest's end of a link that checks each frame on its way to the guest."""

from __future__ import annotations

from typing import Any

from gpasst.errors import PacketError
from gpasst.formats import ETHERTYPE_ARP, PROTOCOL_UDP, VIRTIO_NET_CODEC
from gpasst.link.port import RunHeader
from gpasst.packet import checksum
from gpasst.packet.parse import parse_ip
from gpasst.packet.segmentation import split
from tests.support.addresses import HOST_MAC

ETHERNET_BYTES = 14
FRAME_LIMIT = 65535 + ETHERNET_BYTES


class CheckedLink:
    """The guest's end: the frames that were written to it, each of which is checked."""

    recorder = gate = None
    ready = True
    full = False

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.socket: Any = None

    def write_frame(self, frame: bytes) -> None:
        check(frame)
        self.frames.append(frame)

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        for frame in split(bytes(header.fill(total, segment)) + b"".join(payload)):
            self.write_frame(frame)

    def write_bare(self, header: RunHeader) -> None:
        self.write_frame(bytes(header.fill(0, 0)[VIRTIO_NET_CODEC.size :]))

    def superframe(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> bytes:
        return bytes(header.fill(total, segment)) + b"".join(payload)

    def write_held(self, data: bytes, count: int, head: int, family: int, protocol: str) -> None:
        del head, family, protocol
        frames = list(split(data))
        assert len(frames) == count
        # Weather may have damaged them.
        assert all(ETHERNET_BYTES < len(frame) <= FRAME_LIMIT for frame in frames)
        self.frames += frames

    def flush(self) -> None:
        """Nothing is gathered."""


def check(frame: bytes) -> None:
    """Check that a frame to the guest is one: its lengths, and the checksum of an IPv4 header."""
    assert ETHERNET_BYTES < len(frame) <= FRAME_LIMIT
    assert frame[6:12] == HOST_MAC
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == ETHERTYPE_ARP:
        assert len(frame) == ETHERNET_BYTES + 28
        return
    try:
        packet = parse_ip(memoryview(frame))
    except PacketError as error:
        raise AssertionError(f"a malformed frame for the guest: {frame.hex()}") from error
    head = 20 if packet.family == 4 else 40
    assert len(packet.payload) == len(frame) - ETHERNET_BYTES - head
    if packet.family == 4:
        assert checksum.ones_sum(frame[ETHERNET_BYTES : ETHERNET_BYTES + head]) == 0xFFFF
    if packet.protocol == PROTOCOL_UDP:
        assert int.from_bytes(packet.payload[4:6], "big") == len(packet.payload)
