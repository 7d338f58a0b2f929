"""The log of a command: how much goes where, and the file that it is kept in."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
        assert [type(handler) for handler in logger.handlers] == [logging.StreamHandler]


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


def test_every_file_of_the_log_is_private(tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = NOTHING._replace(log_file=str(path), log_size=LOG_SIZE_MINIMUM)
    with unset_logging():
        set_up_logging(options, background=True, runs_command=True)
        for _ in range(2):
            logging.getLogger("gpasst").info("x" * (LOG_SIZE_MINIMUM - 100))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_log_that_cannot_be_kept_is_refused() -> None:
    with unset_logging() as logger:
        with pytest.raises(PlatformError, match="--log-file /nosuch/log"):
            set_up_logging(NOTHING._replace(log_file="/nosuch/log"), background=False, runs_command=False)
        assert logger.handlers == []
