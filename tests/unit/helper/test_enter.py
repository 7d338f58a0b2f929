"""Programs in a namespace."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpasst.helper.client import Namespace, enter_command
from tests.support.namespaces import (
    PATIENCE,
    inode,
    inside,
)
from tests.support.need import ROOT_ONLY


@pytest.mark.parametrize("init", [False, True])
def test_enter_status(bare: Namespace, init: bool) -> None:
    assert inside(bare, "sh", "-c", "exit 7", init=init).returncode == 7
    assert inside(bare, "true", init=init).returncode == 0


@pytest.mark.parametrize("init", [False, True])
def test_enter_bad_commands(bare: Namespace, init: bool, tmp_path: Path) -> None:
    done = inside(bare, "no-such-command", init=init)
    assert (done.returncode, done.stderr) == (
        127,
        "gpasst: no-such-command: command not found; check its name and PATH\n",
    )
    plain = tmp_path / "plain"
    plain.write_text("")
    done = inside(bare, str(plain), init=init)
    assert (done.returncode, done.stderr) == (
        126,
        f"gpasst: {plain}: permission denied; make it executable: chmod +x\n",
    )


@pytest.mark.parametrize("init", [False, True])
def test_enter_hands_on_no_descriptors(bare: Namespace, init: bool) -> None:
    listing = "import os; print([n for n in os.listdir('/proc/self/fd') if int(n) > 3])"
    assert inside(bare, sys.executable, "-I", "-c", listing, init=init).stdout == "[]\n"


@pytest.mark.parametrize("init", [False, True])
def test_enter_restores_signals(bare: Namespace, init: bool) -> None:
    done = inside(bare, "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", init=init)
    assert {int(line.split()[1], 16) for line in done.stdout.splitlines()} == {0}


def test_enter_keeps_the_process(bare: Namespace) -> None:
    command, inherited = enter_command(bare, ["sh", "-c", "echo $$; readlink /proc/self/ns/net"])
    with subprocess.Popen(command, pass_fds=inherited, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert said.split() == [str(process.pid), f"net:[{inode(bare.netns)}]"]


def test_enter_joins_all_namespaces(bare: Namespace) -> None:
    names = ("user", "net", "uts", "ipc")
    said = inside(bare, "readlink", *(f"/proc/self/ns/{name}" for name in names)).stdout.split()
    descriptors = (bare.userns, bare.netns, bare.uts, bare.ipc)
    assert said == [f"{name}:[{inode(fd)}]" for name, fd in zip(names, descriptors, strict=True)]


@pytest.mark.parametrize("init", [False, True])
def test_a_command_has_a_resolver_file_of_its_own(bare: Namespace, init: bool) -> None:
    script = ["sh", "-c", "cat /etc/resolv.conf; stat -c '%a %s' /etc/resolv.conf; ls /tmp"]
    command, inherited = enter_command(bare, script, init, resolver_file="nameserver 192.0.2.53\n")
    before = Path("/etc/resolv.conf").read_text(encoding="utf-8")
    done = subprocess.run(command, pass_fds=inherited, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    first, status, *rest = done.stdout.splitlines()
    assert (first, status) == ("nameserver 192.0.2.53", "644 22")
    assert sorted(rest) == sorted(name for name in os.listdir("/tmp") if not name.startswith("."))
    assert Path("/etc/resolv.conf").read_text(encoding="utf-8") == before


def test_without_a_file_to_cover_one_line_says_so(bare: Namespace) -> None:
    command, inherited = enter_command(bare, ["true"], resolver_file="nameserver 192.0.2.53\n")
    without = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /etc && exec "$@"', "sh"]
    if subprocess.run([*without, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(ROOT_ONLY)
    done = subprocess.run([*without, *command], pass_fds=inherited, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (
        125,
        "gpasst: cannot enter the namespace: there is no /etc/resolv.conf to cover; make an empty one\n",
    )


def test_a_command_sees_a_live_file_change(bare: Namespace, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.77.0.2 a\n", encoding="ascii")
    argv = ["sh", "-c", "cat /etc/hosts /etc/resolv.conf; read go; cat /etc/hosts"]
    command, inherited = enter_command(
        bare, argv, resolver_file="search example\n", live_files={"/etc/hosts": str(hosts)}
    )
    with subprocess.Popen(
        command, pass_fds=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["10.77.0.2 a\n", "search example\n"]
        with hosts.open("a", encoding="ascii") as file:
            file.write("10.77.0.3 b\n")
        said, _ = process.communicate("go\n", timeout=PATIENCE)
    assert said == "10.77.0.2 a\n10.77.0.3 b\n"


def test_a_live_file_that_is_missing_is_named(bare: Namespace, tmp_path: Path) -> None:
    command, inherited = enter_command(bare, ["true"], live_files={"/etc/hosts": str(tmp_path / "gone")})
    done = subprocess.run(command, pass_fds=inherited, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    expected = f"gpasst: cannot enter the namespace: there is no {tmp_path}/gone\n"
    assert (done.returncode, done.stderr) == (125, expected)


def test_init_is_process_one(bare: Namespace) -> None:
    assert inside(bare, "sh", "-c", "echo $$", init=True).stdout == "1\n"


class Running:
    """A command run with --init that has said "ready"."""

    def __init__(self, namespace: Namespace, *argv: str) -> None:
        command, inherited = enter_command(namespace, argv, init=True)
        self.process = subprocess.Popen(
            command, pass_fds=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_init_forwards_signals(bare: Namespace, number: signal.Signals) -> None:
    body = (
        "import os, signal\n"
        f"signal.signal({number:d}, lambda *_: os._exit(5))\n"
        "os.write(1, b'ready\\n')\n"
        "signal.pause()"
    )
    with Running(bare, sys.executable, "-I", "-c", body) as running:
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_init_ends_commands_without_handler(bare: Namespace, number: signal.Signals) -> None:
    body = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.write(1, b'ready\\n')\nsignal.pause()"
    with Running(bare, sys.executable, "-I", "-c", body) as running:
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE) == 128 + number


def test_init_reports_the_signal_that_ended_the_command(bare: Namespace) -> None:
    body = "import ctypes, signal; signal.signal(11, signal.SIG_DFL); ctypes.string_at(0)"
    assert inside(bare, sys.executable, "-I", "-c", body, init=True).returncode == 128 + signal.SIGSEGV


def test_init_dies_with_its_parent(bare: Namespace) -> None:
    with Running(bare, "sh", "-c", "sleep 1000 & echo ready; exec cat") as running:
        running.process.kill()
        assert running.process.stdout is not None
        # The end of file comes when the command and what it started have closed their standard output.
        assert select.select([running.process.stdout], [], [], PATIENCE)[0]
        assert running.process.stdout.read() == b""
