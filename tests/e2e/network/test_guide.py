"""The pages about networks and routers, run as they stand there. Takes 9 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.need import need
from tests.support.suites import PATIENCE, run_pytest

pytestmark = pytest.mark.usefixtures("tun", "remote")

PAGE = "networks.md"
PROGRAMS = {
    f"{page} {number}": program
    for page in (PAGE, "routers.md")
    for number, program in enumerate(pages.programs(page), 1)
}


@pytest.mark.parametrize("place", PROGRAMS)
def test_a_program_runs(place: str) -> None:
    for name in re.findall(r'\["(ip|ping)",', PROGRAMS[place]):
        need(name)
    command = [sys.executable, "-W", "error", "-c", PROGRAMS[place]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_suites_pass(tmp_path: Path) -> None:
    for arguments, patterns in pages.runs(PAGE, tmp_path):
        output = run_pytest(tmp_path, *arguments).stdout
        assert [pattern for pattern in patterns if not re.search(pattern, output)] == [], output
