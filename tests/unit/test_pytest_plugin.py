"""What loading the pytest plugin costs a project that does not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.suites import run_suite

PROBE = """
import sys, pytest
before = set(sys.modules)
import gpasst.pytest_plugin
print(*sorted(set(sys.modules) - before))
"""

UNUSED = """
import sys, subprocess, socket, threading

def test_nothing_was_loaded():
    assert not {name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet", "construct", "pyroute2")}
    assert {name for name in sys.modules if name.startswith("gpasst")} <= {"gpasst", "gpasst.pytest_plugin"}
    assert threading.active_count() == 1
"""


def test_loading_it_imports_nothing_beside_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gpasst", "gpasst.pytest_plugin"]


def test_a_suite_without_a_fixture_of_it_has_nothing_else_loaded(tmp_path: Path) -> None:
    done = run_suite(tmp_path, UNUSED)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
