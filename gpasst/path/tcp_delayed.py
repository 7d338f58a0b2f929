"""Acknowledgements that wait for data which may carry them.

Theory of operation: all that wait have one deadline, that of the first of them, so that an acknowledgement waits no
longer than it should, and a request costs no timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpasst.tcp.connection import Connection


class Delayed:
    """The acknowledgements of one guest's connections that wait.

    :param later: calls a function once at a time of the clock; the function gets the present time.
    :param send: sends the acknowledgement of a connection at the present time.
    :param flush: called when all have been sent.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[float], None]], object],
        send: Callable[[Connection, float], None],
        flush: Callable[[], None],
    ) -> None:
        self._later = later
        self._send = send
        self._flush = flush
        self._waiting: list[Connection] = []

    def add(self, connection: Connection, when: float) -> None:
        """Let the acknowledgement of a connection be sent at `when`, or with those that wait already."""
        if not connection.delayed:
            connection.delayed = True
            if not self._waiting:
                self._later(when, self._expire)
            self._waiting.append(connection)

    def close(self) -> None:
        """Send nothing any more."""
        self._waiting.clear()
        # The owner of these refers to this one, and both would have to wait for the garbage collector.
        self._later = self._send = self._flush = nothing

    def _expire(self, now: float) -> None:
        """Send those that no other segment has carried meanwhile."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.delayed = False
        for connection in waiting:
            if connection.receiver.owes and connection.socket is not None:
                self._send(connection, now)
        self._flush()


def nothing(*_: object) -> Any:  # as each of them returns
    """Do nothing: a callback of closed sockets."""
    return False
