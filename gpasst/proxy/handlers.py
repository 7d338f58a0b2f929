"""Greenlets of the callables that a program gave: their number is bounded, and their errors are kept.

Theory of operation: `add` is called on the data path, so it only enters the work and wakes a greenlet. A greenlet does
work after work, for the time of a step. Before each, it lets another one be due in the loop's next turn, which goes on
with the rest where this one waits or its time is over. So work that does not wait is done in order, beside the traffic
of others, and work that waits by as many greenlets as there are waiting, up to a limit.

An error of a callable is the program's own: it is logged with its traceback, kept, and ends nothing but that call.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent

from gpasst.path.budget import STEP_SECONDS

HANDLERS_AT_ONCE = 1000  # greenlets of one service
WORKS_WAITING = 4096  # datagrams or connections of one service that wait for one
ERRORS_KEPT = 20  # newest of one service
OWN_MODULES = "gpasst."
END_SECONDS = 1.0  # for handlers to end that catch their end

log = logging.getLogger(__name__)


class Handlers:
    """The greenlets of one service.

    :param name: the service, in messages.
    :param kept: takes the text of each error as well.
    :param most: how many may run at once.
    :param waiting: how many calls may wait.
    :param stopwatch: returns seconds, for the time of a step.
    :ivar calls: how many have begun.
    :ivar errors: text of the newest errors, with their tracebacks, oldest first.
    """

    def __init__(
        self,
        name: str,
        kept: Callable[[str], object],
        most: int = HANDLERS_AT_ONCE,
        waiting: int = WORKS_WAITING,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._name = name
        self._kept = kept
        self._most = most
        self._room = waiting
        self._stopwatch = stopwatch
        self._waiting: deque[Callable[[], object]] = deque()
        self._running: set[Any] = set()
        self._due = False  # whether a greenlet was made that has not begun
        self.calls = 0
        self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)

    def add(self, work: Callable[[], object]) -> bool:
        """Let a greenlet call `work`; return whether there was room for it."""
        if len(self._waiting) >= self._room:
            return False
        self._waiting.append(work)
        self._wake()
        return True

    def close(self) -> None:
        """End every greenlet but the caller's, and forget the calls that wait."""
        self._room = 0
        self._waiting.clear()
        here = gevent.getcurrent()
        gevent.killall([other for other in self._running if other is not here], timeout=END_SECONDS)

    def _wake(self) -> None:
        if self._waiting and not self._due and len(self._running) < self._most:
            self._due = True
            # By a timer: a callback of the loop would keep it from polling.
            self._running.add(gevent.spawn_later(0, self._run))

    def _run(self) -> None:
        self._due = False
        until = self._stopwatch() + STEP_SECONDS
        try:
            while self._waiting:
                work = self._waiting.popleft()
                self._wake()
                self._call(work)
                if self._stopwatch() >= until:
                    break
        finally:
            self._running.discard(gevent.getcurrent())
            self._wake()

    def _call(self, work: Callable[[], object]) -> None:
        self.calls += 1
        try:
            work()
        except (gevent.GreenletExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Also what pytest.fail raises, which is no Exception.
            text = f"error of the handler of {self._name}\n{''.join(_formatted(error))}".rstrip()
            self.errors.append(text)
            self._kept(text)
            log.error("%s", text)


def _formatted(error: BaseException) -> list[str]:
    """Return an error with its traceback, without the calls of this package that lead to the callable."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_globals["__name__"].startswith(OWN_MODULES):
        place = place.tb_next
    return traceback.format_exception(type(error), error, place)
