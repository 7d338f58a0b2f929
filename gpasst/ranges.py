"""Ranges of ports: both ends belong to them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter

Range = tuple[int, int]


def without(first: int, last: int, holes: list[Range]) -> Iterator[Range]:
    """Yield the stretches of `first` to `last` outside of `holes`, which are as `merged` returns them."""
    start = bisect_left(holes, first, key=itemgetter(1))
    stop = bisect_right(holes, last, key=itemgetter(0))
    for low, high in holes[start:stop]:
        if first < low:
            yield first, low - 1
        first = high + 1
    if first <= last:
        yield first, last


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges sorted, with those joined that overlap or touch."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined
