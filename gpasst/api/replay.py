"""A run of a test in which weather meets chosen frames: what `pytest --gpasst-shrink` repeats.

Theory of operation: one run has the process, as with the seed. While a `Replay` is `begun`, every rule that is put in
force enters it. A rule is found again in the next run by its direction, its text, and how often that text has come
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpasst.impair.active import ActiveRule
    from gpasst.impair.fate import Fate

Key = tuple[str, str, int]
"""The name of a rule's direction, its text, and how many of these came before it."""


class Replay:
    """What one run puts in force.

    :param fates: what happens to frames, by the key of the rule and their numbers; all others pass. None for a run in
        which chance decides.
    :ivar rules: the rules, once for each direction, as they came into force.
    """

    def __init__(self, fates: Mapping[Key, Mapping[int, Fate]] | None = None) -> None:
        self._fates = fates
        self._came: Counter[tuple[str, str]] = Counter()
        self.rules: dict[Key, ActiveRule] = {}

    def enter(self, active: ActiveRule) -> None:
        """Take a rule that comes into force, before it has met a frame."""
        name = active.log.key
        key = (*name, self._came[name])
        self._came[name] += 1
        self.rules[key] = active
        if self._fates is not None:
            active.force(self._fates.get(key, {}))


_current: Replay | None = None


def begin(replay: Replay | None) -> None:
    """Let rules of this process enter a replay from now on; None for none."""
    global _current  # noqa: PLW0603  # one run has the process
    _current = replay


def enter(rules: Iterable[ActiveRule]) -> None:
    """Let rules that come into force enter the replay, if there is one."""
    if _current is not None:
        for active in rules:
            _current.enter(active)
