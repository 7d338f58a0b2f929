"""Frames of many flows of a stream: where each begins and ends, however many are looked at together."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain, repeat
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.host.arena import Arena, fields
from gpasst.path import stream_columns
from gpasst.path.budget import SHALLOW
from gpasst.path.columns import MOST
from gpasst.path.stream_columns import StreamColumns
from gpasst.path.stream_reader import BUFFER_BYTES
from gpasst.switch.framing import FRAME_MAXIMUM, FRAME_MINIMUM
from tests.support.bench import udp_frame
from tests.support.floods import Flood, marked
from tests.support.taps import stream

FILLER = b"\x00\x00\x00\x20"  # looks like a legal length wherever one is read at a wrong place
ARENA = Arena(BUFFER_BYTES)
COLUMNS = StreamColumns(lambda _: cast(Any, None), ARENA)
COLUMNS.most = MOST

LENGTHS = st.one_of(st.sampled_from([FRAME_MINIMUM, FRAME_MINIMUM + 1, 60, 61, 100]), st.integers(FRAME_MINIMUM, 200))
ODD = st.sampled_from([0, 1, FRAME_MINIMUM - 1, FRAME_MAXIMUM, FRAME_MAXIMUM + 1, 1 << 31, (1 << 32) - 1])
COUNTS = st.one_of(st.integers(1, 4), st.sampled_from([62, 63, 64, 65, 127, 128, 129, MOST - 1, MOST, MOST + 1]))


def naive(data: bytes) -> list[int]:
    """Return the bytes of whole, legal frames with their lengths, read one by one."""
    sizes: list[int] = []
    at = 0
    while len(sizes) < MOST and len(data) - at >= 4:
        length = int.from_bytes(data[at : at + 4], "big")
        if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM or len(data) - at - 4 < length:
            break
        sizes.append(4 + length)
        at += 4 + length
    return sizes


def written(lengths: list[int]) -> bytes:
    """Return frames of such lengths, as far as there is room; of one of an illegal length the first bytes alone."""
    found = bytearray()
    for length in lengths:
        body = min(length, FRAME_MAXIMUM)
        if len(found) + 4 + body > BUFFER_BYTES // 2:
            break
        found += length.to_bytes(4, "big") + (FILLER * (body // 4 + 1))[:body]
    return bytes(found)


def check(data: bytes, at: int, behind: bytes) -> None:
    """Compare with the naive parser what is found in data, which others may stand behind."""
    ARENA.bytes[at : at + len(data) + len(behind)] = data + behind
    assert COLUMNS.sizes(at, at + len(data)) == naive(data)


@settings(max_examples=300, deadline=None)
@given(
    runs=st.lists(st.tuples(st.one_of(LENGTHS, LENGTHS, LENGTHS, ODD), COUNTS), max_size=8),
    cut=st.integers(0, 250),
    at=st.integers(0, 1000),
)
@example(runs=[(60, MOST + 1)], cut=0, at=0)
@example(runs=[(60, MOST - 1), (61, 3)], cut=0, at=0)
@example(runs=[(60, 100), (FRAME_MINIMUM - 1, 1), (60, 100)], cut=0, at=16)
def test_sizes_are_those_of_a_naive_parser(runs: list[tuple[int, int]], cut: int, at: int) -> None:
    """Of any lengths, legal or not, however far they have arrived; whatever stands behind that is none of them."""
    data = written(list(chain.from_iterable(repeat(length, count) for length, count in runs)))
    end = max(0, len(data) - cut)
    check(data[:end], at, data[end:] + FILLER * 100)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), repeats=st.integers(1, 50))
def test_any_bytes_are_parsed_likewise(data: bytes, repeats: int) -> None:
    check(data * repeats, 16, FILLER)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100, 200])
def test_the_last_of_frames_alike_may_be_incomplete(count: int) -> None:
    """At each of its bytes."""
    data = written([60] * count)
    for cut in range(65):
        check(data[: len(data) - cut], 16, data[len(data) - cut :])


def test_one_of_another_length_is_found_at_each_place() -> None:
    for place in range(140):
        for length in (FRAME_MINIMUM - 1, 60, 61, FRAME_MAXIMUM + 1):
            lengths = [60] * 140
            lengths[place] = length
            check(written(lengths)[: 140 * 64], 16, b"")


@pytest.mark.parametrize(
    ("lengths", "looks"),
    [
        ([60] * MOST, [2, 4, 8, 16, 32, *[64] * 7]),
        ([60] * 20, [2, 4, 8, 5]),
        ([60, 61] * 50, []),
        ([60] * 8 + [61] * 8, [2, 4, 8, 2, 4]),
    ],
)
def test_frames_alike_are_looked_at_together(lengths: list[int], looks: list[int]) -> None:
    """More and more of them."""
    data = written(lengths)
    with mock.patch.object(stream_columns, "fields", side_effect=fields) as looked:
        check(data, 16, b"")
    assert [call.args[2] for call in looked.call_args_list] == looks


def test_nothing_has_no_sizes() -> None:
    assert COLUMNS.sizes(16, 16) == []
    assert COLUMNS.sizes(16, 19) == []
    assert COLUMNS.sizes(BUFFER_BYTES - 3, BUFFER_BYTES) == []


def test_frames_that_are_looked_at_one_by_one_are_few_at_once() -> None:
    """So that the clock is looked at between them."""
    with ExitStack() as stack:
        case = stack.enter_context(stream())
        flood = Flood(stack, case, 4, 10)
        flood.clear()
        carried: list[int] = []
        carry = StreamColumns.carry

        def counting(columns: StreamColumns, *arguments: Any) -> int:
            carried.append(carry(columns, *arguments))
            return carried[-1]

        stack.enter_context(mock.patch.object(StreamColumns, "carry", counting))
        case.give(*flood.frames(200))
        case.move()
        assert carried == [SHALLOW, 200 - SHALLOW]
        flood.clear()
        carried.clear()
        case.give(*flood.frames(99), marked(flood.frame(9), 0x28, 64), *flood.frames(150))
        case.move()
        assert carried == [SHALLOW, SHALLOW, SHALLOW, 250 - 3 * SHALLOW]
        flood.clear()
        assert case.counters.drops == {}
        assert case.counters.udp.down.datagrams == case.counters.frames_down


def test_an_internal_error_costs_its_batch_and_not_the_place_in_the_stream() -> None:
    with ExitStack() as stack:
        case = stack.enter_context(stream())
        flood = Flood(stack, case, 4, 10)
        flood.clear()
        lost = [udp_frame(4, 9, 9, bytes([number])) for number in range(20)]
        case.give(*lost)
        with mock.patch.object(StreamColumns, "carry", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
            case.reader.step()
        case.give(*flood.frames(20))
        case.move()
        flood.clear()
