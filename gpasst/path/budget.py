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
CROWDED_BACKLOG_SECONDS = 0.00025  # of the same, while the link has always more to read
FRAMES_PER_STEP = 128  # from the tap
CROWDED_PER_STEP = 1024  # likewise, where that has not sufficed for `CROWDED_SECONDS`
CROWDED_SECONDS = 0.02  # of a link that always has more to read, after which less is made of frames of no known flow
RECEIVES_PER_STEP = 2  # from a stream
SHALLOW = 64  # frames of many flows that are read before they are carried, at first
GOAL_SECONDS = 0.0015  # to read and carry more of them
RESTING = 128  # of them, while more are of no use
RESTS = 256  # times without an attempt to read more, after that was of no use
BATCHES_PER_STEP = 4  # from a host socket


UNNOTICED: Callable[[float], object] = float
"""Takes note of nothing."""


class Depth:
    """How many frames of many flows are read before they are carried, while there are always more.

    At first these are few. Where flows take turns, one has several only among many, so as long as there are enough,
    more and more are read, as many as can be carried in `GOAL_SECONDS`. If even these have nothing to be joined, fewer
    serve better, since they stay in the processor's caches.

    :param most: how many at most.
    :ivar now: how many now.
    """

    __slots__ = ("_most", "_rest", "now")

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = 0  # full steps until more are tried again
        self.now = SHALLOW

    def step(self, full: bool, joined: bool, seconds: float) -> None:
        """Choose for the next time.

        :param full: whether there were as many, all of them ordinary.
        :param joined: whether some of them were joined.
        :param seconds: how long it took; 0 if that was too short to be seen.
        """
        now = self.now
        if not full:
            self.now = SHALLOW
        elif self._rest:
            self._rest -= 1
        else:
            fitting = int(now * GOAL_SECONDS / seconds) // SHALLOW * SHALLOW if seconds else self._most
            most = max(min(fitting, self._most), SHALLOW)
            if now >= most and not joined:
                self.now, self._rest = min(RESTING, most), RESTS
            else:
                self.now = min(2 * now, most)


class Crowd:
    """Whether a link has had more to read, whenever a step of its reader ended, for `CROWDED_SECONDS`.

    :ivar lasting: whether it has.
    :ivar notice: called when a step first leaves something, with 0, and then every `CROWDED_SECONDS`, with the time
        since the call before.
    """

    __slots__ = ("_since", "lasting", "notice")

    def __init__(self) -> None:
        self.lasting = False
        self.notice = UNNOTICED
        self._since = 0.0

    def left(self, now: float) -> None:
        """Take note that a step has left something, at `now` in seconds."""
        if not self._since:
            self._since = now
            self.notice(0.0)
        elif now - self._since >= CROWDED_SECONDS:
            self.lasting = True
            self.notice(now - self._since)
            self._since = now

    def emptied(self) -> None:
        """Take note that a step has left nothing."""
        self.lasting = False
        self._since = 0.0


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
