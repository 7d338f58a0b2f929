"""Every structure that crosses the tap or the qemu socket, declared once (and the file that captures them).

Theory of operation
===================

1. **One declaration, two speeds.** Each structure is a declaration, named in capitals, that both parses and
   builds; from it the layout of the fast form is derived (`gpasst.layouts`) where one is used (`gpasst.wire`).
2. **Defaults**: reserved fields, checksums and fields with one usual value have one; the others must be named.
   Both speeds share them.
3. **Headers accept trailing bytes**, since the payload follows. Only `NDP_OPTIONS` must end where its data ends.
4. **Meaning is checked elsewhere.** A declaration rejects bytes that cannot be parsed; whether version, lengths
   and addresses are valid is decided by the room that knows the protocol's state.
5. **Untrusted bytes** are parsed by the fast form alone, which raises `PacketError` and nothing else.

Units: bytes for lengths and offsets, unless a docstring says otherwise; addresses are raw bytes in network
order.

NOTE: integers are big-endian, except in `VIRTIO_NET` (little-endian; on a big-endian machine the tap needs
TUNSETVNETLE) and the capture file (native order, which its magic number shows).
"""

from __future__ import annotations

from typing import Any

from construct import (
    Array,
    Bytes,
    Check,
    Default,
    FixedSized,
    FocusedSeq,
    FormatField,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int16ul,
    Int16un,
    Int32sn,
    Int32ub,
    Int32un,
    Int64sn,
    Peek,
    Rebuild,
    Struct,
    Switch,
    Terminated,
)

from gpasst.declare import Bits, Header
from gpasst.wire import *

# --- Parts --------------------------------------------------------------------------------------------------


def _zero(unit: Any) -> Any:
    """Return a field whose default is zero: a reserved one, or a checksum that is filled in later."""
    return Default(unit, 0)


_MAC = Bytes(6)
_IP4 = Bytes(4)
_IP6 = Bytes(16)

# --- Link ---------------------------------------------------------------------------------------------------

ETHERNET = Header(
    "destination" / _MAC,
    "source" / _MAC,
    "ethertype" / Int16ub,
)
"""Ethernet II header, 14 bytes (RFC 894, RFC 2464)."""

ARP = Header(
    "hardware" / Default(Int16ub, ARP_ETHERNET),
    "protocol" / Default(Int16ub, ETHERTYPE_IPV4),
    "hardware_length" / Default(Int8ub, 6),
    "protocol_length" / Default(Int8ub, 4),
    "operation" / Int16ub,
    "sender_mac" / _MAC,
    "sender_ip" / _IP4,
    "target_mac" / _MAC,
    "target_ip" / _IP4,
)
"""ARP for IPv4 over Ethernet, 28 bytes (RFC 826)."""

VIRTIO_NET = Header(
    "flags" / _zero(Int8ub),
    "gso_type" / _zero(Int8ub),
    "header_length" / _zero(Int16ul),
    "gso_size" / _zero(Int16ul),
    "checksum_start" / _zero(Int16ul),
    "checksum_offset" / _zero(Int16ul),
)
"""Header before each frame of a tap opened with IFF_VNET_HDR, 10 bytes, little-endian (linux/virtio_net.h).

`gso_size` is the payload of one segment; `header_length` and `checksum_start` count from the Ethernet header,
`checksum_offset` from `checksum_start`. All zero: one frame whose checksums are complete.
"""

STREAM_LENGTH = Header("length" / Int32ub)
"""Length prefix of each frame on qemu's stream socket: bytes of the frame that follows, without the prefix."""

# --- IP -----------------------------------------------------------------------------------------------------

IPV4 = Header(
    Bits(Int8ub, ("version", 4, 4), ("ihl", 4, 5)),
    "tos" / _zero(Int8ub),
    "total_length" / Int16ub,
    "identification" / _zero(Int16ub),
    Bits(Int16ub, ("flags", 3, 0), ("fragment_offset", 13, 0)),
    "ttl" / Int8ub,
    "protocol" / Int8ub,
    "checksum" / _zero(Int16ub),
    "source" / _IP4,
    "destination" / _IP4,
)
"""IPv4 header without options, 20 bytes (RFC 791).

`ihl` counts 4-byte words, `fragment_offset` 8-byte units; `total_length` is header and payload.
"""

