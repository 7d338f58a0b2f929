"""Domain names in wire format (RFC 1035), one or many, with and without compression.

Lists are cut between names where they exceed the room that a message has: names that do not fit are left out, and the
first ones matter most.
"""

from __future__ import annotations

from collections.abc import Iterable

POINTER = 0xC000  # RFC 1035, section 4.1.4; the other bits are an offset


def encode_name(name: str) -> bytes:
    """Give a domain name in DNS wire format (RFC 1035, section 3.1), labels cut at 63 bytes by the sender's care."""
    return b"".join(map(_counted, _labels(name))) + b"\0"


def encode_text(name: str) -> bytes:
    """Give a domain name as text in ASCII, without a dot at its end."""
    return b".".join(_labels(name))


def encode_names(names: Iterable[str], room: int) -> bytes:
    """Give those of `names` that fit into `room` bytes, one behind the other, without compression."""
    encoded = b""
    for name in names:
        more = encode_name(name)
        if len(encoded) + len(more) <= room:
            encoded += more
    return encoded


def compress_names(names: Iterable[str], room: int) -> bytes:
    """Give those of `names` that fit into `room` bytes, what repeats replaced by pointers (RFC 1035, section 4.1.4).

    Pointers count from the first name (RFC 3397, section 2).
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
            if place < 0x10000 - POINTER:
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
