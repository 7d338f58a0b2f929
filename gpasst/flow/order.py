"""Items in the order of their last use, for what gives way to others: linked lists that run through the items.

Theory of operation: an `OrderedDict` would take 75 bytes for each item, and one takes three dozen for each mapping of a
port scan. Here an item has two references, so it stands in at most one order. The references of an item that has left
are cleared, so that no circle of them outlives an order that has become empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar


class Linked:
    """An item of an `Order`; `in` asks only about one that has been in it, or was `unlink`ed.

    :ivar earlier: the item before it in its order, None for the first.
    :ivar later: the item behind it, None for the last.
    """

    __slots__ = ("earlier", "later")

    earlier: Any  # of the order's own kind
    later: Any

    def unlink(self) -> None:
        """Refer to no other item."""
        self.earlier = self.later = None


T = TypeVar("T", bound=Linked)


class Order(Generic[T]):
    """Items, the one that was appended or renewed longest ago first.

    :ivar first: that item, None if there is none.
    """

    __slots__ = ("_count", "_last", "first")

    def __init__(self) -> None:
        self.first: T | None = None
        self._last: T | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        item = self.first
        while item is not None:
            following = item.later
            yield item
            item = following

    def __contains__(self, item: T) -> bool:
        return item.later is not None or item is self._last

    def append(self, item: T) -> None:
        """Enter an item that is in no order as the last one."""
        last, self._last = self._last, item
        item.earlier, item.later = last, None
        if last is None:
            self.first = item
        else:
            last.later = item
        self._count += 1

    def remove(self, item: T) -> None:
        """Take out an item, which must be in this order."""
        earlier, later = item.earlier, item.later
        if earlier is None:
            self.first = later
        else:
            earlier.later = later
        if later is None:
            self._last = earlier
        else:
            later.earlier = earlier
        item.unlink()
        self._count -= 1

    def renew(self, item: T) -> None:
        """Make an item of this order the last one; an item that is in none stays out."""
        later, earlier, last = item.later, item.earlier, self._last
        if later is None or last is None:
            return
        # A scan does this for each item that it finds active, so both steps are written out.
        later.earlier = earlier
        if earlier is None:
            self.first = later
        else:
            earlier.later = later
        last.later = item
        item.earlier, item.later = last, None
        self._last = item
