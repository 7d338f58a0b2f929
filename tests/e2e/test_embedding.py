"""Namespaces in programs of every kind, as docs/embedding.md shows them. Takes 7 seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import pages
from tests.support.need import need

pytestmark = pytest.mark.usefixtures("tun", "remote")

PATIENCE = 60.0  # seconds


@pytest.mark.parametrize("number", range(len(pages.programs("embedding.md"))))
def test_the_programs_of_the_page_on_embedding(number: int) -> None:
    need("ping")
    command = [sys.executable, "-W", "error", "-c", pages.programs("embedding.md")[number]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
