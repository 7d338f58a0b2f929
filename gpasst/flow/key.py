"""The key of a flow: the bytes that the guest's packets of one flow have in common.

It is the address of the guest, that of the remote end as the guest sees it, and the port of each, as they stand in a
packet of the guest one behind the other.
"""

from __future__ import annotations

import struct

from gpasst.packet.address import IP4_BYTES, V4, V6

_PORT = struct.Struct(">H")
_PORTS = struct.Struct(">HH")
PORTS_BYTES = _PORTS.size
_KEY4_BYTES = 2 * IP4_BYTES + PORTS_BYTES


def down_key(guest: bytes, shown: bytes, guest_port: int, shown_port: int) -> bytes:
    """Return the key of a flow: addresses and ports exactly as they stand in the headers of a downward packet."""
    return guest + shown + _PORTS.pack(guest_port, shown_port)


def end_key(address: bytes, port: int) -> bytes:
    """Return the key of one end of flows: its address and port, raw."""
    return address + _PORT.pack(port)


def split_end(key: bytes) -> tuple[bytes, int]:
    """Return the address and the port that an `end_key` has."""
    (port,) = _PORT.unpack_from(key, len(key) - _PORT.size)
    return key[: -_PORT.size], port


def split(key: bytes) -> tuple[bytes, bytes, int, int]:
    """Return the guest's address, the remote end's as the guest sees it, and the port of each."""
    half = (len(key) - PORTS_BYTES) // 2
    guest_port, port = _PORTS.unpack_from(key, 2 * half)
    return key[:half], key[half : 2 * half], guest_port, port


def shown(key: bytes) -> tuple[bytes, int, int]:
    """Return the remote end as the guest sees it: address, port, and 0 for no interface."""
    _, address, _, port = split(key)
    return address, port, 0


def family(key: bytes) -> int:
    """Return the family of a key, 4 or 6."""
    return V4 if len(key) == _KEY4_BYTES else V6
