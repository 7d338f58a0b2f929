"""A frame as tests see it: parsed, with the words of the rules of weather.

Theory of operation: the fields that flows and filters depend on are parsed at once, the headers (`Frame.ip`,
`Frame.udp`, ...) when they are asked for, with the fields that `gpasst.formats` declares. Any bytes make a frame: what
is malformed or unknown has the protocol ``"other"``, and no ports.
"""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Final

from gpasst.codec import Codec
from gpasst.errors import PacketError
from gpasst.impair.facts import ARP, DHCP, ICMP, NDP, OTHER, TCP, TO_GUEST, TO_HOST, UDP
from gpasst.impair.parts import TCP_FLAGS
from gpasst.packet.parse import Packet, parse_ip, parse_udp
from gpasst.packet.protocols import protocol_name
from gpasst.values import end_text
from gpasst.wire import (
    ARP_CODEC,
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP_CODEC,
    IPV4_CODEC,
    IPV6_CODEC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
)

_IP: Final = ETHERNET_CODEC.size  # offset of the IP header
_ETHERTYPE = slice(ETHERNET_CODEC.offset("ethertype"), ETHERNET_CODEC.size)
_WORD: Final = 4  # bytes; of a TCP header's length (RFC 9293, section 3.1)
_NIBBLE: Final = 4  # bits
_OFFSET = TCP_CODEC.offset("data_offset")
_FLAGS = TCP_CODEC.offset("flags")
_FAMILIES = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}


