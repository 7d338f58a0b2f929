"""IP and Ethernet addresses as bytes: the special ones, and what kind an address is.

An IP address is 4 or 16 bytes in network order, so its length says its family.
"""

from __future__ import annotations

from typing import Final

V4: Final = 4
V6: Final = 6
"""The IP versions, which name the address families throughout."""

IP4_BYTES: Final = 4
IP6_BYTES: Final = 16

LOOPBACK = {V4: bytes((127, 0, 0, 1)), V6: bytes(15) + b"\x01"}
UNSPECIFIED = {V4: bytes(IP4_BYTES), V6: bytes(IP6_BYTES)}
ANY = {V4: "0.0.0.0", V6: "::"}
"""The unspecified addresses as text: a socket that is bound to one receives on every address."""

BROADCAST_MAC = b"\xff" * 6

_LOOPBACK4_NET: Final = 127  # first byte of 127.0.0.0/8 (RFC 1122, section 3.2.1.3)
_MULTICAST4 = range(0xE0, 0xF0)  # first byte of 224.0.0.0/4 (RFC 5771)
_MULTICAST6: Final = 0xFF  # first byte of ff00::/8 (RFC 4291, section 2.7)
_SCOPE6_MASK: Final = 0x0F  # of the second byte of an IPv6 multicast address (RFC 4291, section 2.7)
_INTERFACE_SCOPE6: Final = 1
_LINK_LOCAL = range(0xFE80, 0xFEC0)  # first 16 bits of fe80::/10 (RFC 4291, section 2.5.6)
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"  # first 12 bytes of ::ffff:0:0/96 (RFC 4291, section 2.5.5.2)


def family_of(address: bytes) -> int:
    """Return the family, `V4` or `V6`, of an address of 4 or 16 bytes."""
    return V4 if len(address) == IP4_BYTES else V6


def is_loopback(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is in 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1 (RFC 4291)."""
    return address[0] == _LOOPBACK4_NET if len(address) == IP4_BYTES else address == LOOPBACK[V6]


def is_link_local(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is in fe80::/10 (RFC 4291, section 2.5.6)."""
    return len(address) == IP6_BYTES and address[0] << 8 | address[1] in _LINK_LOCAL


def is_multicast(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is multicast (RFC 5771; RFC 4291, section 2.7)."""
    return address[0] in _MULTICAST4 if len(address) == IP4_BYTES else address[0] == _MULTICAST6


def is_interface_local(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is IPv6 multicast that never leaves its node.

    These are the groups of interface-local scope, and of the reserved scope 0, which is dropped wherever it is received
    (RFC 4291, section 2.7).
    """
    return len(address) == IP6_BYTES and address[0] == _MULTICAST6 and (address[1] & _SCOPE6_MASK) <= _INTERFACE_SCOPE6


def is_v4_mapped(address: bytes) -> bool:
    """Return whether an address of 4 or 16 bytes is an IPv4-mapped IPv6 one (RFC 4291, section 2.5.5.2)."""
    return len(address) == IP6_BYTES and address.startswith(_V4_MAPPED)
