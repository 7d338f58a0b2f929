"""The life of the command line's process: what ends it, what it leaves to the foreground program, what it lets go."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.testing import free_port
from tests.support.cli import AS_ROOT, GPASST, ended
from tests.support.lab import host_socket
from tests.support.need import need
from tests.support.ready import sleeper, until

pytestmark = pytest.mark.usefixtures("tun", "remote")


def is_free(port: int) -> bool:
    with host_socket(socket.AF_INET) as sock:
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


@contextmanager
def background(tmp_path: Path, *options: str, **others: Any) -> Iterator[int]:
    """A proxy in the background; yields a pidfd."""
    pid_file = tmp_path / "pid"
    subprocess.run([*GPASST, "pasta", "-P", str(pid_file), *options], check=True, timeout=20, **others)
    handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
    try:
        yield handle
    finally:
        if not ended(handle):
            os.kill(int(pid_file.read_text(encoding="ascii")), 9)
        os.close(handle)


@pytest.mark.parametrize("named", ["file", "process"])
@pytest.mark.parametrize("identity", [[], AS_ROOT] if AS_ROOT else [[]])
def test_a_joined_namespace_that_is_gone_frees_its_ports(tmp_path: Path, named: str, identity: list[str]) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    link, port = folder / "netns", free_port("udp")
    with gpasst.Pasta() as owner, sleeper(owner) as process:
        link.symlink_to(f"/proc/{process.pid}/ns/net")
        user = ["--userns", f"/proc/{process.pid}/ns/user"]
        which = ["--netns", str(link), *user] if named == "file" else [str(process.pid)]
        with background(tmp_path, *identity, "--config-net", "-I", "joined", "-u", str(port), *which) as handle:
            assert not is_free(port)
            assert not ended(handle)
            if named == "file":
                link.unlink()
            else:
                process.kill()
            until(lambda: is_free(port), "port free")
            until(lambda: ended(handle), "proxy ended")


# Names each signal; SIGQUIT ends it with 7. It reads their numbers: Python calls a handler late where the signal
# comes just before a sleep.
NAMING = """
import os, signal
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
print("up", flush=True)
while True:
    for number in os.read(reader, 100):
        os.write(1, b"got " + signal.Signals(number).name.encode() + b"\\n")
        if number == signal.SIGQUIT:
            os._exit(7)
"""
NAMER = [*GPASST, "pasta", *AS_ROOT, "--", sys.executable, "-c", NAMING]


@contextmanager
def terminal(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program on a terminal of its own; yields it with the other end."""
    master, slave = pty.openpty()

    setsid = [need("setsid"), "--ctty"]
    with subprocess.Popen([*setsid, *command], stdin=slave, stdout=slave, stderr=slave) as program:
        os.close(slave)
        try:
            yield program, master
        finally:
            program.kill()
            os.close(master)


def read_until(descriptor: int, text: bytes) -> bytes:
    """Read until `text` has come."""
    data = b""
    while text not in data:
        assert select.select([descriptor], [], [], 30)[0], data
        data += os.read(descriptor, 4096)
    return data


def test_the_terminals_signals_belong_to_the_program() -> None:
    with terminal(*NAMER) as (program, master):
        read_until(master, b"up\r\n")
        for _ in range(2):
            os.write(master, b"\x03")
            assert read_until(master, b"\r\n") == b"^Cgot SIGINT\r\n", "once"
        os.write(master, b"\x1c")
        assert read_until(master, b"\r\n").endswith(b"got SIGQUIT\r\n")
        assert program.wait(10) == 7


def test_a_program_without_a_handler_ends_as_it_would_alone() -> None:
    # A shell catches SIGINT until it has executed its command.
    sleeper = "import signal, time; signal.signal(2, signal.SIG_DFL); print('up', flush=True); time.sleep(1000)"
    with terminal(*GPASST, "pasta", *AS_ROOT, "--", sys.executable, "-c", sleeper) as (program, master):
        read_until(master, b"up")
        os.write(master, b"\x03")
        assert program.wait(10) == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_from_another_process_is_passed_on(number: signal.Signals) -> None:
    with terminal(*NAMER) as (program, master):
        read_until(master, b"up\r\n")
        program.send_signal(number)
        assert read_until(master, b"\r\n") == f"got {number.name}\r\n".encode()
        program.send_signal(signal.SIGQUIT)
        assert program.wait(10) == 7


def test_an_ignored_signal_stays_ignored() -> None:
    script = f"trap '' INT; exec {' '.join(GPASST)} pasta -- sh -c 'grep SigIgn /proc/self/status; echo up; read line'"
    with terminal("sh", "-c", script) as (program, master):
        said = read_until(master, b"up")
        assert int(said.split()[1], 16) >> (signal.SIGINT - 1) & 1
        program.send_signal(signal.SIGINT)
        os.write(master, b"line\n")
        assert program.wait(10) == 0


POPEN = """
import json, sys, threading
import gpasst
with gpasst.Pasta() as net:
    pids = []
    def start(init):
        pids.append(net.popen(["sleep", "1000"], init=init).pid)
    for init in (False, True):
        thread = threading.Thread(target=start, args=(init,))
        thread.start()
        thread.join()
    print(json.dumps(pids), flush=True)
    sys.stdin.read()
"""


def test_programs_end_with_a_killed_run_but_not_with_a_thread() -> None:
    with subprocess.Popen([sys.executable, "-c", POPEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        handles = [os.pidfd_open(pid) for pid in json.loads(run.stdout.readline())]
        assert [ended(handle) for handle in handles] == [False, False]
        run.kill()
        for handle in handles:
            until(lambda handle=handle: ended(handle), "program ended")
            os.close(handle)


def test_the_background_lets_go_of_what_it_inherited(tmp_path: Path) -> None:
    with gpasst.Pasta() as owner, sleeper(owner) as process, open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        joined = ["-I", "joined", str(process.pid)]
        with background(tmp_path, *AS_ROOT, *joined, pass_fds=[lock.fileno()], cwd=tmp_path):
            served = (tmp_path / "pid").read_text(encoding="ascii").strip()
            lock.close()
            with open(tmp_path / "lock", "wb") as again:
                fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert os.readlink(f"/proc/{served}/cwd") == "/"
            assert {os.readlink(f"/proc/{served}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_standard_descriptors_may_be_closed(tmp_path: Path, closed: str) -> None:
    with gpasst.Pasta() as owner, sleeper(owner) as process:
        command = " ".join([*GPASST, "pasta", *AS_ROOT, "-I", "joined", "-P", str(tmp_path / "pid"), str(process.pid)])
        subprocess.run(["sh", "-c", f"exec {command} {closed}"], check=True, timeout=20)
        handle = os.pidfd_open(int((tmp_path / "pid").read_text(encoding="ascii")))
        assert not ended(handle)
        process.kill()
        until(lambda: ended(handle), "proxy ended")
        os.close(handle)
    failed = subprocess.run(["sh", "-c", f"exec {' '.join(GPASST)} pasta --netns /nosuch {closed}"], timeout=20)
    assert failed.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--netns", "/nosuch"], 1), (["-i", "nosuch0", "--", "true"], 1), (["--", "nosuchprogram"], 127)],
)
def test_a_failed_start_leaves_no_pid_file(tmp_path: Path, arguments: list[str], status: int) -> None:
    pid_file = tmp_path / "pid"
    done = subprocess.run([*GPASST, "pasta", "-P", str(pid_file), *arguments], capture_output=True)
    assert done.returncode == status
    assert not pid_file.exists()
