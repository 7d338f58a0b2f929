"""The life of the command line's process: what ends it, what it leaves to the foreground program, what it lets go."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from tests.support.cli import AS_ROOT, GPASST, ended
from tests.support.lab import host_socket
from tests.support.ready import sleeper, until

pytestmark = pytest.mark.usefixtures("tun", "remote")


def free_port() -> int:
    """A UDP port of the kernel's choice."""
    with host_socket(socket.AF_INET) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


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
    link, port = folder / "netns", free_port()
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
