"""Test suites of users, run by a pytest of their own with the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

PATIENCE = 60.0  # seconds until a suite that takes a few counts as hanging
# The plugin is named, so that a suite sees it whether the package is installed or not, and no other plugin.
PLUGIN = ("-p", "gpasst.pytest_plugin", "-p", "no:cacheprovider")


def command(*options: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pytest", "-q", *PLUGIN, *options]


def environment() -> dict[str, str]:
    """Return the environment of a suite that neither knows the options of the one that starts it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**plain, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_suite(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a suite that is one file.

    :param folder: an empty folder for it.
    """
    with started_suite(folder, text, *options) as suite:
        output, _ = suite.communicate()
    return subprocess.CompletedProcess(suite.args, suite.returncode, output)


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder."""
    with _started(folder, *arguments) as suite:
        output, _ = suite.communicate()
    return subprocess.CompletedProcess(suite.args, suite.returncode, output)


@contextmanager
def started_suite(folder: Path, text: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start a suite that is one file, and kill what is left of it in the end, or when it takes too long.

    :param folder: an empty folder for it.
    """
    (folder / "test_suite.py").write_text(text, encoding="utf-8")
    with _started(folder, *options, "test_suite.py") as suite:
        yield suite


@contextmanager
def _started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as suite:
        limit = Timer(PATIENCE, suite.kill)
        limit.start()
        try:
            yield suite
        finally:
            limit.cancel()
            suite.kill()
