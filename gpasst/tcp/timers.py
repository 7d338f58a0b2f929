"""A wheel of deadlines for many connections.

Theory of operation: a deadline of a connection moves with almost every segment, but nearly always to later. So an entry
of the wheel says "look at this connection then", and nothing moves it to later: whoever takes it out asks the
connection when it is really due, and enters it again. An entry costs one reference, and `armed` names the slot that it
stands in. The entry of a connection that has become due earlier, or has ended, is taken out: its time may be half a
minute away, and short connections of that time would fill the memory.

Times are counted in ticks. Far deadlines are rounded up to whole seconds, so that few slots hold them all.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

# A short segment is mostly a request, whose answer then carries the acknowledgement. RFC 9293, section 3.8.6.3 allows
# half a second; the link's round trip is so short that much less will do.
DELAY_SECONDS = 0.001
# The same where many segments come at once, whose answers take their turns.
DELAY_OF_MANY_SECONDS = 0.02
# Seconds to wait for the answer to a SYN, first to last: linear, then doubling (net.ipv4.tcp_syn_linear_timeouts).
SYN_SECONDS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0)
RETRANSMIT_SECONDS = 1.0  # RFC 6298, section 2
RETRANSMIT_MAXIMUM = 120.0  # seconds (net/ipv4/tcp_timer.c, TCP_RTO_MAX)
RETRIES = 7  # without any progress; 247 seconds in all
PROBE_SECONDS = 30.0  # of silence, after which the guest is asked whether it still has the connection
PROBE_DOUBLINGS = 6  # of that time, while nothing but answers comes
SILENCE_SECONDS = 7440.0  # without an answer, after which a connection ends (RFC 5382, REQ-5: two hours and 4 minutes)
TICKS = 64  # a second
_FAR = 8 * TICKS  # ticks, from which on whole seconds are exact enough


def retransmit_seconds(retries: int) -> float:
    """Return how long a flight is waited for that was sent again so many times."""
    return min(RETRANSMIT_SECONDS * (1 << retries), RETRANSMIT_MAXIMUM)


def probe_seconds(probes: int) -> float:
    """Return how much silence follows so many probes that brought nothing but answers."""
    return PROBE_SECONDS * (1 << min(probes, PROBE_DOUBLINGS))


class Armed(Protocol):
    """What has deadlines.

    :ivar armed: tick of its entry, 0 for none.
    """

    armed: int


T = TypeVar("T", bound=Armed)


class Wheel(Generic[T]):
    """Deadlines by tick."""

    def __init__(self) -> None:
        self._slots: dict[int, set[T]] = {}
        self._order: list[int] = []

    def add(self, item: T, when: float, now: float) -> None:
        """Enter an item, in the place of its earlier entry.

        :param when: seconds.
        :param now: seconds; `when` may have passed.
        """
        tick = int(when * TICKS) + 1
        if when - now >= _FAR / TICKS:
            tick = -(-tick // TICKS) * TICKS
        self.remove(item)
        item.armed = tick
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = set()
            heapq.heappush(self._order, tick)
        slot.add(item)

    def remove(self, item: T) -> None:
        """Take out the entry of an item, if it has one."""
        slot = self._slots.get(item.armed)
        if slot is not None:
            slot.discard(item)
        item.armed = 0

    def earliest(self) -> float | None:
        """Return the time of the earliest entry in seconds, None if there is none."""
        return self._order[0] / TICKS if self._order else None

    def take(self, now: float) -> T | None:
        """Take out an item whose entry is due at `now`, None if none is; its `armed` is 0 then."""
        while self._order and self._order[0] <= now * TICKS:
            tick = self._order[0]
            slot = self._slots[tick]
            if slot:
                item = slot.pop()
                item.armed = 0
                return item
            del self._slots[tick]
            heapq.heappop(self._order)
        return None

    def clear(self) -> None:
        """Forget all entries."""
        self._slots.clear()
        self._order.clear()
