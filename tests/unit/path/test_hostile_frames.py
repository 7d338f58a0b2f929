"""Whole frames of every kind at the real dispatch with all handlers: nothing raises, and all work has a bound.

Work is counted, not timed: options parsed, and calls of construct, which must be none for what the guest sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from construct import Construct
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.codec import Allowance, Options
from gpasst.counters import Drop
from gpasst.formats import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)
from gpasst.packet.dhcp_wire import DHCP_OPTIONS_LIMIT, DHCPV6_OPTIONS_LIMIT, MESSAGE_LIMIT
from tests.support.addresses import GATEWAY4, GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip
from tests.support.checked import FRAME_LIMIT
from tests.support.proxies import DUID, Proxy

CLIENT_ID, SERVER_ID, IA_NA, IA_TA, IAADDR = range(1, 6)
SOLICIT, REBIND = 1, 6


class Case(Proxy):
    """The dispatch of one guest, with every handler, and what it did in sight.

    :ivar options: how many options the latest frame had.
    """

    options = 0

    def send(self, frame: bytes, segment: int = 0) -> list[bytes]:
        """Dispatch a frame; return its answers, after checking all that must hold of any frame."""
        self.link.frames.clear()
        self.options = 0
        with self._watched():
            self.dispatch.frame(memoryview(frame), segment)
        assert self.options <= max(DHCP_OPTIONS_LIMIT, DHCPV6_OPTIONS_LIMIT)
        return self.link.frames

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Count options, those before an error included, and refuse construct."""
        parse = Options.parse

        def counted(options: Options, data: Any, allowance: Allowance, reason: Drop) -> list[tuple[int, bytes]]:
            assert len(data) <= MESSAGE_LIMIT
            before = allowance.options
            try:
                return parse(options, data, allowance, reason)
            finally:
                self.options += before - allowance.options

        with ExitStack() as stack:
            stack.enter_context(self.sealed())
            stack.enter_context(patch.object(Options, "parse", counted))
            for name in ("parse", "parse_stream"):
                stack.enter_context(patch.object(Construct, name, refused))
            yield


def refused(*_: Any) -> Any:
    raise AssertionError("construct parses what the guest sent")


# --- Frames ---------------------------------------------------------------------------------------------------------


def ethernet(ethertype: int, payload: bytes) -> bytes:
    return HOST_MAC + GUEST_MAC + ethertype.to_bytes(2, "big") + payload


def ip4(protocol: int, payload: bytes, source: bytes, to: bytes, fragment: int = 0, options: bytes = b"") -> bytes:
    payload = payload[: 65535 - 20 - len(options)]
    ihl, total = 5 + len(options) // 4, 20 + len(options) + len(payload)
    head = struct.pack(">BBHHHBBH", 0x40 | ihl, 0, total, 7, fragment, 64, protocol, 0)
    return ethernet(ETHERTYPE_IPV4, head + source + to + options + payload)


def ip6(protocol: int, payload: bytes, source: bytes, to: bytes, hop_limit: int = 255) -> bytes:
    payload = payload[:65535]
    head = struct.pack(">IHBB", 0x60000000, len(payload), protocol, hop_limit)
    return ethernet(ETHERTYPE_IPV6, head + source + to + payload)


def udp(source: int, port: int, data: bytes) -> bytes:
    data = data[: 65535 - 8 - 20]
    return struct.pack(">HHHH", source, port, 8 + len(data), 0) + data


def dhcp(options: bytes) -> bytes:
    fixed = bytes((1, 1, 6, 0)) + bytes(24) + GUEST_MAC.ljust(16, b"\0") + bytes(192)
    return ip4(PROTOCOL_UDP, udp(68, 67, fixed + bytes.fromhex("63825363") + options), bytes(4), b"\xff" * 4)


def option(code: int, data: bytes) -> bytes:
    return struct.pack(">HH", code, len(data)) + data


def solicit(options: bytes, kind: int = SOLICIT) -> bytes:
    message = bytes((kind,)) + b"abc" + option(CLIENT_ID, b"client") + options
    return ip6(PROTOCOL_UDP, udp(546, 547, message), ip("fe80::7"), ip("ff02::1:2"))


