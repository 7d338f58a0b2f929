"""What tests of network programs share; the pytest plugin builds on it, and so do gpasst's own tests.

Importing this starts nothing and loads no event loop; the names below do so when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpasst.testing.needs import require

__all__ = ["require"]

_HOMES = {
    "require": "gpasst.testing.needs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
