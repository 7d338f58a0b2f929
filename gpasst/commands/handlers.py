"""Where the lines of the log go: a file, standard error, the system log.

Theory of operation: the log is written in the middle of the traffic, so a handler never waits and never raises. A line
that cannot be written at once is left out, and counted; the next one that can be written says how many were.

Each kind of line (the place in the program that logs it) has a budget: `BURST` lines, and one more every
`SECONDS_PER_LINE`; a traceback counts as `TRACEBACK_LINES`. The next line of its kind says how many were left out.

The file is shortened in place, through the descriptor that was opened at the start: the process may have become another
user since, and the disk may be full. As with passt the first line stays, and some 30 % of the rest are cut.
"""

from __future__ import annotations

import _socket
import logging
import os
import select
import stat
import time
from contextlib import suppress

from gpasst.hub import original
from gpasst.link.output import open_output
from gpasst.linux import AF_UNIX, SOCK_DGRAM
from gpasst.records import dataclass

BURST = 50.0  # lines
SECONDS_PER_LINE = 6.0
TRACEBACK_LINES = 10.0
KEPT = 0.7  # of a full file
LINE_BYTES = 4096  # PIPE_BUF: a pipe that is writable takes that much at once (pipe(7))
STANDARD_ERROR = 2
DAEMON = 3 << 3  # the facility (RFC 5424, section 6.2.1)
SEVERITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))

# The real one, which asks the kernel and does not switch greenlets.
_poll = original("select", "poll")


@dataclass(slots=True)
class Budget:
    """The lines that a kind has left.

    :ivar lines: how many.
    :ivar at: when that was, in seconds.
    :ivar left_out: lines left out since the last that was written.
    """

    lines: float
    at: float
    left_out: int = 0


class LossyHandler(logging.Handler):
    """A handler that neither waits nor raises."""

    def __init__(self) -> None:
        super().__init__()
        self._budgets: dict[tuple[str, int], Budget] = {}
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless its kind has used up its budget."""
        try:
            budget = self._afford(record)
            if budget is None:
                return
            text = self.format(record)
            if budget.left_out:
                text += f" ({budget.left_out} lines like this were left out)"
            if self._lost:
                text = f"gpasst: {self._lost} lines could not be written\n{text}"
            self.put(record.levelno, text)
        except Exception:
            self._lost += 1
        else:
            self._lost = budget.left_out = 0

    def put(self, level: int, text: str) -> None:
        """Write a line.

        :raises OSError: if that is not possible at once.
        """
        raise NotImplementedError

    def _afford(self, record: logging.LogRecord) -> Budget | None:
        kind = record.pathname, record.lineno
        budget = self._budgets.setdefault(kind, Budget(BURST, record.created))
        budget.lines = min(BURST, budget.lines + max(0.0, record.created - budget.at) / SECONDS_PER_LINE)
        budget.at = record.created
        cost = TRACEBACK_LINES if record.exc_info else 1.0
        if budget.lines < cost:
            budget.left_out += 1
            return None
        budget.lines -= cost
        return budget


def write_standard_error(text: str) -> None:
    """Write a line to standard error if it takes it at once.

    :raises OSError: if it does not.
    """
    poll = _poll()
    poll.register(STANDARD_ERROR, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    os.write(STANDARD_ERROR, _line(text))


class StandardErrorHandler(LossyHandler):
    """Writes to standard error. Another program may have filled a pipe that it shares; lines are left out then."""

    def put(self, level: int, text: str) -> None:
        """Write a line."""
        write_standard_error(text)


class SystemLogHandler(LossyHandler):
    """Sends to the system log, with facility daemon.

    :param path: its socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = _socket.socket(AF_UNIX, SOCK_DGRAM, 0)
        self._socket.setblocking(False)
        # In a sandbox its path leads nowhere any more.
        with suppress(OSError):
            self._socket.connect(path)

    def put(self, level: int, text: str) -> None:
        """Send a line, to a daemon that was started anew if need be."""
        severity = next(value for least, value in SEVERITIES if level >= least or least == logging.DEBUG)
        data = f"<{DAEMON | severity}>".encode() + _line(text)
        try:
            self._socket.send(data)
        except BlockingIOError:
            raise
        except OSError:
            self._socket.connect(self._path)
            self._socket.send(data)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


class FileHandler(LossyHandler):
    """Writes to a file that is begun anew, with mode 0600, and shortened when it is full.

    :param path: the file.
    :param limit: its size in bytes.
    :raises OSError: if it cannot be opened.
    """

    def __init__(self, path: str, limit: int) -> None:
        super().__init__()
        self._fd = open_output(path, os.O_RDWR | os.O_TRUNC | os.O_NONBLOCK)
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._limit = limit
        self._size = 0
        self._first = 0  # bytes of the first line

    def put(self, level: int, text: str) -> None:
        """Write a line, the whole of it or nothing."""
        line = _line(text)
        if not self._regular:
            os.write(self._fd, line)
            return
        if self._size + len(line) > self._limit:
            self._shorten()
        if os.pwrite(self._fd, line, self._size) < len(line):
            os.ftruncate(self._fd, self._size)
            raise BlockingIOError
        self._size += len(line)
        self._first = self._first or len(line)

    def close(self) -> None:
        """Close the file. More calls do nothing."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()

    def _shorten(self) -> None:
        first = os.pread(self._fd, self._first, 0)
        rest = os.pread(self._fd, int(self._limit * KEPT), max(self._first, self._size - int(self._limit * KEPT)))
        note = f"lines were cut here at {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()
        # It overwrites what is there, so that it needs no room on the disk.
        self._size = os.pwrite(self._fd, first + note + rest[rest.find(b"\n") + 1 :], 0)
        os.ftruncate(self._fd, self._size)


def _line(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[: LINE_BYTES - 1] + b"\n"
