"""Activity bitmaps and idle times: when peers and splice pairs expire.

Theory of operation: the data path marks an item active by setting its bit in the activity bitmap, and needs no clock
for that. A periodic scan turns bits into times of last activity, and yields the items that were idle for more than the
timeout. A bit says "since the last scan", so an item expires late by up to one scan interval, never early.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar


class Tracked:
    """An item with a bit in an activity bitmap.

    :ivar byte: index of its byte in the bitmap.
    :ivar bit: its bit within that byte.
    """

    __slots__ = ("bit", "byte")

    byte: int
    bit: int


T = TypeVar("T", bound=Tracked)


class Ages(Generic[T]):
    """The activity bitmap, and when each item was last found active.

    :ivar activity: the bitmap; always the same object, so the data path may hold it.
    :ivar now: time of the last scan, in monotonic seconds.
    """

    __slots__ = ("_ages", "_free", "_slots", "activity", "now")

    def __init__(self, now: int = 0) -> None:
        self.activity = bytearray()
        self.now = now
        self._slots: list[T | None] = []
        self._free: list[int] = []
        # Seconds of last activity, the longest idle item first: a scan that sees an item active re-inserts it.
        self._ages: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._ages)

    def __iter__(self) -> Iterator[T]:
        return iter(self._ages)

    def idle_seconds(self, item: T) -> int:
        """Return how many seconds before the last scan `item` was found active."""
        return self.now - self._ages[item]

    def oldest(self) -> T:
        """Return the item that has been idle longest."""
        return next(iter(self._ages))

    def add(self, item: T) -> None:
        """Assign a bit to `item`; it counts as active at the last scan."""
        slot = self._free.pop() if self._free else len(self._slots)
        if slot == len(self._slots):
            self._slots.append(item)
            if slot % 8 == 0:
                self.activity.append(0)
        else:
            self._slots[slot] = item
        item.byte, item.bit = slot >> 3, 1 << (slot & 7)
        self._ages[item] = self.now

    def remove(self, item: T) -> None:
        """Release the bit of `item`."""
        del self._ages[item]
        slot = (item.byte << 3) + item.bit.bit_length() - 1
        self.activity[item.byte] &= ~item.bit
        self._slots[slot] = None
        self._free.append(slot)

    def scan(self, now: int, timeout: int) -> Iterator[T]:
        """Record activity since the last scan, and yield the items idle for more than `timeout`, longest idle first.

        The caller removes each item before it takes the next.

        :param now: monotonic seconds.
        :param timeout: seconds; an item last active at t is kept at t + timeout, and yielded after that.
        """
        self.now = now
        activity, ages, slots = self.activity, self._ages, self._slots
        if any(activity):
            for index, byte in enumerate(activity):
                bits = byte
                while bits:
                    low = bits & -bits
                    bits ^= low
                    item = slots[(index << 3) + low.bit_length() - 1]
                    if item is not None:
                        del ages[item]
                        ages[item] = now
                activity[index] = 0
        while ages:
            item = self.oldest()
            if now - ages[item] <= timeout:
                return
            yield item
