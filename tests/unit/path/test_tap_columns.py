"""Frames of many flows, read from the tap: how many at once, by which calls, and what an error or a gap costs."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast
from unittest import mock

import pytest

from gpasst.counters import Counters
from gpasst.features import ALL, Feature
from gpasst.host import ring as ring_module
from gpasst.host.ring import ENTRIES
from gpasst.host.ring_forms import Reads
from gpasst.link.port import LinkGone
from gpasst.link.tap import FRAME_BYTES
from gpasst.path import budget
from gpasst.path.budget import GOAL_SECONDS, SHALLOW, STEP_SECONDS
from gpasst.path.tap_columns import SLOTS, TapColumns
from gpasst.path.tap_reader import FRAMES_PER_LOOK
from tests.support.bench import ringed as ring
from tests.support.families import FAMILIES
from tests.support.floods import RINGS, Feed, Flood, fed
from tests.support.taps import Case, tap

FLOWS = 10


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def flood_of(
    stack: ExitStack, ringed: bool, family: int = 4, features: frozenset[Feature] = ALL, count: int = FLOWS
) -> tuple[Case, Flood]:
    """Return a guest behind a tap, whose flows are known."""
    case = stack.enter_context(tap(features, stack.enter_context(ring(ringed))))
    flood = Flood(stack, case, family, count)
    flood.clear()
    return case, flood


def step(case: Case, flood: Flood, feed: Feed, depth: int, given: int) -> None:
    """Take a step that reads so many frames of those that are given."""
    feed.left.extend(flood.frames(given))
    assert case.reader.step() == depth


@FAMILIES
@RINGS
def test_steps_become_deeper_while_they_are_full(stack: ExitStack, family: int, ringed: bool) -> None:
    """And are read by the ring, once there was a full one."""
    case, flood = flood_of(stack, ringed, family)
    feed = stack.enter_context(fed(case))
    case.reader.emptied()
    for _ in range(2):
        for depth in (SHALLOW, 128, 256, SLOTS, SLOTS):
            feed.by_ring = 0
            step(case, flood, feed, depth, depth)
            assert not case.reader.emptied()
            assert feed.by_ring == (depth // ENTRIES if ringed and depth > SHALLOW else 0)
            flood.clear()
        step(case, flood, feed, 100, 100)
        assert case.reader.emptied()
        flood.clear()
    assert case.counters.drops == {}
    down = case.counters.udp.down
    assert case.counters.frames_down == down.datagrams == 2 * FLOWS + 2 * (448 + 2 * SLOTS + 100)
    assert down.bytes == 2 * down.datagrams
    assert down.superframes >= 2 * FLOWS * 6, "at least one for each flow and step"


@RINGS
def test_a_step_reads_no_more_than_there_are_slots(stack: ExitStack, ringed: bool) -> None:
    case, flood = flood_of(stack, ringed)
    feed = stack.enter_context(fed(case))
    feed.left.extend(flood.frames(4 * SLOTS))
    found = []
    while feed.left:
        found.append(case.reader.step())
        arrived = flood.arrived()
        for sent, data in zip(flood.sent, arrived, strict=True):
            assert sent[: len(data)] == data
            del sent[: len(data)]
    assert max(found) == SLOTS
    case.move()
    flood.clear()


class Taker:
    """What takes frames in place of `Gathered`.

    :ivar takes: whether it does.
    :ivar joins: whether some of a step leave together.
    """

    def __init__(self, counters: Counters) -> None:
        self.takes = self.joins = True
        self._down = counters.udp.down

    def columns(self, *_: object) -> bool:
        return self.takes

    def row(self, *_: object) -> bool:
        return False

    def send(self) -> None:
        self._down.superframes += self.joins


class Pacer:
    """Columns that have as many frames as they may read, or some."""

    def __init__(self) -> None:
        counters = Counters()
        self.taker = Taker(counters)
        self.columns = TapColumns(lambda _: cast(Any, self.taker), counters, None)
        self.left = 1 << 30

    def _readv(self, fd: int, vectors: object) -> int:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.left -= 1
        return 60

    def step(self, seconds: float, left: int = 1 << 30) -> int:
        """Take a step of so many seconds, with so many frames to read; return how many it has read."""
        self.left = left
        with mock.patch.object(os, "readv", self._readv):
            count, _ = self.columns.step(0, lambda *_: None, lambda *_: None)
        self.columns.pace(seconds)
        return count


G = GOAL_SECONDS


@pytest.mark.parametrize(
    "steps",
    [
        [(0.0, 64), (0.0, 128), (0.0, 256), (0.0, 512), (0.0, 512)],
        [(G, 64), (G, 64), (G / 1.9, 64), (G / 2.1, 64), (0.0, 128)],
        [(0.0, 64), (G, 128), (G, 128), (G * 1.1, 128), (0.0, 64), (0.0, 128)],
        [(0.0, 64), (G / 1.6, 128), (G / 1.1, 192), (G / 1.4, 192), (0.0, 256)],
        [(0.0, 64), (0.0, 128), (0.0, 256), (G * 2, 512), (100 * G, 256), (0.0, 64), (0.0, 128)],
        [(G / 100, 64), (G / 100, 128), (G / 100, 256), *[(G / 100, 512)] * 3],
    ],
)
def test_depth_follows_from_the_time_that_steps_take(steps: list[tuple[float, int]]) -> None:
    pacer = Pacer()
    assert [pacer.step(seconds) for seconds, _ in steps] == [depth for _, depth in steps]


@RINGS
def test_time_is_that_of_the_step(stack: ExitStack, ringed: bool) -> None:
    case, flood = flood_of(stack, ringed)
    feed = stack.enter_context(fed(case))
    case.time = 1000.0
    for ticks, depth in ((G / 9, 64), (G / 9, 128), (G * 2.1, 256), (G / 9, 64), (G / 9, 128)):
        case.ticks = ticks
        step(case, flood, feed, depth, depth)
        flood.clear()


@pytest.mark.parametrize("kind", ["too few", "none of them taken", "some of them not taken"])
def test_a_step_that_was_not_full_makes_the_next_one_shallow(kind: str) -> None:
    pacer = Pacer()
    for depth in (64, 128):
        assert pacer.step(0.0) == depth
    if kind == "too few":
        assert pacer.step(0.0, 255) == 255
    else:
        # The first half, and all of the other one but the first few.
        answers = iter([False, kind.startswith("some"), *[False] * 6, *[kind.startswith("some")] * 1000])
        with mock.patch.object(pacer.taker, "columns", lambda *_: next(answers)):
            assert pacer.step(0.0) == 256
    assert [pacer.step(0.0) for _ in range(3)] == [64, 128, 256]


def test_columns_that_join_nothing_rest_for_a_while() -> None:
    """Steps that are not full do not count."""
    pacer = Pacer()
    pacer.taker.joins = False
    with mock.patch.object(budget, "RESTS", 3):
        assert [pacer.step(0.0) for _ in range(4)] == [64, 128, 256, 512]
        assert [pacer.step(0.0) for _ in range(2)] == [128] * 2
        assert [pacer.step(0.0, 30) for _ in range(5)] == [30] * 5
        assert [pacer.step(0.0) for _ in range(3)] == [64, 64, 128]
        assert pacer.step(G) == 256, "more would take too long, and it was of no use"
        pacer.taker.joins = True
        assert [pacer.step(0.0) for _ in range(6)] == [128, 128, 128, 128, 256, 512]
        pacer.taker.joins = False
        assert pacer.step(2 * G) == 512
        pacer.taker.joins = True
        assert [pacer.step(0.0) for _ in range(5)] == [128, 128, 128, 128, 256]
        pacer = Pacer()
        pacer.taker.joins = False
        assert [pacer.step(10 * G) for _ in range(3)] == [64] * 3, "nor does it take too long to rest"


@RINGS
def test_without_segmentation_offload_steps_come_to_rest(stack: ExitStack, ringed: bool) -> None:
    case, flood = flood_of(stack, ringed, features=ALL - {Feature.GSO})
    feed = stack.enter_context(fed(case))
    stack.enter_context(mock.patch.object(budget, "RESTS", 2))
    for depth in (64, 128, 256, 512, 128, 128, 128, 256):
        step(case, flood, feed, depth, depth)
        flood.clear()
    assert case.counters.udp.down.superframes == 0


def test_few_frames_are_of_no_use_to_columns() -> None:
    pacer = Pacer()
    for left, idle in ((0, 1), (1, 2), (2, 0), (1, 1), (100, 0)):
        pacer.step(0.0, left)
        assert pacer.columns.idle == idle
    pacer.taker.takes = False
    pacer.step(0.0, 100)
    assert pacer.columns.idle == 1


class Segments:
    """Takes all frames as segments of known connections."""

    queue = ()

    def __init__(self) -> None:
        self.taken = 0

    def frame(self, *_: object) -> int:
        self.taken += 1
        return 1


@pytest.mark.parametrize(("ticks", "taken"), [(0.0, 40), (STEP_SECONDS / 2, FRAMES_PER_LOOK + 7)])
def test_what_is_slow_has_no_more_than_the_time_of_a_step(stack: ExitStack, ticks: float, taken: int) -> None:
    """The rest is left to the backlog, and nothing is lost."""
    case, flood = flood_of(stack, False)
    segments = Segments()
    case.reader._tcp = segments  # noqa: SLF001
    case.ticks = ticks
    case.give(*flood.frames(20), *[b"\xaa" * 60] * 40)
    with mock.patch.object(case.backlog, "drain"):
        assert case.reader.step() == 60
    assert (segments.taken, case.backlog.frames) == (taken, 40 - taken)
    flood.clear()


class Reading:
    """The reads of a ring, made one by one, of which some fail.

    :param error: returns the errno that the read to a slot fails with, 0 if it does not.
    :ivar calls: how many there were.
    """

    def __init__(self, error: Callable[[int], int]) -> None:
        self._error = error
        self.calls = 0

    def __call__(self, form: Reads, fd: int, first: int) -> list[int]:
        self.calls += 1
        addresses = form._addresses  # noqa: SLF001
        return [self._one(fd, slot, addresses[slot]) for slot in range(first, first + ENTRIES)]

    def _one(self, fd: int, slot: int, address: int) -> int:
        number = self._error(slot)
        if number:
            return -number
        try:
            return os.readv(fd, [(ctypes.c_char * FRAME_BYTES).from_address(address)])
        except BlockingIOError:
            return -errno.EAGAIN

    def given(self, stack: ExitStack) -> Reading:
        """Let reads be made so."""

        def read(form: Reads, fd: int, first: int) -> list[int]:
            return self(form, fd, first)

        stack.enter_context(mock.patch.object(Reads, "read", read))
        return self


def fill(case: Case, flood: Flood) -> None:
    """Take a full step, so that the next one reads by the ring, up to 128 frames."""
    case.give(*flood.frames(SHALLOW))
    assert case.reader.step() == SHALLOW
    flood.clear()
    case.reader.emptied()


@FAMILIES
@pytest.mark.parametrize(
    ("gaps", "read"),
    [
        ({0}, 63),
        ({5}, 63),
        ({5, 6, 7, 40, 42}, 59),
        ({63}, 63),
        (set(range(63)), 1),
        (set(range(64)), 0),
        ({64}, 100),
        ({70, 90}, 100),
    ],
)
def test_frames_that_come_between_two_reads_are_carried_in_order(
    stack: ExitStack, family: int, gaps: set[int], read: int
) -> None:
    """The next step has what was left."""
    case, flood = flood_of(stack, True, family)
    fill(case, flood)
    case.give(*flood.frames(100))
    with ExitStack() as within:
        Reading(lambda slot: errno.EAGAIN if slot in gaps else 0).given(within)
        assert case.reader.step() == read
    assert case.reader.emptied()
    if read < 100:
        assert case.move() == 100 - read
    flood.clear()
    assert case.counters.frames_down == 2 * FLOWS + SHALLOW + 100
    assert case.counters.drops == {}


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINTR, errno.EBADFD])
@pytest.mark.parametrize("good", [0, 1, 30, 64, 70])
def test_an_error_of_a_read_by_the_ring_loses_nothing(stack: ExitStack, number: int, good: int) -> None:
    case, flood = flood_of(stack, True)
    fill(case, flood)
    with ExitStack() as failing:
        Reading(lambda slot: number if slot >= good else 0).given(failing)
        case.give(*flood.frames(100))
        if number == errno.EBADFD:
            with pytest.raises(LinkGone, match=os.strerror(number)):
                case.reader.step()
        else:
            assert case.reader.step() == good
            assert case.reader.emptied()
        assert sum(map(len, flood.arrived())) == good
    case.move()
    assert sum(map(len, flood.arrived())) == 100 - good


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINTR, errno.EBADFD])
@RINGS
def test_an_error_of_a_read_loses_nothing(stack: ExitStack, number: int, ringed: bool) -> None:
    case, flood = flood_of(stack, ringed)
    case.give(*flood.frames(FLOWS))
    left = [os.readv] * (FLOWS - 1)

    def fail_once(fd: int, buffers: list[memoryview]) -> int:
        if not left:
            raise OSError(number, os.strerror(number))
        return left.pop()(fd, buffers)

    with mock.patch.object(os, "readv", fail_once):
        if number == errno.EBADFD:
            with pytest.raises(LinkGone, match=os.strerror(number)):
                case.reader.step()
        else:
            assert case.reader.step() == FLOWS - 1
    case.move()
    flood.clear()


def test_a_kernel_whose_taps_know_no_such_reads_is_asked_once(stack: ExitStack) -> None:
    """And that step has its frames all the same."""
    case, flood = flood_of(stack, True)
    fill(case, flood)
    reading = Reading(lambda slot: errno.EOPNOTSUPP).given(stack)
    feed = Feed(case)
    readv = os.readv

    def one(fd: int, vectors: Any) -> int:
        feed.before(1)
        return readv(fd, vectors)

    stack.enter_context(mock.patch.object(os, "readv", one))
    for depth in (128, 256, 512):
        step(case, flood, feed, depth, depth)
        assert not case.reader.emptied()
        flood.clear()
    step(case, flood, feed, 100, 100)
    assert case.reader.emptied()
    assert reading.calls == 1


def test_a_ring_that_makes_no_call_ends_the_step(stack: ExitStack) -> None:
    """The next one reads without it."""
    case, flood = flood_of(stack, True)
    fill(case, flood)
    case.give(*flood.frames(50))

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.ENOMEM)
        return -1

    with mock.patch.object(ring_module, "_enter", refuse):
        assert case.reader.step() == 0
    assert case.reader.step() == 50
    flood.clear()
