"""The log of a command: how much goes where, and the file that it is kept in."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpasst.commands.handlers import (
    BURST,
    SECONDS_PER_LINE,
    FileHandler,
    LossyHandler,
    StandardErrorHandler,
    SystemLogHandler,
)
from gpasst.commands.log import set_up_logging
from gpasst.commands.process import LOG_SIZE_DEFAULT, LOG_SIZE_MINIMUM, ProcessOptions
from gpasst.errors import PlatformError

NOTHING = ProcessOptions(
    foreground=False,
    pid_file="",
    runas="",
    verbose=False,
    quiet=False,
    log_file="",
    log_size=LOG_SIZE_DEFAULT,
    stats=0,
    no_pidns=False,
    no_sandbox=False,
)


@contextmanager
def unset_logging() -> Iterator[logging.Logger]:
    """Take everything off the root logger that pytest has put there, and put it back in the end."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()
    try:
        yield root
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize(
    ("options", "runs_command", "level"),
    [
        (NOTHING, False, logging.INFO),
        (NOTHING, True, logging.ERROR),
        (NOTHING._replace(quiet=True), False, logging.ERROR),
        (NOTHING._replace(verbose=True), True, logging.DEBUG),
    ],
)
def test_how_much_is_logged(options: ProcessOptions, runs_command: bool, level: int) -> None:
    with unset_logging() as logger:
        set_up_logging(options, background=False, runs_command=runs_command)
        assert logger.level == level
        assert [type(handler) for handler in logger.handlers] == [StandardErrorHandler]


def test_the_log_file_is_private_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n", encoding="utf-8")
    with unset_logging() as logger:
        set_up_logging(NOTHING._replace(log_file=str(path)), background=True, runs_command=True)
        assert logger.level == logging.INFO
        logging.getLogger("gpasst").info("hello")
    text = path.read_text(encoding="utf-8")
    assert "old" not in text
    assert f"process {os.getpid()}" in text
    assert text.endswith(" ms hello\n")


def test_bytes_that_are_not_utf_8_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with unset_logging():
        set_up_logging(NOTHING._replace(log_file=str(path)), background=True, runs_command=True)
        logging.getLogger("gpasst").info("listening on %s", "/run/\udcff")
    assert path.read_text(encoding="utf-8").endswith(" ms listening on /run/\\udcff\n")


def test_a_full_file_is_shortened_in_place(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = FileHandler(str(path), LOG_SIZE_MINIMUM)
    inode = path.stat().st_ino
    # Whoever the process has become may not make another file here.
    tmp_path.chmod(0o500)
    for number in range(3000):
        handler.put(logging.INFO, f"line {number:050}")
        assert path.stat().st_size <= LOG_SIZE_MINIMUM
    handler.close()
    tmp_path.chmod(0o700)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"line {0:050}"
    assert lines[1].startswith("lines were cut here at ")
    numbers = [int(line.removeprefix("line ")) for line in lines[2:]]
    assert numbers == list(range(numbers[0], 3000))
    assert path.stat().st_ino == inode and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_a_full_disk_costs_lines_and_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    kept = os.dup(2)
    logger = logging.getLogger("full")
    logger.propagate = False
    handler = StandardErrorHandler()
    logger.addHandler(handler)
    try:
        os.dup2(write, 2)
        os.set_blocking(write, False)
        filled = 0
        try:
            while True:
                filled += os.write(write, bytes(4096))
        except BlockingIOError:
            os.set_blocking(write, True)
        for _ in range(3):
            logger.error("lost")
        os.read(read, filled)
        logger.error("written")
        assert os.read(read, filled) == b"gpasst: 3 lines could not be written\nwritten\n"
    finally:
        os.dup2(kept, 2)
        logger.removeHandler(handler)
        for descriptor in (read, write, kept):
            os.close(descriptor)
    device = FileHandler("/dev/full", LOG_SIZE_MINIMUM)
    device.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "text", (), None))
    device.handle(logging.LogRecord("x", logging.INFO, "x.py", 2, "%d", ("no number",), None))
    device.close()
    assert capfd.readouterr() == ("", "")


class Kept(LossyHandler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def put(self, level: int, text: str) -> None:
        self.lines.append(text)


def test_each_kind_of_line_has_a_limit() -> None:
    handler = Kept()

    def log(line: int, at: float) -> None:
        record = logging.LogRecord("x", logging.INFO, "x.py", line, "kind %d", (line,), None)
        record.created = at
        handler.handle(record)

    for _ in range(1000):
        log(1, 100.0)
    log(2, 100.0)
    assert handler.lines == ["kind 1"] * int(BURST) + ["kind 2"]
    log(1, 100.0 + SECONDS_PER_LINE)
    log(1, 100.0 + SECONDS_PER_LINE)
    assert handler.lines[-1] == f"kind 1 ({1000 - int(BURST)} lines like this were left out)"


def test_the_system_log_is_never_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    handler = SystemLogHandler(path)
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "text", (), None)
    handler.handle(record)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        handler.handle(record)
        assert daemon.recv(4096) == b"<28>gpasst: 1 lines could not be written\ntext\n"
        for _ in range(40):
            handler.handle(record)
    handler.close()


def test_a_log_that_cannot_be_kept_is_refused() -> None:
    with unset_logging() as logger:
        with pytest.raises(PlatformError, match="--log-file /nosuch/log"):
            set_up_logging(NOTHING._replace(log_file="/nosuch/log"), background=False, runs_command=False)
        assert logger.handlers == []
