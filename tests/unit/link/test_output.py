"""Files that are written in folders where others may have been first."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from gpasst.link.output import give_socket, open_output

STRANGER = 4711  # user and group ID
STICKY, SHARED = 0o1777, 0o777
PLAIN = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def written(path: Path, flags: int = PLAIN) -> None:
    descriptor = open_output(str(path), flags)
    try:
        os.write(descriptor, b"ours")
    finally:
        os.close(descriptor)


@pytest.fixture(params=[0o755, SHARED, STICKY])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tmp_path.chmod(request.param)
    return tmp_path


def test_files_are_made_private_and_begun_anew(folder: Path) -> None:
    for _ in range(2):
        written(folder / "out")
        assert (folder / "out").read_bytes() == b"ours"
        assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        written(folder / "out", PLAIN | os.O_EXCL)
    with pytest.raises(FileNotFoundError):
        written(folder / "none" / "out")
    with pytest.raises(NotADirectoryError):
        written(folder / "out" / "out")
    for path in (f"{folder}/", str(folder), "/"):
        with pytest.raises(IsADirectoryError):
            open_output(path, PLAIN)


def test_a_path_may_be_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    written(Path("out"))
    assert (folder / "out").read_bytes() == b"ours"


def test_a_pipe_of_ones_own_is_written(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        written(folder / "pipe")
        assert os.read(reader, 10) == b"ours"
    finally:
        os.close(reader)


def refused(path: Path, reason: str) -> None:
    before = path.stat().st_size
    with pytest.raises(OSError, match=re.escape(reason)):
        written(path)
    assert path.stat().st_size == before


@pytest.mark.parametrize("mode", [SHARED, STICKY])
def test_names_that_others_may_have_made_are_refused(tmp_path: Path, mode: int) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "link").symlink_to(victim)
    refused(folder / "link", "it is a symbolic link in a folder that others can write")
    (folder / "name").hardlink_to(victim)
    refused(folder / "name", "it has several names, and is in a folder that others can write")
    assert victim.read_bytes() == b"precious"


@needs_root
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(STICKY)
    (tmp_path / "out").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("out", "pipe"):
        os.chown(tmp_path / name, STRANGER, STRANGER)
        # Without O_NONBLOCK, opening the pipe would wait for ever.
        with pytest.raises(PermissionError, match="it is another user's file in a folder that others can write"):
            open_output(str(tmp_path / name), os.O_WRONLY)


@needs_root
def test_a_folder_of_somebody_else_is_one_that_others_can_write(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(victim)
    written(folder / "link")
    assert victim.read_bytes() == b"ours"
    os.chown(folder, STRANGER, STRANGER)
    refused(folder / "link", "it is a symbolic link in a folder that others can write")
    written(folder / "new")


@needs_root
def test_a_socket_alone_changes_its_owner(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "socket"
    victim.touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        give_socket(str(path), STRANGER, STRANGER)
        assert (path.stat().st_uid, path.stat().st_gid) == (STRANGER, STRANGER)
        path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OSError, match="it is no socket any more"):
        give_socket(str(path), STRANGER, STRANGER)
    path.unlink()
    path.hardlink_to(victim)
    with pytest.raises(OSError, match="it is no socket any more"):
        give_socket(str(path), STRANGER, STRANGER)
    assert victim.stat().st_uid == 0
