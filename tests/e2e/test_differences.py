"""The command lines that docs/options.md states gpasst and pasta to differ on, run with gpasst."""

from __future__ import annotations

import pytest

from tests.support.cli import GPASST
from tests.support.differences import PAGE, Difference, differences, run

ROWS = differences()

pytestmark = pytest.mark.usefixtures("tun", "remote")


def test_every_row_is_read() -> None:
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(("| `pasta ", "| `passt "))
    ]
    assert len(ROWS) == len(lines) > 0
    assert all({row.gpasst, row.pasta} == {"accepted", "refused"} for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.line for row in ROWS])
def test_gpasst_does_what_the_table_says(row: Difference) -> None:
    done = run([*GPASST, *row.argv])
    if row.gpasst == "accepted":
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
