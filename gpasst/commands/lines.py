"""Lines of several writers on one descriptor, none of which holds up the hub.

Theory of operation: a terminal or a pipe whose reader is slow would block the thread, and with it all traffic. So each
piece waits until the descriptor takes it; a pipe that takes anything takes PIPE_BUF bytes (pipe(7)). The descriptor
stays in blocking mode, which other processes share. A writer that has to wait reads no more of its source meanwhile, so
that whoever writes too fast waits, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from select import PIPE_BUF

import gevent.lock

from gpasst.hub import wait_read, wait_write

LINE_MAXIMUM = 1 << 16  # bytes; a longer one is cut
READ_BYTES = 4096  # at once: short lines of so many are dealt with in half a millisecond


class Lines:
    """Writes lines.

    :param descriptor: where they go.
    :param failed: called with the first error; after it, nothing is written.
    """

    def __init__(self, descriptor: int, failed: Callable[[OSError], object]) -> None:
        self._descriptor = descriptor
        self._failed: Callable[[OSError], object] | None = failed
        self._turn = gevent.lock.Semaphore()

    def put(self, *lines: str) -> None:
        """Write lines, whole, and nothing between them."""
        left = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with self._turn:
            try:
                while left and self._failed is not None:
                    wait_write(self._descriptor)
                    left = left[os.write(self._descriptor, left[:PIPE_BUF]) :]
            except OSError as error:
                failed, self._failed = self._failed, None
                if failed is not None:
                    failed(error)


def read_lines(descriptor: int) -> Iterator[list[str]]:
    """Yield the lines that come from a pipe together, until its other end is closed.

    Bytes that are no UTF-8 are replaced.
    """
    left = b""
    while True:
        wait_read(descriptor)
        data = os.read(descriptor, READ_BYTES)
        if not data:
            break
        *whole, left = (left + data).split(b"\n")
        if len(left) > LINE_MAXIMUM:
            whole, left = [*whole, left], b""
        if whole:
            yield [_text(line) for line in whole]
    if left:
        yield [_text(left)]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")
