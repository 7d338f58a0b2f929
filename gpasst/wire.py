"""The numbers of the protocols, and the fast forms of the structures that cross the tap or the qemu socket.

Theory of operation: `gpasst.formats` declares each structure with construct, whose import takes a fifth of a start. The
fast forms need no more than names, offsets and defaults, so these stand in a table that is derived from the
declarations (`gpasst.layouts`), and what runs imports this module. `gpasst.formats` has all that is here, and the
declarations besides.

Units: bytes for lengths and offsets, unless a docstring says otherwise; addresses are raw bytes in network order.
"""

from __future__ import annotations

from gpasst.codec import Codec

# --- Numbers of the protocols -------------------------------------------------------------------------------

# EtherTypes (IEEE 802 numbers).
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

# IP protocol numbers, which are also IPv6 next headers (IANA).
PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

IPV6_HOP_BY_HOP = 0
IPV6_ROUTING = 43
IPV6_FRAGMENT_HEADER = 44
IPV6_AUTHENTICATION = 51
IPV6_DESTINATION_OPTIONS = 60
IPV6_MOBILITY = 135
IPV6_HIP = 139
IPV6_SHIM6 = 140

IPV6_EXTENSIONS = frozenset(
    {
        IPV6_HOP_BY_HOP,
        IPV6_ROUTING,
        IPV6_FRAGMENT_HEADER,
        IPV6_AUTHENTICATION,
        IPV6_DESTINATION_OPTIONS,
        IPV6_MOBILITY,
        IPV6_HIP,
        IPV6_SHIM6,
        253,  # and 254: experiments (RFC 3692)
        254,
    }
)
"""Extension headers that are skipped to find the upper layer (IANA "IPv6 Extension Header Types").

ESP (50) is not among them: its next header stands encrypted at the end of the packet (RFC 4303, section 2).
"""

HOP_LIMIT = 255
"""TTL or hop limit of packets that gpasst originates: the maximum, which neighbour discovery requires.

A receiver drops neighbour discovery with a lower one, which came through a router (RFC 4861, sections 6.1 and 7.1).
"""

FRAME_MINIMUM_BYTES = 60
"""Bytes of the shortest Ethernet frame, without its check sequence (IEEE 802.3, section 3.2.8)."""

ARP_ETHERNET = 1
ARP_REQUEST = 1
ARP_REPLY = 2

# Flags of IPV4.flags (RFC 791).
IPV4_DONT_FRAGMENT = 2
IPV4_MORE_FRAGMENTS = 1

IPV4_FRAGMENT_MASK = 0x3FFF
"""More-fragments bit and offset, in the 16 bits that hold flags and offset."""

IPV4_VERSION_IHL = 0x45
"""First byte of an IPv4 header without options."""

IPV6_VERSION = 6

# ICMP types and codes (RFC 792, RFC 1191).
ICMP_ECHO_REPLY = 0
ICMP_UNREACHABLE = 3
ICMP_ECHO_REQUEST = 8
ICMP_TIME_EXCEEDED = 11
ICMP_PARAMETER_PROBLEM = 12
ICMP_NET_UNREACHABLE = 0
ICMP_HOST_UNREACHABLE = 1
ICMP_PORT_UNREACHABLE = 3
ICMP_FRAGMENTATION_NEEDED = 4

# ICMPv6 types and codes (RFC 4443).
ICMPV6_UNREACHABLE = 1
ICMPV6_PACKET_TOO_BIG = 2
ICMPV6_TIME_EXCEEDED = 3
ICMPV6_PARAMETER_PROBLEM = 4
ICMPV6_ECHO_REQUEST = 128
ICMPV6_ECHO_REPLY = 129
ICMPV6_NO_ROUTE = 0
ICMPV6_ADDRESS_UNREACHABLE = 3
ICMPV6_PORT_UNREACHABLE = 4

# Multicast listener discovery: query, report and done of version 1, report of version 2 (RFC 3810, section 5).
MLD_TYPES = 130, 131, 132, 143

