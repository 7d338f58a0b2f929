"""Fragments from the guest: reassembled in any order, and dropped where they are invalid, too many or too late."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.packet.parse import Fragment, Packet
from gpasst.packet.reassembly import (
    BYTES_LIMIT,
    DATAGRAMS_LIMIT,
    LIFETIME,
    PIECE_BYTES,
    PIECES_LIMIT,
    Reassembly,
)
from tests.support.addresses import ip
from tests.support.families import FAMILIES
from tests.support.replies import refused

SOURCE = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
DESTINATION = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
UDP = 17


def part(payload: bytes, start: int, end: int, identification: int = 1, family: int = 4) -> Packet:
    """Return the fragment of `payload` from `start` to `end`."""
    fragment = Fragment(identification, start, more=end < len(payload))
    return Packet(family, SOURCE[family], DESTINATION[family], UDP, memoryview(payload[start:end]), 64, fragment)


@FAMILIES
@given(data=st.data())
def test_fragments_in_any_order_make_the_datagram(family: int, data: st.DataObject) -> None:
    payload = data.draw(st.binary(min_size=16, max_size=200))
    places = st.integers(1, (len(payload) - 1) // 8).map(lambda unit: 8 * unit)
    cuts = sorted(data.draw(st.sets(places, min_size=1)))
    bounds = list(zip([0, *cuts], [*cuts, len(payload)], strict=True))
    reassembly = Reassembly()
    *first, last = data.draw(st.permutations(bounds))
    for start, end in first:
        assert reassembly.add(part(payload, start, end, family=family), 0) is None
    whole = reassembly.add(part(payload, *last, family=family), 0)
    assert whole is not None
    assert bytes(whole.payload) == payload
    assert whole.fragment is None
    assert (whole.family, whole.source, whole.destination) == (family, SOURCE[family], DESTINATION[family])
    assert len(reassembly) == 0


def test_datagrams_do_not_mix() -> None:
    reassembly = Reassembly()
    one, two = b"a" * 24, b"b" * 24
    assert reassembly.add(part(one, 0, 16, 1), 0) is None
    assert reassembly.add(part(two, 16, 24, 2), 0) is None
    assert reassembly.add(part(one, 16, 24, 1, family=6), 0) is None
    whole = reassembly.add(part(one, 16, 24, 1), 0)
    assert whole is not None
    assert bytes(whole.payload) == one
    assert len(reassembly) == 2


def test_pieces_are_kept_apart_from_the_buffer_they_came_in() -> None:
    buffer = bytearray(b"first---")
    packet = Packet(4, SOURCE[4], DESTINATION[4], UDP, memoryview(buffer), 64, Fragment(1, 0, True))
    reassembly = Reassembly()
    reassembly.add(packet, 0)
    buffer[:] = b"changed!"
    whole = reassembly.add(part(b"first---last", 8, 12), 0)
    assert whole is not None
    assert bytes(whole.payload) == b"first---last"


TEXT = bytes(range(64))


@pytest.mark.parametrize(
    ("before", "broken"),
    [
        # Overlaps of every kind (RFC 5722).
        ([part(TEXT, 0, 16)], part(TEXT, 8, 24)),
        ([part(TEXT, 8, 24)], part(TEXT, 0, 16)),
        ([part(TEXT, 0, 32)], part(TEXT, 8, 16)),
        ([part(TEXT, 8, 16)], part(TEXT, 0, 32)),
        ([part(TEXT, 0, 16)], part(TEXT, 0, 16)),
        # Nothing at all, no multiple of 8, two ends, and pieces beyond the end.
        ([], part(TEXT, 8, 8)),
        ([], part(TEXT, 0, 12)),
        ([part(TEXT[:32], 24, 32)], part(TEXT, 32, 64)),
        ([part(TEXT[:32], 24, 32)], part(TEXT, 32, 40)),
        ([part(TEXT, 32, 40)], part(TEXT[:32], 24, 32)),
        ([part(TEXT, 16, 24)], part(TEXT[:16], 8, 16)),
        # More than an IP packet holds.
        ([], part(bytes(65560), 65528, 65552)),
        ([], part(bytes(65520), 65512, 65520)),
        ([], part(bytes(65560), 65528, 65552, family=6)),
    ],
)
def test_a_broken_fragment_ends_its_datagram(before: list[Packet], broken: Packet) -> None:
    reassembly = Reassembly()
    for packet in before:
        assert reassembly.add(packet, 0) is None
    with refused(Drop.FRAGMENT):
        reassembly.add(broken, 0)
    assert len(reassembly) == 0


def test_incomplete_datagrams_are_forgotten_in_time() -> None:
    reassembly = Reassembly()
    reassembly.add(part(TEXT, 0, 16, 1), 1000)
    reassembly.add(part(TEXT, 0, 16, 2), 1001)
    reassembly.add(part(TEXT, 16, 32, 1), 1020)
    assert reassembly.scan(1000 + LIFETIME) == 0
    # Later pieces do not prolong it.
    assert reassembly.scan(1001 + LIFETIME) == 1
    assert len(reassembly) == 1
    assert reassembly.scan(1002 + LIFETIME) == 1
    assert len(reassembly) == 0


def test_the_oldest_incomplete_datagram_makes_room() -> None:
    reassembly = Reassembly()
    for identification in range(DATAGRAMS_LIMIT + 1):
        reassembly.add(part(TEXT, 0, 32, identification), 0)
    assert len(reassembly) == DATAGRAMS_LIMIT
    whole = reassembly.add(part(TEXT, 32, 64, 1), 0)
    assert whole is not None
    assert bytes(whole.payload) == TEXT
    assert reassembly.add(part(TEXT, 32, 64, 0), 0) is None


# Bounds


@FAMILIES
def test_the_longest_datagram_is_carried_and_nothing_longer(family: int) -> None:
    longest = {4: 65515, 6: 65535}[family]
    payload = bytes(range(256)) * 256
    reassembly = Reassembly()
    assert reassembly.add(part(payload[:longest], 0, 65480, family=family), 0) is None
    whole = reassembly.add(part(payload[:longest], 65480, longest, family=family), 0)
    assert whole is not None
    assert bytes(whole.payload) == payload[:longest]
    with refused(Drop.FRAGMENT):
        reassembly.add(part(payload[: longest + 1], 65480, longest + 1, family=family), 0)


class Counted(int):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < other


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=10)
def test_a_fragment_is_compared_with_few_others(random: Random) -> None:
    payload = bytes(48) * (PIECES_LIMIT - 2) + b"last"
    starts = list(range(0, len(payload), 48))
    random.shuffle(starts)
    reassembly, Counted.compared = Reassembly(), 0
    for start in starts:
        fragment = part(payload, start, min(start + 48, len(payload)))
        assert fragment.fragment is not None
        whole = reassembly.add(replace(fragment, fragment=replace(fragment.fragment, offset=Counted(start))), 0)
    assert whole is not None
    assert bytes(whole.payload) == payload
    assert Counted.compared <= len(starts) * (len(starts).bit_length() + 1)
    assert reassembly.held == 0


def test_a_datagram_has_a_limit_of_fragments() -> None:
    reassembly, payload = Reassembly(), bytes(65000)
    for index in range(PIECES_LIMIT):
        reassembly.add(part(payload, 8 * index, 8 * index + 8), 0)
    assert reassembly.held == PIECES_LIMIT * (8 + PIECE_BYTES)
    with refused(Drop.FRAGMENT):
        reassembly.add(part(payload, 8 * PIECES_LIMIT, 8 * PIECES_LIMIT + 8), 0)
    assert len(reassembly) == reassembly.held == 0


@pytest.mark.parametrize("size", [8, 48, 1400, 65504])
def test_all_fragments_together_have_a_limit_of_bytes(size: int) -> None:
    payload = bytes(65510)
    reassembly, most = Reassembly(), 0
    datagrams = 2 * DATAGRAMS_LIMIT
    tracemalloc.start()
    try:
        for identification in range(datagrams):
            for start in range(0, min(size * PIECES_LIMIT, 65505 // size * size), size):
                reassembly.add(part(payload, start, start + size, identification), 0)
            assert reassembly.held <= BYTES_LIMIT
            assert len(reassembly) <= DATAGRAMS_LIMIT
            most = max(most, reassembly.held)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= 1.25 * most + 100_000, "what is counted is about what it takes"
    lost = reassembly.scan(LIFETIME + 1)
    assert lost == datagrams
    assert len(reassembly) == reassembly.held == 0
