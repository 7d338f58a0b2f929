"""An edge-triggered epoll set (Linux 2.6) that the event loop watches like any descriptor.

The set is readable while it has events to report. A socket whose data was only peeked at reports none, which a
level-triggered watcher would do for ever.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import gevent
import pytest

from tests.support.ready import until

READ = 1
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair of TCP sockets, the first of which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname(), 2)
        one, _ = server.accept()
    with one, other:
        one.setblocking(False)
        yield one, other


@pytest.fixture
def inner(ends: tuple[socket.socket, socket.socket]) -> Iterator[select.epoll]:
    """A set with the first socket, whose first event, that it can be written to, was taken."""
    with select.epoll() as made:
        made.register(ends[0], EVENTS)
        assert made.poll(2) == [(ends[0].fileno(), select.EPOLLOUT)]
        yield made


def readable(inner: select.epoll) -> bool:
    return bool(select.select([inner], [], [], 0)[0])


def test_an_event_is_reported_once(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    one, other = ends
    assert not readable(inner)
    other.sendall(b"data")
    until(lambda: readable(inner), "an event")
    ((_, events),) = inner.poll(0)
    assert events & select.EPOLLIN
    assert one.recv(9, socket.MSG_PEEK) == b"data"
    assert not readable(inner)
    assert inner.poll(0) == []


def test_more_data_is_another_event(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    """Though nothing was received meanwhile."""
    one, other = ends
    for expected in (b"1", b"12"):
        other.sendall(expected[-1:])
        until(lambda: readable(inner), "an event")
        assert inner.poll(0)[0][1] & select.EPOLLIN
        assert one.recv(9, socket.MSG_PEEK) == expected


def test_room_is_an_event_when_there_was_none(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    one, other = ends
    with pytest.raises(BlockingIOError):
        while True:
            one.send(bytes(1 << 16))
    assert inner.poll(0) == []
    while not readable(inner):
        assert other.recv(1 << 20)
    ((_, events),) = inner.poll(0)
    assert events == select.EPOLLOUT


def test_the_end_of_the_other_side_is_an_event(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    one, other = ends
    other.sendall(b"all")
    other.shutdown(socket.SHUT_WR)

    def ended() -> bool:
        return any(events & select.EPOLLRDHUP for _, events in inner.poll(0))

    until(ended, "the end")
    assert one.recv(9) == b"all"


def test_the_loop_calls_once_for_each_event(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    """A watcher of the set, which asks it each time, is not called again for what it has seen."""
    one, other = ends
    seen: list[int] = []
    watcher = gevent.get_hub().loop.io(inner.fileno(), READ)
    watcher.start(lambda: seen.extend(events for _, events in inner.poll(0, 64)))
    for count in (1, 2):
        other.sendall(b"data")
        with gevent.Timeout(2):
            while len(seen) < count:
                gevent.sleep(0.001)
    # Turns of the loop in which nothing new comes.
    for _ in range(20):
        gevent.sleep(0)
    watcher.stop()
    watcher.close()
    assert len(seen) == 2
    assert one.recv(9) == b"datadata"


def test_a_closed_socket_leaves_the_set(ends: tuple[socket.socket, socket.socket], inner: select.epoll) -> None:
    one, other = ends
    one.close()
    other.close()
    assert not readable(inner)
