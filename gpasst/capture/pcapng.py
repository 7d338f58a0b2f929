"""The newer format of capture files (draft-ietf-opsawg-pcapng): interfaces by name, directions, comments, nanoseconds.

Theory of operation: a file is one section. Its interfaces are described before their first frame, also in the midst of
a file. A frame is an enhanced packet block, whose direction is that of the guest's interface: inbound is to the guest.
A frame that was lost has its fate as comment.
"""

from __future__ import annotations

from typing import Final

from gpasst.capture.record import SNAP_LENGTH, Record
from gpasst.wire import (
    PCAPNG_END_CODEC,
    PCAPNG_FLAGS_CODEC,
    PCAPNG_INBOUND,
    PCAPNG_INTERFACE_CODEC,
    PCAPNG_NANOSECONDS,
    PCAPNG_OPTION_CODEC,
    PCAPNG_OPTION_COMMENT,
    PCAPNG_OPTION_END,
    PCAPNG_OPTION_INTERFACE_NAME,
    PCAPNG_OPTION_RESOLUTION,
    PCAPNG_OUTBOUND,
    PCAPNG_PACKET_CODEC,
    PCAPNG_PACKET_TYPE,
    PCAPNG_SECTION_CODEC,
)

_ALIGNMENT: Final = 4  # bytes
_PADDING: Final = (b"", b"\0", b"\0\0", b"\0\0\0")
_HALF: Final = 32  # bits of each half of a time
_HALF_MASK: Final = (1 << _HALF) - 1
_TEXT_BYTES: Final = 0xFFF0  # of a name or comment; an option has 65535

# The arguments are the declarations' fields in order.
_pack = PCAPNG_PACKET_CODEC.layout.pack
_pack_end = PCAPNG_END_CODEC.layout.pack
_AROUND = PCAPNG_PACKET_CODEC.size + PCAPNG_END_CODEC.size


def _option(code: int, value: bytes) -> bytes:
    return PCAPNG_OPTION_CODEC.pack(code=code, length=len(value)) + value + _PADDING[-len(value) % _ALIGNMENT]


_NO_MORE = _option(PCAPNG_OPTION_END, b"")
# By whether the frame is to the guest.
_FLAGS = (PCAPNG_FLAGS_CODEC.pack(direction=PCAPNG_OUTBOUND), PCAPNG_FLAGS_CODEC.pack(direction=PCAPNG_INBOUND))
_PLAIN = tuple(flags + _NO_MORE for flags in _FLAGS)


class Pcapng:
    """The newer format."""

    def head(self) -> bytes:
        """Return what stands at the start of a file."""
        return PCAPNG_SECTION_CODEC.pack()

    def interface(self, name: str) -> bytes:
        """Return the description of one more interface; they are counted from 0."""
        options = (
            _option(PCAPNG_OPTION_INTERFACE_NAME, _text(name))
            + _option(PCAPNG_OPTION_RESOLUTION, bytes((PCAPNG_NANOSECONDS,)))
            + _NO_MORE
        )
        size = PCAPNG_INTERFACE_CODEC.size + len(options) + PCAPNG_END_CODEC.size
        return PCAPNG_INTERFACE_CODEC.pack(length=size, snap_length=SNAP_LENGTH) + options + _pack_end(size)

    def blocks(self, record: Record, interface: int) -> list[bytes]:
        """Return what stands for each frame of a record of an interface."""
        high, low = record.time_ns >> _HALF, record.time_ns & _HALF_MASK
        options = _PLAIN[record.to_guest]
        if record.comment:
            options = _option(PCAPNG_OPTION_COMMENT, _text(record.comment)) + options
        found = []
        for frame in record.frames():
            size = len(frame)
            padding = _PADDING[-size % _ALIGNMENT]
            length = _AROUND + size + len(padding) + len(options)
            head = _pack(PCAPNG_PACKET_TYPE, length, interface, high, low, size, size)
            found.append(b"".join((head, frame, padding, options, _pack_end(length))))
        return found


def _text(text: str) -> bytes:
    """Return a name or comment in UTF-8, cut to what fits."""
    return text.encode("utf-8", "replace")[:_TEXT_BYTES].decode("utf-8", "ignore").encode()
