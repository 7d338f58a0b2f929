"""Frames of a guest and of those that it speaks with, and records of them."""

from __future__ import annotations

from gpasst.capture.record import Record
from gpasst.formats import TCP_CODEC, UDP_CODEC, VIRTIO_NET_BLANK
from gpasst.packet.build import wrap
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip

ENDS = {4: (GUEST4, SERVER4), 6: (GUEST6, SERVER6)}
"""The guest's address and a server's, by family."""

START = 1_700_000_000_000_000_000  # nanoseconds


def framed(family: int, protocol: int, segment: bytes) -> bytes:
    """A frame of the guest's to the server."""
    source, destination = map(ip, ENDS[family])
    return wrap(HOST_MAC, GUEST_MAC, source, destination, protocol, segment)


def datagram(payload: bytes, sport: int = 4242, dport: int = 53) -> bytes:
    """A datagram without a checksum."""
    return UDP_CODEC.pack(source=sport, destination=dport, length=8 + len(payload)) + payload


def segment(flags: int, payload: bytes = b"") -> bytes:
    """A TCP segment with an option, and without a checksum."""
    header = TCP_CODEC.pack(
        source=4242, destination=80, sequence=7, acknowledgement=9, data_offset=6, flags=flags, window=100
    )
    return header + b"\x02\x04\x05\xb4" + payload


def udp(payload: bytes = b"x", family: int = 4, sport: int = 4242, dport: int = 53) -> bytes:
    """A frame of the guest's with a datagram to the server."""
    return framed(family, 17, datagram(payload, sport, dport))


def tcp(flags: int, payload: bytes = b"", family: int = 4) -> bytes:
    """A frame of the guest's with a segment to the server."""
    return framed(family, 6, segment(flags, payload))


def recorded(frame: bytes, to_guest: bool = False, comment: str = "", time_ns: int = START) -> Record:
    """The record of a frame."""
    return Record(time_ns, to_guest, VIRTIO_NET_BLANK + frame, comment)
