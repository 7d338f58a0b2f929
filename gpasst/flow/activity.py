"""Activity bitmaps and idle times: when peers and splice pairs expire.

Theory of operation: the data path marks an item active by setting its bit in the activity bitmap, and needs no clock
for that. A periodic scan turns bits into times of last activity, and yields the items that were idle for more than the
timeout. A bit says "since the last scan", so an item expires late by up to one scan interval, never early.

A scan comes in pieces of a few items, behind each of which its caller may look at the clock, and items may come, go and
be marked between two of them. The items stand in the
order of their last activity, the longest idle first. Those that were idle for `COLD_SECONDS` are reported once, since
their owner may free what the next packet can make anew; they are in front of the first *warm* one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

from gpasst.flow.order import Linked, Order

BYTES_AT_ONCE = 64  # of the bitmap that are passed over together where none is marked; each has the bits of 8 items
ITEMS_AT_ONCE = 16  # items that one piece of a scan lets go of, or finds active, but for those of the last byte
COLD_SECONDS = 10  # without activity, after which an item is cold; a name is answered, and a call is silent, for less


class Tracked(Linked):
    """An item with a bit in an activity bitmap.

    :ivar byte: index of its byte in the bitmap.
    :ivar bit: its bit within that byte.
    :ivar seen: when a scan last found it active, or it came; monotonic seconds.
    """

    __slots__ = ("bit", "byte", "seen")

    byte: int
    bit: int
    seen: int


T = TypeVar("T", bound=Tracked)


class Ages(Generic[T]):
    """The activity bitmap, and when each item was last found active.

    :ivar activity: the bitmap; always the same object, so the data path may hold it.
    :ivar now: time of the last scan, in monotonic seconds.
    """

    __slots__ = ("_free", "_indexes", "_order", "_slots", "_warm", "activity", "now")

    def __init__(self, now: int = 0) -> None:
        self.activity = bytearray()
        self.now = now
        self._slots: list[T | None] = []
        self._free: list[int] = []
        self._indexes: list[int] = []  # of the bitmap's bytes: one number for the eight items of a byte
        # The longest idle item first: a scan that sees an item active makes it the last.
        self._order: Order[T] = Order()
        self._warm: T | None = None

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[T]:
        return iter(self._order)

    def idle_seconds(self, item: T) -> int:
        """Return how many seconds before the last scan `item` was found active."""
        return self.now - item.seen

    def oldest(self) -> T:
        """Return the item that has been idle longest; there must be one."""
        oldest = self._order.first
        assert oldest is not None
        return oldest

    def add(self, item: T) -> None:
        """Assign a bit to `item`; it counts as active at the last scan."""
        slot = self._free.pop() if self._free else len(self._slots)
        if slot == len(self._slots):
            self._slots.append(item)
            if slot % 8 == 0:
                self._indexes.append(len(self.activity))
                self.activity.append(0)
        else:
            self._slots[slot] = item
        item.byte, item.bit = self._indexes[slot >> 3], 1 << (slot & 7)
        item.seen = self.now
        self._order.append(item)
        self._warm = self._warm or item

    def remove(self, item: T) -> None:
        """Release the bit of `item`, which must have been added and not removed since."""
        if item is self._warm:
            self._warm = item.later
        self._order.remove(item)
        slot = (item.byte << 3) + item.bit.bit_length() - 1
        self.activity[item.byte] &= ~item.bit
        self._slots[slot] = None
        self._free.append(slot)

    def touched(self, item: T) -> None:
        """Take note that a scan found `item` active; for subclasses that keep an order of their own."""

    def cold(self, item: T) -> None:
        """Take note that `item` was idle for `COLD_SECONDS`; for subclasses that can do without some of it then."""

    def scan(self, now: int, timeout: int) -> Iterator[list[T]]:
        """Record activity since the last scan, and yield the items idle for more than `timeout`, longest idle first.

        :param now: monotonic seconds.
        :param timeout: seconds; an item last active at t is kept at t + timeout, and yielded after that.
        :return: at most `ITEMS_AT_ONCE` items after each piece of work; the caller removes them before it goes on.
        """
        self.now = now
        activity, slots = self.activity, self._slots
        found = 0
        for start in range(0, len(activity), BYTES_AT_ONCE):
            end = min(start + BYTES_AT_ONCE, len(activity))
            if activity.count(0, start, end) == end - start:
                continue
            for index in range(start, end):
                bits = activity[index]
                while bits:
                    low = bits & -bits
                    bits ^= low
                    found += 1
                    item = slots[(index << 3) + low.bit_length() - 1]
                    if item is not None:
                        self._touch(item)
                if found >= ITEMS_AT_ONCE:
                    found = 0
                    yield []
        while True:
            idle = [item for item in islice(self._order, ITEMS_AT_ONCE) if now - item.seen > timeout]
            if not idle:
                break
            ended = []
            for item in idle:
                # It may have become active between two pieces.
                if activity[item.byte] & item.bit:
                    self._touch(item)
                else:
                    ended.append(item)
            yield ended
        found = 0
        while (warm := self._warm) is not None and now - warm.seen > COLD_SECONDS:
            self._warm = warm.later
            self.cold(warm)
            found += 1
            if found == ITEMS_AT_ONCE:
                found = 0
                yield []

    def _touch(self, item: T) -> None:
        """Record that `item` was active."""
        self.activity[item.byte] &= ~item.bit
        item.seen = self.now
        if item is self._warm:
            self._warm = item.later
        self._order.renew(item)
        self._warm = self._warm or item
        self.touched(item)
