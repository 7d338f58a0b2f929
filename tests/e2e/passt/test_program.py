"""Passt mode's command line as a program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpasst.commands.process import choose_identity
from tests.support.cli import AS_ROOT, GPASST, cli, ended
from tests.support.lab import FAR4, HOST4, Remote, bound
from tests.support.passt import EPHEMERAL, PROGRAM_PORT, greeted, text
from tests.support.programs import started
from tests.support.ready import unix_listening, until
from tests.support.scripted import Guest

pytestmark = pytest.mark.usefixtures("remote")


@contextmanager
def serving(path: Path, *options: str, identity: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program in the foreground, once it listens at `path` and awaits signals."""
    command = [*GPASST, "passt", *(AS_ROOT if identity is None else identity), "-f", "-s", str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            until(lambda: program.poll() is not None or unix_listening(path), f"listening at {path}")
            until(lambda: program.poll() is not None or catches(program.pid, signal.SIGQUIT), "signals awaited")
            assert program.poll() is None, program.stderr and program.stderr.read()
            yield program
        finally:
            program.kill()


def catches(process: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal (proc_pid_status(5))."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    caught = dict(line.split(":", 1) for line in lines)["SigCgt"]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_well(folder: Path, remote: Remote, number: signal.Signals) -> None:
    path = folder / "program"
    with serving(path, "-u", str(PROGRAM_PORT)) as program, Guest.connect(path) as guest:
        greeted(guest)
        with bound(remote.socket(socket.AF_INET), FAR4) as client:
            client.sendto(b"in", (HOST4, PROGRAM_PORT))
            data, sender, _ = guest.recv()
            guest.sendto(PROGRAM_PORT, sender, b"out")
            assert (data, client.recv(9)) == (b"in", b"out")
        program.send_signal(number)
        assert guest.ended()
        assert program.wait(10) == 0
        assert text(program.stdout) == ""
        log = text(program.stderr)
    assert f"UNIX domain socket bound at {path}" in log
    assert f"a guest has connected: process {os.getpid()}" in log
    assert "Traceback" not in log
    assert not path.exists()


def test_the_program_ends_with_its_only_guest(folder: Path) -> None:
    path = folder / "once"
    with serving(path, "--one-off") as program:
        with Guest.connect(path) as guest:
            greeted(guest)
        assert program.wait(10) == 0
        assert text(program.stdout) == ""
    assert not path.exists()


def test_the_program_takes_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, Guest(theirs) as guest:
        command = [*GPASST, "passt", *AS_ROOT, "-f", "-q", "--fd", str(ours.fileno())]
        with started(command, pass_fds=[ours.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
            ours.close()
            guest.socket.settimeout(20)
            greeted(guest)
            guest.socket.close()
            assert program.stdout is not None
            assert (program.wait(10), program.stdout.read()) == (0, b"")


def test_the_program_goes_to_the_background_when_it_listens(folder: Path) -> None:
    path, pid_file = folder / "background", folder / "pid"
    done = cli("passt", *AS_ROOT, "-s", str(path), "-P", str(pid_file), "-1")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"gpasst: UNIX domain socket bound at {path}\n" in done.stderr
    assert f"addr.type=unix,addr.path={path}\n" in done.stderr
    assert f"DHCP: assigns {HOST4}" in done.stderr
    with Guest.connect(path) as guest:
        handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
        greeted(guest)
        assert not ended(handle)
    until(lambda: ended(handle), "the program ended with its guest")
    os.close(handle)
    assert not path.exists()


@pytest.mark.parametrize("option", ["-q", "-l"])
def test_what_is_said_at_the_start_can_be_silenced(folder: Path, option: str) -> None:
    path, pid_file, log_file = folder / "silent", folder / "pid", folder / "silent-log"
    value = [str(log_file)] if option == "-l" else []
    done = cli("passt", *AS_ROOT, "-s", str(path), "-P", str(pid_file), "-1", option, *value)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Guest.connect(path) as guest:
        handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
        greeted(guest)
    until(lambda: ended(handle), "the program ended with its guest")
    os.close(handle)
    assert option == "-q" or f"UNIX domain socket bound at {path}" in log_file.read_text(encoding="utf-8")


def test_what_fails_in_the_background_is_told_in_the_foreground(folder: Path) -> None:
    (folder / "taken").touch()
    done = cli("passt", "-s", str(folder / "taken"), "-P", str(folder / "pid-of-nobody"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists and is no socket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_called_as_passt(folder: Path) -> None:
    program = folder / "passt"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom gpasst.cli import main\nsys.exit(main())\n", encoding="utf-8"
    )
    program.chmod(0o755)
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ours, theirs:
        theirs.close()
        done = subprocess.run(
            [str(program), *AS_ROOT, "-f", "-q", "-F", str(ours.fileno())],
            pass_fds=[ours.fileno()],
            timeout=30,
            env=environment,
        )
    assert done.returncode == 0


def test_a_program_started_by_root_serves_as_nobody(folder: Path, remote: Remote) -> None:
    path = folder / "nobody"
    with serving(path, "-u", str(PROGRAM_PORT), identity=[]) as program, Guest.connect(path) as guest:
        greeted(guest)
        uid, _ = choose_identity("") or (os.getuid(), os.getgid())
        status = Path(f"/proc/{program.pid}/status")
        until(lambda: f"\nUid:\t{uid}\t" in status.read_text(encoding="utf-8"), "it is who it shall be")
        with bound(remote.socket(socket.AF_INET), FAR4) as far:
            guest.sendto(EPHEMERAL, far.getsockname(), b"out")
            assert far.recv(9) == b"out"
            far.sendto(b"in", (HOST4, PROGRAM_PORT))
            assert guest.recv().payload == b"in"
        program.terminate()
        assert program.wait(10) == 0
        assert "Traceback" not in text(program.stderr)
    assert not path.exists()


def test_libvirt(folder: Path, remote: Remote) -> None:
    """The command line of libvirt 11.3.0, which waits for the background: a port and a range, but for one of it."""
    path, pid_file = folder / "1-guest-net0.socket", folder / "1-guest-net0-passt.pid"
    line = ["--one-off", "--socket", str(path), "--pid", str(pid_file), "--tcp-ports", "2022:22"]
    udp = f"{HOST4}/5100-5109:{PROGRAM_PORT}-{PROGRAM_PORT + 9},~5105"
    assert cli("passt", *AS_ROOT, *line, "--udp-ports", udp).returncode == 0
    assert unix_listening(path)
    handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
    try:
        with Guest.connect(path) as guest:
            greeted(guest)
            with bound(remote.socket(socket.AF_INET), FAR4) as client:
                client.sendto(b"in", (HOST4, 5100))
                data, sender, _ = guest.recv()
                guest.sendto(PROGRAM_PORT, sender, b"out")
                assert (data, client.recv(9)) == (b"in", b"out")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind((HOST4, 5105))
        until(lambda: ended(handle), "proxy ended with its guest")
    finally:
        if not ended(handle):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
