"""How much one step of the data path may move before others get their turn.

A step ends when it has moved its number of frames or batches, or when its time is over, whichever comes first. Work
that no traffic waits for is done in turns of `TURN_SECONDS`, with a look at the clock behind every piece of it: a piece
costs some dozen microseconds, a look one tenth of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_SECONDS = 0.002  # of any step
TURN_SECONDS = 0.0005  # of work that no traffic waits for: ending what is idle, following what is bound
BACKLOG_SECONDS = 0.0005  # of a step that sets up new state, so that frames of known flows wait no longer
FRAMES_PER_STEP = 128  # from the tap
RECEIVES_PER_STEP = 2  # from a stream
BATCHES_PER_STEP = 4  # from a host socket


class Turns:
    """Lets others have their turn in the midst of long work, whenever `TURN_SECONDS` are over.

    :param others: returns when others have had their turn.
    :param clock: returns seconds.
    """

    __slots__ = ("_clock", "_others", "_until")

    def __init__(self, others: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> None:
        self._others = others
        self._clock = clock
        self._until = clock() + TURN_SECONDS

    def look(self) -> None:
        """Look at the clock; called behind every piece of the work."""
        if self._clock() >= self._until:
            self._others()
            self._until = self._clock() + TURN_SECONDS
