"""The end of all connections of a guest that has gone.

Theory of operation: another guest of a stream knows nothing of the connections of the one before, and may well choose
the same ports. So all of them are reset towards their remote ends before it is let in; some in each turn, since there
may be a hundred thousand.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpasst.path.budget import TURN_SECONDS
from gpasst.tcp.connection import Connection
from gpasst.tcp.table import ConnectionTable


class TcpDeparture:
    """Resets the connections of a guest that has gone.

    :param table: the connections.
    :param drop: resets a connection towards its remote end, and takes it out of the table.
    :param again: asks for a call of `step` soon.
    :param stopwatch: returns seconds, for the budget of a step.
    """

    def __init__(
        self,
        table: ConnectionTable,
        drop: Callable[[Connection], None],
        again: Callable[[], None],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._table = table
        self._drop = drop
        self._again = again
        self._stopwatch = stopwatch
        self._then: Callable[[], None] | None = None

    def begin(self, then: Callable[[], None]) -> None:
        """Reset all connections, and call `then`; at once, if there are none."""
        self._then = then
        self._go_on()

    def step(self) -> int:
        """Reset connections for `TURN_SECONDS`; return 0, since nothing was moved."""
        deadline = self._stopwatch() + TURN_SECONDS
        try:
            while (connection := next(iter(self._table), None)) is not None:
                self._drop(connection)
                if self._stopwatch() >= deadline:
                    break
        finally:
            self._go_on()
        return 0

    def _go_on(self) -> None:
        if len(self._table):
            self._again()
        elif self._then is not None:
            then, self._then = self._then, None
            then()
