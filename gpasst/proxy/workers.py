"""The greenlets of a proxy: workers that take a step whenever a descriptor is ready, and the hub's look for more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from gpasst.counters import Counters, Drop

log = logging.getLogger(__name__)


class Worker:
    """A greenlet that works whenever a watcher calls, made at the first call.

    :param hub: the hub it belongs to.
    :param step: what it does, with the arguments that the watcher was given.
    :param counters: where failures are counted.
    :param after: what to do after a step that moved just one frame or datagram.
    """

    __slots__ = ("_after", "_counters", "_greenlet", "_hub", "_step")

    def __init__(
        self,
        hub: Any,
        step: Callable[..., int | None],
        counters: Counters,
        after: Callable[[Worker], None] | None = None,
    ) -> None:
        self._after = after
        self._hub = hub
        self._step = step
        self._counters = counters
        self._greenlet: greenlet | None = None

    def wake(self, *args: Any) -> None:
        """Do one step; called by a watcher, in the hub."""
        if self._greenlet is None:
            self._greenlet = greenlet(self._run, self._hub)
        self._greenlet.switch(*args)

    def close(self) -> None:
        """End the greenlet. Left suspended it would never be freed, nor what its step knows."""
        ended, self._greenlet = self._greenlet, None
        here = getcurrent()
        if ended is not None and ended is not here:
            ended.parent = here  # where it goes when it ends
            ended.throw()

    def _run(self, *args: Any) -> None:
        step, switch, after = self._step, self._hub.switch, self._after
        while self._greenlet is not None:
            try:
                if step(*args) == 1 and after is not None:
                    after(self)
            except Exception:
                self._counters.drop(Drop.INTERNAL)
                log.exception("internal error; the frame or batch is lost")
            # One argument comes back bare, none and several as a tuple.
            back = switch()
            args = back if isinstance(back, tuple) else (back,)


class Poller:
    """Keeps the hub looking for more for a moment after a lone frame, so that an answer need not wake the process.

    It does so in conversations, where both directions take turns. Where frames come in numbers there is always one
    waiting, and no time to be won.

    :param hub: the hub.
    :param seconds: how long to look after the last traffic.
    """

    def __init__(self, hub: Any, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._active = False
        self._last: Worker | None = None
        # While an idle watcher is active the loop does not wait; it runs when there is nothing else to do.
        self._watcher = hub.loop.idle()

    def single(self, worker: Worker) -> None:
        """Take note that a worker moved one frame or datagram."""
        if worker is self._last:
            # Traffic in one direction awaits no answer; the longer it gathers, the less each datagram costs.
            return
        self._last = worker
        self._until = time.perf_counter() + self._seconds
        if not self._active:
            self._active = True
            self._watcher.start(self._look)

    def close(self) -> None:
        """Stop looking."""
        self._watcher.stop()
        self._watcher.close()

    def _look(self) -> None:
        if time.perf_counter() >= self._until:
            self._active = False
            self._watcher.stop()
