"""Frames of no known flow: which flow they belong to, of which kind they are, and how many of a kind are admitted.

Theory of operation: a guest can send such frames many times faster than they can be handled. So the kind and the source
are read from a few header fields, before anything is made of the frame, and what exceeds the rate of its kind is
dropped there, at the cost of 1 us. The rates are above what ordinary programs reach. Together with what a frame costs,
10 to 60 us, and 200 for DHCP, they keep each kind to less than half of a processor.
"""

from __future__ import annotations

import struct

from gpasst.codec import Codec
from gpasst.flow.admission import Rate
from gpasst.packet.dhcp_wire import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.services.ndp import TYPES as _NDP_TYPES
from gpasst.wire import (
    ARP_CODEC,
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_CODEC,
    NDP_SOLICITATION_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    UDP4,
    UDP6,
    VIRTIO_NET_CODEC,
)

FLOW, ECHO, ROUTER, ARP, NDP, DHCP, PART, OTHER = range(8)  # kinds

KINDS = (
    "new flows",
    "ICMP",
    "requests for the gateway",
    "ARP",
    "neighbour discovery",
    "DHCP",
    "fragments and options",
    "other frames",
)  # their names
# By kind.
RATES = (
    Rate(8192, 10000),  # UDP and TCP: each may set up state; one connection after the other reaches half of it
    Rate(4096, 4000),  # echo requests and other ICMP
    # ARP and solicitations for the gateway, without which a guest cannot send anything: apart from the others, whose
    # flood would end all flows. Any answer serves the guest as well as that to its own request.
    Rate(256, 500),
    Rate(1024, 2000),  # ARP
    Rate(1024, 2000),  # neighbour and router discovery
    Rate(128, 100),  # DHCP and DHCPv6
    # Fragments, and packets with IP options or extension headers: ordinary flows may have nothing else.
    Rate(8192, 10000),
    Rate(1024, 2000),  # everything else
)

_IP = ETHERNET_CODEC.size
_TYPE = slice(ETHERNET_CODEC.offset("ethertype"), _IP)
_IPV4, _IPV6 = (kind.to_bytes(2, "big") for kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6))
_FRAGMENT = slice(_IP + IPV4_CODEC.offset("flags"), _IP + IPV4_CODEC.offset("flags") + 2)
_PROTOCOL4, _PROTOCOL6 = (
    slice(_IP + at, _IP + at + 1) for at in (IPV4_CODEC.offset("protocol"), IPV6_CODEC.offset("next_header"))
)
_ADDRESSES4 = slice(_IP + IPV4_CODEC.offset("source"), _IP + IPV4_CODEC.size)
_ADDRESSES6 = slice(_IP + IPV6_CODEC.offset("source"), _IP + IPV6_CODEC.size)
_PORTS_BYTES = 4
_FLOW4, _FLOW6 = (slice(part.start, part.stop + _PORTS_BYTES) for part in (_ADDRESSES4, _ADDRESSES6))
_KINDS4 = {PROTOCOL_UDP: FLOW, PROTOCOL_TCP: FLOW, PROTOCOL_ICMP: ECHO}
_KINDS6 = {PROTOCOL_UDP: FLOW, PROTOCOL_TCP: FLOW, PROTOCOL_ICMPV6: ECHO}  # others may be extensions
_ICMP_TYPE_SHIFT = 8  # of the type, which is the first half of what other protocols have as source port
ARP_TARGET = slice(_IP + ARP_CODEC.offset("target_ip"), _IP + ARP_CODEC.size)
NDP_TARGET = slice(
    _ADDRESSES6.stop + NDP_SOLICITATION_CODEC.offset("target"), _ADDRESSES6.stop + NDP_SOLICITATION_CODEC.size
)
HEAD_BYTES = _FLOW6.stop  # of a frame, by which its flow is known


def _picker(codec: Codec, *names: str) -> struct.Struct:
    """Return the structure of these fields in a frame without virtio-net header; see `Codec.picker`."""
    _, _, layout = codec.picker(*names).format.partition("x")
    return struct.Struct(f">{codec.offset(names[0]) - VIRTIO_NET_CODEC.size}x{layout}")


_pick4 = _picker(
    UDP4,
    "ethernet.source",
    "ethernet.ethertype",
    "ip.version",
    "ip.flags",
    "ip.protocol",
    "ip.source",
    "udp.destination",
).unpack_from
_pick6 = _picker(UDP6, "ethernet.source", "ip.next_header", "ip.source", "udp.source", "udp.destination").unpack_from


def kind_of(frame: memoryview, routers: frozenset[bytes]) -> tuple[int, bytes]:
    """Return the kind of a frame, an index of `RATES`, and the address that its rate is counted by.

    :param frame: from the destination MAC address on.
    :param routers: addresses of the gateway.
    """
    size = len(frame)
    if size < _FLOW4.stop:
        return OTHER, b""
    mac, ethertype, version, fragment, protocol, source, port = _pick4(frame)
    if ethertype == ETHERTYPE_IPV4:
        if version != IPV4_VERSION_IHL or fragment & IPV4_FRAGMENT_MASK:
            return PART, source
        if port == DHCP_SERVER_PORT and protocol == PROTOCOL_UDP:
            return DHCP, mac
        return _KINDS4.get(protocol, OTHER), source
    if ethertype == ETHERTYPE_ARP:
        return ROUTER if frame[ARP_TARGET].tobytes() in routers else ARP, mac
    if ethertype != ETHERTYPE_IPV6 or size < HEAD_BYTES:
        return OTHER, mac
    mac, protocol, source, first, port = _pick6(frame)
    if protocol == PROTOCOL_ICMPV6 and first >> _ICMP_TYPE_SHIFT in _NDP_TYPES:
        return ROUTER if frame[NDP_TARGET].tobytes() in routers else NDP, mac
    if port == DHCPV6_SERVER_PORT and protocol == PROTOCOL_UDP:
        return DHCP, mac
    return _KINDS6.get(protocol, PART), source


def flow_of(frame: memoryview) -> bytes:
    """Return the bytes by which the flow of a frame is known.

    These are the IP protocol, addresses and ports, where every frame of the flow has them in the same place. Fragments,
    and packets with IP options or extension headers, are known by protocol and addresses, frames that are not IP by
    their EtherType.

    :param frame: from the destination MAC address on.
    """
    head = frame[:HEAD_BYTES].tobytes()
    ethertype = head[_TYPE]
    if ethertype == _IPV4 and len(head) >= _FLOW4.stop:
        plain = head[_IP] == IPV4_VERSION_IHL and not int.from_bytes(head[_FRAGMENT], "big") & IPV4_FRAGMENT_MASK
        return head[_PROTOCOL4] + head[_FLOW4 if plain else _ADDRESSES4]
    if ethertype == _IPV6 and len(head) >= _FLOW6.stop:
        protocol = head[_PROTOCOL6]
        return protocol + head[_FLOW6 if protocol[0] in _KINDS6 else _ADDRESSES6]
    return ethertype


def source_port(frame: memoryview) -> int:
    """Return the source port of a frame of kind `FLOW`."""
    return int.from_bytes(flow_of(frame)[-_PORTS_BYTES : -_PORTS_BYTES // 2], "big")
