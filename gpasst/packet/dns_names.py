"""Domain names in wire format (RFC 1035), single names and lists, with and without compression.

A list that exceeds the room of its message is truncated between names: names that do not fit are left out, and earlier
names take precedence.
"""

from __future__ import annotations

from collections.abc import Iterable

POINTER = 0xC000  # flags of a pointer; its other 14 bits are an offset (RFC 1035, section 4.1.4)
OFFSETS = 0x4000  # offsets that 14 bits can express


def encode_name(name: str) -> bytes:
    """Return a domain name in DNS wire format (RFC 1035, section 3.1).

    :param name: labels of up to 63 bytes, as IDNA encodes them; a dot at its end is ignored.
    """
    return b"".join(map(_counted, _labels(name))) + b"\0"


def encode_text(name: str) -> bytes:
    """Return a domain name as ASCII text, without a dot at its end."""
    return b".".join(_labels(name))


def encode_names(names: Iterable[str], room: int) -> bytes:
    """Return the `names` that fit into `room` bytes, in wire format without compression."""
    encoded = b""
    for name in names:
        more = encode_name(name)
        if len(encoded) + len(more) <= room:
            encoded += more
    return encoded


def compress_names(names: Iterable[str], room: int) -> bytes:
    """Return the `names` that fit into `room` bytes, with compression (RFC 1035, section 4.1.4).

    The offsets of pointers count from the start of the first name (RFC 3397, section 2).
    """
    encoded = b""
    places: dict[tuple[bytes, ...], int] = {}
    for name in names:
        labels, more, fresh = _labels(name), b"", {}
        for index, label in enumerate(labels):
            rest, place = labels[index:], len(encoded) + len(more)
            if rest in places:
                more += (POINTER | places[rest]).to_bytes(2, "big")
                break
            if place < OFFSETS:
                fresh[rest] = place
            more += _counted(label)
        else:
            more += b"\0"
        if len(encoded) + len(more) <= room:
            encoded += more
            places.update(fresh)
    return encoded


def _labels(name: str) -> tuple[bytes, ...]:
    return tuple(label.encode("idna") for label in name.rstrip(".").split(".") if label)


def _counted(label: bytes) -> bytes:
    return bytes((len(label),)) + label
