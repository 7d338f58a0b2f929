"""The console script as a program."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from typing import Any

# A warning, such as of a socket that is not closed, appears on standard error then, where tests notice it.
GPASST = [sys.executable, "-W", "error", "-m", "gpasst"]
# Nobody, whom root's commands become otherwise, may not be able to read this interpreter.
AS_ROOT = ["--runas", "root"] if os.geteuid() == 0 else []


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run([*GPASST, *arguments], capture_output=True, text=True, timeout=30, **options)


def ended(handle: int) -> bool:
    """Whether the process of a pidfd has ended."""
    return bool(select.select([handle], [], [], 0)[0])
