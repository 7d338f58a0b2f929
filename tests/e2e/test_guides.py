"""The tutorial and the recipes, run as they stand there. Takes 20 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.need import need, need_module
from tests.support.suites import run_pytest

pytestmark = pytest.mark.usefixtures("tun", "remote")

PATIENCE = 60.0  # seconds


def test_the_tutorial(tmp_path: Path) -> None:
    counted = 0
    for arguments, patterns in pages.runs("tutorial.md", tmp_path):
        output = run_pytest(tmp_path, *arguments).stdout
        assert [pattern for pattern in patterns if not re.search(pattern, output)] == [], output
        counted += 1
        if "1 failed" in output:
            assert no_second_question(tmp_path), output
    assert counted == 3


def no_second_question(folder: Path) -> bool:
    """Look at the capture as the tutorial does; return whether there are a question and a lost answer, and no more."""
    (capture,) = (folder / "captures").iterdir()
    (line,) = (block.text for block in pages.blocks("tutorial.md") if block.text.startswith("tshark"))
    command = line.replace("tshark", need("tshark")).replace("captures/*.pcapng", str(capture)).split()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    question, answer = done.stdout.splitlines()
    assert question.split("\t")[1] == answer.split("\t")[0] == "203.0.113.53", done.stdout
    return "lost" in answer.split("\t")[2]


def test_the_programs_of_the_recipes() -> None:
    for program in pages.programs("recipes.md"):
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_recipes(tmp_path: Path) -> None:
    need_module("dns")
    for arguments, patterns in pages.runs("recipes.md", tmp_path):
        output = run_pytest(tmp_path, *arguments).stdout
        assert [pattern for pattern in patterns if not re.search(pattern, output)] == [], output
    done = run_pytest(tmp_path)
    files = [block.file for block in pages.blocks("recipes.md") if block.file]
    assert (done.returncode, f"{len(files) + 3} passed" in done.stdout) == (0, True), done.stdout
