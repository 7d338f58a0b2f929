"""Greenlets and watchers: what runs when a descriptor is ready, and the owner that ends all of it.

Theory of operation:

1. Every descriptor has one persistent, level-triggered watcher. Its callback switches to a greenlet, which takes one
   step and switches back to the hub. Nothing on the data path waits, sleeps or makes an object per datagram.
2. A `Worker` is such a greenlet, made at its first step, since an unused greenlet costs forty times its watcher. An
   exception in a step is counted and logged (`gpasst.proxy.failures`), and the worker goes on. The same holds for the
   few callbacks that need no greenlet (`Watchers.watch_guarded`).
3. `Watchers` owns the watchers and workers of one proxy and closes them: a greenlet that is left suspended would never
   be freed, nor anything that its frames refer to.

NOTE: everything here belongs to one hub; only that hub's thread may call it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

from gpasst.counters import Counters
from gpasst.proxy.failures import Failures

READ, WRITE = 1, 2  # event masks of the loop (libev: EV_READ, EV_WRITE)
CONTENDED_SECONDS = 30e-6  # of giving way to others; with nobody else there it takes less than one microsecond

log = logging.getLogger(__name__)


class Wakeable(Protocol):
    """What may be woken."""

    def wake(self) -> None:
        """Take one step; called in the hub."""


class Worker:
    """A greenlet that takes a step whenever a watcher calls.

    :param hub: the hub it belongs to.
    :param step: the step, with the arguments that the watcher was given; returns how many frames or datagrams it moved.
    :param failures: takes the errors of steps.
    :param after: called after a step that moved exactly one frame or datagram.
    """

    __slots__ = ("_after", "_failures", "_greenlet", "_hub", "_step")

    def __init__(
        self,
        hub: Any,
        step: Callable[..., int | None],
        failures: Failures,
        after: Callable[[Worker], None] | None = None,
    ) -> None:
        self._after = after
        self._hub = hub
        self._step = step
        self._failures = failures
        self._greenlet: greenlet | None = None

    def wake(self, *args: Any) -> None:
        """Take one step; called by a watcher, in the hub."""
        if self._greenlet is None:
            self._greenlet = greenlet(self._run, self._hub)
            # Without arguments, which a greenlet would keep as long as it lives.
            self._greenlet.switch()
        self._greenlet.switch(*args)

    def close(self) -> None:
        """End the greenlet; from within its own step, at the end of that."""
        ended, self._greenlet = self._greenlet, None
        # Its owner may refer back to this worker, and both would have to wait for the garbage collector.
        self._step, self._after = _nothing, None
        here = getcurrent()
        if ended is not None and ended is not here:
            ended.parent = here  # where it goes when it ends
            ended.throw()

    def _run(self) -> None:
        # The hub's own `switch` looks for hooks of gevent's that no such greenlet has.
        step, switch, hub, after = self._step, greenlet.switch, self._hub, self._after
        while self._greenlet is not None:
            # While it sleeps it keeps nothing of its last step alive.
            args: Any = None
            # One argument comes back bare, none and several as a tuple.
            args = switch(hub)
            if not isinstance(args, tuple):
                args = (args,)
            try:
                if step(*args) == 1 and after is not None:
                    after(self)
            except Exception as error:
                self._failures.caught(error, "internal error; the frame or batch is lost")


def _nothing(*_: object) -> None:
    """Do nothing: the step of a closed worker."""


class Watchers:
    """The watchers and workers of one proxy.

    :param hub: the hub.
    :param counters: where failures are counted.
    :param busy_poll: seconds to look for the next frame of a conversation before the hub sleeps, 0 for none.
    :param beside: other watchers of the hub that conversations pass as well, whose way of looking these share; None for
        none.
    :ivar failures: takes the errors of steps.
    :ivar conversed: takes note of whom one frame, datagram or piece came from, since an answer may come soon; None
        where nothing looks for that.
    """

    def __init__(self, hub: Any, counters: Counters, busy_poll: float = 0.0, beside: Watchers | None = None) -> None:
        self._hub = hub
        self.failures = Failures(log, counters)
        self._poller = Poller(hub, busy_poll) if busy_poll and beside is None else None
        self.conversed = self._poller.single if self._poller else None
        if beside is not None:
            self.conversed = beside.conversed
        self._watchers: dict[object, Any] = {}
        self._workers: dict[object, Worker] = {}
        self._shared: list[Worker] = []
        self._repeats: list[Repeat] = []

    def worker(self, step: Callable[..., int | None], conversational: bool = True) -> Worker:
        """Make a worker that several watchers may wake.

        :param step: as for `Worker`.
        :param conversational: whether a step that moved one frame may be followed by an answer soon.
        """
        worker = Worker(self._hub, step, self.failures, self.conversed if conversational else None)
        self._shared.append(worker)
        return worker

    def watch(self, owner: object, fd: int, callback: Callable[..., None], *args: object, events: int = READ) -> None:
        """Call `callback` with `args`, in the hub, whenever a descriptor is ready.

        :param owner: the key for `unwatch`.
        :param callback: a worker's `wake`, or what else never raises: gevent stops a watcher whose callback does.
        """
        watcher = self._hub.loop.io(fd, events)
        watcher.start(callback, *args)
        self._watchers[owner] = watcher

    def watch_guarded(self, owner: object, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call `callback`, in the hub, whenever a descriptor is ready; what it raises is counted and logged.

        :param owner: the key for `unwatch`.
        """

        def guarded() -> None:
            try:
                callback()
            except Exception as error:
                self.failures.caught(error, "internal error; a connection may hang")

        self.watch(owner, fd, guarded, events=events)

    def lone(self, step: Callable[..., int | None]) -> Worker:
        """Make a worker that nothing here wakes, and that the caller closes."""
        return Worker(self._hub, step, self.failures)

    def watch_alone(self, owner: object, fd: int, step: Callable[..., int | None]) -> None:
        """Call `step` with `owner` in a worker of its own whenever a descriptor is readable."""
        worker = self._workers[owner] = Worker(self._hub, step, self.failures, self.conversed)
        self.watch(owner, fd, worker.wake, owner)

    def rest(self, owner: object) -> None:
        """Let the worker of an owner, which `watch_alone` has made, sleep until `resume`."""
        self._watchers[owner].stop()

    def resume(self, owner: object) -> None:
        """Let it wake again, unless `unwatch` has ended it."""
        if owner in self._watchers:
            self._watchers[owner].start(self._workers[owner].wake, owner)

    def unwatch(self, owner: object) -> None:
        """End the watcher of an owner, and its own worker; more calls do nothing."""
        watcher = self._watchers.pop(owner, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()
        worker = self._workers.pop(owner, None)
        if worker is not None:
            worker.close()

    def repeat(self, worker: Wakeable) -> Repeat:
        """Make what lets a worker's step ask for the next one (see `Repeat`)."""
        repeat = Repeat(self._hub, worker)
        self._repeats.append(repeat)
        return repeat

    def forget(self, repeat: Repeat, worker: Worker) -> None:
        """End a worker, and what lets its step ask for the next one."""
        repeat.close()
        worker.close()
        self._repeats.remove(repeat)
        self._shared.remove(worker)

    def close(self) -> None:
        """End everything."""
        for owner in list(self._watchers):
            self.unwatch(owner)
        for repeat in self._repeats:
            repeat.close()
        for worker in self._shared:
            worker.close()
        self._repeats.clear()
        self._shared.clear()
        if self._poller:
            self._poller.close()


class Repeat:
    """Wakes a worker, or what wakes several, again in the loop's next turn, once that has looked at all descriptors.

    :param hub: the hub.
    :param worker: what to wake.
    """

    def __init__(self, hub: Any, worker: Wakeable) -> None:
        # A callback of the loop (`run_callback`) would keep it from polling for up to 5 ms.
        self._timer = hub.loop.timer(0)
        self._worker = worker
        self._asked = False

    def ask(self) -> None:
        """Ask for a step; more calls before it do nothing."""
        if not self._asked:
            self._asked = True
            self._timer.start(self._wake, update=False)

    def close(self) -> None:
        """Ask no more."""
        self._timer.stop()
        self._timer.close()

    def _wake(self) -> None:
        self._asked = False
        self._timer.stop()
        self._worker.wake()


class Poller:
    """Keeps the hub looking for more for a moment after a single frame, so that an answer need not wake the process.

    It does so in conversations, where both directions take turns. Where frames come in numbers there is always one
    waiting, and no time to be won. Each look is preceded by a turn of whoever else wants this processor, or the
    interpreter; if somebody does, the hub sleeps, since the answer may have to come from there.

    :param hub: the hub.
    :param seconds: how long to look after the last traffic.
    """

    def __init__(self, hub: Any, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._active = False
        self._last: object = None
        # While an idle watcher is active the loop does not wait; it runs when there is nothing else to do.
        self._watcher = hub.loop.idle()

    def single(self, source: object) -> None:
        """Take note that one frame, datagram or piece came from a source."""
        if source is self._last:
            # Traffic in one direction awaits no answer; the longer it gathers, the less each datagram costs.
            return
        self._last = source
        self._until = time.perf_counter() + self._seconds
        if not self._active:
            self._active = True
            self._watcher.start(self._look)

    def close(self) -> None:
        """Stop looking."""
        self._last = None
        self._watcher.stop()
        self._watcher.close()

    def _look(self) -> None:
        before = time.perf_counter()
        os.sched_yield()
        now = time.perf_counter()
        if now >= self._until or now - before > CONTENDED_SECONDS:
            self._active = False
            self._watcher.stop()
