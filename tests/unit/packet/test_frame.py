"""Frames as tests see them: what is parsed of each protocol, and what becomes of malformed bytes. Takes a second."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import (
    ARP_CODEC,
    ETHERNET_CODEC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV6_CODEC,
    IPV6_FRAGMENT_CODEC,
)
from gpasst.packet.frame import Frame
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.frames import ENDS, datagram, framed, segment

ICMP = {4: 1, 6: 58}
WORDS = {"arp", "dhcp", "icmp", "ndp", "other", "tcp", "udp"}


@FAMILIES
def test_a_datagram(family: int) -> None:
    frame = Frame(framed(family, 17, datagram(b"question")) + b"padding", False, 1_000_000_007, "lost")
    assert (frame.protocol, frame.family, frame.to) == ("udp", family, "host")
    assert (frame.src, frame.dst) == ENDS[family]
    assert (frame.source, frame.destination) == tuple(map(ip, ENDS[family]))
    assert (frame.sport, frame.dport, frame.payload) == (4242, 53, b"question")
    assert (frame.time_ns, frame.fate, frame.flags) == (1_000_000_007, "lost", "")
    assert frame.size == len(frame.data) == 14 + (20 if family == 4 else 40) + 8 + 8 + 7
    assert frame.ethernet is not None and frame.ethernet.source == GUEST_MAC
    assert frame.ip is not None and frame.ip.version == family
    assert frame.udp is not None and frame.udp.length == 16
    assert frame.tcp is frame.icmp is frame.arp is None


@FAMILIES
def test_a_segment(family: int) -> None:
    frame = Frame(framed(family, 6, segment(0x12, b"data")), True)
    assert (frame.protocol, frame.to) == ("tcp", "guest")
    assert (frame.sport, frame.dport, frame.flags, frame.payload) == (4242, 80, "syn,ack", b"data")
    assert frame.tcp is not None and (frame.tcp.sequence, frame.tcp.window) == (7, 100)
    assert frame.udp is None


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [(4, 8, "icmp"), (4, 135, "icmp"), (6, 128, "icmp"), (6, 135, "ndp"), (6, 143, "ndp")],
)
def test_messages_of_icmp_and_of_discovery(family: int, kind: int, protocol: str) -> None:
    frame = Frame(framed(family, ICMP[family], bytes((kind, 1, 0, 0)) + b"rest"), True)
    assert (frame.protocol, frame.sport, frame.dport, frame.payload) == (protocol, 0, 0, b"rest")
    assert frame.icmp is not None and (frame.icmp.type, frame.icmp.code) == (kind, 1)


@pytest.mark.parametrize(
    ("family", "sport", "dport", "protocol"),
    [(4, 68, 67, "dhcp"), (6, 546, 547, "dhcp"), (4, 546, 547, "udp"), (6, 68, 67, "udp"), (4, 9, 67, "udp")],
)
def test_dhcp_has_ports_of_its_own(family: int, sport: int, dport: int, protocol: str) -> None:
    frame = Frame(framed(family, 17, datagram(b"x", sport, dport)), False)
    assert (frame.protocol, frame.sport, frame.dport) == (protocol, sport, dport)
    assert frame.udp is not None


def test_arp() -> None:
    ends = dict(zip(("sender_ip", "target_ip"), map(ip, ENDS[4]), strict=True))
    packet = ARP_CODEC.pack(operation=1, sender_mac=GUEST_MAC, target_mac=bytes(6), **ends)
    head = ETHERNET_CODEC.pack(destination=b"\xff" * 6, source=GUEST_MAC, ethertype=ETHERTYPE_ARP)
    frame = Frame(head + packet, False)
    assert (frame.protocol, frame.family, frame.src, frame.dst) == ("arp", 0, "", "")
    assert frame.arp is not None and frame.arp.target_ip == ip(SERVER4)
    assert frame.ip is None
    assert Frame(head + packet[:-1], False).protocol == "other"


def test_fragments_over_ipv4() -> None:
    whole = bytearray(framed(4, 17, datagram(bytes(16))[:16]))
    whole[14 + 6] |= 0x20
    first = Frame(bytes(whole), False)
    assert (first.protocol, first.sport, first.dport, first.payload) == ("udp", 4242, 53, bytes(8))
    whole[14 + 6 : 14 + 8] = struct.pack(">H", 2)
    last = Frame(bytes(whole), False)
    assert (last.protocol, last.sport, last.dport, len(last.payload)) == ("udp", 0, 0, 16)
    assert last.udp is None
    assert (last.src, last.dst) == ENDS[4]


def test_fragments_over_ipv6() -> None:
    def fragment(offset: int, part: bytes) -> Frame:
        return Frame(
            framed(6, 44, IPV6_FRAGMENT_CODEC.pack(next_header=17, offset=offset, more=1, identification=1) + part),
            False,
        )

    first, last = fragment(0, datagram(bytes(16))[:16]), fragment(2, bytes(8))
    assert (first.protocol, first.dport, first.payload) == ("udp", 53, bytes(8))
    assert (last.protocol, last.dport, last.payload) == ("udp", 0, bytes(8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(13),
        ETHERNET_CODEC.pack(destination=bytes(6), source=bytes(6), ethertype=ETHERTYPE_IPV6),
        framed(4, 17, datagram(b"x"))[:-1],
        framed(4, 17, b"short"),
        framed(4, 6, bytes(19)),
        framed(6, 58, bytes(3)),
        framed(4, 47, bytes(40)),
    ],
)
def test_what_is_malformed_or_unknown_has_no_protocol(data: bytes) -> None:
    frame = Frame(data, True)
    assert (frame.protocol, frame.sport, frame.dport, frame.payload) == ("other", 0, 0, b"")
    assert frame.udp is frame.tcp is frame.icmp is frame.arp is None


@given(
    head=st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd"]) | st.binary(max_size=2),
    rest=st.binary(max_size=100),
    sizes=st.sampled_from([IPV4_CODEC.size, IPV6_CODEC.size]),
)
def test_any_bytes_make_a_frame(head: bytes, rest: bytes, sizes: int) -> None:
    version = bytes((0x45 if sizes == IPV4_CODEC.size else 0x60,))
    for data in (bytes(12) + head + rest, bytes(12) + head + version + rest):
        frame = Frame(data, True)
        assert frame.protocol in WORDS
        for name in ("src", "dst", "flags", "ethernet", "ip", "udp", "tcp", "icmp", "arp"):
            getattr(frame, name)
        assert repr(frame)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (
            Frame(framed(4, 17, datagram(b"x")), False, 0, "lost"),
            f"<Frame udp {GUEST4}:4242 > {SERVER4}:53 to host, 43 bytes, lost>",
        ),
        (
            Frame(framed(6, 6, segment(2)), True),
            f"<Frame tcp [{GUEST6}]:4242 > [{SERVER6}]:80 to guest, 78 bytes>",
        ),
        (Frame(framed(4, 1, bytes((8, 0, 0, 0))), True), f"<Frame icmp {GUEST4} > {SERVER4} to guest, 38 bytes>"),
        (Frame(b"", True), "<Frame other to guest, 0 bytes>"),
    ],
)
def test_the_text_of_a_frame(frame: Frame, text: str) -> None:
    assert repr(frame) == text
