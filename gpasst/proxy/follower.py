"""The look at bound ports, again and again, for automatic forwards.

Theory of operation: listing bound sockets waits for the kernel between chunks, so it runs in a greenlet of its own. A
deadline wakes that greenlet every `FOLLOW_SECONDS`; a look that takes longer delays the next one.
"""

from __future__ import annotations

import logging

import gevent
import gevent.event

from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.hub import wait_read
from gpasst.path.budget import Turns
from gpasst.proxy.forwarder import Forwarder
from gpasst.proxy.timers import Timers

FOLLOW_SECONDS = 0.5  # so that a new port is forwarded within a second
FAILURES = 2  # of looks in a row, before they are logged

log = logging.getLogger(__name__)


def others() -> None:
    """Let the loop look at all descriptors once.

    `gevent.idle` would wait for a turn in which none of them is ready, which a busy guest can put off for ever.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as turn:
        hub.wait(turn)


class Follower:
    """Keeps the listeners of automatic rules in step with bound ports.

    :param forwarder: the listeners.
    :param timers: wakes for each look.
    :param counters: where failures are counted.
    """

    def __init__(self, forwarder: Forwarder, timers: Timers, counters: Counters) -> None:
        self._forwarder = forwarder
        self._counters = counters
        self._failures = 0  # looks since the last one that succeeded
        self._due = gevent.event.Event()
        self._due.set()
        self._deadline = timers.every(FOLLOW_SECONDS, lambda now: self._due.set())
        self._greenlet = gevent.spawn(self._run)

    def look(self) -> None:
        """Look once.

        :raises PlatformError: if the kernel does not list sockets.
        """
        self._forwarder.follow(wait_read, Turns(others).look)

    def close(self) -> None:
        """Look no more."""
        self._deadline.cancel()
        self._greenlet.kill()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            try:
                self.look()
                self._failures = 0
            except PlatformError as error:
                # It may be over at the next look: want of memory, or the keeper's being asked to enter its sandbox.
                self._failures += 1
                if self._failures == FAILURES:
                    log.warning("ports are not forwarded automatically: %s", error)
            except Exception:
                self._counters.drop(Drop.INTERNAL)
                log.exception("internal error while looking for bound ports")
