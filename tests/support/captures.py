"""Capture files, read back: pcap in the words of pcap-savefile(5), pcapng by its declarations."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpasst.formats import (
    PCAP_FILE_CODEC,
    PCAP_RECORD_CODEC,
    PCAPNG_END,
    PCAPNG_FLAGS,
    PCAPNG_INTERFACE,
    PCAPNG_OPTION,
    PCAPNG_PACKET,
    PCAPNG_SECTION,
)
from tests.support.need import need

SNAP_LENGTH = 262144


def records(path: Path) -> list[tuple[int, int, bytes]]:
    """Read a pcap file: seconds, microseconds and frame of each record."""
    data = path.read_bytes()
    head = PCAP_FILE_CODEC.unpack_from(data)
    assert (head["magic"], head["snap_length"], head["link_type"]) == (0xA1B2C3D4, SNAP_LENGTH, 1)
    found = []
    at = PCAP_FILE_CODEC.size
    while at < len(data):
        record = PCAP_RECORD_CODEC.unpack_from(data, at)
        at += PCAP_RECORD_CODEC.size
        assert record["captured"] == record["length"] <= len(data) - at
        found.append((record["seconds"], record["microseconds"], data[at : at + record["length"]]))
        at += record["length"]
    return found


@dataclass(frozen=True)
class Packet:
    """A frame in a pcapng file.

    :ivar interface: the name of its interface.
    :ivar time_ns: nanoseconds since 1970.
    :ivar direction: 1 is inbound, 2 outbound.
    :ivar comment: empty for none.
    """

    interface: str
    time_ns: int
    frame: bytes
    direction: int
    comment: str


def packets(path: Path) -> list[Packet]:
    """Read a pcapng file; every block of it is checked."""
    data = path.read_bytes()
    section = PCAPNG_SECTION.parse(data)
    assert (section.type, section.magic, section.length, section.end) == (0x0A0D0D0A, 0x1A2B3C4D, 28, 28)
    assert (section.version_major, section.version_minor, section.section_length) == (1, 0, -1)
    names: list[str] = []
    found: list[Packet] = []
    at = section.length
    while at < len(data):
        kind, length = (int.from_bytes(data[i : i + 4], "little") for i in (at, at + 4))
        block = data[at : at + length]
        assert length % 4 == 0 and len(block) == length == PCAPNG_END.parse(block[-4:]).length
        at += length
        if kind == 1:
            interface = PCAPNG_INTERFACE.parse(block)
            assert (interface.link_type, interface.snap_length) == (1, SNAP_LENGTH)
            options = _options(block[PCAPNG_INTERFACE.sizeof() : -4])
            assert options[9] == b"\x09"
            names.append(options[2].decode())
            continue
        packet = PCAPNG_PACKET.parse(block)
        assert (packet.type, packet.captured) == (6, packet.original)
        start = PCAPNG_PACKET.sizeof()
        end = start + packet.captured
        options = _options(block[end + -packet.captured % 4 : -4])
        flags = PCAPNG_FLAGS.parse(PCAPNG_OPTION.build({"code": 2, "length": 4}) + options[2])
        assert not flags.others
        time_ns = packet.time_high << 32 | packet.time_low
        comment = options.get(1, b"").decode()
        found.append(Packet(names[packet.interface], time_ns, block[start:end], flags.direction, comment))
    return found


def _options(data: bytes) -> dict[int, bytes]:
    """Return the options of a block, which end with its end."""
    found: dict[int, bytes] = {}
    while True:
        head = PCAPNG_OPTION.parse(data)
        if not head.code:
            assert data == bytes(4)
            return found
        found[head.code] = data[4 : 4 + head.length]
        data = data[4 + head.length + -head.length % 4 :]


def dissected(path: Path, *arguments: str) -> list[str]:
    """Return the lines that tshark prints of a capture file, which it reads without a complaint."""
    command = [need("tshark"), "-r", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
