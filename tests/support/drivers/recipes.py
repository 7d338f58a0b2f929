"""The recipes of docs/drivers.md, which the checks run as they are written there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs/drivers.md"
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def recipe(section: str, language: str, number: int = 0) -> str:
    """Return a block of code of docs/drivers.md.

    :param section: its heading.
    :param language: what the block is marked with.
    :param number: which of the section's blocks in that language.
    """
    return recipes(section, language)[number]


def recipes(section: str, language: str) -> list[str]:
    """Return all blocks of code of a section in a language."""
    text = PAGE.read_text(encoding="utf-8")
    starts = [*((match.group(1), match.end()) for match in HEADING.finditer(text)), ("", len(text))]
    (body,) = (text[start:end] for (heading, start), (_, end) in pairwise(starts) if heading == section)
    return [code for found, code in BLOCK.findall(body) if found == language]