class Frame:
    """A frame that crossed the guest's interface, or was lost on the way.

    :param data: the frame, from the destination MAC address on, without FCS. Any bytes do.
    :param to_guest: whether it was on the way to the guest.
    :param time_ns: when, in nanoseconds since 1970.
    :param fate: why it did not arrive; empty if it was carried.
    :param link: name of the host at the link, of a network; else empty.
    :ivar data: the frame.
    :ivar to: ``"guest"`` or ``"host"``.
    :ivar time_ns: when, in nanoseconds since 1970.
    :ivar fate: why it did not arrive; empty if it was carried.
    :ivar link: name of the host at the link, of a network; else empty.
    :ivar protocol: ``"tcp"``, ``"udp"``, ``"icmp"``, ``"arp"``, ``"ndp"``, ``"dhcp"`` or ``"other"``; those of IPv6
        have the same names, and multicast listener discovery counts as ``"ndp"``.
    :ivar family: 4 or 6; 0 without a whole IP header.
    :ivar source: source address, 4 or 16 bytes; empty without a whole IP header.
    :ivar destination: destination address, likewise.
    :ivar sport: source port, 0 without ports.
    :ivar dport: destination port, likewise.
    :ivar payload: the bytes behind the headers of UDP, TCP or ICMP, without Ethernet padding.
    """

    __slots__ = (
        "_segment",
        "data",
        "destination",
        "dport",
        "family",
        "fate",
        "link",
        "payload",
        "protocol",
        "source",
        "sport",
        "time_ns",
        "to",
    )

    def __init__(self, data: bytes, to_guest: bool, time_ns: int = 0, fate: str = "", link: str = "") -> None:
        self.data = data
        self.to = TO_GUEST if to_guest else TO_HOST
        self.time_ns = time_ns
        self.fate = fate
        self.link = link
        self.protocol = OTHER
        self.family = 0
        self.source = self.destination = self.payload = b""
        self.sport = self.dport = 0
        self._segment = memoryview(b"")
        ethertype = int.from_bytes(data[_ETHERTYPE], "big")
        if ethertype == ETHERTYPE_ARP and len(data) >= _IP + ARP_CODEC.size:
            self.protocol = ARP
        elif ethertype in _FAMILIES and len(data) > _IP:
            try:
                self._parse(parse_ip(memoryview(data)))
            except PacketError:
                self.protocol = OTHER

    @property
    def size(self) -> int:
        """Bytes, without preamble and FCS."""
        return len(self.data)

    @property
    def src(self) -> str:
        """The source address; empty without an IP header."""
        return str(ipaddress.ip_address(self.source)) if self.source else ""

    @property
    def dst(self) -> str:
        """The destination address; empty without an IP header."""
        return str(ipaddress.ip_address(self.destination)) if self.destination else ""

    @property
    def flag_bits(self) -> int:
        """The TCP flags as they stand in the header; 0 without a TCP header."""
        return self._segment[_FLAGS] if self.protocol == TCP and self._segment else 0

    @property
    def flags(self) -> str:
        """The TCP flags that are set, such as ``"syn,ack"``; empty without a TCP header."""
        bits = self.flag_bits
        return ",".join(name for name, bit in TCP_FLAGS.items() if bits & bit)

    @property
    def ethernet(self) -> SimpleNamespace | None:
        """The Ethernet header, with the fields of `gpasst.formats.ETHERNET`; None if it is not whole."""
        return _header(ETHERNET_CODEC, self.data)

    @property
    def arp(self) -> SimpleNamespace | None:
        """The ARP packet, with the fields of `gpasst.formats.ARP`; None if there is none."""
        return _header(ARP_CODEC, self.data[_IP:]) if self.protocol == ARP else None

    @property
    def ip(self) -> SimpleNamespace | None:
        """The IP header, with the fields of `gpasst.formats.IPV4` or `gpasst.formats.IPV6`; None if there is none."""
        if not self.family:
            return None
        return _header(IPV4_CODEC if self.family == _FAMILIES[ETHERTYPE_IPV4] else IPV6_CODEC, self.data[_IP:])

    @property
    def udp(self) -> SimpleNamespace | None:
        """The UDP header, with the fields of `gpasst.formats.UDP`; None if there is none."""
        return _header(UDP_CODEC, self._segment) if self.protocol in (UDP, DHCP) else None

    @property
    def tcp(self) -> SimpleNamespace | None:
        """The TCP header, with the fields of `gpasst.formats.TCP`; None if there is none."""
        return _header(TCP_CODEC, self._segment) if self.protocol == TCP else None

    @property
    def icmp(self) -> SimpleNamespace | None:
        """The header of ICMP or ICMPv6, with the fields of `gpasst.formats.ICMP`; None if there is none."""
        return _header(ICMP_CODEC, self._segment) if self.protocol in (ICMP, NDP) else None

    def __repr__(self) -> str:
        ends = f" {end_text(self.src, self.sport)} > {end_text(self.dst, self.dport)}" if self.family else ""
        where = f"{'to' if self.to == TO_GUEST else 'from'} {self.link}" if self.link else f"to {self.to}"
        return f"<Frame {self.protocol}{ends} {where}, {self.size} bytes{self.fate and ', ' + self.fate}>"

    def _parse(self, packet: Packet) -> None:
        """Parse what an IP packet carries.

        :raises PacketError: if that is malformed.
        """
        self.family, self.source, self.destination = packet.family, packet.source, packet.destination
        segment = packet.payload
        if packet.fragment and packet.fragment.offset:
            # It has no header, so neither ports nor a kind.
            self.protocol = protocol_name(packet.family, packet.protocol)
            self.payload = bytes(segment)
            return
        self._segment = segment
        if packet.protocol == PROTOCOL_UDP:
            self._parse_udp(segment, packet.fragment is not None)
        elif packet.protocol == PROTOCOL_TCP and len(segment) >= TCP_CODEC.size:
            self.protocol = TCP
            self.sport, self.dport = _ports(segment)
            self.payload = bytes(segment[(segment[_OFFSET] >> _NIBBLE) * _WORD :])
        elif packet.protocol in (PROTOCOL_ICMP, PROTOCOL_ICMPV6) and len(segment) >= ICMP_CODEC.size:
            self.protocol = protocol_name(packet.family, packet.protocol, kind=segment[0])
            self.payload = bytes(segment[ICMP_CODEC.size :])

    def _parse_udp(self, segment: memoryview, fragment: bool) -> None:
        """Parse a UDP datagram, or the first fragment of one.

        :raises PacketError: if it is malformed.
        """
        if not fragment:
            self.sport, self.dport, data = parse_udp(segment)
        elif len(segment) >= UDP_CODEC.size:
            (self.sport, self.dport), data = _ports(segment), segment[UDP_CODEC.size :]
        else:
            return
        self.protocol = protocol_name(self.family, PROTOCOL_UDP, self.sport, self.dport)
        self.payload = bytes(data)


def _ports(segment: memoryview) -> tuple[int, int]:
    """Return the ports at the start of a header of UDP or TCP."""
    return segment[0] << 8 | segment[1], segment[2] << 8 | segment[3]


def _header(codec: Codec, data: bytes | memoryview) -> SimpleNamespace | None:
    return SimpleNamespace(**codec.unpack_from(data)) if len(data) >= codec.size else None
