"""Deadlines: in order, once or again and again, cancelled at no cost, and on time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import gevent.event
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.path.budget import STEP_SECONDS
from gpasst.proxy.timers import CANCELLED_MINIMUM, Deadline, Deadlines, Timers
from gpasst.proxy.workers import Watchers


def drain(deadlines: Deadlines, now: float) -> None:
    """Call all that is due."""
    while (callback := deadlines.take(now)) is not None:
        callback(now)


@given(
    whens=st.lists(st.sampled_from([0.0, 0.0004, 1.0, 1.5, 60.0]), max_size=20), now=st.sampled_from([0.0, 1.2, 99.0])
)
def test_what_is_due_is_called_in_order_and_nothing_else(whens: list[float], now: float) -> None:
    deadlines, called = Deadlines(), []

    def note(number: int) -> Callable[[float], None]:
        return lambda _: called.append(number)

    for number, when in enumerate(whens):
        deadlines.add(when, note(number))
    drain(deadlines, now)
    due = [number for number, when in enumerate(whens) if when <= now]
    assert called == sorted(due, key=lambda number: whens[number])
    assert len(deadlines) == len(whens) - len(due)
    left = [when for when in whens if when > now]
    assert deadlines.earliest() == (min(left) if left else None)


@given(st.lists(st.booleans(), max_size=4 * CANCELLED_MINIMUM))
def test_what_is_cancelled_is_not_called(cancelled: list[bool]) -> None:
    deadlines, called = Deadlines(), []
    entries: list[Deadline] = []
    for number in range(len(cancelled)):
        entries.append(deadlines.add(1.0 + number, lambda now: called.append(now)))
    for entry, cancel in zip(entries, cancelled, strict=True):
        if cancel:
            entry.cancel()
            entry.cancel()
    assert len(deadlines) == cancelled.count(False)
    drain(deadlines, 1e9)
    assert len(called) == cancelled.count(False)
    assert len(deadlines) == 0
    assert deadlines.earliest() is None


def test_cancelled_entries_take_no_room_for_long() -> None:
    deadlines = Deadlines()
    kept = deadlines.add(1e6, lambda now: None)
    for number in range(10_000):
        deadlines.add(1e3 + number, lambda now: None).cancel()
        assert len(deadlines._heap) <= 2 * CANCELLED_MINIMUM + 2  # noqa: SLF001  # how much is kept shows nowhere else
    assert deadlines.earliest() == kept.when


def test_a_repeated_deadline_is_due_again_after_each_call() -> None:
    deadlines = Deadlines()
    called: list[float] = []
    entry = deadlines.add(1.0, called.append, interval=0.5)
    drain(deadlines, 0.9)
    assert called == []
    drain(deadlines, 1.0)
    drain(deadlines, 1.4)
    drain(deadlines, 7.0)
    assert called == [1.0, 7.0]
    assert deadlines.earliest() == 7.5
    entry.cancel()
    drain(deadlines, 99.0)
    assert called == [1.0, 7.0]


def test_a_deadline_may_cancel_itself_and_enter_others() -> None:
    deadlines, called = Deadlines(), []

    def first(now: float) -> None:
        called.append("first")
        entry.cancel()
        deadlines.add(now, lambda _: called.append("second"))

    entry = deadlines.add(1.0, first, interval=1.0)
    drain(deadlines, 5.0)
    assert called == ["first", "second"]
    assert len(deadlines) == 0


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def watchers(counters: Counters) -> Iterator[Watchers]:
    made = Watchers(gevent.get_hub(), counters)
    yield made
    made.close()


def timerfds() -> set[str]:
    """Return the timerfds of this process."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "timerfd" in os.readlink(link):
                found.add(link.name)
        except FileNotFoundError:
            continue  # the listing's own
    return found


def armed(before: set[str]) -> float:
    """Return the seconds until the timerfd that was opened after `before` is due."""
    (descriptor,) = timerfds() - before
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    found = re.search(r"it_value: \((\d+), (\d+)\)", info)
    assert found is not None
    return int(found[1]) + int(found[2]) / 1e9


def test_the_kernel_is_asked_for_less_than_a_millisecond(watchers: Watchers) -> None:
    """The timers of the event loop are rounded up to whole milliseconds."""
    before = timerfds()
    now = time.monotonic()
    timers = Timers(watchers, lambda: now)
    timers.at(now + 3600, lambda _: None)
    assert 3599 < armed(before) <= 3600
    timers.at(now + 0.0003, lambda _: None)
    assert armed(before) <= 0.0003
    timers.close()


def test_an_earlier_deadline_is_not_kept_waiting_by_a_later_one(watchers: Watchers) -> None:
    timers = Timers(watchers)
    called: list[str] = []
    done = gevent.event.Event()

    def soon(_: float) -> None:
        called.append("soon")
        done.set()

    timers.at(time.monotonic() + 3600, lambda _: called.append("later"))
    timers.at(time.monotonic() + 0.001, soon)
    assert done.wait(5)
    timers.close()
    assert called == ["soon"]


def test_a_failure_is_counted_and_stops_nothing(
    watchers: Watchers, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    timers, done = Timers(watchers), gevent.event.Event()

    def fail(now: float) -> None:
        raise RuntimeError("a defect")

    now = time.monotonic()
    timers.at(now, fail)
    timers.at(now, lambda _: done.set())
    assert done.wait(5)
    timers.close()
    assert counters.drops == {Drop.INTERNAL: 1}
    assert "a defect" in caplog.text


def test_one_step_ends_when_its_time_is_over(watchers: Watchers) -> None:
    now = 100.0
    called = []
    timers = Timers(watchers, lambda: now)

    def slow(number: int) -> Callable[[float], None]:
        def callback(_: float) -> None:
            nonlocal now
            now += STEP_SECONDS
            called.append(number)

        return callback

    for number in range(3):
        timers.at(100.0, slow(number))
    timers.run()
    assert called == [0]
    timers.run()
    timers.run()
    assert called == [0, 1, 2]
    timers.close()


def test_a_deadline_that_a_callback_enters_waits_for_the_next_step(watchers: Watchers) -> None:
    timers = Timers(watchers, lambda: 100.0)
    called: list[str] = []

    def again(now: float) -> None:
        called.append("again")
        timers.at(now, again)

    timers.at(100.0, again)
    timers.at(100.0, lambda _: called.append("other"))
    timers.run()
    assert called == ["again", "other"]
    timers.run()
    assert called == ["again", "other", "again"]
    timers.close()


def test_closed_timers_call_nothing_and_hold_no_descriptor(watchers: Watchers) -> None:
    before = timerfds()
    timers = Timers(watchers)
    called: list[float] = []
    timers.every(-1, called.append)
    timers.close()
    timers.close()
    timers.run()
    assert called == []
    assert timerfds() == before