BYTES = st.binary(max_size=80)
MANY = st.builds(lambda piece, count: piece * count, st.binary(min_size=1, max_size=20), st.integers(0, 70000))
TYPES4 = st.sampled_from([0, 3, 8, 11, 12]) | st.integers(0, 255)
TYPES6 = st.sampled_from([1, 2, 3, 4, 128, 129, 133, 134, 135, 136]) | st.integers(0, 255)
PORTS = st.sampled_from([0, 53, 67, 68, 546, 547, 5000])
ADDRESSES4 = st.sampled_from([*map(ip, (GUEST4, GATEWAY4, SERVER4, "127.0.0.1", "0.0.0.0", "224.0.0.1"))])
ADDRESSES6 = st.sampled_from(
    [*map(ip, (GUEST6, SERVER6, "fe80::1", "fe80::7", "::", "::1", "ff02::1", "ff02::1:2", "::ffff:127.0.0.1"))]
)
OPTION4 = st.builds(
    lambda code, data: bytes((code, len(data))) + data,
    st.sampled_from([12, 50, 52, 53, 54, 55, 57, 61, 80, 81, 119]) | st.integers(0, 255),
    st.sampled_from([b"\1", b"\3", b"\5", b"\x08"]) | st.binary(max_size=255),
)
OPTIONS4 = st.lists(OPTION4, max_size=6).map(b"".join) | MANY
KIND4 = st.integers(0, 9).map(lambda kind: bytes((53, 1, kind)))
DHCP = st.builds(lambda kind, options: kind + options, KIND4, OPTIONS4)


def nested(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    codes = st.sampled_from([1, 2, IA_NA, IA_TA, IAADDR, 6, 13, 14, 39]) | st.integers(0, 65535)
    heads = st.sampled_from([b"", bytes(4), bytes(12), bytes(24)])
    return st.builds(
        lambda code, head, parts: option(code, (head + b"".join(parts))[:65535]),
        codes,
        heads,
        st.lists(inner, max_size=4),
    )


OPTIONS6 = st.lists(st.recursive(BYTES, nested, max_leaves=12), max_size=8).map(b"".join)
REPEATED6 = st.builds(
    lambda part, count: part * count,
    st.sampled_from([option(IA_NA, bytes(12)), option(IA_TA, bytes(4))]),
    st.integers(0, 5000),
)
MESSAGES6 = st.builds(
    lambda kind, named, options: bytes((kind,)) + b"abc" + option(CLIENT_ID, b"c") + named + options,
    st.integers(0, 13),
    st.sampled_from([b"", option(SERVER_ID, DUID)]),
    OPTIONS6 | REPEATED6 | MANY,
)
UDP4 = st.builds(udp, PORTS, PORTS, BYTES | MANY)
UDP6 = UDP4 | st.builds(lambda data: udp(546, 547, data), MESSAGES6)
TCP = st.builds(
    lambda offset, flags, rest: struct.pack(">HHIIBBHHH", 1, 2, 3, 4, offset, flags, 5, 6, 0) + rest,
    st.integers(0, 255),
    st.integers(0, 255),
    BYTES | MANY,
)
QUOTED4 = st.builds(ip4, st.just(PROTOCOL_UDP), UDP4, ADDRESSES4, ADDRESSES4).map(lambda frame: frame[14:])
QUOTED6 = st.builds(ip6, st.just(PROTOCOL_UDP), UDP6, ADDRESSES6, ADDRESSES6).map(lambda frame: frame[14:])


def icmp(types: st.SearchStrategy[int], quoted: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda kind, head, body: bytes((kind, 0)) + head + body,
        types,
        st.binary(min_size=6, max_size=6),
        BYTES | MANY | quoted,
    )


def chain(protocol: int, headers: list[tuple[int, int]], payload: bytes) -> tuple[int, bytes]:
    """Return the first next header, and extension headers before the payload."""
    for kind, units in headers:
        payload = bytes((protocol, units)) + bytes(8 * units + 6) + payload
        protocol = kind
    return protocol, payload


HEADERS = st.lists(st.tuples(st.sampled_from([0, 43, 44, 51, 60, 135]), st.integers(0, 3)), max_size=10)
PAYLOADS4 = (
    st.tuples(st.just(PROTOCOL_UDP), UDP4)
    | st.tuples(st.just(PROTOCOL_TCP), TCP)
    | st.tuples(st.just(PROTOCOL_ICMP), icmp(TYPES4, QUOTED4))
    | st.tuples(st.integers(0, 255), BYTES)
)
PAYLOADS6 = (
    st.tuples(st.just(PROTOCOL_UDP), UDP6)
    | st.tuples(st.just(PROTOCOL_TCP), TCP)
    | st.tuples(st.just(PROTOCOL_ICMPV6), icmp(TYPES6, QUOTED6))
    | st.tuples(st.integers(0, 255), BYTES)
)


def frame4(what: tuple[int, bytes], source: bytes, to: bytes, fragment: int, words: int) -> bytes:
    return ip4(what[0], what[1], source, to, fragment, bytes(4 * words))


FRAMES4 = st.builds(
    frame4,
    PAYLOADS4,
    ADDRESSES4,
    ADDRESSES4,
    st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x2001, 0x1FFF, 0x3FFF]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 0, 10]),
)
FRAMES6 = st.builds(
    lambda what, headers, source, to, limit: ip6(*chain(what[0], headers, what[1]), source, to, limit),
    PAYLOADS6,
    st.just([]) | HEADERS,
    ADDRESSES6,
    ADDRESSES6,
    st.sampled_from([1, 64, 255]),
)
ARPS = st.builds(
    lambda head, rest: ethernet(ETHERTYPE_ARP, head + rest),
    st.sampled_from([bytes.fromhex("0001080006040001"), bytes.fromhex("0001080006040002")])
    | st.binary(min_size=8, max_size=8),
    BYTES | MANY.map(lambda data: data[:65521]),
)
PLAIN = st.one_of(
    ARPS,
    FRAMES4,
    FRAMES6,
    DHCP.map(dhcp),
    MESSAGES6.map(lambda m: ip6(17, udp(546, 547, m), ip("fe80::7"), ip("ff02::1:2"))),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a frame of any kind with some bytes changed, cut or padded."""
    frame = bytearray(draw(PLAIN))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4)):
        frame[at % len(frame)] = value
    cut = draw(st.sampled_from([0, 0, 0, 1, 20, 60]))
    return (bytes(frame[: max(0, len(frame) - cut)]) + bytes(draw(st.sampled_from([0, 0, 6]))))[:FRAME_LIMIT]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(PLAIN | mutated() | BYTES, st.sampled_from([0, 0, 0, 1, 1400])), min_size=1, max_size=5))
def test_no_frame_raises_and_every_answer_is_a_frame(frames: list[tuple[bytes, int]]) -> None:
    case = Case()
    for frame, segment in frames:
        case.send(frame, segment)


@given(st.integers(1, 3), st.integers(8, 65535 // 8 * 8), st.data())
@settings(deadline=None)
def test_reassembled_datagrams_of_any_size_raise_nothing(kind: int, size: int, data: st.DataObject) -> None:
    """The longest have more bytes than an answer that quotes them could."""
    case = Case()
    head = {1: b"\x08\0\0\0\0\1\0\1", 2: struct.pack(">HHHH", 5000, 53, size + 7, 0), 3: bytes(8)}[kind]
    protocol = {1: PROTOCOL_ICMP, 2: PROTOCOL_UDP, 3: PROTOCOL_TCP}[kind]
    whole = head.ljust(size + 7, b"x")
    middle = data.draw(st.integers(1, max(1, (len(whole) - 1) // 8))) * 8
    source, to = ip(GUEST4), ip(SERVER4)
    case.send(ip4(protocol, whole[:middle], source, to, 0x2000))
    case.send(ip4(protocol, whole[middle:], source, to, middle // 8))


# --- What one frame may cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [bytes(65000), b"\x0c\0" * 32000, b"\x0c\0" * (DHCP_OPTIONS_LIMIT + 1), b"\x37\xff" + bytes(255) * 200],
    ids=["padding", "options", "one too many", "requests"],
)
def test_a_dhcp_message_with_more_than_any_client_sends_is_dropped(options: bytes) -> None:
    case = Case()
    assert case.send(dhcp(b"\x35\1\1" + options)) == []
    assert case.counters.drops == {Drop.EXCESSIVE: 1}
    assert len(case.send(dhcp(b"\x35\1\1" + bytes(300)))) == 1


@pytest.mark.parametrize(
    "options",
    [
        option(IA_NA, bytes(12)) * 1400,
        option(IA_TA, bytes(4)) * DHCPV6_OPTIONS_LIMIT,
        option(IA_NA, bytes(12) + option(IAADDR, bytes(24)) * DHCPV6_OPTIONS_LIMIT),
        option(IA_NA, bytes(12) + option(IAADDR, bytes(24) + option(9, b"") * DHCPV6_OPTIONS_LIMIT)),
        option(9, b"") * 16000,
    ],
    ids=["associations", "one too many", "addresses", "within addresses", "options"],
)
def test_a_dhcpv6_message_with_more_than_any_client_sends_is_dropped(options: bytes) -> None:
    case = Case()
    assert case.send(solicit(options)) == []
    assert case.counters.drops == {Drop.EXCESSIVE: 1}
    assert len(case.send(solicit(option(IA_NA, bytes(12))))) == 1


@pytest.mark.parametrize("kind", [SOLICIT, REBIND])
def test_the_longest_dhcpv6_answer_is_a_datagram(kind: int) -> None:
    case = Case()
    held = option(IAADDR, ip(SERVER6) + bytes(8))
    count = (DHCPV6_OPTIONS_LIMIT - 1) // 2
    (answer,) = case.send(solicit(option(IA_NA, bytes(12) + held) * count, kind))
    assert answer.count(b"One address is all there is.") == count - 1
    assert case.options == 1 + 2 * count


@example(count=9)
@given(count=st.integers(0, 8100))
def test_extension_headers_are_walked_up_to_a_number(count: int) -> None:
    case = Case()
    protocol, payload = chain(PROTOCOL_UDP, [(60, 0)] * count, udp(5000, 53, b""))
    case.send(ip6(protocol, payload, ip(GUEST6), ip(SERVER6)))
    assert case.counters.drops == ({Drop.MALFORMED_IP: 1} if count > 8 else {})
