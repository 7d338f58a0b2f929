"""The log of a command: where records go, and how many."""

from __future__ import annotations

import logging
import os
import sys

from gpasst import __version__
from gpasst.commands.handlers import FileHandler, StandardErrorHandler, SystemLogHandler
from gpasst.commands.process import ProcessOptions
from gpasst.errors import PlatformError

SYSTEM_LOG = "/dev/log"


class EncodableFormatter(logging.Formatter):
    """A formatter whose lines can be encoded, whatever bytes the name of a file contains."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with a backslash sequence for each byte that is not UTF-8."""
        return super().format(record).encode("utf-8", "backslashreplace").decode("utf-8")


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
    # A line that cannot be formatted is no reason to write a traceback.
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = []
    if options.log_file:
        handlers.append(_log_file(options))
    else:
        # In the background, until the process has left: it points its standard error elsewhere then.
        handlers.append(StandardErrorHandler())
        if background and os.path.exists(SYSTEM_LOG):
            handlers.append(SystemLogHandler(SYSTEM_LOG))
    timed = options.verbose or options.log_file
    form = "%(relativeCreated)10.1f ms %(message)s" if timed else "gpasst: %(message)s"
    for handler in handlers:
        handler.setFormatter(EncodableFormatter(form))
    logging.basicConfig(level=level, handlers=handlers or [logging.NullHandler()])
    if options.log_file:
        logging.getLogger("gpasst").info("gpasst %s, %s, process %d", __version__, sys.executable, os.getpid())


def _log_file(options: ProcessOptions) -> logging.Handler:
    try:
        return FileHandler(options.log_file, options.log_size)
    except OSError as error:
        raise PlatformError(
            f"--log-file {options.log_file}: {error.strerror}", "name a file that can be written"
        ) from error
