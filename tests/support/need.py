"""Programs and modules that a test needs, or is skipped without."""

from __future__ import annotations

import importlib
import shutil
import socket
from typing import Any

import pytest

ROOT_ONLY = "only root may"  # begins the reasons for which an ordinary user's run may leave a test out


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


def need_option(sock: socket.socket, level: int, option: int, value: int, since: str) -> None:
    """Set an option of a socket, or skip the test by the version of Linux that has it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        pytest.skip(f"needs Linux {since} (option {option} of level {level}: {error.strerror})")
