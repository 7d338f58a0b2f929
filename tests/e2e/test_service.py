"""The command line under a service manager, as systemd.service(5) and sd_notify(3) describe it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import gpasst
from tests.support.cli import AS_ROOT, GPASST, cli, ended
from tests.support.programs import started
from tests.support.ready import PATIENCE, sleeper

pytestmark = pytest.mark.usefixtures("tun", "remote")

IDENTITIES = [AS_ROOT, []] if AS_ROOT else [[]]  # root becomes nobody otherwise


@contextmanager
def manager(address: str) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Yield a manager's socket, and the environment of its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(PATIENCE)
        yield sock, {**os.environ, "NOTIFY_SOCKET": address}


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, abstract: bool, identity: list[str]) -> None:
    """Type=notify: ready when the port is forwarded, stopping before the end. Only root reaches the manager."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    address = f"@gpasst-test-{secrets.token_hex(4)}" if abstract else str(folder / "notify")
    with gpasst.Pasta() as owner, sleeper(owner) as process, manager(address) as (sock, environment):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", 0))
            port = other.getsockname()[1]
        command = [*GPASST, "pasta", *identity, "--foreground", "--config-net", "-I", "joined", "-u", str(port)]
        with subprocess.Popen([*command, str(process.pid)], env=environment) as program:
            try:
                assert sock.recv(100) == b"READY=1"
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError):
                    other.bind(("0.0.0.0", port))
                program.terminate()
                assert sock.recv(100) == b"STOPPING=1"
                assert program.wait(PATIENCE) == 0
            finally:
                program.kill()


def test_a_service_in_the_background_notifies_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    options = [*AS_ROOT, "--config-net", "-I", "joined", "--pid", str(pid_file)]
    with gpasst.Pasta() as owner, sleeper(owner) as process, manager(str(tmp_path / "notify")) as (sock, environment):
        assert cli("pasta", *options, str(process.pid), env=environment).returncode == 0
        handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
        assert sock.recv(100) == b"READY=1"
        process.kill()
        assert sock.recv(100) == b"STOPPING=1"
        os.close(handle)


def test_a_command_is_not_the_service(tmp_path: Path) -> None:
    """It finds no address of the manager, and gpasst says when it may be reached."""
    with manager(str(tmp_path / "notify")) as (sock, environment):
        done = cli("pasta", *AS_ROOT, "--", "sh", "-c", 'echo "${NOTIFY_SOCKET-none}"', env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", "")
        assert [sock.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]


def test_a_failed_start_notifies_nothing(tmp_path: Path) -> None:
    with manager(str(tmp_path / "notify")) as (sock, environment):
        done = cli("pasta", "--foreground", *AS_ROOT, "--netns", str(tmp_path / "absent"), env=environment)
        assert done.returncode != 0
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_a_manager_out_of_reach_does_not_matter(tmp_path: Path) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "absent")}
    assert cli("pasta", *AS_ROOT, "--", "true", env=environment).returncode == 0


def test_forking(tmp_path: Path) -> None:
    """Type=forking: when the first process has ended, the file names the one that goes on."""
    pid_file = tmp_path / "pid"
    options = [*AS_ROOT, "--config-net", "-I", "joined", "--pid", str(pid_file)]
    with gpasst.Pasta() as owner, sleeper(owner) as process:
        with started([*GPASST, "pasta", *options, str(process.pid)]) as first:
            assert first.wait(PATIENCE) == 0
        number = int(pid_file.read_text(encoding="ascii"))
        assert number != first.pid
        assert os.getsid(number) == number
        assert b"gpasst" in Path(f"/proc/{number}/cmdline").read_bytes()
        handle = os.pidfd_open(number)
        assert not ended(handle)
        process.kill()
        os.close(handle)
