"""The addresses that tests of pure code use: a guest's network as documentation describes one (RFC 5737, RFC 3849)."""

from __future__ import annotations

import ipaddress


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


GUEST4, GATEWAY4, RESOLVER4, FORWARDER4 = "192.0.2.2", "192.0.2.1", "198.51.100.53", "192.0.2.53"
GUEST6, GATEWAY6, RESOLVER6, FORWARDER6 = "2001:db8::2", "fe80::1", "2001:db8:5::53", "2001:db8::53"
HOST_LINK_LOCAL, GUEST_LINK_LOCAL = "fe80::2", "fe80::5054:ff:fe12:3456"
SERVER4, SERVER6 = "198.51.100.9", "2001:db8:1::9"
GUEST_MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
