"""The key of a connection: the bytes that the guest's segments have in common.

It is the address of the guest, that of the remote end as the guest sees it, and the port of each, as they stand in a
segment of the guest one behind the other.
"""

from __future__ import annotations

import struct

_PORTS = struct.Struct(">HH")


def split(key: bytes) -> tuple[bytes, bytes, int, int]:
    """Return the guest's address, the remote end's as the guest sees it, and the port of each."""
    half = (len(key) - _PORTS.size) // 2
    guest_port, port = _PORTS.unpack_from(key, 2 * half)
    return key[:half], key[half : 2 * half], guest_port, port


def shown(key: bytes) -> tuple[bytes, int, int]:
    """Return the remote end as the guest sees it: address, port, and 0 for no interface."""
    _, address, _, port = split(key)
    return address, port, 0
