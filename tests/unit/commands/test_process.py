"""The process of a command: identities, the socket that is handed over, and the PID file."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from gpasst.commands.process import PidFile, check_socket, choose_identity
from gpasst.errors import ConfigurationError, PlatformError

UNKNOWN = 4_000_000_123  # an id that nobody has


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_an_ordinary_user_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose_identity("") is None
    with pytest.raises(ConfigurationError, match="--runas needs root"):
        choose_identity("nobody")


@pytest.mark.usefixtures("as_root")
def test_names_and_numbers() -> None:
    nobody, root_group = pwd.getpwnam("nobody"), grp.getgrgid(0)
    assert choose_identity("nobody") == (nobody.pw_uid, nobody.pw_gid)
    assert choose_identity(str(nobody.pw_uid)) == (nobody.pw_uid, nobody.pw_gid)
    assert choose_identity(f"nobody:{root_group.gr_name}") == (nobody.pw_uid, 0)
    assert choose_identity("nobody:5") == (nobody.pw_uid, 5)
    assert choose_identity(str(UNKNOWN)) == (UNKNOWN, UNKNOWN)
    assert choose_identity("0:0") is None
    assert choose_identity("4294967294:4294967294") == (2**32 - 2, 2**32 - 2)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no one", "no user no one"),
        ("nobody:no one", "no group no one"),
        ("nobody:", "no group ''"),
        (":5", "no user ''"),
        ("4294967295", "no user 4294967295"),
        ("0:4294967295", "no group 4294967295"),
        ("9" * 5000, "no user 999"),
        ("\u0665", "no user"),
        ("\udcff", "no user"),
    ],
)
def test_an_unknown_user_or_group_is_named(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        choose_identity(text)


def test_only_a_socket_is_served() -> None:
    here, there = socket.socketpair()
    with here, there:
        check_socket(here.fileno())
    with open(os.devnull, "rb") as file, pytest.raises(ConfigurationError, match="not a socket"):
        check_socket(file.fileno())
    with pytest.raises(ConfigurationError, match="--fd 99999: Bad file descriptor"):
        check_socket(99999)


def test_the_pid_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for before in ("", "a longer text"):
        if before:
            path.write_text(before, encoding="ascii")
        file = PidFile(str(path))
        file.write()
        file.write()
        file.close()
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    PidFile("").write()
    PidFile("/dev/null").write()
    with pytest.raises(PlatformError, match="--pid: No space left on device"):
        PidFile("/dev/full").write()
    with pytest.raises(PlatformError, match="--pid /nosuch/pid: No such file or directory"):
        PidFile("/nosuch/pid")


def test_a_link_in_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pid").symlink_to(tmp_path / "target")
    tmp_path.chmod(0o777)
    with pytest.raises(PlatformError, match="it is a symbolic link in a folder that others can write"):
        PidFile(str(tmp_path / "pid"))
    assert not (tmp_path / "target").exists()


def test_a_failed_start_leaves_the_pid_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    PidFile(str(path)).close()
    assert not path.exists()
    path.write_text("12\n", encoding="ascii")
    PidFile(str(path)).close()
    assert path.read_text(encoding="ascii") == "12\n"