IPV6 = Header(
    Bits(Int32ub, ("version", 4, 6), ("traffic_class", 8, 0), ("flow_label", 20, 0)),
    "payload_length" / Int16ub,
    "next_header" / Int8ub,
    "hop_limit" / Int8ub,
    "source" / _IP6,
    "destination" / _IP6,
)
"""IPv6 header, 40 bytes (RFC 8200 section 3); `payload_length` includes extension headers."""

IPV6_EXTENSION = Header(
    "next_header" / Int8ub,
    "length" / Int8ub,
)
"""First two bytes of every IPv6 extension header (RFC 8200 section 4, RFC 6564).

`length` counts 8-byte units beyond the first 8 bytes; for the authentication header (51) it counts 4-byte
units beyond the first 8 bytes (RFC 4302 section 2.2), and for the fragment header (44), always 8 bytes, it is
reserved.
"""

IPV6_FRAGMENT = Header(
    "next_header" / Int8ub,
    "reserved" / _zero(Int8ub),
    Bits(Int16ub, ("offset", 13), ("reserved_bits", 2, 0), ("more", 1)),
    "identification" / Int32ub,
)
"""IPv6 fragment header, 8 bytes (RFC 8200 section 4.5); `offset` counts 8-byte units."""

# --- Transport ----------------------------------------------------------------------------------------------

UDP = Header(
    "source" / Int16ub,
    "destination" / Int16ub,
    "length" / Int16ub,
    "checksum" / _zero(Int16ub),
)
"""UDP header, 8 bytes (RFC 768); `length` is header and payload."""

TCP = Header(
    "source" / Int16ub,
    "destination" / Int16ub,
    "sequence" / Int32ub,
    "acknowledgement" / Int32ub,
    Bits(Int8ub, ("data_offset", 4, 5), ("reserved", 4, 0)),
    "flags" / Int8ub,
    "window" / Int16ub,
    "checksum" / _zero(Int16ub),
    "urgent" / _zero(Int16ub),
)
"""TCP header without options, 20 bytes (RFC 9293 section 3.1); `data_offset` counts 4-byte words."""

TCP_SYN_OPTIONS = Header(
    "mss_kind" / Default(Int8ub, TCP_OPTION_MSS),
    "mss_length" / Default(Int8ub, 4),
    "mss" / Int16ub,
    "padding" / Default(Int8ub, TCP_OPTION_NOP),
    "scale_kind" / Default(Int8ub, TCP_OPTION_WINDOW_SCALE),
    "scale_length" / Default(Int8ub, 3),
    "scale" / Int8ub,
)
"""The options of a SYN that gpasst sends, 8 bytes: maximum segment size in bytes, and window scale."""

# --- ICMP ---------------------------------------------------------------------------------------------------

ICMP = Header(
    "type" / Int8ub,
    "code" / _zero(Int8ub),
    "checksum" / _zero(Int16ub),
)
"""First four bytes of every ICMP and ICMPv6 message (RFC 792, RFC 4443 section 2.1)."""

ECHO = Header(
    *ICMP.subcons,
    "identifier" / Int16ub,
    "sequence" / Int16ub,
)
"""ICMP and ICMPv6 echo request or reply before its data, 8 bytes (RFC 792, RFC 4443 section 4)."""

ICMP_ERROR = Header(
    *ICMP.subcons,
    "unused" / _zero(Int16ub),
    "mtu" / _zero(Int16ub),
)
"""ICMP error before the quoted packet, 8 bytes (RFC 792).

`mtu`, the next hop's in bytes, is defined only with code `ICMP_FRAGMENTATION_NEEDED` (RFC 1191 section 4).
"""

