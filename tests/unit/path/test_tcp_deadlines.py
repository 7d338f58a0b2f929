"""The deadlines of connections, behind one deadline of the proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gpasst.flow.sender import StreamSocket
from gpasst.path.budget import BACKLOG_SECONDS
from gpasst.path.tcp_deadlines import CONNECTIONS_PER_LOOK, TcpDeadlines
from gpasst.tcp.connection import Connection
from gpasst.tcp.segment import Offer
from gpasst.tcp.work import CLOSE, SYNCHRONISE
from tests.support.connections import IRS, Watched


class Pending:
    """A deadline of the proxy."""

    def __init__(self, when: float, call: Callable[[float], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Proxy:
    """Deadlines with a clock that a test moves.

    :ivar marked: (time, work) of connections.
    """

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self.marked: list[tuple[float, int]] = []
        self.now = 0.0
        self.deadlines = TcpDeadlines(self.at, self.mark, lambda: None, lambda: 0.0)

    def at(self, when: float, call: Callable[[float], None]) -> Pending:
        self.pending.append(Pending(when, call))
        return self.pending[-1]

    def mark(self, connection: Connection, work: int) -> None:
        self.marked.append((round(self.now, 1), work))

    def pass_one(self, late: float = 0.0) -> None:
        """Let the earliest deadline pass, and be noticed late."""
        pending = min((one for one in self.pending if not one.cancelled), key=lambda one: one.when)
        self.pending.remove(pending)
        self.now = pending.when + late
        pending.call(self.now)


def unanswered() -> tuple[Proxy, Watched]:
    """Return a connection whose SYN+ACK was sent at second 0."""
    proxy, connection = Proxy(), Watched()
    connection.socket = cast(StreamSocket, object())  # nobody calls it
    connection.opened(IRS, Offer(), 1000)
    connection.connected()
    proxy.deadlines.arm(connection, 0.0)
    return proxy, connection


def test_each_deadline_counts_once_however_late_it_is_noticed() -> None:
    for late in (0.0, 0.7):
        proxy, connection = unanswered()
        proxy.pass_one(late)
        assert [work for _, work in proxy.marked] == [SYNCHRONISE]
        assert connection.sender.retries == 1


def test_a_connection_that_ends_is_looked_at_no_more() -> None:
    proxy, connection = unanswered()
    while not connection.closed:
        proxy.pass_one()
    assert len(proxy.marked) == 8
    # Whole seconds are exact enough for long times.
    assert [now for now, work in proxy.marked if work & CLOSE] == [20.0]
    assert all(one.cancelled for one in proxy.pending)


def test_a_connection_that_was_closed_is_looked_at_no_more() -> None:
    proxy, connection = unanswered()
    connection.release()
    proxy.deadlines.arm(connection, proxy.now)
    assert not connection.armed
    proxy.pass_one()
    assert proxy.marked == []
    assert proxy.pending == []


def test_many_deadlines_of_one_time_take_turns_with_other_work() -> None:
    proxy, watch = Proxy(), iter(range(1000))
    proxy.deadlines = TcpDeadlines(proxy.at, proxy.mark, lambda: None, lambda: BACKLOG_SECONDS * next(watch))
    for _ in range(3 * CONNECTIONS_PER_LOOK):
        connection = Watched()
        connection.socket = cast(StreamSocket, object())  # nobody calls it
        connection.opened(IRS, Offer(), 1000)
        connection.connected()
        proxy.deadlines.arm(connection, 0.0)
    for turn in (1, 2, 3):
        proxy.pass_one()
        assert len(proxy.marked) == turn * CONNECTIONS_PER_LOOK
        assert sum(not one.cancelled for one in proxy.pending) == 1
    assert {now for now, _ in proxy.marked} == {1.0}


def test_nothing_is_looked_at_behind_the_close() -> None:
    proxy, _ = unanswered()
    proxy.deadlines.close()
    assert [one.cancelled for one in proxy.pending] == [True]