# Neighbour discovery: ICMPv6 types, flags of advertisements, options (RFC 4861, RFC 8106).
NDP_TYPE_ROUTER_SOLICITATION = 133
NDP_TYPE_ROUTER_ADVERTISEMENT = 134
NDP_TYPE_SOLICITATION = 135
NDP_TYPE_ADVERTISEMENT = 136
NDP_TYPE_REDIRECT = 137
NDP_FLAG_ROUTER = 0x80
NDP_FLAG_SOLICITED = 0x40
NDP_FLAG_OVERRIDE = 0x20
NDP_RA_FLAG_MANAGED = 0x80
NDP_PREFIX_FLAG_ON_LINK = 0x80
NDP_PREFIX_FLAG_AUTONOMOUS = 0x40
NDP_OPTION_SOURCE_LINK_ADDRESS = 1
NDP_OPTION_TARGET_LINK_ADDRESS = 2
NDP_OPTION_PREFIX = 3
NDP_OPTION_MTU = 5
NDP_OPTION_RDNSS = 25
NDP_OPTION_DNSSL = 31
NDP_INFINITE = 0xFFFFFFFF
"""Lifetime, in seconds, that stands for infinity (RFC 4861, section 4.6.2)."""

# TCP flags and options (RFC 9293 section 3.1, section 3.2; RFC 7323 section 2.2).
TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_PSH = 0x08
TCP_ACK = 0x10
TCP_URG = 0x20
TCP_ECE = 0x40  # and CWR: RFC 3168, section 6.1
TCP_CWR = 0x80
TCP_OPTION_END = 0
TCP_OPTION_NOP = 1
TCP_OPTION_MSS = 2
TCP_OPTION_WINDOW_SCALE = 3

# linux/virtio_net.h
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_ECN = 0x80  # beside either of these
VIRTIO_NET_HDR_GSO_UDP_L4 = 5

PCAP_MAGIC = 0xA1B2C3D4
PCAP_LINK_ETHERNET = 1

PCAPNG_SECTION_TYPE = 0x0A0D0D0A
PCAPNG_INTERFACE_TYPE = 1
PCAPNG_PACKET_TYPE = 6
PCAPNG_MAGIC = 0x1A2B3C4D
PCAPNG_OPTION_END = 0
PCAPNG_OPTION_COMMENT = 1
PCAPNG_OPTION_INTERFACE_NAME = 2
PCAPNG_OPTION_FLAGS = 2
PCAPNG_OPTION_RESOLUTION = 9
PCAPNG_NANOSECONDS = 9  # decimal digits of a second
PCAPNG_INBOUND = 1
PCAPNG_OUTBOUND = 2

# --- The fast forms -----------------------------------------------------------------------------------------

