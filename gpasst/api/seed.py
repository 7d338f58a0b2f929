"""The seed of weather that names none.

Theory of operation: a run that chooses a seed, such as a test suite with ``--gpasst-seed``, gives it to all weather of
this process that names none; otherwise each gets one of its own from the kernel, which its handle shows.
"""

from __future__ import annotations

import os

SEED_BYTES = 4  # enough that no two runs meet by chance, and short enough to be typed

_chosen: int | None = None


def choose(seed: int | None) -> None:
    """Let weather of this process that names no seed have this one from now on; None for one of its own each time."""
    global _chosen  # noqa: PLW0603  # one run has the process
    _chosen = seed


def default() -> int:
    """Return the seed for weather that names none."""
    return random_seed() if _chosen is None else _chosen


def random_seed() -> int:
    """Return a seed from the kernel's random numbers."""
    return int.from_bytes(os.urandom(SEED_BYTES), "big")
