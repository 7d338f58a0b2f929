"""A wheel of deadlines for many connections.

Theory of operation: a deadline of a connection moves with almost every segment, but nearly always to later. So an entry
of the wheel says "look at this connection then", and nothing moves it: whoever takes it out asks the connection when it
is really due, and enters it again. An entry costs one reference. A connection that has become due earlier is entered
once more, and its `armed` names the entry that counts; others are passed over.

Times are counted in ticks. Far deadlines are rounded up to whole seconds, so that few slots hold them all.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

TICKS = 64  # a second
_FAR = 8 * TICKS  # ticks, from which on whole seconds are exact enough


class Armed(Protocol):
    """What has deadlines.

    :ivar armed: tick of the entry that counts, 0 for none.
    """

    armed: int


T = TypeVar("T", bound=Armed)


class Wheel(Generic[T]):
    """Deadlines by tick."""

    def __init__(self) -> None:
        self._slots: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, item: T, when: float, now: float) -> None:
        """Enter an item; its earlier entry, if there is one, counts no more.

        :param when: seconds.
        :param now: seconds; `when` may have passed.
        """
        tick = int(when * TICKS) + 1
        if when - now >= _FAR / TICKS:
            tick = -(-tick // TICKS) * TICKS
        item.armed = tick
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = []
            heapq.heappush(self._order, tick)
        slot.append(item)

    def earliest(self) -> float | None:
        """Return the time of the earliest entry in seconds, None if there is none."""
        return self._order[0] / TICKS if self._order else None

    def take(self, now: float) -> T | None:
        """Take out an item whose entry is due at `now`, None if none is; its `armed` is 0 then."""
        while self._order and self._order[0] <= now * TICKS:
            tick = self._order[0]
            slot = self._slots[tick]
            while slot:
                item = slot.pop()
                if item.armed == tick:
                    item.armed = 0
                    return item
            del self._slots[tick]
            heapq.heappop(self._order)
        return None

    def clear(self) -> None:
        """Forget all entries."""
        self._slots.clear()
        self._order.clear()
