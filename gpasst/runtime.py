"""Where the proxies run: on the caller's hub if there is one in use, else on a hub in one background thread.

Theory of operation: a gevent program (monkey-patched, or calling from a greenlet) already runs a hub; its proxies are
greenlets of that hub. Any other program may block its threads as it likes; its proxies share one daemon thread with a
hub of its own, and calls cross over to it. Each hub has one helper process, started at the first need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
import gevent.hub
import gevent.monkey
from gevent.lock import RLock
from gevent.socket import wait_read

from gpasst.helper.client import Helper

T = TypeVar("T")

# The real ones, whatever has been patched since or before.
_allocate_lock: Callable[[], Any] = gevent.monkey.get_original("_thread", "allocate_lock")
_start_new_thread: Callable[..., int] = gevent.monkey.get_original("_thread", "start_new_thread")

_runtimes: dict[int, Runtime] = {}
_background: BackgroundRuntime | None = None
_background_lock = _allocate_lock()


class Runtime:
    """A hub in use, and its helper process.

    :param hub: the hub.
    """

    polls = True  # whether the hub may be kept busy for a moment

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.lock = RLock()
        self.pid = os.getpid()
        self._helper: Helper | None = None
        self._namespace: tuple[int, int] | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` where the hub runs."""
        return function()

    def wait_end(self, descriptor: int) -> None:
        """Wait until the writing end of a pipe is closed; nothing is ever written to it."""
        wait_read(descriptor)

    def adopt(self, helper: Helper) -> None:
        """Use a helper that was started earlier."""
        self._helper, self._namespace = helper, _network_namespace()

    def helper(self) -> Helper:
        """Give the helper of the thread's network namespace, started if need be. Called under `lock`."""
        namespace = _network_namespace()
        if self._helper is not None and self._namespace != namespace:
            self._helper.close(wait_read)
            self._helper = None
        if self._helper is None:
            self.adopt(Helper.start())
        assert self._helper is not None
        return self._helper

    def close_helper(self) -> None:
        """End the helper process; its namespaces live on."""
        if self._helper is not None:
            self._helper.close(wait_read)
            self._helper = None


class BackgroundRuntime(Runtime):
    """A hub in a thread of its own, which leaves the interpreter to the program's threads whenever it can."""

    polls = False

    def __init__(self) -> None:
        ready = _allocate_lock()
        ready.acquire()
        self._queue: list[Callable[[], None]] = []
        self._async: Any = None
        _start_new_thread(self._run, (ready,))
        ready.acquire()
        super().__init__(self._hub)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a greenlet of the hub and wait for its result."""
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

        self._queue.append(work)
        self._async.send()
        done.acquire()
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def wait_end(self, descriptor: int) -> None:
        """Wait in the caller's thread, which no hub needs."""
        os.read(descriptor, 1)

    def _run(self, ready: Any) -> None:
        self._hub = gevent.get_hub()
        self._async = self._hub.loop.async_()
        self._async.start(self._drain)
        ready.release()
        # The hub runs until the process ends: there is always the watcher above.
        self._hub.join()

    def _drain(self) -> None:
        while self._queue:
            gevent.spawn(self._queue.pop(0))


def current() -> Runtime:
    """Give the runtime for the caller: its own hub if that is in use, else the background one."""
    global _background  # noqa: PLW0603  # one thread serves the process
    if gevent.monkey.is_module_patched("socket") or gevent.getcurrent().parent is not None:
        hub = gevent.get_hub()
        runtime = _runtimes.get(id(hub))
        if runtime is None or runtime.hub is not hub or runtime.pid != os.getpid():
            runtime = _runtimes[id(hub)] = Runtime(hub)
        return runtime
    with _background_lock:
        if _background is None or _background.pid != os.getpid():
            _background = BackgroundRuntime()
        return _background


def _network_namespace() -> tuple[int, int]:
    """Identify the calling thread's network namespace."""
    status = os.stat("/proc/thread-self/ns/net")
    return status.st_dev, status.st_ino
