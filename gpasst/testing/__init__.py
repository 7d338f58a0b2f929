"""What tests of network programs share; the pytest plugin builds on it, and so do gpasst's own tests.

Importing this starts nothing and loads no event loop; the names below do so when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpasst.testing.echo import Echo
    from gpasst.testing.flat import assert_flat
    from gpasst.testing.machines import hosts
    from gpasst.testing.needs import require
    from gpasst.testing.ports import free_port

__all__ = ["Echo", "assert_flat", "free_port", "hosts", "require"]

_HOMES = {
    "Echo": "gpasst.testing.echo",
    "assert_flat": "gpasst.testing.flat",
    "free_port": "gpasst.testing.ports",
    "hosts": "gpasst.testing.machines",
    "require": "gpasst.testing.needs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
