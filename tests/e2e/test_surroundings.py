"""Programs and the suite itself, started where a shell's foreground is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gpasst
from tests.support import again
from tests.support.lab import Remote

pytestmark = pytest.mark.usefixtures("tun", "remote")

SUITE_SECONDS = 120
# What a background job of a script, a cron job or a service manager may find.
ODD = "trap '' INT HUP; umask 077; unset HOME; cd /; exec \"$@\" <&-"
SELECTED = "signal or behind or exit_status or serving or called"
SUITES = ("e2e/test_cli.py", "unit/helper")


def test_children_import_the_package_that_is_tested() -> None:
    script = "import gpasst; print(gpasst.__file__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == gpasst.__file__


def test_the_suite_passes_wherever_it_is_started(remote: Remote, tmp_path: Path) -> None:
    suites = [str(Path(__file__).parent.parent / suite) for suite in SUITES]
    command = again.command("--basetemp", str(tmp_path / "tests"), "-k", SELECTED, *suites)
    done = subprocess.run(
        ["sh", "-c", ODD, "sh", *command],
        env=again.environment(remote, str(tmp_path)),
        pass_fds=[remote.channel.fileno()],
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]
