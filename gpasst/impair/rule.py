"""A rule of weather: which frames it is about, and what happens to them.

Quantities are whole numbers, so that a rule means the same in every Python: probabilities in parts of `CERTAIN`, times
in microseconds, rates in bits a second. `gpasst.impair.grammar` makes rules of text and of keywords, and checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gpasst.ranges import Range
from gpasst.records import dataclass, field

CERTAIN: Final = 1_000_000_000
"""The probability 1: probabilities are counted in billionths."""

SECOND: Final = 1_000_000
"""Microseconds in a second: times are counted in microseconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. A part that is not in the rule has its default.

    :ivar to: ``"guest"`` or ``"host"``; empty for both directions, each of which counts for itself.
    :ivar protocols: names from `gpasst.impair.facts`; empty for TCP, UDP and ICMP.
    :ivar dport: ranges of destination ports; empty for all.
    :ivar loss: probability that a frame is lost.
    :ivar delay: microseconds that each frame is held.
    :ivar partition: whether all frames are lost, of every protocol.
    :ivar seed: what chance depends on, None where it is chosen later.
    """

    to: str = ""
    protocols: tuple[str, ...] = ()
    dport: tuple[Range, ...] = ()
    when: Callable[[Any], bool] | None = field(default=None, compare=False)
    loss: int = 0
    delay: int = 0
    partition: bool = False
    seed: int | None = None
