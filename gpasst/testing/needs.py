"""What a machine must allow before a namespace can be opened; tests that lack it are skipped by its name.

Theory of operation: the only honest question is to open a namespace, so that is what `obstacle` does, once in a
process. `require` turns the answer into a skip that unittest and pytest both know, or into the error itself where a
run demands that nothing is skipped.
"""

from __future__ import annotations

import os
import unittest
from functools import cache

from gpasst.errors import PlatformError

DEMANDED = "GPASST_REQUIRE"  # environment variable: if set and not empty, what is missing is an error


@cache
def obstacle() -> PlatformError | None:
    """Return what keeps this process from opening a namespace with a tap, None if nothing does."""
    from gpasst.api.pasta import Pasta

    try:
        with Pasta():
            return None
    except PlatformError as error:
        return error


def require() -> None:
    """Skip the test that calls this if the machine allows it no namespace.

    :raises unittest.SkipTest: naming what is missing.
    :raises PlatformError: instead of a skip, where the environment variable GPASST_REQUIRE is set, as
        ``pytest --gpasst-require`` sets it.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    missing = obstacle()
    if missing is None:
        return
    if os.environ.get(DEMANDED):
        raise PlatformError(missing.message, missing.remedy)
    raise unittest.SkipTest(f"gpasst needs a namespace: {missing}")
