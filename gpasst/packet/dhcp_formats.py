"""The structures of DHCP and DHCPv6, declared once, by the rules of `gpasst.formats`.

Their options are lists of (code, data), of which the heads are declared here; `gpasst.packet.dhcp_wire` has the lists.
"""

from __future__ import annotations

from construct import Bytes, Default, Int8ub, Int16ub, Int32ub

from gpasst.declare import Header
from gpasst.packet.dhcp_wire import DHCPV6_DUID_LLT

DHCP = Header(
    "operation" / Int8ub,
    "hardware" / Default(Int8ub, 1),
    "hardware_length" / Default(Int8ub, 6),
    "hops" / Default(Int8ub, 0),
    "transaction" / Int32ub,
    "seconds" / Default(Int16ub, 0),
    "flags" / Default(Int16ub, 0),
    "client" / Default(Bytes(4), bytes(4)),
    "yours" / Default(Bytes(4), bytes(4)),
    "server" / Default(Bytes(4), bytes(4)),
    "relay" / Default(Bytes(4), bytes(4)),
    "client_mac" / Bytes(16),
    "server_name" / Default(Bytes(64), bytes(64)),
    "file" / Default(Bytes(128), bytes(128)),
)
"""Fixed part of BOOTP and DHCP messages, 236 bytes (RFC 951 section 3, RFC 2131 section 2).

The addresses `client`, `yours`, `server` and `relay` are ciaddr, yiaddr, siaddr and giaddr; `client_mac` is chaddr,
padded. `DHCP_COOKIE` and `DHCP_OPTIONS` follow.
"""

DHCP_OPTION = Header(
    "code" / Int8ub,
    "length" / Int8ub,
)
"""Head of an option but `DHCP_PAD` and `DHCP_END`, 2 bytes (RFC 2132 section 2); `length` bytes of data follow."""

DHCP_FQDN = Header(
    "flags" / Int8ub,
    "rcode1" / Default(Int8ub, 255),
    "rcode2" / Default(Int8ub, 255),
)
"""Client FQDN option before the name, 3 bytes (RFC 4702 section 2); servers set both result codes to 255."""

DHCPV6 = Header(
    "type" / Int8ub,
    "transaction" / Bytes(3),
)
"""Head of every message between client and server, 4 bytes (RFC 8415 section 8); `DHCPV6_OPTIONS` follow."""

DHCPV6_OPTION = Header(
    "code" / Int16ub,
    "length" / Int16ub,
)
"""Head of an option, of a message or within another option, 4 bytes (RFC 8415 section 21.1); its data follow."""

DHCPV6_IA_NA_HEAD = Header(
    "identifier" / Bytes(4),
    "renew" / Int32ub,
    "rebind" / Int32ub,
)
"""Identity association for addresses before its options, 12 bytes (RFC 8415 section 21.4).

`renew` (T1) and `rebind` (T2) in seconds.
"""

DHCPV6_IA_TA_HEAD = Header("identifier" / Bytes(4))
"""Identity association for temporary addresses before its options, 4 bytes (RFC 8415 section 21.5)."""

DHCPV6_ADDRESS = Header(
    "address" / Bytes(16),
    "preferred" / Int32ub,
    "valid" / Int32ub,
)
"""Address in an identity association before its options, 24 bytes (RFC 8415 section 21.6); lifetimes in seconds."""

DHCPV6_STATUS = Header("status" / Int16ub)
"""Status code before its text (RFC 8415 section 21.13)."""

DHCPV6_FQDN = Header("flags" / Int8ub)
"""Client FQDN option before the name (RFC 4704 section 4)."""

DHCPV6_DUID = Header(
    "type" / Default(Int16ub, DHCPV6_DUID_LLT),
    "hardware" / Default(Int16ub, 1),
    "seconds" / Int32ub,
    "mac" / Bytes(6),
)
"""DUID of link-layer address and time, 14 bytes (RFC 8415 section 11.2); `seconds` since 2000, modulo 2^32."""
