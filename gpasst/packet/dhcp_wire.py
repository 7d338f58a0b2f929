"""The numbers of DHCP and DHCPv6, and the fast forms of what `gpasst.packet.dhcp_formats` declares; see `gpasst.wire`.

Options are lists of (code, data); the services interpret the data. A list is malformed as a whole if one of its options
ends beyond the data. A message has a limit of bytes and of options, since each of them costs time and a client may send
any number.
"""

from __future__ import annotations

from gpasst.codec import Codec, Options

DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68
DHCPV6_SERVER_PORT = 547
DHCPV6_CLIENT_PORT = 546

MESSAGE_LIMIT = 4096  # bytes of a client's message that is parsed; ordinary ones have 300 to 600

# --- DHCP ---------------------------------------------------------------------------------------------------

BOOTP_REQUEST = 1
BOOTP_REPLY = 2
DHCP_FLAG_BROADCAST = 0x8000
DHCP_COOKIE = bytes((99, 130, 83, 99))
"""The magic cookie before the options (RFC 2132 section 2)."""

# Message types (RFC 2132 section 9.6).
DHCP_DISCOVER = 1
DHCP_OFFER = 2
DHCP_REQUEST = 3
DHCP_DECLINE = 4
DHCP_ACK = 5
DHCP_NAK = 6
DHCP_RELEASE = 7
DHCP_INFORM = 8

# Options (RFC 2132; RFC 4039, RFC 4702, RFC 3397, RFC 3442).
DHCP_PAD = 0
DHCP_SUBNET_MASK = 1
DHCP_ROUTER = 3
DHCP_RESOLVERS = 6
DHCP_HOST_NAME = 12
DHCP_MTU = 26
DHCP_REQUESTED_ADDRESS = 50
DHCP_LEASE_TIME = 51
DHCP_OVERLOAD = 52
DHCP_MESSAGE_TYPE = 53
DHCP_SERVER_IDENTIFIER = 54
DHCP_PARAMETER_LIST = 55
DHCP_TEXT = 56
DHCP_MAXIMUM_SIZE = 57
DHCP_CLIENT_IDENTIFIER = 61
DHCP_RAPID_COMMIT = 80
DHCP_CLIENT_FQDN = 81
DHCP_SEARCH_LIST = 119
DHCP_CLASSLESS_ROUTES = 121
DHCP_END = 255

DHCP_OVERLOAD_FILE = 1
DHCP_OVERLOAD_NAME = 2
DHCP_OPTIONS_LIMIT = 256
"""Options of a client's message that are parsed: one of each code (RFC 2132 section 2)."""

DHCP_INFINITE = 0xFFFFFFFF
"""Lease time, in seconds, that stands for infinity (RFC 2131 section 3.3)."""

# Flags of the client FQDN option (RFC 4702 section 2.1).
DHCP_FQDN_SERVER_UPDATES = 0x01
DHCP_FQDN_OVERRIDDEN = 0x02
DHCP_FQDN_WIRE_FORMAT = 0x04
DHCP_FQDN_NO_UPDATES = 0x08

# --- DHCPv6 -------------------------------------------------------------------------------------------------

# Message types (RFC 8415 section 7.3).
DHCPV6_SOLICIT = 1
DHCPV6_ADVERTISE = 2
DHCPV6_REQUEST = 3
DHCPV6_CONFIRM = 4
DHCPV6_RENEW = 5
DHCPV6_REBIND = 6
DHCPV6_REPLY = 7
DHCPV6_RELEASE = 8
DHCPV6_DECLINE = 9
DHCPV6_INFORMATION_REQUEST = 11

# Options (RFC 8415 section 21, RFC 3646, RFC 4704).
DHCPV6_CLIENT_ID = 1
DHCPV6_SERVER_ID = 2
DHCPV6_IA_NA = 3
DHCPV6_IA_TA = 4
DHCPV6_IAADDR = 5
DHCPV6_OPTION_REQUEST = 6
DHCPV6_STATUS_CODE = 13
DHCPV6_RAPID_COMMIT = 14
DHCPV6_RESOLVERS = 23
DHCPV6_SEARCH_LIST = 24
DHCPV6_CLIENT_FQDN = 39

# Status codes (RFC 8415 section 21.13).
DHCPV6_SUCCESS = 0
DHCPV6_NO_ADDRESSES = 2
DHCPV6_NOT_ON_LINK = 4

# Flags of the client FQDN option (RFC 4704 section 4.1).
DHCPV6_FQDN_SERVER_UPDATES = 0x01
DHCPV6_FQDN_OVERRIDDEN = 0x02
DHCPV6_FQDN_NO_UPDATES = 0x04

DHCPV6_OPTIONS_LIMIT = 64
"""Options of a client's message that are parsed, those within others included. Ordinary messages have up to 10."""

DHCPV6_DUID_LLT = 1
DHCPV6_INFINITE = 0xFFFFFFFF
"""Lifetime, in seconds, that stands for infinity (RFC 8415 section 7.7)."""

DHCP_CODEC = Codec("DHCP")
DHCP_OPTIONS = Options(Codec("DHCP_OPTION"), DHCP_PAD, DHCP_END)
DHCP_FQDN_CODEC = Codec("DHCP_FQDN")
DHCPV6_CODEC = Codec("DHCPV6")
DHCPV6_OPTIONS = Options(Codec("DHCPV6_OPTION"))
DHCPV6_IA_NA_CODEC = Codec("DHCPV6_IA_NA_HEAD")
DHCPV6_IA_TA_CODEC = Codec("DHCPV6_IA_TA_HEAD")
DHCPV6_ADDRESS_CODEC = Codec("DHCPV6_ADDRESS")
DHCPV6_STATUS_CODEC = Codec("DHCPV6_STATUS")
DHCPV6_FQDN_CODEC = Codec("DHCPV6_FQDN")
DHCPV6_DUID_CODEC = Codec("DHCPV6_DUID")
