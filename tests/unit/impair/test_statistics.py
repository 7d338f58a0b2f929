"""Chance keeps its promises: over 100 000 frames, every rate is in the 99.9 % interval. Takes 3 s.

Seeds are fixed, so nothing here fails by chance. A test that fails after a change of the hash may be one in a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import pytest

from gpasst.impair.chance import Sequence, threshold
from gpasst.impair.fate import AT_ONCE, Chooser, Fate
from gpasst.impair.grammar import parse
from gpasst.impair.rule import CERTAIN

FRAMES = 100_000
DEVIATIONS = 3.2905  # of a normal distribution, which 99.9 % lie within


def assert_binomial(hits: int, trials: int, probability: float) -> None:
    """Assert that so many of independent trials hit, within the interval that 99.9 % lie in."""
    margin = DEVIATIONS * sqrt(trials * probability * (1 - probability)) + 0.5
    assert abs(hits - trials * probability) <= margin, f"{hits} of {trials} for {probability}"


def fates(text: str, seed: int = 7) -> list[Fate]:
    chooser = Chooser(parse(text), text, seed)
    return [chooser.fate(n) for n in range(1, FRAMES + 1)]


@pytest.mark.parametrize(
    ("rule", "probability", "hit"),
    [
        ("loss 0.1%", 0.001, lambda fate: fate.lost),
        ("loss 5%", 0.05, lambda fate: fate.lost),
        ("loss 50%", 0.5, lambda fate: fate.lost),
        ("duplicate 1%", 0.01, lambda fate: fate.twice),
        ("corrupt 2%", 0.02, lambda fate: fate.corrupt >= 0),
        ("reorder 10% gap 3", 0.1, lambda fate: fate.place == 3),
        ("delay 20ms reorder 10%", 0.1, lambda fate: (fate.place, fate.delay) == (AT_ONCE, 0)),
        ("ecn mark 25%", 0.25, lambda fate: fate.mark),
        ("loss 50% duplicate 10%", 0.05, lambda fate: fate.twice),
        ("duplicate 50% corrupt 10%", 0.05, lambda fate: fate.twice and fate.corrupt >= 0),
        ("corrupt 100%", 0.125, lambda fate: fate.corrupt % 8 == 3),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_rates(rule: str, probability: float, hit: Callable[[Fate], bool], seed: int) -> None:
    assert_binomial(sum(map(bool, map(hit, fates(rule, seed)))), FRAMES, probability)


@pytest.mark.parametrize(
    ("rule", "below_ms", "probability"),
    [
        ("delay 20ms±5ms", 15, 0),
        ("delay 20ms±5ms", 17.5, 0.25),
        ("delay 20ms±5ms", 20, 0.5),
        ("delay 20ms±5ms", 25.001, 1),
        ("delay 20ms±5ms distribution normal", 15, 0.158655),
        ("delay 20ms±5ms distribution normal", 20, 0.5),
        ("delay 20ms±5ms distribution normal", 30, 0.977250),
        ("delay 20ms±5ms distribution pareto", 17, 0),
        # 1 - x ** -3 with mean 1.5 and deviation sqrt(0.75), moved to 20 ms and stretched to 5 ms.
        ("delay 20ms±5ms distribution pareto", 20, 1 - 1.5**-3),
        ("delay 20ms±5ms distribution pareto", 30, 1 - (1.5 + 2 * sqrt(0.75)) ** -3),
        ("distribution 10ms,20ms,30ms,40ms", 30, 0.5),
        ("delay 1ms±5ms", 0.001, 0.4),  # no delay is below 0
    ],
)
def test_distributions(rule: str, below_ms: float, probability: float) -> None:
    below = sum(fate.delay < below_ms * 1000 for fate in fates(rule))
    # A table of 4096 quantiles is exact to one of them.
    slack = FRAMES // 4096 if 0 < probability < 1 else 0
    assert any(_fits(hits, probability) for hits in (below - slack, below, below + slack))


def _fits(hits: int, probability: float) -> bool:
    try:
        assert_binomial(hits, FRAMES, probability)
    except AssertionError:
        return False
    return True


def test_bursts_begin_end_and_lose_as_often_as_the_rule_says() -> None:
    """A burst is seen through its losses: here the good state loses nothing, and the bad one everything."""
    lost = [bool(fate.lost) for fate in fates("loss burst p=2% r=20%")]
    turns = list(pairwise(lost))
    assert_binomial(turns.count((False, True)), lost.count(False), 0.02)
    assert_binomial(turns.count((True, False)), lost.count(True), 0.2)
    assert abs(sum(lost) / FRAMES - 0.02 / 0.22) < 0.01


def test_losses_of_both_states() -> None:
    lost = sum(bool(fate.lost) for fate in fates("loss burst p=50% r=50% good=10% bad=30%"))
    assert_binomial(lost, FRAMES, 0.2)


def test_neighbours_rules_and_seeds_are_independent() -> None:
    lost = [bool(fate.lost) for fate in fates("loss 30%")]
    pairs = list(zip(lost[::2], lost[1::2], strict=True))
    assert_binomial(pairs.count((True, True)), len(pairs), 0.09)
    for other in (fates("loss 30%", seed=8), fates("udp: loss 30%")):
        both = sum(mine and bool(fate.lost) for mine, fate in zip(lost, other, strict=True))
        assert_binomial(both, FRAMES, 0.09)


def test_numbers_can_be_asked_for_in_any_order() -> None:
    sequence = Sequence("udp: loss 30%", 7, "loss")
    numbers = [sequence.number(n) for n in range(100)]
    assert [sequence.number(n) for n in reversed(range(100))] == numbers[::-1]
    assert max(numbers) < 1 << 32


def test_what_is_certain_always_happens_and_what_is_impossible_never() -> None:
    assert threshold(CERTAIN) > (1 << 32) - 1
    assert threshold(0) == 0
