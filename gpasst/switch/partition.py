"""A partition of a network: groups of hosts between which nothing crosses.

Theory of operation: two hosts are cut off from each other if both are in groups, and in none together. So a host in two
groups reaches both, and one in no group reaches all. A single group is cut off from all that is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable


class Partition:
    """A partition.

    :param groups: the names of the hosts of each group, of which there is at least one.
    :ivar hits: frames that were cut off; a superframe counts as the frames that it stands for.
    """

    def __init__(self, groups: Iterable[Iterable[str]]) -> None:
        self.hits = 0
        self._groups: dict[str, set[int]] = {}
        number = 0
        for number, group in enumerate(groups, 1):
            for name in group:
                self._groups.setdefault(name, set()).add(number)
        self._single = number == 1

    def cuts(self, one: str, other: str) -> bool:
        """Return whether two hosts are cut off from each other."""
        first, second = self._groups.get(one), self._groups.get(other)
        if self._single:
            return (first is None) != (second is None)
        return first is not None and second is not None and first.isdisjoint(second)
