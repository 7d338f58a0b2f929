"""Frames from the guest, parsed or rejected."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import ETHERNET_CODEC, IPV4_CODEC, IPV6_CODEC, IPV6_FRAGMENT_CODEC, UDP_CODEC
from gpasst.packet.parse import MAX_EXTENSIONS, Fragment, parse_ip, parse_udp
from gpasst.packet.reassembly import Reassembly
from tests.support.addresses import ip
from tests.support.families import FAMILIES
from tests.support.replies import refused

SOURCE = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
DESTINATION = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AUTHENTICATION, NOTHING, OPTIONS = 0, 43, 44, 50, 51, 59, 60
UDP = 17


def frame(family: int, payload: bytes, protocol: int = UDP, **fields: int) -> memoryview:
    """Return an Ethernet frame around `payload`; IP header fields may be changed."""
    ends = {"source": SOURCE[family], "destination": DESTINATION[family]}
    if family == 4:
        values = {"total_length": 20 + len(payload), "ttl": 64, "protocol": protocol, **fields}
        packet = IPV4_CODEC.pack(**values, **ends)
    else:
        values = {"payload_length": len(payload), "next_header": protocol, "hop_limit": 64, **fields}
        packet = IPV6_CODEC.pack(**values, **ends)
    ethertype = 0x0800 if family == 4 else 0x86DD
    link = ETHERNET_CODEC.pack(destination=bytes(6), source=bytes(6), ethertype=ethertype)
    return memoryview(link + packet + payload)


def datagram(data: bytes, length: int | None = None) -> memoryview:
    size = 8 + len(data) if length is None else length
    return memoryview(UDP_CODEC.pack(source=33000, destination=123, length=size) + data)


@FAMILIES
@given(payload=st.binary(max_size=100), padding=st.binary(max_size=46))
def test_packets_end_where_they_say(family: int, payload: bytes, padding: bytes) -> None:
    data = memoryview(bytes(frame(family, payload)) + padding)
    packet = parse_ip(data)
    assert bytes(packet.payload) == payload
    assert (packet.family, packet.protocol, packet.hop_limit, packet.fragment) == (family, UDP, 64, None)
    assert (packet.source, packet.destination) == (SOURCE[family], DESTINATION[family])


def test_ipv4_options_are_stepped_over() -> None:
    data = frame(4, b"\1\1\1\1" + b"payload", ihl=6)
    assert bytes(parse_ip(data).payload) == b"payload"


@pytest.mark.parametrize(
    "data",
    [
        frame(4, b"12345678")[:13],
        frame(4, b"12345678")[:33],
        frame(4, b"12345678")[:-1],
        frame(4, b"12345678", total_length=19),
        frame(4, b"12345678", total_length=29),
        frame(4, b"12345678", ihl=4),
        frame(4, b"12345678", ihl=8),
        frame(4, b"12345678", version=6),
        frame(6, b"12345678")[:53],
        frame(6, b"12345678")[:-1],
        frame(6, b"12345678", payload_length=9),
        frame(6, b"12345678", version=4),
        frame(6, b"1", HOP_BY_HOP),
        frame(6, bytes((UDP, 1)) + bytes(6), HOP_BY_HOP),
        frame(6, bytes(7), FRAGMENT),
    ],
)
def test_broken_headers_are_refused(data: memoryview) -> None:
    with refused(Drop.MALFORMED_IP):
        parse_ip(data)


@pytest.mark.parametrize(
    ("flags", "offset", "expected"),
    [
        (0, 0, None),
        (2, 0, None),
        (1, 0, Fragment(0x1234, 0, True)),
        (1, 185, Fragment(0x1234, 1480, True)),
        (0, 185, Fragment(0x1234, 1480, False)),
    ],
)
def test_fragments_are_told_from_whole_packets(flags: int, offset: int, expected: Fragment | None) -> None:
    data = frame(4, b"12345678", flags=flags, fragment_offset=offset, identification=0x1234)
    assert parse_ip(data).fragment == expected


def extension(following: int, kind: int, units: int) -> bytes:
    """Return an extension header of `units` times 8 bytes."""
    # The authentication header counts in 4 bytes, less 2.
    length = 2 * units - 2 if kind == AUTHENTICATION else units - 1
    return bytes((following, length)) + bytes(8 * units - 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([HOP_BY_HOP, ROUTING, AUTHENTICATION, OPTIONS, 135, 139, 140, 253, 254]), st.integers(1, 5)
        ),
        max_size=MAX_EXTENSIONS,
    )
)
@example([(OPTIONS, 1)] * MAX_EXTENSIONS)
def test_extension_headers_are_stepped_over(chain: list[tuple[int, int]]) -> None:
    kinds = [kind for kind, _ in chain] + [UDP]
    extensions = [extension(following, kind, units) for (kind, units), following in zip(chain, kinds[1:], strict=True)]
    packet = parse_ip(frame(6, b"".join(extensions) + b"payload", kinds[0]))
    assert (packet.protocol, bytes(packet.payload)) == (UDP, b"payload")


def test_endless_chains_are_refused() -> None:
    chain = extension(OPTIONS, OPTIONS, 1) * MAX_EXTENSIONS + extension(UDP, OPTIONS, 1)
    with refused(Drop.MALFORMED_IP):
        parse_ip(frame(6, chain + b"payload", OPTIONS))


@pytest.mark.parametrize("kind", [ESP, NOTHING])
def test_what_cannot_be_stepped_over_ends_the_chain(kind: int) -> None:
    packet = parse_ip(frame(6, extension(kind, OPTIONS, 1) + b"rest of it", OPTIONS))
    assert (packet.protocol, bytes(packet.payload)) == (kind, b"rest of it")


def piece(offset: int, more: int, following: int = UDP) -> bytes:
    return IPV6_FRAGMENT_CODEC.pack(next_header=following, offset=offset // 8, more=more, identification=0x12345678)


def test_a_fragment_header_ends_the_walk() -> None:
    packet = parse_ip(frame(6, extension(FRAGMENT, OPTIONS, 1) + piece(1448, 1) + b"12345678", OPTIONS))
    assert packet.fragment == Fragment(0x12345678, 1448, True)
    assert (packet.protocol, bytes(packet.payload)) == (UDP, b"12345678")
    assert parse_ip(frame(6, piece(1448, 0) + b"1", FRAGMENT)).fragment == Fragment(0x12345678, 1448, False)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    packet = parse_ip(frame(6, piece(0, 0, OPTIONS) + extension(UDP, OPTIONS, 1) + b"payload", FRAGMENT))
    assert (packet.fragment, packet.protocol, bytes(packet.payload)) == (None, UDP, b"payload")


@pytest.mark.parametrize(("length", "data"), [(8, b""), (9, b"a"), (11, b"abc")])
def test_udp_ends_where_its_length_says(length: int, data: bytes) -> None:
    source, destination, payload = parse_udp(datagram(b"abc", length))
    assert (source, destination, bytes(payload)) == (33000, 123, data)


@pytest.mark.parametrize("payload", [b"", bytes(7), datagram(b"abc", 0), datagram(b"abc", 7), datagram(b"abc", 12)])
def test_udp_of_impossible_length_is_refused(payload: bytes | memoryview) -> None:
    with refused(Drop.MALFORMED_UDP):
        parse_udp(memoryview(payload))


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06", b""]))
def test_arbitrary_frames_raise_nothing_else(data: bytes, kind: bytes) -> None:
    raw = memoryview(bytes(12) + kind + data)
    try:
        packet = parse_ip(raw)
        if packet.fragment:
            Reassembly().add(packet, 0)
        source, destination, payload = parse_udp(packet.payload)
    except PacketError as error:
        assert isinstance(error.reason, Drop)
        return
    assert 0 <= source <= 65535
    assert 0 <= destination <= 65535
    assert len(payload) <= len(data)


@given(st.binary(max_size=120), st.sampled_from([HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS]))
def test_arbitrary_extensions_raise_nothing_else(data: bytes, kind: int) -> None:
    try:
        packet = parse_ip(frame(6, data, kind))
    except PacketError as error:
        assert error.reason is Drop.MALFORMED_IP
    else:
        assert len(packet.payload) <= len(data)
