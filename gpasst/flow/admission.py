"""How many frames that may set up state are admitted: a token bucket for each source, and one for all.

Theory of operation: a bucket of `Rate.burst` tokens gains `Rate.per_second` a second, and a frame takes one. It is kept
as one number, the time at which the bucket is full again (the generic cell rate algorithm, ITU-T I.371, annex A): a
frame is admitted unless that lies further ahead than a whole bucket takes to fill, and moves it one token's time. A
refusal costs one look-up and two comparisons, whatever the number of sources.

1. A source has a bucket of its own, so that a flood of one leaves the others theirs.
2. All sources share a bucket `ALL` times as large, since a guest can invent any number of sources.
3. At most `SOURCES_LIMIT` sources are remembered; the one whose last frame was admitted longest ago is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

from gpasst.records import dataclass

ALL = 2  # buckets of one source that all sources have together
SOURCES_LIMIT = 1024
_SLACK = 0.25  # token, less than which the rounding of times costs a burst


@dataclass(frozen=True, slots=True)
class Rate:
    """What one source may send.

    :ivar burst: frames at once, after a pause.
    :ivar per_second: frames a second in the long run.
    """

    burst: int
    per_second: int


class Admission:
    """The buckets of one kind of frame.

    :param rate: what one source may send.
    """

    def __init__(self, rate: Rate) -> None:
        self._interval = 1 / rate.per_second
        self._ahead = (rate.burst - _SLACK) / rate.per_second
        self._interval_all = self._interval / ALL
        self._full_all = 0.0
        # By source; the one admitted longest ago first.
        self._full: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def admit(self, source: bytes, now: float) -> bool:
        """Return whether a frame is admitted; it has then taken its token.

        :param source: the sender's address, of any kind.
        :param now: seconds of a clock that is never set back.
        """
        latest = now + self._ahead
        full = self._full.get(source, now)
        if full > latest or self._full_all > latest:
            return False
        self._full[source] = max(full, now) + self._interval
        self._full.move_to_end(source)
        self._full_all = max(self._full_all, now) + self._interval_all
        if len(self._full) > SOURCES_LIMIT:
            self._full.popitem(last=False)
        return True

    def refuses(self, source: bytes, now: float) -> bool:
        """Return whether a frame would not be admitted; parameters are those of `admit`."""
        latest = now + self._ahead
        return self._full.get(source, now) > latest or self._full_all > latest
