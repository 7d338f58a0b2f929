"""Pages of the documentation as what a reader would make of them: files, programs and command lines.

A block of Python that begins with a comment of a file's name is that file, from there on; any other one is a program.
So is a block of TOML. A line ``pytest ...`` or ``gpasst ...`` of a block of sh is run, and each line of the block of
text behind it has to be in its output, ``...`` standing for anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(python|sh|text|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\w+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that a block of Python or TOML is; empty for a program."""
        named = NAMED.match(self.text) if self.language in ("python", "toml") else None
        return named[1] if named else ""

    def arguments(self, program: str) -> list[str] | None:
        """The arguments of a program, None where the block runs none or another one."""
        return shlex.split(self.text)[1:] if self.language == "sh" and self.text.startswith(f"{program} ") else None


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))]


def programs(page: str) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python" and not block.file]


def runs(page: str, folder: Path, program: str = "pytest") -> Iterator[tuple[list[str], list[str]]]:
    """Write the files of a page as they come; yield the arguments of each run of a program, and what it prints."""
    found = blocks(page)
    for block, following in zip(found, [*found[1:], Block("", "")], strict=True):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif (arguments := block.arguments(program)) is not None:
            lines = following.text.splitlines() if following.language == "text" else []
            yield arguments, [re.escape(line).replace(r"\.\.\.", ".*") for line in lines]
