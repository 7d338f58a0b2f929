"""Fuzzing: for each parser and state machine a target that takes any bytes, and inputs to begin with.

Theory of operation: a target (`tests.support.fuzz.targets`) has one function, `take`. It takes bytes, does with them
what their sender would do, and raises if what must hold does not. `python -m tests.fuzz` lets atheris look for such
bytes, guided by the lines that they reach, in one process for each target. Targets themselves know nothing of atheris,
so `tests/fuzz/test_corpus.py` replays the inputs in `tests/fuzz/corpus` on every Python.

An input that has found something stays there under a name that says what; the fault has a test of its own as well,
beside the code that was mended.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
TARGETS = Path(__file__).parent / "targets"


def names() -> list[str]:
    """Return the names of all targets."""
    return sorted(path.stem for path in TARGETS.glob("*.py") if path.stem != "__init__")
