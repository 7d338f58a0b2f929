"""The examples, each copied to a folder of its own and run there as users run them. Takes 45 seconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.need import need
from tests.support.suites import PATIENCE, command, environment

pytestmark = pytest.mark.usefixtures("tun", "remote")

FOLDER = Path(__file__).parents[2] / "examples"
TOGETHER = ("test_gevent_program.py", "test_asyncio_program.py")  # in one run, beside each other
WORKERS = "workers"  # a folder
QUIC = "test_quic_transfer.py"
ROAMING = "test_quic_roaming.py"
# With aioquic before 1.7, and that is the newest for Python 3.10, a sender of datagrams above 2 kB never sends again
# when its peer has moved.
LEFT_OUT = {QUIC} if sys.version_info < (3, 11) else set()
ALONE = sorted({path.name for path in FOLDER.glob("test_*.py")} - {*TOGETHER, *LEFT_OUT})
PROGRAMS = {
    "test_http_partition.py": ("curl",),
    QUIC: ("openssl",),
    ROAMING: ("openssl",),
    "test_nat_traversal.py": ("turnserver",),
    "test_wireguard.py": ("wireguard-go", "wg", "ip", "unshare"),
}


def run(folder: Path, *names: str, options: tuple[str, ...] = ()) -> str:
    """Run copies of examples; return what pytest prints."""
    for name in names:
        for program in PROGRAMS.get(name, ()):
            need(program)
        shutil.copy(FOLDER / name, folder)
    done = subprocess.run(
        command(*options, *names),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ALONE)
def test_an_example_passes(tmp_path: Path, name: str) -> None:
    assert "\n1 passed" in run(tmp_path, name)


def test_two_programs_run_beside_each_other(tmp_path: Path) -> None:
    printed = run(tmp_path, *TOGETHER, options=("-p", "xdist.plugin", "-n", "2", "--dist", "loadfile"))
    assert "\n2 passed" in printed


def test_workers_share_a_network(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / WORKERS, tmp_path / WORKERS)
    printed = run(tmp_path, options=("-p", "xdist.plugin", "-n", "2", WORKERS))
    assert "\n4 passed" in printed


def test_the_index_names_each_example() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*ALONE, *TOGETHER, *LEFT_OUT, WORKERS) if f"({name})" not in index] == []
