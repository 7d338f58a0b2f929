"""The program for the kernel, run here: it comes to the same kinds as the reader, and passes what is to pass."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.linux import BPF_ALL, BPF_MAXINSNS, SKF_RANDOM
from gpasst.path.filter_program import PORTS_LIMIT, SAMPLED, program
from gpasst.path.unknown import ARP, ECHO, FLOW, KINDS, NDP, ROUTER, kind_of

MAC = bytes.fromhex("525400123456")
GATEWAY4, GATEWAY6 = bytes((192, 0, 2, 1)), bytes.fromhex("fe80") + bytes(13) + b"\x01"
ROUTERS = frozenset((GATEWAY4, GATEWAY6))
LUCKY, UNLUCKY = SAMPLED, SAMPLED + 1  # random numbers
LOADS = {0x20: 4, 0x28: 2, 0x30: 1}  # bytes by instruction


def passes(code: bytes, frame: bytes, number: int = UNLUCKY) -> bool:
    """Run a program as the kernel does (linux/filter.h)."""
    steps = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        operation, true, false, operand = steps[at]
        at += 1
        if operation in LOADS:
            end = operand + LOADS[operation]
            if operand != SKF_RANDOM and end > len(frame):
                return False
            value = number if operand == SKF_RANDOM else int.from_bytes(frame[operand:end], "big")
        elif operation == 0x15:
            at += true if value == operand else false
        elif operation == 0x45:
            at += true if value & operand else false
        elif operation == 0x05:
            at += operand
        else:
            assert operation == 0x06
            assert operand in (0, BPF_ALL)
            return bool(operand)


def ip4(protocol: int, source: int = 33000, target: int = 53, first: int = 0x45, fragment: int = 0) -> bytes:
    head = bytes((first, 0, 0, 0, 0, 0, *fragment.to_bytes(2, "big"), 64, protocol, 0, 0))
    ports = source.to_bytes(2, "big") + target.to_bytes(2, "big")
    return bytes(6) + MAC + b"\x08\x00" + head + bytes(8) + ports + bytes(20)


def ip6(protocol: int, source: int = 33000, target: int = 53, rest: bytes = bytes(20)) -> bytes:
    ports = source.to_bytes(2, "big") + target.to_bytes(2, "big")
    return bytes(6) + MAC + b"\x86\xdd" + b"\x60" + bytes(5) + bytes((protocol, 64)) + bytes(32) + ports + rest


def arp(target: bytes) -> bytes:
    return bytes(6) + MAC + b"\x08\x06" + bytes(24) + target + bytes(18)


FRAMES = [
    *(ip4(protocol) for protocol in (17, 6, 1, 2)),
    *(ip6(protocol) for protocol in (17, 6, 58, 0, 44)),
    *(ip6(58, message << 8, 0, bytes(4) + target) for message in range(128, 138) for target in (GATEWAY6, bytes(16))),
    ip4(17, 68, 67),
    ip6(17, 546, 547),
    ip4(17, target=547),
    ip4(6, target=67),
    ip4(17, first=0x46),
    *(ip4(17, fragment=fragment) for fragment in (0x2000, 0x0001, 0x4000)),
    arp(GATEWAY4),
    arp(bytes((192, 0, 2, 77))),
    bytes(12) + b"\x88\xcc" + bytes(46),
]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_kind_is_sampled_and_no_other(kind: int) -> None:
    code = program({kind}, [], ROUTERS)
    for frame in FRAMES:
        sampled = kind_of(memoryview(frame), ROUTERS)[0] == kind
        assert passes(code, frame, UNLUCKY) == (not sampled), frame.hex()
        assert passes(code, frame, LUCKY)


@given(
    st.lists(st.integers(0, 79), max_size=6),
    st.integers(0, 255),
    st.sampled_from(FRAMES),
    st.sets(st.sampled_from(range(len(KINDS)))),
)
def test_the_kinds_are_those_of_the_reader(places: list[int], value: int, good: bytes, kinds: Collection[int]) -> None:
    frame = bytearray(good.ljust(80, b"\0"))
    for place in places:
        frame[place] = value
    sampled = kind_of(memoryview(frame), ROUTERS)[0] in kinds
    assert passes(program(kinds, [], ROUTERS), bytes(frame)) == (not sampled)


@pytest.mark.parametrize("build", [ip4, ip6])
@pytest.mark.parametrize("protocol", [17, 6])
def test_named_ports_pass_whole(build: Callable[[int, int], bytes], protocol: int) -> None:
    code = program({FLOW}, range(1000, 1000 + PORTS_LIMIT), ROUTERS)
    assert passes(code, build(protocol, 1000))
    assert passes(code, build(protocol, 1000 + PORTS_LIMIT - 1))
    assert not passes(code, build(protocol, 999))
    assert not passes(code, build(protocol, 1000 + PORTS_LIMIT))


def test_requests_for_the_gateway_pass_beside_others() -> None:
    code = program({ARP, NDP, ECHO}, [], ROUTERS)
    assert passes(code, arp(GATEWAY4))
    assert not passes(code, arp(bytes(4)))
    assert passes(code, ip6(58, 135 << 8, 0, bytes(4) + GATEWAY6))
    assert not passes(code, ip6(58, 135 << 8, 0, bytes(20)))
    assert not passes(program({ROUTER}, [], ROUTERS), arp(GATEWAY4))


def test_the_longest_program_is_one_that_the_kernel_takes() -> None:
    assert len(program(range(len(KINDS)), range(PORTS_LIMIT), ROUTERS)) <= 8 * BPF_MAXINSNS
