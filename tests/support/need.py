"""Programs and modules that a test needs, or is skipped without."""

from __future__ import annotations

import importlib
import shutil
from typing import Any

import pytest


def need(program: str) -> str:
    """Return the path of a program, or skip the test by its name."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"needs the program {program}")
    return path


def need_module(name: str) -> Any:
    """Import a module that is no dependency, or skip the test by its name."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"needs the Python module {name}")