ETHERNET_CODEC = Codec("ETHERNET")
ARP_CODEC = Codec("ARP")
VIRTIO_NET_CODEC = Codec("VIRTIO_NET")
IPV4_CODEC = Codec("IPV4")
IPV6_CODEC = Codec("IPV6")
IPV6_EXTENSION_CODEC = Codec("IPV6_EXTENSION")
IPV6_FRAGMENT_CODEC = Codec("IPV6_FRAGMENT")
UDP_CODEC = Codec("UDP")
TCP_CODEC = Codec("TCP")
TCP_SYN_OPTIONS_CODEC = Codec("TCP_SYN_OPTIONS")
ICMP_CODEC = Codec("ICMP")
ECHO_CODEC = Codec("ECHO")
ICMP_ERROR_CODEC = Codec("ICMP_ERROR")
ICMPV6_ERROR_CODEC = Codec("ICMPV6_ERROR")
NDP_SOLICITATION_CODEC = Codec("NDP_SOLICITATION")
NDP_ADVERTISEMENT_CODEC = Codec("NDP_ADVERTISEMENT")
NDP_ROUTER_SOLICITATION_CODEC = Codec("NDP_ROUTER_SOLICITATION")
NDP_ROUTER_ADVERTISEMENT_CODEC = Codec("NDP_ROUTER_ADVERTISEMENT")
PCAP_FILE_CODEC = Codec("PCAP_FILE")
PCAP_RECORD_CODEC = Codec("PCAP_RECORD")
PCAPNG_SECTION_CODEC = Codec("PCAPNG_SECTION")
PCAPNG_INTERFACE_CODEC = Codec("PCAPNG_INTERFACE")
PCAPNG_PACKET_CODEC = Codec("PCAPNG_PACKET")
PCAPNG_OPTION_CODEC = Codec("PCAPNG_OPTION")
PCAPNG_FLAGS_CODEC = Codec("PCAPNG_FLAGS")
PCAPNG_END_CODEC = Codec("PCAPNG_END")
UDP4 = Codec("UDP4_FRAME")
UDP6 = Codec("UDP6_FRAME")
TCP4 = Codec("TCP4_FRAME")
TCP6 = Codec("TCP6_FRAME")
NDP_LINK_ADDRESS_CODEC = Codec("NDP_LINK_ADDRESS")
NDP_PREFIX_CODEC = Codec("NDP_PREFIX")
NDP_MTU_CODEC = Codec("NDP_MTU")
NDP_LIST_CODEC = Codec("NDP_LIST_HEAD")

# --- Framing of the links -----------------------------------------------------------------------------------

VIRTIO_NET_BLANK = bytes(VIRTIO_NET_CODEC.size)
"""The virtio-net header of one frame whose checksums are complete."""

STREAM_LENGTH_BYTES = Codec("STREAM_LENGTH").size

STREAM_LEAD_BYTES = VIRTIO_NET_CODEC.size - STREAM_LENGTH_BYTES
"""Offset in `UDP4_FRAME` and `UDP6_FRAME` that corresponds to a stream's length prefix.

A stream has no virtio-net header; the length prefix stands in the place of its last bytes.
"""

# --- Templates ----------------------------------------------------------------------------------------------


def udp4_template(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
) -> bytes:
    """Build the headers of a UDP datagram over IPv4 (`UDP4_FRAME`, 52 bytes).

    The virtio-net header, both lengths and both checksums are zero, to be patched per frame.

    :param destination_mac: 6 bytes.
    :param source_mac: 6 bytes.
    :param source: 4 bytes.
    :param destination: 4 bytes.
    """
    values: dict[str, int | bytes] = {
        "ethernet.destination": destination_mac,
        "ethernet.source": source_mac,
        "ethernet.ethertype": ETHERTYPE_IPV4,
        "ip.total_length": 0,
        "ip.ttl": HOP_LIMIT,
        "ip.protocol": PROTOCOL_UDP,
        "ip.source": source,
        "ip.destination": destination,
        "udp.source": source_port,
        "udp.destination": destination_port,
        "udp.length": 0,
    }
    return UDP4.pack(**values)


def udp6_template(
    destination_mac: bytes,
    source_mac: bytes,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
) -> bytes:
    """Build the headers of a UDP datagram over IPv6 (`UDP6_FRAME`, 72 bytes).

    The virtio-net header, both lengths and the checksum are zero, to be patched per frame.

    :param destination_mac: 6 bytes.
    :param source_mac: 6 bytes.
    :param source: 16 bytes.
    :param destination: 16 bytes.
    """
    values: dict[str, int | bytes] = {
        "ethernet.destination": destination_mac,
        "ethernet.source": source_mac,
        "ethernet.ethertype": ETHERTYPE_IPV6,
        "ip.payload_length": 0,
        "ip.next_header": PROTOCOL_UDP,
        "ip.hop_limit": HOP_LIMIT,
        "ip.source": source,
        "ip.destination": destination,
        "udp.source": source_port,
        "udp.destination": destination_port,
        "udp.length": 0,
    }
    return UDP6.pack(**values)
