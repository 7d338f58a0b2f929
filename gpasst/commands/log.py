"""The log of a command: where records go, and how many."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from io import TextIOWrapper

from gpasst import __version__
from gpasst.commands.process import PRIVATE, ProcessOptions
from gpasst.errors import PlatformError


class EncodableFormatter(logging.Formatter):
    """A formatter whose lines can be encoded, whatever bytes the name of a file contains."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with a backslash sequence for each byte that is not UTF-8."""
        return super().format(record).encode("utf-8", "backslashreplace").decode("utf-8")


class PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """A log file that is begun anew, and read by its owner alone; so are the files that it is rotated to.

    The base class appends to a file that is there, whatever it is asked for, since it has to do so once it rotates.
    """

    def __init__(self, path: str, size: int) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE))
        super().__init__(path, maxBytes=size, backupCount=1)

    def _open(self) -> TextIOWrapper:
        return open(
            self.baseFilename, "a", encoding=self.encoding, opener=lambda path, flags: os.open(path, flags, PRIVATE)
        )


def set_up_logging(options: ProcessOptions, background: bool, runs_command: bool) -> None:
    """Send log records where the options say.

    To the log file if there is one; else to standard error, as long as the process has one, and in the background to
    the system log too.
    Beside a command, whose output it would disturb, only errors are logged unless the options ask for more.

    :param background: whether the process is in the background.
    :param runs_command: whether it runs a command.
    :raises PlatformError: if the log file cannot be written.
    """
    level = logging.INFO
    if options.verbose:
        level = logging.DEBUG
    elif options.quiet or (runs_command and not options.log_file):
        level = logging.ERROR
    handlers: list[logging.Handler] = []
    if options.log_file:
        handlers.append(_log_file(options))
    else:
        # In the background, until the process has left: it points its standard error elsewhere then.
        handlers.append(logging.StreamHandler())
        if background and os.path.exists("/dev/log"):
            handlers.append(logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON))
    timed = options.verbose or options.log_file
    form = "%(relativeCreated)10.1f ms %(message)s" if timed else "gpasst: %(message)s"
    for handler in handlers:
        handler.setFormatter(EncodableFormatter(form))
    logging.basicConfig(level=level, handlers=handlers or [logging.NullHandler()])
    if options.log_file:
        logging.getLogger("gpasst").info("gpasst %s, %s, process %d", __version__, sys.executable, os.getpid())


def _log_file(options: ProcessOptions) -> logging.Handler:
    try:
        return PrivateFileHandler(options.log_file, options.log_size)
    except OSError as error:
        raise PlatformError(
            f"--log-file {options.log_file}: {error.strerror}", "name a file that can be written"
        ) from error
