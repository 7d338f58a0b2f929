"""The examples of docs/services.md, run as they stand there. Takes 2 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("tun", "remote")

PAGE = Path(__file__).parents[2] / "docs" / "services.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_has_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", EXAMPLES[number]], check=True, timeout=60)
