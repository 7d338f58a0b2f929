"""The examples of pages for users, run as they stand there. Takes 6 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("tun", "remote")

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("services", "captures", "trunks")
EXAMPLES = {
    f"{name}-{number}": example
    for name in PAGES
    for number, example in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.M | re.DOTALL)
    )
}


def test_the_pages_have_examples() -> None:
    assert {name.partition("-")[0] for name in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", EXAMPLES[name]], check=True, timeout=60)
