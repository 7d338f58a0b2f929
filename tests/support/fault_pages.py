"""The tables of docs/faults.md, whose rows are tests."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


def table(heading: str) -> list[list[str]]:
    """Return the cells of each row of the table below a heading, without marks of code."""
    section = PAGE.read_text(encoding="utf-8").partition(f"# {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines[2:]]
