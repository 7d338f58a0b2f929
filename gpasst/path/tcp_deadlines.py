"""The deadlines of connections: one wheel for all of them, behind one deadline of the proxy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from gpasst.path.budget import BACKLOG_SECONDS
from gpasst.tcp.connection import Connection
from gpasst.tcp.timers import RETRANSMIT_SECONDS, TICKS, Wheel
from gpasst.tcp.work import CLOSE

CONNECTIONS_PER_LOOK = 16  # at the clock


class Deadline(Protocol):
    """An entry of the proxy's timers."""

    when: float

    def cancel(self) -> None:
        """Call no more."""


class TcpDeadlines:
    """Looks at each connection when its deadline has come.

    :param at: calls a function once at a time; the function gets the present time.
    :param mark: adds work to a connection.
    :param ask: lets that work be done soon.
    :param stopwatch: returns seconds, for the budget of a step.
    """

    def __init__(
        self,
        at: Callable[[float, Callable[[float], None]], Deadline],
        mark: Callable[[Connection, int], None],
        ask: Callable[[], None],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._at = at
        self._mark = mark
        self._ask = ask
        self._stopwatch = stopwatch
        self._wheel: Wheel[Connection] = Wheel()
        self._next: Deadline | None = None

    def arm(self, connection: Connection, now: float) -> None:
        """Take note of work that may have brought the deadline of a connection forward, or closed it."""
        if connection.socket is None:
            self._wheel.remove(connection)
            return
        armed, sender = connection.armed, connection.sender
        if armed:
            if armed <= (now + RETRANSMIT_SECONDS) * TICKS + 1:
                return
            if sender.next == sender.unacknowledged and not sender.blocked and connection.established:
                return
        self._wheel.add(connection, connection.due(), now)
        earliest = self._wheel.earliest()
        if earliest is not None and (self._next is None or earliest < self._next.when):
            self._schedule(earliest)

    def close(self) -> None:
        """Look at nothing any more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._wheel.clear()

    def _schedule(self, when: float) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._at(when, self._expire)

    def _expire(self, now: float) -> None:
        self._next = None
        wheel, done = self._wheel, 0
        deadline = self._stopwatch() + BACKLOG_SECONDS
        while (connection := wheel.take(now)) is not None:
            work = connection.expired(now) if connection.due() <= now else 0
            if work:
                self._mark(connection, work)
            if not work & CLOSE:
                wheel.add(connection, connection.due(), now)
            done += 1
            if not done % CONNECTIONS_PER_LOOK and self._stopwatch() >= deadline:
                break
        self._ask()
        earliest = wheel.earliest()
        if earliest is not None:
            self._schedule(max(earliest, now))
