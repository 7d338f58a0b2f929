"""Chance that can be replayed: a number for each frame, from a counter and a key.

Theory of operation: blake2b (RFC 7693) of a counter, keyed with the rule and the seed, is a sequence in which each
number can be computed from its place alone (as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
Each effect of a rule draws from a sequence of its own. One digest holds sixteen numbers, so a frame costs a sixteenth
of a hash for each effect that depends on chance.

Distributions are tables of quantiles, as in netem (iproute2, netem/): whole numbers, so that a delay is the same in
every Python and on every machine.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from gpasst.impair.rule import CERTAIN, Burst

WORDS: Final = 16  # of 32 bits in a digest
WORD_BITS: Final = 32
BLOCK_SHIFT: Final = 4  # 2 ** 4 words
IN_BLOCK: Final = WORDS - 1
_KEY_BYTES: Final = 32

QUANTILES: Final = 4096  # in a table, as in netem's
QUANTILE_SHIFT: Final = WORD_BITS - 12  # 2 ** 12 quantiles
SCALE_SHIFT: Final = 20  # quantiles are counted in parts of 2 ** 20
UNIFORM: Final = "uniform"  # from delay - jitter to delay + jitter
NORMAL: Final = "normal"  # jitter is the standard deviation
PARETO: Final = "pareto"  # likewise; late frames are much later, as in netem: the shape is 3
DISTRIBUTIONS: Final = (UNIFORM, NORMAL, PARETO)
_PARETO_SHAPE: Final = 3
_PARETO_MEAN: Final = 1.5  # shape / (shape - 1)
_PARETO_DEVIATION: Final = 0.75**0.5  # the square root of shape / ((shape - 1) ** 2 * (shape - 2))

_words = struct.Struct(f"<{WORDS}I").unpack
_counter = struct.Struct("<Q").pack


class Sequence:
    """The numbers that one effect of one rule draws.

    :param name: the direction and the canonical text of the rule, without its seed.
    :param seed: the seed.
    :param effect: the name of the effect, at most 16 ASCII characters.
    :ivar block: which `WORDS` numbers are at hand.
    :ivar numbers: these numbers.
    """

    __slots__ = ("_key", "_person", "block", "numbers")

    def __init__(self, name: str, seed: int, effect: str) -> None:
        self._key = blake2b(f"{seed} {name}".encode(), digest_size=_KEY_BYTES).digest()
        self._person = effect.encode()
        self.block = -1
        self.numbers: tuple[int, ...] = ()

    def number(self, n: int) -> int:
        """Return the number at place `n`, 0 or more: uniform from 0 up to 2 ** 32."""
        if n >> BLOCK_SHIFT != self.block:
            self.load(n >> BLOCK_SHIFT)
        return self.numbers[n & IN_BLOCK]

    def load(self, block: int) -> None:
        """Compute a block of numbers."""
        self.block = block
        self.numbers = _words(blake2b(_counter(block), key=self._key, person=self._person).digest())


class Bursts:
    """Loss in bursts. It is asked once for each frame, in order.

    :param burst: the probabilities.
    :param losses: the numbers that decide about a loss.
    :param changes: the numbers that decide about a change of the state.
    """

    __slots__ = ("_bad", "_changes", "_loss", "_losses", "_turn")

    def __init__(self, burst: Burst, losses: Sequence, changes: Sequence) -> None:
        self._losses = losses
        self._changes = changes
        self._loss = threshold(burst.good), threshold(burst.bad)
        self._turn = threshold(burst.p), threshold(burst.r)
        self._bad = False

    def lost(self, n: int) -> bool:
        """Return whether the `n`-th frame is lost."""
        bad = self._bad
        if self._changes.number(n) < self._turn[bad]:
            self._bad = not bad
        return self._losses.number(n) < self._loss[bad]


def threshold(probability: int) -> int:
    """Return the number below which an event happens that has a probability, in billionths."""
    return (probability << WORD_BITS) // CERTAIN


@lru_cache(maxsize=len(DISTRIBUTIONS))
def quantiles(distribution: str) -> tuple[int, ...]:
    """Return the quantiles of a distribution, in parts of 2 ** `SCALE_SHIFT` of the jitter.

    :param distribution: one of `DISTRIBUTIONS`.
    """
    middles = [(2 * index + 1) / (2 * QUANTILES) for index in range(QUANTILES)]
    if distribution == NORMAL:
        from statistics import NormalDist  # takes 10 ms to import

        values = [NormalDist().inv_cdf(middle) for middle in middles]
    elif distribution == PARETO:
        values = [((1 - middle) ** (-1 / _PARETO_SHAPE) - _PARETO_MEAN) / _PARETO_DEVIATION for middle in middles]
    else:
        values = [2 * middle - 1 for middle in middles]
    return tuple(round(value * (1 << SCALE_SHIFT)) for value in values)
