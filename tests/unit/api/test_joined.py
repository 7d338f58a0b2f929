"""The end of a joined namespace, by its file and by its process."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import gevent.event
import pytest

from gpasst.api import joined
from gpasst.api.joined import NamespaceWatch, leads, parse_events
from gpasst.linux import IN_DELETE, IN_IGNORED

PATIENCE = 10.0  # seconds
# A timer would take longer than a report; one that never fires proves that the kernel announced the end.
NEVER = 1000.0  # seconds


@pytest.fixture(autouse=True)
def _no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "LOOK_SECONDS", NEVER)


@contextmanager
def watched(path: Path | str, file: Path | str = "") -> Iterator[gevent.event.Event]:
    """Watch a file, which stands for a namespace; an ordinary one is told apart by its inode as well."""
    descriptor = os.open(file or path, os.O_RDONLY)
    ended = gevent.event.Event()
    watch = NamespaceWatch(gevent.get_hub().loop, str(path), descriptor, ended.set)
    try:
        yield ended
    finally:
        watch.close()
        watch.close()
        os.close(descriptor)


def touch(path: Path) -> None:
    path.write_text("", encoding="ascii")


def remove_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def replace(path: Path) -> None:
    other = path.with_name("other")
    touch(other)
    other.rename(path)


@pytest.mark.parametrize(
    "end",
    [
        Path.unlink,
        remove_folder,
        replace,
        lambda path: path.rename(path.with_name("moved")),
        lambda path: path.parent.rename(path.parent.with_name("moved")),
    ],
)
def test_a_file_that_is_gone_is_announced(tmp_path: Path, end: Callable[[Path], None]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "name"
    touch(path)
    with watched(path) as ended:
        touch(folder / "another")
        (folder / "another").unlink()
        gevent.sleep(0)
        assert not ended.is_set()
        end(path)
        assert ended.wait(PATIENCE)


@pytest.mark.parametrize("which", ["link", "target"])
def test_a_link_is_watched_at_both_ends(tmp_path: Path, which: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    link, target = tmp_path / "a" / "link", tmp_path / "b" / "target"
    touch(target)
    link.symlink_to(target)
    with watched(link) as ended:
        {"link": link, "target": target}[which].unlink()
        assert ended.wait(PATIENCE)


def test_a_link_to_a_process_ends_with_either(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for end in ("link", "process"):
        with subprocess.Popen(["sleep", "1000"]) as process:
            link.symlink_to(f"/proc/{process.pid}/ns/net")
            with watched(link) as ended:
                assert not ended.wait(0)
                if end == "link":
                    link.unlink()
                else:
                    process.kill()
                assert ended.wait(PATIENCE)
            process.kill()


def test_a_file_that_was_gone_before_is_reported_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "one")
    with watched(tmp_path / "nosuch", tmp_path / "one") as ended:
        assert ended.is_set()


def test_the_end_of_a_process_is_announced() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        path = f"/proc/{process.pid}/ns/net"
        with watched(path) as ended:
            assert not ended.wait(0)
            process.kill()
            assert ended.wait(PATIENCE)


def test_what_cannot_be_watched_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpasst")
    monkeypatch.setattr(joined, "LOOK_SECONDS", 0.001)

    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with subprocess.Popen(["sleep", "1000"]) as process:
        with watched(f"/proc/{process.pid}/ns/net") as ended:
            assert "is looked at once a second: Function not implemented" in caplog.text
            process.kill()
            process.wait()
            assert ended.wait(PATIENCE)


def test_files_of_proc_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gpasst")
    with watched("/proc/self/ns/net") as ended:
        assert not ended.is_set()
    assert "this file of /proc cannot be watched" in caplog.text


def test_a_look_without_permission_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "name"
    touch(path)
    with open(path, "rb") as file, watched(path) as ended:
        assert leads(str(path), file.fileno()) is True
        assert leads(str(path / "below"), file.fileno()) is False
        assert leads(str(tmp_path / "nosuch"), file.fileno()) is False

        def refuse(path: str) -> os.stat_result:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "stat", refuse)
        assert leads(str(path), file.fileno()) is None
        touch(tmp_path / "other")
        gevent.sleep(0)
        assert not ended.is_set(), "of another name"
        path.unlink()
        assert ended.wait(PATIENCE), "the report has to do"


def test_events_are_parsed() -> None:
    data = struct.pack("@iIII16s", 1, IN_DELETE, 0, 16, b"name") + struct.pack("@iIII", 1, IN_IGNORED, 0, 0)
    assert list(parse_events(data)) == [(IN_DELETE, b"name"), (IN_IGNORED, b"")]


MOUNTS = """
import ctypes, os, sys
import gevent, gevent.event
from gpasst.api.joined import NamespaceWatch
libc = ctypes.CDLL(None, use_errno=True)
path = sys.argv[1].encode()
assert libc.unshare(0x10000000 | 0x00020000) == 0  # CLONE_NEWUSER | CLONE_NEWNS
assert libc.mount(b"/proc/self/ns/net", path, None, 0x1000, None) == 0  # MS_BIND
netns = os.open(path, os.O_RDONLY)
ended = gevent.event.Event()
loop = gevent.get_hub().loop
looks = []
class Counted(NamespaceWatch):
    def _look(self, reported=False):
        looks.append(reported)
        super()._look(reported)
watch = Counted(loop, sys.argv[1], netns, ended.set)
gevent.sleep(0.01)
assert len(looks) == 1, looks
assert libc.umount2(path, 2) == 0  # MNT_DETACH
assert ended.wait(10)
assert len(looks) == 2, looks
print("announced")
"""


def test_an_unmounted_file_is_announced(tmp_path: Path) -> None:
    touch(tmp_path / "name")
    done = subprocess.run(
        [sys.executable, "-c", MOUNTS, str(tmp_path / "name")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if "assert libc.unshare" in done.stderr:
        pytest.skip("needs user namespaces")
    assert done.stdout == "announced\n", done.stderr
