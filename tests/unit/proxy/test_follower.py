"""The look at bound ports: at once, again whenever it is due, and no more once it is closed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import gevent
import gevent.event
import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.proxy import follower
from gpasst.proxy.follower import Follower
from gpasst.proxy.timers import Timers
from gpasst.proxy.workers import WRITE, Watchers

SECONDS = 5.0  # until something that takes milliseconds counts as failed


class Looks:
    """A forwarder that counts looks, and fails where it is told to."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.count = 0
        self.enough = gevent.event.Event()

    def follow(self, wait: Callable[[int], object], look: Callable[[], object]) -> None:
        self.count += 1
        if self.count > len(self.failures):
            self.enough.set()
            return
        failure = self.failures[self.count - 1]
        if failure is not None:
            raise failure


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def timers(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timers]:
    monkeypatch.setattr(follower, "FOLLOW_SECONDS", 0.001)
    watchers = Watchers(gevent.get_hub(), counters)
    made = Timers(watchers)
    yield made
    made.close()
    watchers.close()


def test_others_have_their_turn_though_a_descriptor_is_always_ready() -> None:
    """An idle watcher would wait for a turn in which none is."""
    reader, writer = os.pipe()
    turns: list[None] = []
    watchers = Watchers(gevent.get_hub(), Counters())
    watchers.watch("busy", writer, lambda: turns.append(None), events=WRITE)
    with gevent.Timeout(SECONDS):
        follower.others()
        for _ in range(3):
            before = len(turns)
            follower.others()
            assert len(turns) > before
    watchers.close()
    os.close(reader)
    os.close(writer)


def test_it_looks_at_once_and_again(timers: Timers, counters: Counters) -> None:
    looks = Looks(None, None)
    following = Follower(cast(Any, looks), timers, counters)
    assert looks.enough.wait(SECONDS)
    assert looks.count == 3
    following.close()


def test_an_internal_error_is_counted_and_the_next_look_follows(timers: Timers, counters: Counters) -> None:
    looks = Looks(RuntimeError("a defect"))
    following = Follower(cast(Any, looks), timers, counters)
    assert looks.enough.wait(SECONDS)
    assert counters.drops == {Drop.INTERNAL: 1}
    following.close()


def test_that_ports_cannot_be_listed_is_logged_once_until_they_can_again(
    timers: Timers, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    failure = PlatformError("no memory")
    looks = Looks(failure, failure, failure, None, failure, failure)
    following = Follower(cast(Any, looks), timers, counters)
    assert looks.enough.wait(SECONDS)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert counters.drops == {}
    following.close()


def test_a_look_that_fails_once_is_not_logged(
    timers: Timers, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one may fall into the time in which the keeper is asked to enter its sandbox."""
    failure = PlatformError("the process that holds the namespace does not answer")
    looks = Looks(failure, None, failure)
    following = Follower(cast(Any, looks), timers, counters)
    assert looks.enough.wait(SECONDS)
    assert caplog.records == []
    following.close()


def test_once_closed_it_looks_no_more(timers: Timers, counters: Counters) -> None:
    looks = Looks()
    following = Follower(cast(Any, looks), timers, counters)
    assert looks.enough.wait(SECONDS)
    following.close()
    count = looks.count
    done = gevent.event.Event()
    # Behind the deadline that would have been due next.
    timers.at(timers.clock() + 0.005, lambda _: done.set())
    assert done.wait(SECONDS)
    assert looks.count == count
