"""Where the proxies run: on the caller's hub if there is one in use, else on a hub in one background thread.

Theory of operation: a gevent program (monkey-patched, or calling from a greenlet) already runs a hub; its proxies are
greenlets of that hub. Any other program may block its threads as it likes; its proxies share one daemon thread with a
hub of its own. Calls from other threads than the hub's cross over to it. A program that is gpasst and nothing else says
so by `claim`: then its thread's hub is in use from the start, and nothing has to be patched.

Who owns what:

* The runtime of a thread's own hub belongs to that thread, and goes with it. Hubs are not looked up by their identity,
  which a later hub may have again.
* The background thread, its hub and its watcher belong to the process and last as long: a thread that waits costs
  nothing, and a program that opens namespaces now and then would make it again and again.
* All runtimes whose threads are in one network namespace share a helper process, which any number of threads may use at
  once. It is started at the first need, again if it has died, and ends with the last runtime that uses it.

A process that was forked without exec makes runtimes and a helper of its own. What the first process has opened is not
reached from there: a thread that does not exist would be waited for, or the copy of a channel written to.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import gevent

from gpasst.errors import ConfigurationError
from gpasst.helper.client import Helper
from gpasst.hub import original, patched, wait_read

T = TypeVar("T")

# The real ones, whatever has been patched since or before.
_allocate_lock: Callable[[], Any] = original("_thread", "allocate_lock")
_get_ident: Callable[[], int] = original("_thread", "get_ident")
_start_new_thread: Callable[..., int] = original("_thread", "start_new_thread")
_ThreadLocal: type[Any] = original("_thread", "_local")

_own = _ThreadLocal()
_background: BackgroundRuntime | None = None
_background_lock = _allocate_lock()

# By process and network namespace.
_helpers: weakref.WeakValueDictionary[tuple[int, int, int], Helper] = weakref.WeakValueDictionary()
# Held for as long as a process takes to start, and never while greenlets switch.
_helpers_lock = _allocate_lock()


class Runtime:
    """A hub in use, and its share of a helper process.

    :param hub: the hub.
    :param thread: identifies its thread, None for the calling one.
    """

    polls = True  # whether the hub may be kept busy for a moment

    def __init__(self, hub: Any, thread: int | None = None) -> None:
        self.hub = hub
        self.pid = os.getpid()
        self._thread = _get_ident() if thread is None else thread
        self._helper: Helper | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` where the hub runs, and return or raise what it does.

        From another thread it runs in a greenlet of its own, which the caller's thread waits for.

        :raises BaseException: if `function` does.
        :raises ConfigurationError: in a process that was forked since.
        """
        if os.getpid() != self.pid:
            raise ConfigurationError(
                "this was opened before the process was forked", "open another one here, or use it in the first process"
            )
        if _get_ident() == self._thread:
            return function()
        done = _allocate_lock()
        done.acquire()
        outcome: list[Any] = [None, None]

        def work() -> None:
            try:
                outcome[0] = function()
            except BaseException as error:
                outcome[1] = error
            finally:
                done.release()

        self.hub.loop.run_callback_threadsafe(gevent.spawn, work)
        done.acquire()
        if outcome[1] is not None:
            try:
                raise outcome[1]
            finally:
                # The error's traceback leads here: what its frames refer to would wait for the garbage collector.
                outcome.clear()
        result: T = outcome[0]
        return result

    def breathe(self) -> None:
        """Let others on the hub have their turn, in the midst of long work of the caller's."""
        gevent.sleep(0)

    def wait_end(self, descriptor: int) -> None:
        """Wait until the writing end of a pipe is closed; nothing is ever written to it."""
        wait_read(descriptor)

    def adopt(self, helper: Helper) -> None:
        """Use a helper that was started earlier, and let others use it."""
        with _helpers_lock:
            _helpers[_place()] = helper
        self._helper = helper

    def helper(self) -> Helper:
        """Return the helper of the thread's network namespace, started if need be.

        :raises PlatformError: if it cannot be started.
        """
        place = _place()
        with _helpers_lock:
            helper = _helpers.get(place)
            if helper is None or not helper.alive:
                helper = _helpers[place] = Helper.start()
        # The one before ends by that, unless others use it.
        self._helper = helper
        return helper

    def close_helper(self) -> None:
        """End the helper process, for all that share it; its namespaces live on."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close(wait_read)


class BackgroundRuntime(Runtime):
    """A hub in a thread of its own, which leaves the interpreter to the program's threads whenever it can."""

    polls = False

    def __init__(self) -> None:
        ready = _allocate_lock()
        ready.acquire()
        thread = _start_new_thread(self._run, (ready,))
        ready.acquire()
        super().__init__(self._hub, thread)

    def breathe(self) -> None:
        """Do nothing: the caller has a thread of its own."""

    def wait_end(self, descriptor: int) -> None:
        """Wait in the caller's thread, which no hub needs."""
        os.read(descriptor, 1)

    def _run(self, ready: Any) -> None:
        self._hub = gevent.get_hub()
        # The hub runs until the process ends, since there is always this watcher.
        self._lasting = self._hub.loop.async_()
        self._lasting.start(_nothing)
        ready.release()
        self._hub.join()


def _nothing() -> None:
    """Do nothing: the callback of a watcher that never calls."""


def claim() -> Runtime:
    """Return the runtime of the calling thread's hub, which counts as in use from now on."""
    _own.claimed = True
    return current()


def current() -> Runtime:
    """Return the runtime for the caller: its own hub if that is in use, else the background one."""
    global _background  # noqa: PLW0603  # one thread serves the process
    if getattr(_own, "claimed", False) or patched() or gevent.getcurrent().parent is not None:
        hub = gevent.get_hub()
        runtime: Runtime | None = getattr(_own, "runtime", None)
        if runtime is None or runtime.hub is not hub or runtime.pid != os.getpid():
            runtime = _own.runtime = Runtime(hub)
        return runtime
    with _background_lock:
        if _background is None or _background.pid != os.getpid():
            _background = BackgroundRuntime()
        return _background


def _place() -> tuple[int, int, int]:
    """Identify the process, and the calling thread's network namespace."""
    status = os.stat("/proc/thread-self/ns/net")
    return os.getpid(), status.st_dev, status.st_ino
