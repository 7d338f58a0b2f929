"""The table of docs/options.md of command lines on which gpasst and pasta differ.

`python -m tests.support.differences`, run as root, tries each row with the passt and pasta on PATH, and prints their
version and each row that is not as stated. As root pasta becomes nobody, who may not join a user namespace everywhere;
so pasta stays root here, without one.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEADING = "## Different from pasta"
AS_ROOT = ("--runas", "0", "--netns-only")
SECONDS = 20  # for a command line; one that is accepted ends at once, since its COMMAND or its guest does


class Difference(NamedTuple):
    """One row.

    :ivar line: the command line.
    :ivar gpasst: ``"accepted"`` or ``"refused"``.
    :ivar pasta: likewise.
    """

    line: str
    gpasst: str
    pasta: str

    @property
    def argv(self) -> list[str]:
        """The words of the command line."""
        return shlex.split(self.line)


def differences() -> list[Difference]:
    """Return the rows of the table."""
    section = PAGE.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    return [Difference(*cells) for cells in re.findall(r"^\| `([^`]+)` \| (\w+) \| (\w+) \|", section, re.MULTILINE)]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line, with the end of a socket as standard input, for ``-F 0``, whose other end is closed."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        return subprocess.run(argv, stdin=theirs.fileno(), capture_output=True, text=True, timeout=SECONDS, check=False)


def main() -> int:
    """Run each row with passt and pasta; return 1 if one is not as stated."""
    version = subprocess.run(["passt", "--version"], capture_output=True, text=True, check=True).stdout
    print(version.partition("\n")[0])
    wrong = 0
    for row in differences():
        program, *options = row.argv
        try:
            done = run([program, *(AS_ROOT if program == "pasta" else ()), *options])
        except subprocess.TimeoutExpired:
            wrong += 1
            print(f"{row.line}: goes on, not {row.pasta}")
            continue
        verdict = "refused" if done.returncode else "accepted"
        if verdict != row.pasta:
            wrong += 1
            print(f"{row.line}: {verdict}, not {row.pasta}: {done.stderr.strip().rpartition(chr(10))[2]}")
    print(f"{wrong} rows are not as stated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
