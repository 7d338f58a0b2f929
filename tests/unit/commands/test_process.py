"""The process of a command: identities, the socket that is handed over, and the PID file."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from gpasst.commands.process import check_socket, choose_identity, open_pid_file
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
    assert open_pid_file("") is None
    path = tmp_path / "pid"
    path.write_text("a longer text", encoding="ascii")
    path.chmod(0o600)
    file = open_pid_file(str(path))
    assert file is not None
    with file:
        file.write("12\n")
    assert path.read_text(encoding="ascii") == "12\n"
    other = open_pid_file(str(tmp_path / "other"))
    assert other is not None
    other.close()
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600
    with pytest.raises(PlatformError, match="--pid /nosuch/pid: No such file or directory"):
        open_pid_file("/nosuch/pid")
