"""IP and Ethernet addresses as bytes: the ones with names, and what kind an address is.

An IP address is 4 or 16 bytes in network order, so its length tells its family.
"""

from __future__ import annotations

LOOPBACK = {4: bytes((127, 0, 0, 1)), 6: bytes(15) + b"\x01"}
UNSPECIFIED = {4: bytes(4), 6: bytes(16)}
ANY = {4: "0.0.0.0", 6: "::"}
"""The unspecified addresses as text, which sockets are bound to for every address."""

BROADCAST_MAC = b"\xff" * 6
IP4_BYTES = 4
IP6_BYTES = 16


def family_of(address: bytes) -> int:
    """Return the family, 4 or 6, of an address of 4 or 16 bytes."""
    return 4 if len(address) == IP4_BYTES else 6


def is_loopback(address: bytes) -> bool:
    """Tell whether an address of 4 or 16 bytes is 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1 (RFC 4291)."""
    return address[0] == 127 if len(address) == 4 else address == LOOPBACK[6]


def is_link_local(address: bytes) -> bool:
    """Tell whether an address of 16 bytes is in fe80::/10 (RFC 4291, section 2.5.6)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_multicast(address: bytes) -> bool:
    """Tell whether an address of 4 or 16 bytes is a multicast one (RFC 5771, RFC 4291)."""
    return address[0] & 0xF0 == 0xE0 if len(address) == 4 else address[0] == 0xFF


def is_v4_mapped(address: bytes) -> bool:
    """Tell whether an IPv6 address is an IPv4-mapped one (RFC 4291, section 2.5.5.2)."""
    return len(address) == 16 and address[:12] == bytes(10) + b"\xff\xff"
