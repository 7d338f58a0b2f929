"""The scan: in turns that end by the clock, one scan at a time, and on again after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from gpasst.counters import Counters
from gpasst.flow.activity import ITEMS_AT_ONCE
from gpasst.path.budget import TURN_SECONDS
from gpasst.proxy import scan
from gpasst.proxy.scan import SCAN_SECONDS, TRIMMED, Scan
from gpasst.proxy.timers import Deadline, Deadlines
from tests.support.nat import Host

TIMEOUT = 180


class Timers:
    """Deadlines whose time is what the test says.

    :ivar looks: how often the clock was looked at.
    :ivar cost: seconds that pass with each look.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0
        self.cost = TURN_SECONDS
        self._deadlines = Deadlines()

    def clock(self) -> float:
        self.looks += 1
        self.now += self.cost
        return self.now

    def at(self, when: float, callback: Callable[[float], None]) -> Deadline:
        return self._deadlines.add(when, callback)

    def every(self, seconds: float, callback: Callable[[float], None]) -> Deadline:
        return self._deadlines.add(self.now + seconds, callback, seconds)

    def turn(self) -> bool:
        """Make one call that is due; return whether there was one."""
        callback = self._deadlines.take(self.now)
        if callback is not None:
            callback(self.now)
        return callback is not None

    def second(self) -> None:
        self.now += SCAN_SECONDS


class Case:
    def __init__(self, *pieces: int) -> None:
        self.pieces = pieces
        self.timers, self.counters = Timers(), Counters()
        self.done: list[object] = []
        self.failure: Exception | None = None
        self.scan = Scan(
            cast(Any, self.timers),
            lambda: int(self.timers.now),
            TIMEOUT,
            self.counters,
            [self.table, self.table],
            [self.done.append],
        )

    def table(self, now: int, timeout: int) -> Iterator[int]:
        assert timeout == TIMEOUT
        for count in self.pieces:
            if self.failure:
                raise self.failure
            self.done.append((now, count))
            yield count

    def run(self) -> None:
        """Make all calls that are due."""
        while self.timers.turn():
            pass


def test_nothing_is_scanned_before_a_second_has_passed() -> None:
    case = Case(1)
    assert not case.timers.turn()
    case.timers.second()
    case.run()
    assert case.done == [(1001, 1), (1001, 1), 1001]
    assert case.counters.expired == 2


def test_a_piece_that_takes_the_time_of_a_turn_is_one() -> None:
    case = Case(1, 2)
    case.timers.second()
    for turn in range(1, 5):
        assert case.timers.turn()
        assert len(case.done) == turn
    assert case.counters.expired == 0
    case.run()
    assert case.counters.expired == 6
    assert case.done[4:] == [1001]


def test_a_turn_does_as_many_pieces_as_its_time_allows() -> None:
    case = Case(1, 2, 3)
    case.timers.cost = TURN_SECONDS / 2
    case.timers.second()
    for pieces in (2, 4, 6):
        assert case.timers.turn()
        assert len(case.done) == pieces
    case.run()
    assert case.done[6:] == [1001]


def test_few_peers_end_between_two_looks_at_the_clock() -> None:
    """However many are of one age, and whichever hold sockets."""
    host = Host()
    for port in range(1000):
        host.down(5000 + port % 500, "192.0.2.9", 1 + port)
    peers, sockets, timers = len(host.path.tables[4]), len(host.open), Timers()
    timers.cost = TURN_SECONDS / 4
    made = Scan(cast(Any, timers), lambda: 1000 + TIMEOUT + 1, TIMEOUT, Counters(), [host.path.scan], [])
    timers.second()
    turns = 0
    while timers.looks < 2 or len(host.path.tables[4]):
        looks = timers.looks
        assert timers.turn()
        turns += 1
        done = peers - len(host.path.tables[4])
        assert 0 < done <= ITEMS_AT_ONCE * (timers.looks - looks)
        assert sockets - len(host.open) <= done
        peers, sockets = len(host.path.tables[4]), len(host.open)
    assert turns >= 1000 // (4 * ITEMS_AT_ONCE)
    made.close()


def test_a_scan_that_is_still_going_is_not_begun_again() -> None:
    case = Case(0, 0, 0)
    case.timers.second()
    assert case.timers.turn()
    case.timers.second()
    case.run()
    assert case.done.count(1001) == 1
    assert 1002 not in case.done
    case.timers.second()
    case.run()
    assert case.done[-1] == 1003


def test_the_next_scan_follows_one_that_failed() -> None:
    case = Case(1)
    case.failure = RuntimeError("a defect")
    case.timers.second()
    with pytest.raises(RuntimeError):
        case.run()
    case.failure = None
    case.timers.second()
    case.run()
    assert case.done == [(1002, 1), (1002, 1), 1002]


def test_once_closed_it_does_nothing_more() -> None:
    case = Case(1, 1)
    case.timers.second()
    assert case.timers.turn()
    case.scan.close()
    case.timers.second()
    case.run()
    assert case.done == [(1001, 1)]


def test_a_whole_scan_needs_no_timer() -> None:
    case = Case(3)
    case.scan.whole(7)
    assert case.done == [(7, 3), (7, 3), 7]


@pytest.mark.parametrize(("count", "trims"), [(TRIMMED // 2 - 1, 0), (TRIMMED // 2, 1)])
def test_memory_is_given_back_when_many_have_ended(monkeypatch: pytest.MonkeyPatch, count: int, trims: int) -> None:
    trimmed: list[None] = []
    monkeypatch.setattr(scan, "trim_memory", lambda: trimmed.append(None))
    Case(count).scan.whole(7)
    assert len(trimmed) == trims
