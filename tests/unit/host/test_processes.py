"""The end of whatever runs in a network namespace."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpasst.host.processes import kill_inside
from tests.support.need import ROOT_ONLY

PATIENCE = 10.0  # seconds

# A program that forks, and whose child has left it.
FORKS = """
import os
if os.fork():
    os._exit(0)
os.setsid()
os.write(1, b"%d\\n" % os.getpid())
while True:
    if os.fork() == 0:
        os._exit(0)
    os.wait()
"""


def wait(descriptor: int) -> None:
    assert select.select([descriptor], [], [], PATIENCE)[0]


@pytest.fixture(name="elsewhere")
def _elsewhere() -> Iterator[int]:
    """The process ID of a program in a network namespace of its own."""
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 100"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdout is not None
        if program.stdout.readline() != b"up\n":
            pytest.skip("needs user namespaces")
        yield program.pid
        program.kill()


def test_all_that_runs_inside_ends_and_nothing_else(elsewhere: int) -> None:
    if os.geteuid():
        pytest.skip(ROOT_ONLY)
    netns = os.open(f"/proc/{elsewhere}/ns/net", os.O_RDONLY)
    entered = ["nsenter", "--target", str(elsewhere), "--net", "--user"]
    with (
        subprocess.Popen(["sleep", "100"]) as outside,
        subprocess.Popen([*entered, sys.executable, "-c", FORKS], stdout=subprocess.PIPE) as program,
    ):
        assert program.stdout is not None
        forking = os.pidfd_open(int(program.stdout.readline()))
        kill_inside(netns, {elsewhere}, wait)
        wait(forking)
        assert outside.poll() is None
        outside.kill()
    os.kill(elsewhere, 0)
    kill_inside(netns, (), wait)
    os.close(netns)
    os.close(forking)
