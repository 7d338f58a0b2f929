"""The greenlets of a program's callables: in order, beside each other where they wait, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gevent
import gevent.event
import pytest

from gpasst.path.budget import STEP_SECONDS
from gpasst.proxy.handlers import ERRORS_KEPT, Handlers


class Case:
    """Handlers whose steps have time enough, and what their calls did.

    :ivar kept: the texts of errors that were passed on.
    :ivar done: what was done, in order.
    """

    def __init__(self, most: int = 10, waiting: int = 100) -> None:
        self.kept: list[str] = []
        self.done: list[int] = []
        self.gate = gevent.event.Event()
        self.handlers = Handlers("a test", self.kept.append, most, waiting, lambda: 0.0)

    def note(self, number: int) -> None:
        self.done.append(number)

    def wait(self, number: int) -> None:
        self.gate.wait()
        self.done.append(number)

    def add(self, call: Callable[[int], None], count: int) -> list[bool]:
        return [self.handlers.add(partial(call, number)) for number in range(count)]


def turns(count: int = 5) -> None:
    """Let the loop turn, and greenlets run that are due."""
    hub = gevent.get_hub()
    for _ in range(count):
        with hub.loop.timer(0) as timer:
            hub.wait(timer)


def test_calls_that_do_not_wait_are_done_in_order() -> None:
    case = Case()
    assert all(case.add(case.note, 50))
    assert case.done == [], "the caller goes on first"
    turns()
    assert case.done == list(range(50))
    assert case.handlers.calls == 50


def test_calls_that_take_long_leave_the_loop_its_turns() -> None:
    """Each takes as long as a step may: the next begins when the loop has looked at everything else."""
    now = 0.0
    done: list[int] = []

    def work(number: int) -> None:
        nonlocal now
        now += STEP_SECONDS
        done.append(number)

    kept: list[str] = []
    handlers = Handlers("a test", kept.append, stopwatch=lambda: now)
    for number in range(3):
        handlers.add(partial(work, number))
    seen = []
    for _ in range(10):
        turns(1)
        seen.append(len(done))
    assert {1, 2} <= set(seen), "one in each turn"
    assert done == [0, 1, 2]


def test_calls_that_wait_let_others_begin() -> None:
    case = Case(most=10)
    case.add(case.wait, 10)
    turns(20)
    assert case.handlers.calls == 10
    case.gate.set()
    turns()
    assert sorted(case.done) == list(range(10))


def test_no_more_run_at_once_than_may() -> None:
    case = Case(most=3)
    case.add(case.wait, 8)
    turns(20)
    assert case.handlers.calls == 3
    case.gate.set()
    turns()
    assert sorted(case.done) == list(range(8))


def test_no_more_wait_than_may() -> None:
    case = Case(most=1, waiting=4)
    case.add(case.wait, 1)
    turns()
    assert case.add(case.note, 6) == [True] * 4 + [False] * 2


def test_an_error_ends_nothing_but_its_call(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()

    def fail(number: int) -> None:
        raise ValueError(f"fault {number}")

    case.handlers.add(partial(fail, 1))
    case.handlers.add(partial(case.note, 2))
    turns()
    assert case.done == [2]
    (text,) = case.handlers.errors
    assert case.kept == [text]
    assert text.startswith("error of the handler of a test\nTraceback")
    assert text.endswith("ValueError: fault 1")
    assert "in fail" in text
    assert "_call" not in text, "only the callable's own calls are shown"
    assert [record.getMessage() for record in caplog.records] == [text]
    for number in range(2 * ERRORS_KEPT):
        case.handlers.add(partial(fail, number))
    turns()
    assert len(case.handlers.errors) == ERRORS_KEPT
    assert case.handlers.errors[-1].endswith(f"fault {2 * ERRORS_KEPT - 1}")


def test_what_is_no_exception_is_kept_too() -> None:
    case = Case()

    def fail() -> None:
        pytest.fail("as a test does")

    case.handlers.add(fail)
    case.handlers.add(partial(case.note, 1))
    turns()
    assert case.done == [1]
    assert case.handlers.errors[0].endswith("Failed: as a test does")


def test_closing_ends_what_runs_and_what_waits() -> None:
    case = Case(most=2)
    ended = []

    def stubborn() -> None:
        try:
            case.gate.wait()
        finally:
            ended.append(True)

    for _ in range(4):
        case.handlers.add(stubborn)
    turns(20)
    case.handlers.close()
    assert ended == [True, True]
    assert not case.handlers.add(stubborn)
    case.gate.set()
    turns()
    assert len(ended) == 2
    assert case.kept == []


def test_a_call_may_close_its_own_handlers() -> None:
    case = Case()

    def close() -> None:
        case.handlers.close()
        case.done.append(1)

    case.handlers.add(close)
    case.handlers.add(partial(case.note, 2))
    turns()
    assert case.done == [1]
