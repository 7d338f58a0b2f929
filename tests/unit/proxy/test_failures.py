"""Internal errors: all are counted, and each kind's traceback is logged now and then, whoever repeats it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

import gevent
import gevent.event
import pytest

from gpasst.counters import Counters, Drop
from gpasst.proxy.failures import KINDS_LIMIT, LOG_SECONDS, Failures
from gpasst.proxy.timers import Timers
from gpasst.proxy.workers import Watchers

log = logging.getLogger("gpasst.test")


def one_place() -> None:
    raise RuntimeError("one")


def another_place() -> None:
    raise RuntimeError("another")


class Case:
    """Failures at a time that the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counters = Counters()
        self.failures = Failures(log, self.counters, lambda: self.now)

    def fail(self, step: Callable[[], object], times: int = 1) -> None:
        for _ in range(times):
            try:
                step()
            except Exception as error:
                self.failures.caught(error, "a frame is lost")


def test_one_kind_is_logged_once_in_a_time_and_counted_always(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    case.fail(one_place, 1000)
    assert [record.getMessage() for record in caplog.records] == ["a frame is lost"]
    assert "in one_place" in caplog.text
    case.now += LOG_SECONDS - 1
    case.fail(one_place)
    assert len(caplog.records) == 1
    case.now += 1
    case.fail(one_place)
    assert len(caplog.records) == 2
    assert case.counters.drops == {Drop.INTERNAL: 1002}


def test_another_kind_is_logged_beside_it(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    for step in (one_place, another_place, list[int]().pop, one_place):
        case.fail(step)
    assert len(caplog.records) == 3
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {RuntimeError, IndexError}


def test_the_number_of_kinds_has_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    kinds = [type(f"Defect{number}", (Exception,), {}) for number in range(2 * KINDS_LIMIT)]

    def fail(number: int) -> None:
        raise kinds[number]

    for number in range(len(kinds)):
        case.fail(partial(fail, number))
    assert len(caplog.records) == KINDS_LIMIT
    case.now += LOG_SECONDS
    case.fail(partial(fail, len(kinds) - 1))
    assert len(caplog.records) == KINDS_LIMIT + 1
    assert case.counters.drops == {Drop.INTERNAL: len(kinds) + 1}


def test_workers_and_timers_log_through_it(caplog: pytest.LogCaptureFixture) -> None:
    counters, done = Counters(), gevent.event.Event()
    watchers = Watchers(gevent.get_hub(), counters)
    timers = Timers(watchers)
    reader, writer = os.pipe()
    os.write(writer, bytes(100))

    def step() -> int:
        if counters.drops[Drop.INTERNAL] < 100:
            raise RuntimeError("a defect of a step")
        os.read(reader, 100)
        done.set()
        return 0

    watchers.watch(done, reader, watchers.worker(step).wake)
    assert done.wait(5)
    for _ in range(100):
        timers.at(0, lambda _: one_place())
    while counters.drops[Drop.INTERNAL] < 200:
        timers.run()
    timers.close()
    watchers.close()
    os.close(reader)
    os.close(writer)
    assert counters.drops == {Drop.INTERNAL: 200}
    assert len(caplog.records) == 2