ICMPV6_ERROR = Header(
    *ICMP.subcons,
    "parameter" / _zero(Int32ub),
)
"""ICMPv6 error before the quoted packet, 8 bytes (RFC 4443 section 3).

`parameter` is the MTU in bytes of "packet too big", the byte offset of "parameter problem", otherwise unused.
"""

# --- Neighbour discovery ------------------------------------------------------------------------------------

NDP_SOLICITATION = Header(
    *ICMP.subcons,
    "reserved" / _zero(Int32ub),
    "target" / _IP6,
)
"""Neighbour solicitation before its options, 24 bytes (RFC 4861 section 4.3)."""

NDP_ADVERTISEMENT = Header(
    *ICMP.subcons,
    "flags" / Int8ub,
    "reserved" / Default(Bytes(3), bytes(3)),
    "target" / _IP6,
)
"""Neighbour advertisement before its options, 24 bytes (RFC 4861 section 4.4)."""

NDP_ROUTER_SOLICITATION = Header(
    *ICMP.subcons,
    "reserved" / _zero(Int32ub),
)
"""Router solicitation before its options, 8 bytes (RFC 4861 section 4.1)."""

NDP_ROUTER_ADVERTISEMENT = Header(
    *ICMP.subcons,
    "hop_limit" / Int8ub,
    "flags" / Int8ub,
    "lifetime" / Int16ub,
    "reachable" / _zero(Int32ub),
    "retransmit" / _zero(Int32ub),
)
"""Router advertisement before its options, 16 bytes (RFC 4861 section 4.2).

`lifetime` in seconds, `reachable` and `retransmit` in milliseconds; 0 is "unspecified" for the latter two.
"""

NDP_OPTION = Header(
    "type" / Int8ub,
    "length" / Int8ub,
)
"""First two bytes of every neighbour discovery option (RFC 4861 section 4.6).

`length` counts units of 8 bytes, these two bytes included.
"""

NDP_LINK_ADDRESS = Header(
    "type" / Int8ub,
    "length" / Default(Int8ub, 1),
    "mac" / _MAC,
)
"""Source (1) or target (2) link-layer address of an Ethernet, 8 bytes (RFC 4861 section 4.6.1)."""

NDP_PREFIX = Header(
    "type" / Default(Int8ub, NDP_OPTION_PREFIX),
    "length" / Default(Int8ub, 4),
    "prefix_length" / Int8ub,
    "flags" / Int8ub,
    "valid" / Int32ub,
    "preferred" / Int32ub,
    "reserved" / _zero(Int32ub),
    "prefix" / _IP6,
)
"""Prefix information, 32 bytes (RFC 4861 section 4.6.2); `prefix_length` in bits, lifetimes in seconds."""

NDP_MTU = Header(
    "type" / Default(Int8ub, NDP_OPTION_MTU),
    "length" / Default(Int8ub, 1),
    "reserved" / _zero(Int16ub),
    "mtu" / Int32ub,
)
"""MTU of the link in bytes, an option of 8 bytes (RFC 4861 section 4.6.4)."""

NDP_LIST_HEAD = Header(
    "type" / Int8ub,
    "length" / Int8ub,
    "reserved" / _zero(Int16ub),
    "lifetime" / Int32ub,
)
"""Head of the options `NDP_RDNSS` and `NDP_DNSSL`, 8 bytes; what they list follows."""

