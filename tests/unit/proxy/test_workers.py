"""Watchers and workers on a real hub: steps that are woken, that fail, that end, and what closing them frees."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import pytest

from gpasst.counters import Counters, Drop
from gpasst.proxy import workers
from gpasst.proxy.failures import Failures
from gpasst.proxy.workers import WRITE, Poller, Watchers, Worker

MOMENT = 0.01  # seconds in which the loop turns more than once
SECONDS = 5.0  # until something that takes milliseconds counts as failed
TURNS = 1000  # of a loop that does not sleep; one that does makes a few a second


class Case:
    """The watchers of a proxy, and a socket with something to read."""

    def __init__(self, busy_poll: float = 0.0) -> None:
        self.counters = Counters()
        self.watchers = Watchers(gevent.get_hub(), self.counters, busy_poll)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.read: list[bytes] = []

    def step(self, *args: object) -> int:
        """Read one datagram, and keep what the watcher gave."""
        try:
            self.read.append(self.ours.recv(99))
        except BlockingIOError:
            return 0
        return 1

    def close(self) -> None:
        self.watchers.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def test_a_guarded_callback_that_fails_is_called_again(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    done = gevent.event.Event()

    def callback() -> None:
        case.step()
        if case.read[-1] == b"bad":
            raise ZeroDivisionError
        done.set()

    case.watchers.watch_guarded("owner", case.ours.fileno(), callback)
    for data in (b"bad", b"bad", b"good"):
        case.theirs.send(data)
    assert done.wait(SECONDS)
    assert case.read == [b"bad", b"bad", b"good"]
    assert case.counters.drops[Drop.INTERNAL] == 2
    assert [record.message for record in caplog.records] == ["internal error; a connection may hang"]


def test_a_worker_takes_a_step_whenever_its_descriptor_is_readable(case: Case) -> None:
    case.watchers.watch_alone("owner", case.ours.fileno(), case.step)
    for data in (b"1", b"2"):
        case.theirs.send(data)
    gevent.idle()
    assert case.read == [b"1", b"2"]
    case.theirs.send(b"3")
    gevent.idle()
    assert case.read == [b"1", b"2", b"3"]


def test_a_step_is_given_what_its_watcher_was(case: Case) -> None:
    given: list[tuple[object, ...]] = []

    def step(*args: object) -> int:
        case.ours.recv(9)
        given.append(args)
        return 1

    worker = case.watchers.worker(step)
    for args in ((), ("one",), ("one", "two"), (("a", "tuple"),)):
        case.watchers.watch("owner", case.ours.fileno(), worker.wake, *args)
        case.theirs.send(b"?")
        gevent.idle()
        case.watchers.unwatch("owner")
    assert given[:3] == [(), ("one",), ("one", "two")]


def test_one_worker_serves_many_watchers(case: Case) -> None:
    served: list[object] = []
    other, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def step(sock: socket.socket) -> int:
        served.append(sock)
        sock.recv(9)
        return 1

    worker = case.watchers.worker(step)
    with other, theirs:
        for sock in (case.ours, other):
            case.watchers.watch(sock, sock.fileno(), worker.wake, sock)
        case.theirs.send(b"?")
        gevent.idle()
        theirs.send(b"?")
        gevent.idle()
        assert served == [case.ours, other]
        case.watchers.unwatch(other)


def test_a_failure_is_logged_and_counted_and_the_worker_goes_on(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    def step(owner: object) -> int:
        data = case.ours.recv(9)
        if data == b"bad":
            raise ValueError("of this step")
        case.read.append(data)
        return 1

    case.watchers.watch_alone("owner", case.ours.fileno(), step)
    for data in (b"bad", b"good"):
        case.theirs.send(data)
    gevent.idle()
    assert case.read == [b"good"]
    assert case.counters.drops == {Drop.INTERNAL: 1}
    assert caplog.text.count("ValueError: of this step") == 1


def test_what_is_unwatched_wakes_nobody(case: Case) -> None:
    case.watchers.watch_alone("owner", case.ours.fileno(), case.step)
    case.watchers.unwatch("owner")
    case.watchers.unwatch("owner")
    case.theirs.send(b"?")
    gevent.idle()
    assert case.read == []


def test_a_worker_may_be_ended_within_its_own_step(case: Case) -> None:
    def step(owner: object) -> int:
        case.read.append(case.ours.recv(9))
        case.watchers.unwatch(owner)
        return 1

    case.watchers.watch_alone("owner", case.ours.fileno(), step)
    for data in (b"1", b"2"):
        case.theirs.send(data)
    gevent.idle()
    assert case.read == [b"1"]
    assert case.counters.drops == {}


def test_writable_descriptors_can_be_watched(case: Case) -> None:
    woken = gevent.event.AsyncResult()
    case.watchers.watch("owner", case.ours.fileno(), woken.set, "writable", events=WRITE)
    assert woken.get(timeout=SECONDS) == "writable"


class Kept:
    """Something that only its own steps refer to, in a proxy."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.steps = 0

    def step(self, owner: object) -> int:
        self.case.ours.recv(9)
        self.steps += 1
        return 1

    def last_step(self, owner: object) -> int:
        self.case.watchers.unwatch(owner)
        return self.step(owner)


@pytest.mark.parametrize("last", [False, True], ids=["later", "within its step"])
def test_an_ended_worker_frees_what_it_refers_to_at_once(last: bool) -> None:
    """A suspended greenlet would keep it for ever; and the garbage collector is not needed for it."""
    case = Case()
    gc.disable()
    try:
        kept = Kept(case)
        case.watchers.watch_alone("alone", case.ours.fileno(), kept.last_step if last else kept.step)
        case.theirs.send(b"?")
        gevent.idle()
        assert kept.steps == 1
        reference = weakref.ref(kept)
        del kept
        assert (reference() is None) == last
        case.close()
        assert reference() is None
    finally:
        gc.enable()


