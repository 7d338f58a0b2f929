"""Pipes, through which bytes move from socket to socket without being copied into the process (splice(2)).

Theory of operation: a way borrows a pipe when it has bytes for it, and gives it back empty, so a pair that is idle has
none, and a few pipes serve any number of pairs. The size of all pipes of a user is limited (64 MiB without privileges,
pipe(7)), so there are `PIPES` at most, and the ways that get none copy. `IDLE` are kept for the next; a pipe that has
bytes of a broken pair in it is closed. Where the kernel refuses a pipe, or its size, it is not asked again for the next
`PATIENCE` ways.
"""

from __future__ import annotations

import os
from fcntl import fcntl

from gpasst.linux import F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK
from gpasst.tcp.pairs import Pipe

PIPE_BYTES = 1 << 20  # what anybody may have (fs.pipe-max-size); in measurements the cheapest of 256 KiB to 1 MiB
PIPES = 32
IDLE = 8
PATIENCE = 1000


class Pipes:
    """The pipes of one proxy.

    :param limit: descriptors from this number on are not for pipes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: list[Pipe] = []
        self._lent = self._refused = 0

    def borrow(self) -> Pipe | None:
        """Return an empty pipe, None if none can be had."""
        pipe = self._idle.pop() if self._idle else self._make()
        if pipe is not None:
            self._lent += 1
        return pipe

    def give_back(self, pipe: Pipe, empty: bool) -> None:
        """Take a pipe back."""
        self._lent -= 1
        if empty and len(self._idle) < IDLE:
            self._idle.append(pipe)
        else:
            _close(pipe)

    def refuse(self) -> None:
        """Lend none to the next `PATIENCE` ways, since the kernel moves nothing through pipes."""
        self.close()
        self._refused = PATIENCE

    def close(self) -> None:
        """Close the pipes that are not lent; more calls do nothing."""
        for pipe in self._idle:
            _close(pipe)
        self._idle.clear()

    def _make(self) -> Pipe | None:
        if self._refused:
            self._refused -= 1
            return None
        if self._lent >= PIPES:
            return None
        self._refused = PATIENCE
        try:
            reader, writer = os.pipe2(O_NONBLOCK | O_CLOEXEC)
        except OSError:
            return None
        try:
            if writer < self._limit:
                pipe = Pipe(reader, writer, fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES))
                self._refused = 0
                return pipe
        except OSError:
            pass  # a smaller pipe would be slower than copying
        os.close(reader)
        os.close(writer)
        return None


def _close(pipe: Pipe) -> None:
    os.close(pipe.reader)
    os.close(pipe.writer)
