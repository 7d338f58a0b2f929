"""Giving up rights: each case in a process of its own, which cannot take them back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.support.need import need, need_module

# Enters the sandbox, runs the text that it is given, and prints what that leaves in `found`.
INSIDE = """
import errno, json, os, socket, sys
from gpasst.sandbox.calls import keeper_calls, proxy_calls
from gpasst.sandbox.enter import Report, filter_calls, isolate, libseccomp, own_user, renounce
library = libseccomp() if sys.argv[1] == "libseccomp" else None
assert (library is not None) == (sys.argv[1] == "libseccomp")
report, found = Report(), {}
status = open("/proc/self/status", encoding="ascii")
def outcome(function):
    try:
        function()
    except OSError as error:
        return error.errno
    return 0
"""
ENTER = "own_user(report); isolate(report); renounce(report); filter_calls(report, proxy_calls(), library)\n"
PRINT = "print(json.dumps([report.held, report.missing, found]))"
FILTERS = pytest.mark.parametrize("filtered", ["own", "libseccomp"])
OWN = ["user namespace", "IPC namespace", "UTS namespace", "mount namespace", "empty root"]
HELD = [*OWN, "no capabilities", "no new privileges"]


def run(filtered: str, text: str, *before: str) -> subprocess.CompletedProcess[str]:
    if filtered == "libseccomp":
        need_module("pyseccomp")
    command = [*before, sys.executable, "-c", INSIDE + text + PRINT, filtered]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


def inside(filtered: str, text: str, *before: str) -> tuple[list[str], list[str], dict[str, Any]]:
    done = run(filtered, text, *before)
    assert done.returncode == 0, done.stderr
    held, missing, found = json.loads(done.stdout)
    return held, missing, found


@FILTERS
def test_every_part_is_in_force(filtered: str) -> None:
    text = """
for line in status.read().splitlines():
    name, value = line.split(":", 1)
    if name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        found[name] = int(value, 16)
    if name in ("NoNewPrivs", "Seccomp"):
        found[name] = int(value)
found["open"] = outcome(lambda: open("/etc/passwd"))
found["stat"] = outcome(lambda: os.stat("/"))
found["fstat"] = outcome(lambda: os.fstat(1))
found["unix"] = outcome(lambda: socket.socket(socket.AF_UNIX))
found["udp"] = outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("127.0.0.1", 0)))
found["fork"] = outcome(os.fork)
found["kill"] = outcome(lambda: os.kill(os.getppid(), 0))
found["cwd"] = outcome(os.getcwd)
"""
    held, missing, found = inside(filtered, ENTER + text)
    assert missing == []
    assert held[:-1] == [*HELD, "not dumpable"]
    assert held[-1] == "system calls filtered" + (" by libseccomp" if filtered == "libseccomp" else "")
    no_such_call, refused = 38, 13  # ENOSYS, EACCES
    assert found == {
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0),
        "NoNewPrivs": 1,
        "Seccomp": 2,
        "open": refused,
        "stat": refused,
        "fstat": 0,
        "unix": no_such_call,
        "udp": 0,
        "fork": no_such_call,
        "kill": no_such_call,
        "cwd": no_such_call,
    }


@FILTERS
def test_a_program_that_is_executed_ends_the_process(filtered: str) -> None:
    assert run(filtered, ENTER + "os.execv('/bin/true', ['true'])\n").returncode == -signal.SIGSYS


def test_the_root_is_empty_without_a_filter() -> None:
    text = """
own_user(report); isolate(report)
found["root"] = os.listdir("/")
found["write"] = outcome(lambda: os.mkdir("/x"))
found["above"] = os.listdir("/../..")
found["cwd"] = os.getcwd()
"""
    held, missing, found = inside("own", text)
    assert (held, missing) == (OWN, [])
    read_only = 30  # EROFS
    assert found == {"root": [], "write": read_only, "above": [], "cwd": "/"}


def test_some_capabilities_stay_where_they_are_wanted() -> None:
    text = """
own_user(report); isolate(report)
renounce(report, (10, 13))
filter_calls(report, keeper_calls())
found.update(line.split(":", 1) for line in status.read().splitlines() if line.startswith("Cap"))
"""
    held, missing, found = inside("own", text)
    assert (held[len(OWN)], missing) == ("few capabilities", [])
    bits = 1 << 10 | 1 << 13
    assert [int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")] == [bits, bits, bits, 0]


def test_what_the_kernel_forbids_is_named_and_the_rest_holds() -> None:
    forbidding = 'echo 0 >/proc/sys/user/max_user_namespaces; echo 0 >/proc/sys/user/max_mnt_namespaces; exec "$@"'
    before = [need("unshare"), "--user", "--map-root-user", "sh", "-c", forbidding, "sh"]
    held, missing, _ = inside("own", ENTER, *before)
    full = "unshare: No space left on device"
    assert missing == [
        f"user namespace: {full}",
        f"mount namespace: {full}",
        "empty root: it takes a mount namespace",
    ]
    assert held == [
        "IPC namespace",
        "UTS namespace",
        "no capabilities",
        "no new privileges",
        "not dumpable",
        "system calls filtered",
    ]
