"""Internal errors: each is counted, and the traceback of each kind is logged now and then.

Theory of operation: an internal error is a defect, and its traceback is what mends it. A guest that finds one can
repeat it with every frame, so the same traceback is written at most once in `LOG_SECONDS`. Errors are of one kind if
the same line raised the same class. `Drop.INTERNAL` counts all of them, and the log of drops shows that number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from gpasst.counters import Counters, Drop

LOG_SECONDS = 60  # at most one traceback of a kind in this time
KINDS_LIMIT = 32  # kinds whose time is kept; with more, no traceback is written until one of these is due again

Kind = tuple[type[BaseException], str, int]


class Failures:
    """Counts and logs the internal errors of one proxy.

    :param log: the logger.
    :param counters: where they are counted.
    :param clock: returns monotonic seconds.
    """

    def __init__(self, log: logging.Logger, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._counters = counters
        self._clock = clock
        self._logged: dict[Kind, float] = {}

    def caught(self, error: Exception, message: str) -> None:
        """Count an error, and log it with its traceback unless one of its kind was logged lately.

        :param error: the error, as it was caught.
        :param message: what is lost by it.
        """
        self._counters.drop(Drop.INTERNAL)
        kind, now = _kind(error), self._clock()
        last = self._logged.get(kind)
        if last is None and len(self._logged) >= KINDS_LIMIT:
            self._logged = {known: then for known, then in self._logged.items() if now - then < LOG_SECONDS}
            if len(self._logged) >= KINDS_LIMIT:
                return
        if last is None or now - last >= LOG_SECONDS:
            self._logged[kind] = now
            self._log.error(message, exc_info=error)


def _kind(error: Exception) -> Kind:
    """Return the class of an error, and the file and line that raised it."""
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error), "", 0
    return type(error), place.tb_frame.f_code.co_filename, place.tb_lineno
