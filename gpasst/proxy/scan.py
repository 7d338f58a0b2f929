"""The scan: once a second it ends what is idle, and calls those who count in seconds.

Theory of operation: tables of peers, splice pairs and echo flows are searched in pieces of a few items. A turn of the
scan does pieces for `TURN_SECONDS`, and looks at the clock behind each. The next turn is a deadline of its own, due at
once, so others have theirs in between. Each call at the end is a piece as well. A scan that takes longer than a second
delays the next one.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from gpasst.counters import Counters
from gpasst.path.budget import TURN_SECONDS
from gpasst.proxy.timers import Timers

SCAN_SECONDS = 1  # an age is late by up to this much
TRIMMED = 256  # how many must end at once to make it worth giving their memory back; that takes about a millisecond

log = logging.getLogger(__name__)


class Scan:
    """Ends what is idle; begins with the first second of `timers`.

    :param timers: wakes for each turn, and has the clock that a turn looks at.
    :param clock: returns monotonic seconds.
    :param timeout: seconds after which a peer or splice pair is idle.
    :param counters: where the ended are counted.
    :param tables: each is called with the time and `timeout`, and yields after each piece how many ended by it.
    :param seconds: called with the time at the end of a scan.
    """

    def __init__(
        self,
        timers: Timers,
        clock: Callable[[], int],
        timeout: int,
        counters: Counters,
        tables: Sequence[Callable[[int, int], Iterable[int]]],
        seconds: Sequence[Callable[[int], object]],
    ) -> None:
        self._timers = timers
        self._clock = clock
        self._timeout = timeout
        self._counters = counters
        self._tables = tables
        self._seconds = seconds
        self._going: Iterator[None] | None = None
        self._deadline = timers.every(SCAN_SECONDS, self._begin)

    def whole(self, now: int) -> None:
        """Scan at `now`, in monotonic seconds, without a pause."""
        for _ in self._pieces(now):
            pass

    def close(self) -> None:
        """Scan no more."""
        self._deadline.cancel()
        self._going = None

    def _begin(self, now: float) -> None:
        if self._going is None:
            self._going = self._pieces(self._clock())
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        """Do what is next for `TURN_SECONDS`, and ask for a call for the rest."""
        until = self._timers.clock() + TURN_SECONDS
        try:
            while self._going is not None:
                next(self._going)
                if self._timers.clock() >= until:
                    self._timers.at(now, self._go_on)
                    return
        except StopIteration:
            self._going = None
        except Exception:
            self._going = None
            raise

    def _pieces(self, now: int) -> Iterator[None]:
        ended = 0
        for table in self._tables:
            for count in table(now, self._timeout):
                ended += count
                yield
        self._counters.expired += ended
        if ended:
            log.debug("%d mappings or splice pairs expired", ended)
        if ended >= TRIMMED:
            trim_memory()
        for call in self._seconds:
            yield
            call(now)


def trim_memory() -> None:
    """Return free memory to the kernel, where the C library can (malloc_trim of glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
