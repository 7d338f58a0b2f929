"""Which of many flows was idle longest, without moving anything while they are active.

Theory of operation: the table is in order of entry. Whoever looks for the longest idle flow begins at the front; one
that was active since it was entered there goes to the end, as with the second chance of page replacement. At most
`LOOKS` flows are looked at, whatever a guest does.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, TypeVar

LOOKS = 64


class Heard(Protocol):
    """A flow that knows when it was active.

    :ivar heard: when it was active last, in monotonic seconds.
    :ivar entered: what `heard` was when the flow went to the end of its table.
    """

    heard: float
    entered: float


Key = TypeVar("Key")
Entry = TypeVar("Entry", bound=Heard)


def longest_idle(table: OrderedDict[Key, Entry]) -> Entry | None:
    """Return the flow that was idle longest, None if there is none."""
    for _ in range(min(LOOKS, len(table))):
        key, entry = next(iter(table.items()))
        if entry.heard == entry.entered:
            return entry
        entry.entered = entry.heard
        table.move_to_end(key)
    return next(iter(table.values()), None)
