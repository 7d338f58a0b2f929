"""Deadlines: one heap for all that is due at some time, and one timerfd that wakes the proxy for the earliest.

Theory of operation:

1. `Deadlines` is pure: a heap ordered by time. Cancelled entries stay until they come up, or until they are the greater
   part, when the heap is rebuilt; so cancelling costs next to nothing (TCP cancels most of its timers).
2. `Timers` arms a timerfd (Linux 2.6.25) for the earliest deadline. The timers of the event loop will not do where less
   than a millisecond counts: libev sleeps in epoll_wait, whose timeout is in whole milliseconds and is rounded up.
3. Callbacks run in one worker, with `now` as argument. What raises is counted and logged, and the others run. A step
   that lasts longer than its budget is broken off; the timerfd is then due at once. So it is for a deadline that a
   callback enters, however early: long work that is done as a chain of deadlines takes turns with everything else.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import os
import struct
import sys
import time
from collections.abc import Callable

from gpasst.errors import PlatformError
from gpasst.linux import CLOCK_MONOTONIC, TFD_CLOEXEC, TFD_NONBLOCK
from gpasst.path.budget import STEP_SECONDS
from gpasst.proxy.workers import Watchers

CANCELLED_MINIMUM = 64  # cancelled entries below which rebuilding the heap is not worth it
EXPIRATIONS_BYTES = 8  # what a timerfd is read as
NANOSECONDS = 1_000_000_000
SOONEST = 1  # nanosecond; 0 would disarm

Callback = Callable[[float], None]

_libc = ctypes.PyDLL(None, use_errno=True)
_itimerspec = struct.Struct("@qqqq").pack  # interval and value, seconds and nanoseconds each


class Deadline:
    """One entry of `Deadlines`.

    :ivar when: the time it is due, in seconds of the clock.
    :ivar interval: seconds after which it is due again, 0 if it is not.
    :ivar callback: called with the present time; None once cancelled or done.
    """

    __slots__ = ("_deadlines", "callback", "interval", "when")

    def __init__(self, deadlines: Deadlines, when: float, callback: Callback, interval: float) -> None:
        self._deadlines = deadlines
        self.when = when
        self.callback: Callback | None = callback
        self.interval = interval

    def cancel(self) -> None:
        """Call no more; more calls do nothing."""
        if self.callback is not None:
            self.callback = None
            self._deadlines.cancelled()


class Deadlines:
    """A heap of deadlines. Times are seconds of a monotonic clock, to any precision."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deadline]] = []
        self._numbers = itertools.count()  # deadlines of one time keep their order
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, when: float, callback: Callback, interval: float = 0.0) -> Deadline:
        """Enter a deadline.

        :param when: the time.
        :param callback: called once with the present time, or again and again.
        :param interval: seconds after which it is due again, counted from the call; 0 for never.
        """
        deadline = Deadline(self, when, callback, interval)
        heapq.heappush(self._heap, (when, next(self._numbers), deadline))
        return deadline

    def earliest(self) -> float | None:
        """Return the time of the earliest deadline, None if there is none."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def take(self, now: float, before: int = sys.maxsize) -> Callback | None:
        """Return the callback of the earliest deadline that is due at `now`, None if none is.

        :param before: a value of `mark`; None is returned where the earliest deadline was entered after that.
        """
        earliest = self.earliest()
        if earliest is None or earliest > now or self._heap[0][1] >= before:
            return None
        _, _, deadline = heapq.heappop(self._heap)
        callback = deadline.callback
        if deadline.interval:
            deadline.when = now + deadline.interval
            heapq.heappush(self._heap, (deadline.when, next(self._numbers), deadline))
        else:
            deadline.callback = None
        return callback

    def mark(self) -> int:
        """Return what `take` distinguishes the deadlines by that were entered before this call and after it."""
        return next(self._numbers)

    def cancelled(self) -> None:
        """Take note of a cancelled entry."""
        self._cancelled += 1
        if self._cancelled > CANCELLED_MINIMUM and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def clear(self) -> None:
        """Forget all deadlines."""
        for _, _, deadline in self._heap:
            deadline.callback = None
        self._heap.clear()
        self._cancelled = 0


class Timers:
    """The deadlines of one proxy, called when they are due.

    :param watchers: wakes for them, and takes the errors of callbacks.
    :param clock: returns seconds; of the same speed as CLOCK_MONOTONIC.
    :raises PlatformError: if no timerfd can be had.
    """

    def __init__(self, watchers: Watchers, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._watchers = watchers
        self._deadlines = Deadlines()
        self._armed: float | None = None
        self._fd: int = _libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise PlatformError(f"no timer: {os.strerror(ctypes.get_errno())}", "raise ulimit -n")
        watchers.watch(self, self._fd, watchers.worker(self._step, conversational=False).wake)

    def at(self, when: float, callback: Callback) -> Deadline:
        """Call `callback` once at `when`, in seconds of the clock."""
        deadline = self._deadlines.add(when, callback)
        self._arm()
        return deadline

    def every(self, seconds: float, callback: Callback) -> Deadline:
        """Call `callback` every so many seconds, first when they have passed."""
        deadline = self._deadlines.add(self.clock() + seconds, callback, seconds)
        self._arm()
        return deadline

    def close(self) -> None:
        """Call nothing more; more calls do nothing."""
        self._deadlines.clear()
        if self._fd >= 0:
            self._watchers.unwatch(self)
            os.close(self._fd)
            self._fd = -1

    def run(self) -> None:
        """Call what is due and was entered before, for at most `STEP_SECONDS`."""
        now, mark = self.clock(), self._deadlines.mark()
        until = now + STEP_SECONDS
        while (callback := self._deadlines.take(now, mark)) is not None:
            try:
                callback(now)
            except Exception as error:
                self._watchers.failures.caught(error, "internal error of a timer")
            now = self.clock()
            if now >= until:
                return

    def _step(self) -> int:
        try:
            os.read(self._fd, EXPIRATIONS_BYTES)
        except BlockingIOError:
            return 0
        self._armed = None
        self.run()
        self._arm()
        return 0

    def _arm(self) -> None:
        """Let the timerfd be due for the earliest deadline, unless it is due before that anyway."""
        earliest = self._deadlines.earliest()
        if self._fd < 0 or earliest is None or (self._armed is not None and self._armed <= earliest):
            return
        self._armed = earliest
        nanoseconds = max(SOONEST, int((earliest - self.clock()) * NANOSECONDS))
        _libc.timerfd_settime(self._fd, 0, _itimerspec(0, 0, *divmod(nanoseconds, NANOSECONDS)), None)
