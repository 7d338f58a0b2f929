"""Filters: texts and keywords in the words of rules of weather, functions, and what becomes of superframes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gpasst.capture.record import Record
from gpasst.capture.selection import Selection, build_filter, read_filter
from gpasst.errors import ConfigurationError
from gpasst.formats import ARP_CODEC, ETHERNET_CODEC, ETHERTYPE_ARP, UDP4, UDP6, VIRTIO_NET_CODEC
from gpasst.packet.frame import Frame
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.frames import framed, recorded, tcp, udp
from tests.support.headers import header

ARP = ETHERNET_CODEC.pack(destination=b"\xff" * 6, source=GUEST_MAC, ethertype=ETHERTYPE_ARP) + ARP_CODEC.pack(
    operation=1, sender_mac=GUEST_MAC, sender_ip=ip(GUEST4), target_mac=bytes(6), target_ip=ip(SERVER4)
)
FRAMES = {
    "udp4": recorded(udp(b"question")),
    "udp6": recorded(udp(b"question", 6)),
    "answer": recorded(udp(b"answer", sport=53, dport=4242), to_guest=True),
    "syn": recorded(tcp(2)),
    "ack": recorded(tcp(0x10, b"data", 6)),
    "ping": recorded(framed(4, 1, bytes((8, 0, 0, 0)))),
    "arp": recorded(ARP),
    "other": recorded(b""),
}


def selected(selection: Selection, records: Sequence[Record] = tuple(FRAMES.values())) -> set[str]:
    found = [record.data for record in selection.select(records)]
    return {name for name, record in FRAMES.items() if record.data in found}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set(FRAMES)),
        ("udp", {"udp4", "udp6", "answer"}),
        ("udp to host", {"udp4", "udp6"}),
        ("to guest", {"answer"}),
        ("udp dport 53", {"udp4", "udp6"}),
        ("sport 53", {"answer"}),
        ("dport 50-80", {"udp4", "udp6", "syn", "ack"}),
        ("protocol udp,arp", {"udp4", "udp6", "answer", "arp"}),
        (f"src {GUEST4}", {"udp4", "answer", "syn", "ping"}),
        ("dst 2001:db8::/32", {"udp6", "ack"}),
        (f"dst {SERVER6} ", {"udp6", "ack"}),
        ("flags syn,!ack", {"syn"}),
        ("udp size 47-50", {"udp4", "answer"}),
        ("udp nth 2", {"udp6"}),
    ],
)
def test_texts(text: str, names: set[str]) -> None:
    assert selected(read_filter(text)) == names


@pytest.mark.parametrize(
    ("match", "names", "text"),
    [
        ({}, set(FRAMES), "any frame"),
        ({"protocol": None, "dport": None}, set(FRAMES), "any frame"),
        ({"protocol": "udp", "dport": 53}, {"udp4", "udp6"}, "udp dport 53"),
        ({"dst": SERVER6}, {"udp6", "ack"}, f"dst {SERVER6}"),
        ({"src": GUEST6, "protocol": "tcp"}, {"ack"}, f"tcp src {GUEST6}"),
        ({"to": "guest"}, {"answer"}, "to guest"),
        ({"flags": "syn"}, {"syn"}, "flags syn"),
        ({"payload": b"question"}, {"udp4", "udp6"}, "any frame payload b'question'"),
        ({"payload": bytearray(b"answer"), "protocol": "udp"}, {"answer"}, "udp payload b'answer'"),
        ({"payload": b"quest"}, set(), "any frame payload b'quest'"),
        ({"when": lambda frame: frame.family == 6}, {"udp6", "ack"}, "any frame when <lambda>"),
    ],
)
def test_keywords(match: dict[str, Any], names: set[str], text: str) -> None:
    selection = build_filter(**match)
    assert selected(selection) == names
    assert str(selection) == text


def test_a_function_sees_parsed_frames() -> None:
    seen: list[Frame] = []

    def meant(frame: Frame) -> bool:
        seen.append(frame)
        return frame.payload == b"answer"

    assert selected(read_filter(meant)) == {"answer"}
    assert [frame.protocol for frame in seen] == ["udp", "udp", "udp", "tcp", "tcp", "icmp", "arp", "other"]


def test_what_a_function_raises_is_kept() -> None:
    def broken(frame: Frame) -> bool:
        raise ValueError(frame.protocol)

    selection = read_filter(broken)
    assert selected(selection) == set()
    assert repr(selection.error) == "ValueError('udp')"


def test_what_a_function_raises_may_be_no_exception() -> None:
    selection = read_filter(lambda frame: pytest.fail(frame.protocol))
    assert selected(selection) == set()
    with pytest.raises(pytest.fail.Exception, match="udp"):
        selection.check()


@FAMILIES
def test_a_superframe_is_cut_only_where_single_frames_are_meant(family: int) -> None:
    payload = bytes(2000) + b"last"
    whole = Record(7, True, bytes(header(family).fill(len(payload), 1000)) + payload, "late")
    assert read_filter("to guest udp dport 5000").select([whole]) == [whole]
    assert read_filter("dport 5001").select([whole]) == []
    (cut,) = build_filter(payload=b"last").select([whole])
    assert (cut.time_ns, cut.to_guest, cut.comment, cut.count) == (7, True, "late", 1)
    assert next(cut.parsed()).payload == b"last"
    size = (UDP4 if family == 4 else UDP6).size - VIRTIO_NET_CODEC.size
    assert len(read_filter(f"size {size + 1000}").select([whole])) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("udp dport 70000", "filter udp dport 70000: dport 70000"),
        ("nonsense", "filter nonsense: nonsense is no match"),
        ("non\nsense\x1b", "filter non\\nsense\\x1b: non is no match"),
        ("udp: loss 3%", "filter udp: loss 3%: "),
        (53, "filter 53: is neither text nor a function; write it like udp dport 53"),
    ],
)
def test_bad_filters(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_filter(given)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"protocol": "dns"}, "protocol dns"),
        ({"port": 53}, "port is no part of an expectation; give to, protocol, src, dst, sport, dport, size, flags"),
        ({"loss": "3%"}, "loss is no part of an expectation"),
        ({"nth": 3}, "nth is no part of an expectation"),
        ({"src": "example.org"}, "src example.org"),
        ({"payload": "text"}, "payload 'text' is no bytes; encode it"),
        ({"when": "now"}, "when 'now': is no function; give one that takes a parsed frame"),
        ({"protocol": "icmp", "dport": 1}, "ports belong to TCP and UDP"),
    ],
)
def test_bad_keywords(match: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_filter(**match)
    assert str(caught.value).startswith(message)
