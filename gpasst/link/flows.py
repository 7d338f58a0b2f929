"""The flows of the frames that cross a link, as rules of weather name them.

Theory of operation: a frame of TCP or UDP without IP options or fragments, and every header of a run, is known by its
protocol, addresses and ports as raw bytes, so that the flow of the next frame costs one look-up. All others are parsed.
Fragments but the first have no ports.
"""

from __future__ import annotations

import struct

from gpasst.errors import PacketError
from gpasst.impair.facts import ARP, OTHER, Flow
from gpasst.packet.address import V4, V6
from gpasst.packet.parse import parse_ip
from gpasst.packet.protocols import NO_KIND, protocol_name
from gpasst.packet.superframe import VIRTIO, Buffer
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP4,
    TCP6,
    TCP_CODEC,
    UDP4,
    UDP6,
)

FLOWS_KEPT = 4096  # a guest chooses addresses and ports

_PORTED = PROTOCOL_TCP, PROTOCOL_UDP

_TYPE = slice(VIRTIO + ETHERNET_CODEC.offset("ethertype"), VIRTIO + ETHERNET_CODEC.size)
_IP = _TYPE.stop
_PROTOCOL = {V4: UDP4.offset("ip.protocol"), V6: UDP6.offset("ip.next_header")}
_KEY = {
    V4: (UDP4.offset("ip.source"), UDP4.offset("udp.length")),
    V6: (UDP6.offset("ip.source"), UDP6.offset("udp.length")),
}
_HEADERS = {V4: UDP4.size, V6: UDP6.size}  # bytes that hold a whole key
_FLAGS = {V4: TCP4.offset("tcp.flags"), V6: TCP6.offset("tcp.flags")}
_FLAGS_IN_TCP = TCP_CODEC.offset("flags")
_PORTS_BYTES = 4

_pick4 = UDP4.picker("ethernet.ethertype", "ip.version", "ip.flags", "ip.protocol").unpack_from
_ports = struct.Struct(">HH").unpack_from


class Flows:
    """One `Flow` for each flow of a link, in each direction."""

    def __init__(self) -> None:
        self._flows: dict[bytes, Flow] = {}

    def find(self, buffer: Buffer, at: int, end: int) -> tuple[Flow, int]:
        """Return the flow of a frame, and its TCP flags.

        :param buffer: where the frame lies.
        :param at: where its virtio-net header begins, or would.
        :param end: where it ends, or at least its headers.
        """
        size = end - at
        if size >= _HEADERS[V4]:
            ethertype, version, fragment, protocol = _pick4(buffer, at)
            if ethertype == ETHERTYPE_IPV4:
                if version == IPV4_VERSION_IHL and not fragment & IPV4_FRAGMENT_MASK and protocol in _PORTED:
                    return self._plain(buffer, at, size, V4, protocol)
            elif ethertype == ETHERTYPE_IPV6 and size >= _HEADERS[V6]:
                protocol = buffer[at + _PROTOCOL[V6]]
                if protocol in _PORTED:
                    return self._plain(buffer, at, size, V6, protocol)
        flow, flags = _parsed(memoryview(bytes(buffer[at + VIRTIO : end])))
        key = f"{flow.protocol} {flow.family} {flow.sport} {flow.dport} ".encode() + flow.source + flow.destination
        return self._kept(key, flow), flags

    def _plain(self, buffer: Buffer, at: int, size: int, family: int, protocol: int) -> tuple[Flow, int]:
        start, end = _KEY[family]
        key = bytes(buffer[at + start : at + end]) + (b"t" if protocol == PROTOCOL_TCP else b"u")
        flow = self._flows.get(key)
        if flow is None:
            half = (end - start - _PORTS_BYTES) // 2
            sport, dport = _ports(key, 2 * half)
            flow = self._kept(key, _flow(family, protocol, key[:half], key[half : 2 * half], sport, dport))
        flags = _FLAGS[family]
        return flow, buffer[at + flags] if protocol == PROTOCOL_TCP and flags < size else 0

    def _kept(self, key: bytes, flow: Flow) -> Flow:
        """Return the flow of a key, which is `flow` if there is none."""
        if len(self._flows) >= FLOWS_KEPT:
            self._flows.clear()
        return self._flows.setdefault(key, flow)


def _flow(family: int, protocol: int, source: bytes, destination: bytes, sport: int, dport: int) -> Flow:
    return Flow(protocol_name(family, protocol, sport, dport), family, source, destination, sport, dport)


def _parsed(frame: memoryview) -> tuple[Flow, int]:
    """Return the flow of any frame, from its destination MAC address on, and its TCP flags."""
    ethertype = int.from_bytes(frame[_TYPE.start - VIRTIO : _TYPE.stop - VIRTIO], "big")
    if ethertype == ETHERTYPE_ARP:
        return Flow(ARP), 0
    if ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return Flow(OTHER), 0
    try:
        packet = parse_ip(frame)
    except PacketError:
        return Flow(OTHER), 0
    payload, protocol = packet.payload, packet.protocol
    first = packet.fragment is None or not packet.fragment.offset
    if protocol in _PORTED and first and len(payload) >= _PORTS_BYTES:
        flow = _flow(packet.family, protocol, packet.source, packet.destination, *_ports(payload))
        tcp = protocol == PROTOCOL_TCP and len(payload) > _FLAGS_IN_TCP
        return flow, payload[_FLAGS_IN_TCP] if tcp else 0
    name = protocol_name(packet.family, protocol, kind=payload[0] if first and payload else NO_KIND)
    return Flow(name, packet.family, packet.source, packet.destination), 0