NDP_RDNSS = Header(
    "type" / Default(Int8ub, NDP_OPTION_RDNSS),
    "length" / Rebuild(Int8ub, lambda option: 1 + 2 * len(option.addresses)),
    # An even number of units would leave half an address.
    Check(lambda option: option.length % 2 == 1),
    "reserved" / _zero(Int16ub),
    "lifetime" / Int32ub,
    "addresses" / Array(lambda option: (option.length - 1) // 2, _IP6),
)
"""Recursive DNS servers, 8 bytes and 16 for each address (RFC 8106 section 5.1); `lifetime` in seconds."""

NDP_DNSSL = Header(
    "type" / Default(Int8ub, NDP_OPTION_DNSSL),
    "length" / Rebuild(Int8ub, lambda option: 1 + (len(option.labels) + 7) // 8),
    "reserved" / _zero(Int16ub),
    "lifetime" / Int32ub,
    "labels" / FixedSized(lambda option: 8 * option.length - 8, GreedyBytes),
)
"""DNS search list (RFC 8106 section 5.2); `lifetime` in seconds.

`labels` are the names in DNS wire format without compression; building pads them with zeros to 8 bytes,
parsing returns them padded.
"""

NDP_UNKNOWN = Header(
    "type" / Int8ub,
    "length" / Rebuild(Int8ub, lambda option: (len(option.data) + 9) // 8),
    "data" / FixedSized(lambda option: 8 * option.length - 2, GreedyBytes),
)
"""Any other option, its content as raw bytes, padded with zeros to the unit of 8 bytes when built."""

_FIXED_OPTIONS = {
    NDP_OPTION_SOURCE_LINK_ADDRESS: NDP_LINK_ADDRESS,
    NDP_OPTION_TARGET_LINK_ADDRESS: NDP_LINK_ADDRESS,
    NDP_OPTION_PREFIX: NDP_PREFIX,
    NDP_OPTION_MTU: NDP_MTU,
}

# Shortest lengths in units of 8 bytes: one address (RFC 8106, section 5.1), one name (section 5.2).
_RDNSS_MINIMUM = 3
_DNSSL_MINIMUM = 2


def _option_kind(context: Any) -> int | None:
    """Return the number of the current option's declaration, None for `NDP_UNKNOWN`.

    A known type of unusual length is parsed as unknown: it may belong to another link layer or a later version,
    which receivers must skip rather than reject (RFC 4861 section 4.6).
    """
    if context["_building"]:
        option = context.option
        return None if "data" in option else option["type"]
    kind: int = context.header.type
    length = context.header.length
    if kind in _FIXED_OPTIONS:
        known = 8 * length == _FIXED_OPTIONS[kind].sizeof()
    elif kind == NDP_OPTION_RDNSS:
        known = length >= _RDNSS_MINIMUM and length % 2 == 1
    else:
        known = kind == NDP_OPTION_DNSSL and length >= _DNSSL_MINIMUM
    return kind if known else None


NDP_OPTIONS = FocusedSeq(
    "options",
    "options"
    / GreedyRange(
        FocusedSeq(
            "option",
            "header" / Peek(NDP_OPTION),
            "option"
            / Switch(
                _option_kind,
                {**_FIXED_OPTIONS, NDP_OPTION_RDNSS: NDP_RDNSS, NDP_OPTION_DNSSL: NDP_DNSSL},
                NDP_UNKNOWN,
            ),
        )
    ),
    # GreedyRange stops without an error before an option that it cannot parse; the remaining bytes then make the
    # list malformed.
    Terminated,
)
"""All options of a neighbour discovery message, up to the end of the data (RFC 4861 section 4.6).

Parses to a list of `NDP_LINK_ADDRESS`, `NDP_PREFIX`, `NDP_MTU`, `NDP_RDNSS`, `NDP_DNSSL` or `NDP_UNKNOWN`,
chosen by `type`, which building requires of each (lengths are computed). An option of length 0 makes the whole
list malformed, and so does one that ends beyond the data.
"""

# --- Capture ------------------------------------------------------------------------------------------------

PCAP_FILE = Header(
    "magic" / Default(Int32un, PCAP_MAGIC),
    "version_major" / Default(FormatField("=", "H"), 2),
    "version_minor" / Default(FormatField("=", "H"), 4),
    "zone" / _zero(Int32sn),
    "accuracy" / _zero(Int32un),
    "snap_length" / Default(Int32un, 65535),
    "link_type" / Default(Int32un, PCAP_LINK_ETHERNET),
)
"""Head of a classic capture file, 24 bytes in native byte order (libpcap's pcap-savefile).

`zone` in seconds, `snap_length` in bytes.
"""

PCAP_RECORD = Header(
    "seconds" / Int32un,
    "microseconds" / Int32un,
    "captured" / Int32un,
    "length" / Int32un,
)
"""Head of one captured frame, 16 bytes in native byte order (libpcap's pcap-savefile).

`seconds` and `microseconds` since 1970; `captured` bytes follow, of `length` on the wire.
"""

PCAPNG_END = Header("length" / Int32un)
"""The length of a block once more, at its end, so that a file can be read backwards; 4 bytes.

All blocks of a pcapng file are those of draft-ietf-opsawg-pcapng, here in native byte order, and a multiple of 4 bytes
long. `length` counts all of a block.
"""

PCAPNG_SECTION = Header(
    "type" / Default(Int32un, PCAPNG_SECTION_TYPE),
    "length" / Default(Int32un, 28),
    "magic" / Default(Int32un, PCAPNG_MAGIC),
    "version_major" / Default(Int16un, 1),
    "version_minor" / _zero(Int16un),
    "section_length" / Default(Int64sn, -1),
    "end" / Default(Int32un, 28),
)
"""The section header block that begins a file, without options, 28 bytes (section 4.1).

`magic` shows the byte order; `section_length` is -1 where the section is as long as the file.
"""

PCAPNG_INTERFACE = Header(
    "type" / Default(Int32un, PCAPNG_INTERFACE_TYPE),
    "length" / Int32un,
    "link_type" / Default(Int16un, PCAP_LINK_ETHERNET),
    "reserved" / _zero(Int16un),
    "snap_length" / Int32un,
)
"""Head of an interface description block, 16 bytes (section 4.2); options follow, and `PCAPNG_END`."""

PCAPNG_PACKET = Header(
    "type" / Default(Int32un, PCAPNG_PACKET_TYPE),
    "length" / Int32un,
    "interface" / Int32un,
    "time_high" / Int32un,
    "time_low" / Int32un,
    "captured" / Int32un,
    "original" / Int32un,
)
"""Head of an enhanced packet block, 28 bytes (section 4.3).

`interface` counts the interface blocks before it, from 0. The time is in the interface's units since 1970. `captured`
bytes follow, of `original` on the wire, with padding; then options, and `PCAPNG_END`.
"""

PCAPNG_OPTION = Header("code" / Int16un, "length" / Int16un)
"""Head of an option, 4 bytes (section 3.5); `length` bytes follow, with padding. Both are 0 in the last of a list."""

PCAPNG_FLAGS = Header(
    "code" / Default(Int16un, PCAPNG_OPTION_FLAGS),
    "length" / Default(Int16un, 4),
    Bits(Int32un, ("others", 30, 0), ("direction", 2)),
)
"""The option of an enhanced packet block with its flags, 8 bytes (section 4.3.1).

`direction` is that of the interface: `PCAPNG_INBOUND` or `PCAPNG_OUTBOUND`.
"""

# --- Stacks of the data path --------------------------------------------------------------------------------

UDP4_FRAME = Struct("virtio" / VIRTIO_NET, "ethernet" / ETHERNET, "ip" / IPV4, "udp" / UDP)
"""The headers of a UDP datagram over IPv4 on the tap, 52 bytes."""

UDP6_FRAME = Struct("virtio" / VIRTIO_NET, "ethernet" / ETHERNET, "ip" / IPV6, "udp" / UDP)
"""The headers of a UDP datagram over IPv6 on the tap, 72 bytes."""

TCP4_FRAME = Struct("virtio" / VIRTIO_NET, "ethernet" / ETHERNET, "ip" / IPV4, "tcp" / TCP)
"""The headers of a TCP segment over IPv4 on the tap, 64 bytes."""

TCP6_FRAME = Struct("virtio" / VIRTIO_NET, "ethernet" / ETHERNET, "ip" / IPV6, "tcp" / TCP)
"""The headers of a TCP segment over IPv6 on the tap, 84 bytes."""
