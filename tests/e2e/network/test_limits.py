"""Networks where there are too many open files, and what a network leaves behind when its process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpasst
from gpasst.api.scratch import tidy

DEADLINE = 30.0  # seconds; for what takes a tenth of one

# Makes a call with ever more room for open files, until it succeeds.
LIMITED = """
import os, resource, sys, gpasst
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with gpasst.Network("lan") as lan:
    a = lan.host("a")
    call = eval("lambda: " + sys.argv[1])
    lowest = max(map(int, os.listdir("/proc/self/fd")))
    for limit in range(lowest, lowest + 100):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            call()
            break
        except gpasst.PlatformError as error:
            assert error.remedy.startswith("raise the limit: ulimit -n"), error
    assert limit > lowest
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print("done")
"""

CALLS = [
    "lan.guest('vm')",
    "lan.trunk(listen='0', secret='s')",
    "lan.capture()",
    "a.run(['true'], check=True)",
    "a.popen(['true'])",
    "a.socket()",
    "lan.host('b')",
    "lan.link(a).impair('delay 1ms')",
]

KILLED = """
import os, signal, gpasst
with gpasst.Network() as lan:
    lan.guest("vm")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("call", CALLS)
def test_a_want_of_descriptors_is_one_line(call: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", LIMITED, call]
    done = subprocess.run(
        argv, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE
    )
    assert done.stdout.endswith("done\n"), done.stdout
    assert os.listdir(tmp_path) == []


def test_the_next_process_deletes_the_socket_of_one_that_was_killed(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", KILLED]
    assert subprocess.run(argv, env=environment(tmp_path), timeout=DEADLINE).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    again = "import gpasst\nwith gpasst.Network() as lan: print(lan.guest('vm').path)"
    done = subprocess.run(
        [sys.executable, "-c", again],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
    )
    assert Path(done.stdout).parent.parent == tmp_path
    assert os.listdir(tmp_path) == []


def test_folders_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "gpasst-guest-new").mkdir()  # as that of a process which has not locked it yet
    (tmp_path / "gpasst-guest-file").touch()
    with gpasst.Network() as lan, lan.guest("vm") as vm:
        tidy(str(tmp_path))
        assert Path(vm.path).is_socket()
    assert sorted(os.listdir(tmp_path)) == ["gpasst-guest-file", "gpasst-guest-new"]