def test_a_sleeping_worker_keeps_nothing_of_its_last_step(case: Case) -> None:
    worker = case.watchers.worker(lambda owner: len(case.ours.recv(9)))
    for _ in range(2):
        kept = Kept(case)
        case.watchers.watch("owner", case.ours.fileno(), worker.wake, kept)
        case.theirs.send(b"?")
        gevent.idle()
        case.watchers.unwatch("owner")
        reference = weakref.ref(kept)
        del kept
        assert reference() is None


def test_a_repeat_wakes_a_worker_once_and_lets_others_go_first(case: Case) -> None:
    order: list[str] = []
    worker = case.watchers.worker(lambda: order.append("again"))
    repeat = case.watchers.repeat(worker)

    def step(owner: object) -> int:
        order.append(case.ours.recv(9).decode())
        repeat.ask()
        repeat.ask()
        return 1

    case.watchers.watch_alone("owner", case.ours.fileno(), step)
    case.theirs.send(b"first")
    gevent.idle()
    assert order == ["first", "again"]
    case.theirs.send(b"second")
    gevent.idle()
    assert order == ["first", "again", "second", "again"]


def test_a_closed_repeat_wakes_nobody(case: Case) -> None:
    woken: list[int] = []
    worker = case.watchers.worker(lambda: woken.append(1))
    case.watchers.repeat(worker).ask()
    case.watchers.close()
    gevent.idle()
    assert woken == []


def test_a_worker_that_rests_is_woken_when_it_resumes(case: Case) -> None:
    case.watchers.watch_alone("owner", case.ours.fileno(), case.step)
    case.watchers.rest("owner")
    case.theirs.send(b"1")
    gevent.idle()
    assert case.read == []
    case.watchers.resume("owner")
    gevent.idle()
    assert case.read == [b"1"]
    case.watchers.unwatch("owner")
    case.watchers.resume("owner")


# The poller, which keeps the loop from sleeping in a conversation.


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody else want the processor."""
    monkeypatch.setattr(workers, "CONTENDED_SECONDS", float("inf"))


@pytest.fixture
def seconds() -> float:
    """How long a conversation keeps the loop awake."""
    return MOMENT


@pytest.fixture
def polls(seconds: float) -> Iterator[tuple[Poller, list[Worker]]]:
    poller = Poller(gevent.get_hub(), seconds)
    failures = Failures(logging.getLogger(__name__), Counters())
    yield poller, [Worker(gevent.get_hub(), lambda: 0, failures) for _ in range(2)]
    poller.close()


def is_busy() -> bool:
    """Return whether the loop makes many turns although nothing happens."""
    left, enough = TURNS, gevent.event.Event()

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            enough.set()

    watcher: Any = gevent.get_hub().loop.prepare()
    watcher.start(count)
    found: bool = enough.wait(1.0)
    watcher.stop()
    watcher.close()
    return found


def turns(seconds: float) -> int:
    """Count the loop's turns while this greenlet waits."""
    hub = gevent.get_hub()
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    watcher: Any = hub.loop.prepare()
    watcher.start(count)
    gevent.sleep(seconds)
    watcher.stop()
    watcher.close()
    return counted


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("seconds", [SECONDS])
def test_in_a_conversation_the_loop_does_not_sleep(polls: tuple[Poller, list[Worker]]) -> None:
    poller, (one, other) = polls
    assert turns(MOMENT / 2) < 10
    poller.single(one)
    poller.single(other)
    assert is_busy()


@pytest.mark.parametrize("seconds", [SECONDS])
def test_where_others_want_the_processor_it_does(
    polls: tuple[Poller, list[Worker]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_yield", lambda: time.sleep(0.001))
    poller, (one, other) = polls
    poller.single(one)
    poller.single(other)
    assert turns(MOMENT) < 10


def test_watchers_beside_others_take_part_in_their_conversations() -> None:
    hub = gevent.get_hub()
    first = Watchers(hub, Counters(), SECONDS)
    second = Watchers(hub, Counters(), SECONDS, first)
    try:
        assert second.conversed == first.conversed is not None
        assert Watchers(hub, Counters(), SECONDS).conversed != first.conversed
        second.close()
        assert first.conversed is not None
    finally:
        first.close()


def test_after_a_while_it_does_again(polls: tuple[Poller, list[Worker]]) -> None:
    poller, (one, other) = polls
    poller.single(one)
    poller.single(other)
    gevent.sleep(2 * MOMENT)
    assert turns(MOMENT / 2) < 10


def test_traffic_in_one_direction_is_no_conversation(polls: tuple[Poller, list[Worker]]) -> None:
    poller, (one, _) = polls
    poller.single(one)
    gevent.sleep(2 * MOMENT)
    poller.single(one)
    assert turns(MOMENT / 2) < 10


@pytest.mark.usefixtures("alone")
def test_steps_of_one_frame_are_what_it_learns_of() -> None:
    case = Case(busy_poll=SECONDS)
    other, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with other, theirs:
        case.watchers.watch_alone("one", case.ours.fileno(), case.step)
        case.watchers.watch_alone("other", other.fileno(), lambda owner: len(other.recv(9)))
        case.theirs.send(b"1")
        theirs.send(b"1")
        assert is_busy()
        case.close()
