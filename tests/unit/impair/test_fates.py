"""Fates are the same in every Python, and however many frames come at once. Takes 2 s, and 1 s for each interpreter.

`fates.txt` is what ``python -m tests.support.fates`` prints. It changes only if rules of the same text and seed get
other fates, and then users cannot replay what they have recorded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpasst
from tests.support import fates
from tests.support.need import need

GOLDEN = (Path(__file__).parent / "fates.txt").read_text(encoding="utf-8").splitlines()
PACKAGE = Path(gpasst.__file__).parent
NAMES = ["pypy3", *(f"python3.{minor}" for minor in range(9, 16))]
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
FOLDERS = os.pathsep.join([*map(str, PYENV.glob("versions/*/bin")), *os.get_exec_path()])
TIMEOUT_SECONDS = 60


def others() -> list[str]:
    """Return the paths of interpreters of other versions than this one, and other makers."""
    own = f"python3.{sys.version_info.minor}"
    found = [shutil.which(name, path=FOLDERS) for name in NAMES if name != own]
    return [path for path in found if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode]


def test_fates_are_those_that_were_recorded() -> None:
    assert list(fates.lines()) == GOLDEN


def test_fates_are_the_same_in_other_interpreters(tmp_path: Path) -> None:
    """The pure rooms need nothing but the standard library, even of Python 3.9 (pypy3 of Debian 12)."""
    interpreters = others()
    if not interpreters:
        need("pypy3")
    (tmp_path / "gpasst").symlink_to(PACKAGE)
    for interpreter in interpreters:
        result = subprocess.run(
            [interpreter, "-B", fates.__file__],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert result.stdout.decode().splitlines() == GOLDEN, f"{interpreter}: {result.stderr.decode()}"


@pytest.mark.parametrize("batch", [2, 7, 64])
@pytest.mark.parametrize("rule", [rule for rule in fates.RULES if "mtu" not in rule])
def test_fates_do_not_depend_on_how_many_frames_come_at_once(rule: str, batch: int) -> None:
    assert fates.fates(rule, 1000, batch) == fates.fates(rule, 1000, 1)
