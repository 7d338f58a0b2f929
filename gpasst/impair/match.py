"""Which frames a rule is about.

Theory of operation: what all frames of a flow have in common is looked at once for each flow (`Matcher.concerns`). Only
a rule that asks for more looks at single frames (`Matcher.picks`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from gpasst.impair.facts import TCP, UNNAMED, Flow, Run
from gpasst.impair.rule import Prefix, Rule
from gpasst.ranges import Range

_BYTE: Final = 8  # bits


class Matcher:
    """The match of one rule.

    :ivar picks: whether it may fit some frames of a flow and not others.
    :ivar error: what the predicate has raised first, None if it has not. Frames for which it raises do not fit.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._protocols = frozenset(rule.protocols) or UNNAMED
        if rule.flags or rule.no_flags or rule.reset:
            self._protocols = frozenset((TCP,))
        self._every_protocol = rule.partition and not rule.protocols
        self._src, self._dst = ([_network(prefix) for prefix in prefixes] for prefixes in (rule.src, rule.dst))
        self._flags = rule.flags | rule.no_flags
        self._looks = bool(rule.size or self._flags or rule.when)
        self._firsts = [first for first, _ in rule.nth]
        self.picks = self._looks or bool(rule.nth or rule.every)
        self.error: BaseException | None = None

    def concerns(self, flow: Flow) -> bool:
        """Return whether the rule may be about frames of a flow."""
        rule = self._rule
        if not self._every_protocol and flow.protocol not in self._protocols:
            return False
        return (
            _within(flow.source, self._src)
            and _within(flow.destination, self._dst)
            and _in(flow.sport, rule.sport)
            and _in(flow.dport, rule.dport)
        )

    def fits(self, run: Run, index: int) -> bool:
        """Return whether the rule, but for its `nth`, is about the frame of an index in a run of such a flow."""
        if not self._looks:
            return True
        rule = self._rule
        if not _in(run.frame_bytes(index, index + 1), rule.size):
            return False
        if self._flags and run.flags_of(index) & self._flags != rule.flags:
            return False
        return rule.when is None or self._predicate(rule.when, run, index)

    def selects(self, n: int) -> bool:
        """Return whether `nth` names the `n`-th frame that the rest of the match fits."""
        if self._rule.every:
            return not n % self._rule.every
        if not self._firsts:
            return True
        at = bisect_right(self._firsts, n) - 1
        return at >= 0 and n <= self._rule.nth[at][1]

    def _predicate(self, when: Callable[[Any], bool], run: Run, index: int) -> bool:
        try:
            return bool(run.parsed and when(run.parsed(index)))
        except BaseException as error:
            # It is the caller's, and this is the path of all frames: who holds the rule gets to see it.
            # What pytest.fail raises is no Exception.
            self.error = self.error or error
            return False


def _network(prefix: Prefix) -> tuple[int, int, int]:
    """Return the bytes of a prefix's address, the bits of it that do not count, and the others as a number."""
    packed, bits = prefix
    ignored = len(packed) * _BYTE - bits
    return len(packed), ignored, int.from_bytes(packed, "big") >> ignored


def _within(address: bytes, networks: list[tuple[int, int, int]]) -> bool:
    if not networks:
        return True
    number = int.from_bytes(address, "big")
    return any(len(address) == size and number >> ignored == value for size, ignored, value in networks)


def _in(number: int, ranges: tuple[Range, ...]) -> bool:
    return not ranges or any(first <= number <= last for first, last in ranges)
