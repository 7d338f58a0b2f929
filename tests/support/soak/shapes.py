"""Frames of a hostile guest: good ones of every kind that the proxy looks into, and what becomes of them by chance."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Request, DHCP6_Solicit, DHCP6OptClientId, DHCP6OptIA_NA, DHCP6OptServerId
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.support.lab import FAR4, FAR6, HOST4, HOST6, NOWHERE4, REMOTE4, REMOTE6
from tests.support.scripted import HOST_MAC

AT_ONCE = 4096  # frames whose chance is drawn in one call
ETHERNET_BYTES = 14
LINK_LOCAL = "fe80::5054:ff:fe12:3456"
DUID = bytes.fromhex("00030001525400123456")
BODIES: tuple[Packet, ...] = (
    UDP(sport=33000, dport=9) / Raw(b"x"),
    UDP(sport=33001, dport=7) / Raw(bytes(1400)),
    UDP(sport=0, dport=0),
    UDP(sport=33002, dport=9, len=4) / Raw(b"short"),
    UDP(sport=33003, dport=9, len=60000) / Raw(b"long"),
    UDP(sport=33004, dport=53) / DNS(qd=DNSQR(qname="hostile.example")),
    TCP(sport=34000, dport=9, flags="S", options=[("MSS", 1460), ("WScale", 14)]),
    TCP(sport=34001, dport=9, flags="S", options=[("MSS", 0)]),
    TCP(sport=34002, dport=80, flags="A", seq=1, ack=1) / Raw(bytes(1000)),
    TCP(sport=34003, dport=80, flags="R", seq=1),
    TCP(sport=34004, dport=80, flags="FA", seq=1, ack=1),
    TCP(sport=34005, dport=80, flags=0xFF, urgptr=1) / Raw(b"x"),
    TCP(sport=34006, dport=80, flags="S", dataofs=15),
    TCP(sport=34007, dport=80, flags="S", dataofs=1),
)


def shapes(mac: str) -> list[bytes]:
    """Return the frames that others are made of.

    :param mac: the guest's.
    """
    ether, everybody = Ether(src=mac, dst=HOST_MAC.hex(":")), Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
    ip4, ip6 = IP(src=HOST4, dst=FAR4), IPv6(src=HOST6, dst=FAR6)
    near = IPv6(src=LINK_LOCAL, dst="fe80::1", hlim=255)
    packets: list[Packet] = []
    for body in BODIES:
        for ip in (ip4, ip6, IP(src=HOST4, dst=REMOTE4), IPv6(src=HOST6, dst=REMOTE6), IP(src=HOST4, dst=NOWHERE4)):
            packets.append(ip / body)
    udp, tcp = BODIES[0], BODIES[6]
    for target in ("127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.2.3", HOST4):
        packets += [IP(src=HOST4, dst=target) / udp, IP(src=HOST4, dst=target) / tcp, IP(src=target, dst=FAR4) / udp]
    for target in ("::1", "::", "ff02::1", "ff0e::1", "::ffff:127.0.0.1", HOST6):
        packets += [IPv6(src=HOST6, dst=target) / udp, IPv6(src=target, dst=FAR6) / tcp]
    packets += [
        IP(src=HOST4, dst=FAR4, ttl=0) / udp,
        IP(src=HOST4, dst=FAR4, ttl=1) / udp,
        IP(src=HOST4, dst=FAR4, tos=0xFF) / udp,
        IP(src=HOST4, dst=FAR4, ihl=4) / udp,
        IP(src=HOST4, dst=FAR4, ihl=15) / udp,
        IP(src=HOST4, dst=FAR4, len=10) / udp,
        IP(src=HOST4, dst=FAR4, len=65535) / udp,
        IP(src=HOST4, dst=FAR4, options=[IPOption_LSRR(routers=[REMOTE4]), IPOption_Timestamp()]) / udp,
        IP(src=HOST4, dst=FAR4, flags="MF", id=7, proto=17) / Raw(bytes(16)),
        IP(src=HOST4, dst=FAR4, frag=2, id=7, proto=17) / Raw(bytes(16)),
        IP(src=HOST4, dst=FAR4, frag=8191, id=8, proto=17) / Raw(bytes(64)),
        IP(src=HOST4, dst=FAR4, proto=47) / Raw(bytes(40)),
        ip4 / ICMP(type=8, id=1, seq=1) / Raw(bytes(32)),
        ip4 / ICMP(type=3, code=4, nexthopmtu=68) / IP(src=FAR4, dst=HOST4) / udp,
        ip4 / ICMP(type=5, gw=REMOTE4) / IP(src=FAR4, dst=HOST4) / tcp,
        ip4 / ICMP(type=200),
        ip6 / ICMPv6EchoRequest(id=1),
        ip6 / ICMPv6PacketTooBig(mtu=1) / IPv6(src=FAR6, dst=HOST6) / tcp,
        ip6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=[FAR6]) / udp,
        ip6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrHopByHop() / IPv6ExtHdrHopByHop() / tcp,
        ip6 / IPv6ExtHdrFragment(m=1, id=9, nh=17) / Raw(bytes(16)),
        ip6 / IPv6ExtHdrFragment(offset=2, id=9, nh=17) / Raw(bytes(16)),
        ip6 / IPv6ExtHdrFragment(offset=8191, id=10, nh=6) / Raw(bytes(64)),
        IPv6(src=HOST6, dst=FAR6, nh=59),
        IPv6(src=HOST6, dst=FAR6, plen=0) / udp,
        IPv6(src=HOST6, dst=FAR6, plen=65535) / udp,
        near / ICMPv6ND_NS(tgt="fe80::1"),
        near / ICMPv6ND_NS(tgt=FAR6),
        near / ICMPv6ND_NA(tgt=LINK_LOCAL),
        near / ICMPv6ND_RS(),
        IPv6(src=LINK_LOCAL, dst="ff02::16", hlim=1) / ICMPv6MLReport2(),
    ]
    identity = DHCP6OptClientId(duid=DUID)
    for message in (DHCP6_Solicit(), DHCP6_Request() / DHCP6OptServerId(duid=DUID)):
        to = IPv6(src=LINK_LOCAL, dst="ff02::1:2") / UDP(sport=546, dport=547)
        packets.append(to / message / identity / DHCP6OptIA_NA(iaid=1))
    frames = [bytes(ether / packet) for packet in packets]
    for options in (["discover"], ["request"], ["release"]):
        start = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
        offer = BOOTP(chaddr=bytes.fromhex(mac.replace(":", ""))) / DHCP(options=[("message-type", options[0]), "end"])
        frames.append(bytes(everybody / start / offer))
    frames += [bytes(everybody / ARP(psrc=HOST4, pdst=target)) for target in (REMOTE4, FAR4, HOST4)]
    frames.append(bytes(ether / ARP(op=2, psrc=REMOTE4, pdst=HOST4)))
    frames.append(bytes(ether / Dot1Q(vlan=7) / ip4 / udp))
    frames += [bytes(Ether(src=mac, dst=HOST_MAC.hex(":"), type=kind)) + bytes(50) for kind in (0, 0x88CC, 0xFFFF)]
    return frames


def hostile(mac: str, chance: random.Random, shortest: int) -> Iterator[bytes]:
    """Yield frames without end: five of eight with a wrong byte, two of eight cut short, one as it was.

    The addresses of Ethernet are left alone: a guest that changes its own receives nothing any more.

    :param mac: the guest's.
    :param shortest: bytes of a frame that was cut.
    """
    good = shapes(mac)
    count = len(good)
    while True:
        for which, how, where, value in struct.iter_unpack("<HHHH", chance.randbytes(8 * AT_ONCE)):
            frame = good[which % count]
            way = how & 7
            if way < 5:
                at = ETHERNET_BYTES - 2 + where % (len(frame) - ETHERNET_BYTES + 2)
                yield b"%b%c%b" % (frame[:at], value & 0xFF, frame[at + 1 :])
            elif way < 7:
                yield frame[: shortest + where % (len(frame) - shortest + 1)]
            else:
                yield frame
