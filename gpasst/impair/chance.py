"""Chance that can be replayed: a number for each frame, from a counter and a key.

Theory of operation: blake2b (RFC 7693) of a counter, keyed with the rule and the seed, is a sequence in which each
number can be computed from its place alone (as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
Each effect of a rule draws from a sequence of its own. One digest holds sixteen numbers, so a frame costs a sixteenth
of a hash for each effect that depends on chance.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

from gpasst.impair.rule import CERTAIN

WORDS: Final = 16  # of 32 bits in a digest
WORD_BITS: Final = 32
_BLOCK_SHIFT: Final = 4  # 2 ** 4 words
_IN_BLOCK: Final = WORDS - 1
_KEY_BYTES: Final = 32

_words = struct.Struct(f"<{WORDS}I").unpack
_counter = struct.Struct("<Q").pack


class Sequence:
    """The numbers that one effect of one rule draws.

    :param text: the canonical text of the rule, without its seed.
    :param seed: the seed.
    :param effect: the name of the effect, at most 16 ASCII characters.
    """

    __slots__ = ("_block", "_key", "_numbers", "_person")

    def __init__(self, text: str, seed: int, effect: str) -> None:
        self._key = blake2b(f"{seed} {text}".encode(), digest_size=_KEY_BYTES).digest()
        self._person = effect.encode()
        self._block = -1
        self._numbers: tuple[int, ...] = ()

    def number(self, n: int) -> int:
        """Return the number at place `n`: uniform from 0 up to 2 ** 32."""
        block = n >> _BLOCK_SHIFT
        if block != self._block:
            self._block = block
            self._numbers = _words(blake2b(_counter(block), key=self._key, person=self._person).digest())
        return self._numbers[n & _IN_BLOCK]


def threshold(probability: int) -> int:
    """Return the number below which an event happens that has a probability, in billionths."""
    return (probability << WORD_BITS) // CERTAIN
