"""Kinds, sources and flows of frames that belong to no known flow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.path.unknown import ARP, DHCP, ECHO, FLOW, NDP, OTHER, PART, RATES, ROUTER, flow_of, kind_of, source_port

MAC = bytes.fromhex("525400123456")
SOURCE4, TARGET4 = bytes((192, 0, 2, 2)), bytes((198, 51, 100, 9))
SOURCE6, TARGET6 = bytes(15) + b"\x02", bytes(15) + b"\x09"
GATEWAY4, GATEWAY6 = bytes((192, 0, 2, 1)), bytes.fromhex("fe80") + bytes(13) + b"\x01"
ROUTERS = frozenset((GATEWAY4, GATEWAY6))
PORTS = bytes.fromhex("80e80035")


def ip4(protocol: int, rest: bytes = PORTS, first: int = 0x45, fragment: int = 0) -> bytes:
    head = bytes((first, 0, 0, 0, 0, 0, *fragment.to_bytes(2, "big"), 64, protocol, 0, 0))
    return bytes(6) + MAC + b"\x08\x00" + head + SOURCE4 + TARGET4 + rest


def ip6(protocol: int, rest: bytes = PORTS) -> bytes:
    return bytes(6) + MAC + b"\x86\xdd" + b"\x60" + bytes(5) + bytes((protocol, 64)) + SOURCE6 + TARGET6 + rest


def other(ethertype: bytes, size: int = 28) -> bytes:
    return bytes(6) + MAC + ethertype + bytes(size)


@pytest.mark.parametrize(
    ("frame", "kind", "source"),
    [
        (ip4(17), FLOW, SOURCE4),
        (ip4(6), FLOW, SOURCE4),
        (ip6(17), FLOW, SOURCE6),
        (ip6(6), FLOW, SOURCE6),
        (ip4(1), ECHO, SOURCE4),
        (ip6(58, bytes((128, 0, 0, 0))), ECHO, SOURCE6),
        (other(b"\x08\x06"), ARP, MAC),
        (other(b"\x08\x06", 24) + GATEWAY4, ROUTER, MAC),
        (ip6(58, b"\x87" + bytes(7) + GATEWAY6), ROUTER, MAC),
        (ip6(58, b"\x80" + bytes(7) + GATEWAY6), ECHO, SOURCE6),
        *((ip6(58, bytes((message, 0, 0, 0))), NDP, MAC) for message in (133, 134, 135, 136)),
        (ip4(17, bytes.fromhex("00440043")), DHCP, MAC),
        (ip6(17, bytes.fromhex("02220223")), DHCP, MAC),
        (ip4(17, bytes.fromhex("02220223")), FLOW, SOURCE4),
        (ip4(6, bytes.fromhex("00440043")), FLOW, SOURCE4),
        (ip4(17, fragment=0x2000), PART, SOURCE4),
        (ip4(17, fragment=0x0001), PART, SOURCE4),
        (ip4(17, fragment=0x4000), FLOW, SOURCE4),
        (ip4(17, first=0x46), PART, SOURCE4),
        (ip6(44), PART, SOURCE6),
        (ip6(0), PART, SOURCE6),
        (ip4(2), OTHER, SOURCE4),
        (other(b"\x88\xcc"), OTHER, MAC),
        (other(b"\x86\xdd", 40), OTHER, MAC),
        (ip4(17)[:-1], OTHER, b""),
        (b"", OTHER, b""),
    ],
)
def test_kind_and_source(frame: bytes, kind: int, source: bytes) -> None:
    assert kind_of(memoryview(frame), ROUTERS) == (kind, source)


def test_flows_differ_by_protocol_addresses_and_ports() -> None:
    frames = [ip4(17), ip4(6), ip4(17, b"\0\1\0\2"), ip6(17), ip6(6), ip6(17, b"\0\1\0\2"), other(b"\x08\x06")]
    assert len({flow_of(memoryview(frame)) for frame in frames}) == len(frames)
    assert flow_of(memoryview(ip4(17, PORTS + b"a"))) == flow_of(memoryview(ip4(17, PORTS + b"b")))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (ip4(17, fragment=0x2000), ip4(17, b"\0\1\0\2", fragment=0x0001)),
        (ip4(17, first=0x46), ip4(17, b"\0\1\0\2", first=0x47)),
        (ip6(44), ip6(44, b"\0\1\0\2")),
    ],
)
def test_parts_are_known_by_their_addresses(one: bytes, two: bytes) -> None:
    """Since what stands where others have their ports differs from one to the next."""
    assert flow_of(memoryview(one)) == flow_of(memoryview(two))


@pytest.mark.parametrize("frame", [ip4(17), ip4(6), ip6(17), ip6(6)])
def test_source_port(frame: bytes) -> None:
    assert source_port(memoryview(frame)) == 0x80E8


@given(st.binary(max_size=80), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_hostile_frames_have_a_kind_and_a_flow(data: bytes, ethertype: bytes) -> None:
    frame = memoryview((bytes(12) + ethertype + data)[: len(data)])
    assert 0 <= kind_of(frame, ROUTERS)[0] < len(RATES)
    assert isinstance(flow_of(frame), bytes)
