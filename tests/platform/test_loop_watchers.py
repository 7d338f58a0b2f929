"""gevent's loop (libev, epoll backend): watchers that persist, are level-triggered, and may switch to a greenlet."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from greenlet import greenlet

READ, WRITE = 1, 2


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.setblocking(False)
        yield one, other


def test_a_watcher_calls_again_while_something_is_left(ends: tuple[socket.socket, socket.socket]) -> None:
    """So a step may take a bounded amount and return, and nobody has to ask again."""
    one, other = ends
    read: list[bytes] = []
    watcher = gevent.get_hub().loop.io(one.fileno(), READ)
    for data in (b"1", b"2", b"3"):
        other.send(data)
    watcher.start(lambda: read.append(one.recv(9)))
    gevent.sleep(0.02)
    assert read == [b"1", b"2", b"3"]
    # And it stays armed.
    other.send(b"4")
    gevent.sleep(0.02)
    watcher.stop()
    watcher.close()
    assert read == [b"1", b"2", b"3", b"4"]


def test_its_callback_may_switch_to_a_greenlet_that_switches_back(ends: tuple[socket.socket, socket.socket]) -> None:
    """The loop goes on when the hub is switched to, which is how a step ends without the greenlet's end."""
    one, other = ends
    hub = gevent.get_hub()
    read: list[bytes] = []

    def run() -> None:
        while True:
            read.append(one.recv(9))
            hub.switch()

    worker = greenlet(run, hub)
    watcher = hub.loop.io(one.fileno(), READ)
    watcher.start(worker.switch)
    for data in (b"1", b"2", b"3"):
        other.send(data)
        gevent.sleep(0.01)
    watcher.stop()
    watcher.close()
    assert read == [b"1", b"2", b"3"]
    assert not worker.dead
    worker.parent = gevent.getcurrent()
    worker.throw()
    assert worker.dead


def test_a_stopped_watcher_calls_no_more(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    called: list[int] = []
    watcher = gevent.get_hub().loop.io(one.fileno(), READ)
    watcher.start(called.append, 1)
    watcher.stop()
    other.send(b"1")
    gevent.sleep(0.02)
    assert called == []
    watcher.start(called.append, 2)
    gevent.sleep(0.02)
    watcher.stop()
    watcher.close()
    assert set(called) == {2}


def test_an_exception_ends_the_watcher_and_not_the_loop(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gevent stops it (callbacks.c), since it might fail for ever; so whoever wants it to go on lets nothing out."""
    one, other = ends
    hub = gevent.get_hub()
    reported: list[object] = []
    monkeypatch.setattr(hub, "handle_error", lambda context, kind, value, trace: reported.append(kind))

    def fail() -> None:
        one.recv(9)
        raise ValueError

    watcher = hub.loop.io(one.fileno(), READ)
    watcher.start(fail)
    for _ in range(2):
        other.send(b"?")
        gevent.sleep(0.02)
    watcher.stop()
    watcher.close()
    assert reported == [ValueError]
    assert one.recv(9) == b"?"


def test_reading_and_writing_have_watchers_of_their_own(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    called: list[int] = []
    watchers = [gevent.get_hub().loop.io(one.fileno(), events) for events in (READ, WRITE)]
    for events, watcher in zip((READ, WRITE), watchers, strict=True):
        watcher.start(called.append, events)
    gevent.sleep(0.005)
    assert set(called) == {WRITE}
    other.send(b"?")
    gevent.sleep(0.005)
    for watcher in watchers:
        watcher.stop()
        watcher.close()
    assert set(called) == {READ, WRITE}
