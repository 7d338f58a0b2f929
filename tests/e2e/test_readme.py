"""The programs that the README shows, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.need import need
from tests.support.suites import run_pytest

pytestmark = pytest.mark.usefixtures("tun", "remote")

README = Path(__file__).parents[2] / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_tests_of_the_first_page(tmp_path: Path) -> None:
    need("curl")
    need("ping")
    tests = [text for text in PROGRAMS if "def test_" in text]
    (tmp_path / "test_readme.py").write_text("\n".join(tests), encoding="utf-8")
    done = run_pytest(tmp_path)
    assert (done.returncode, f"{len(tests)} passed" in done.stdout) == (0, True), done.stdout


def test_the_examples_in_python() -> None:
    need("ping")
    for program in (text for text in PROGRAMS if "def test_" not in text):
        subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
