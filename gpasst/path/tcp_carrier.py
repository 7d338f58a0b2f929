"""How the bytes of a splice pair move from one TCP socket to the other.

Theory of operation: what comes in small pieces is received and sent, which costs two calls. Where a receive fills its
buffer, the way goes over to a borrowed pipe, through which pages move without being copied (splice(2)), until it brings
less than that. Where it gets no pipe it peeks, and discards what the target took. So of each way at most one small
piece is kept. That the source has no more is not believed when the kernel says so to a pipe, since it also does before
a mark of urgent data, and where the stream ends behind that, calls it the end (tcp_splice_read of net/ipv4/tcp.c); the
receive that follows decides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum, auto

from gpasst.counters import Tally
from gpasst.host.peek import discard
from gpasst.host.pipes import Pipes
from gpasst.linux import MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SPLICE_F_MOVE, SPLICE_F_NONBLOCK
from gpasst.tcp.pairs import Pipe, Way

ROUNDS = 4  # of one way, until another pair has its turn
COPIED_BYTES = 16 << 10  # of one receive; a way that gets as many moves the next by pipe
BULK_BYTES = 128 << 10  # of one peek where there is no pipe

_SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL
_SPLICE_FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
# Errors of splice(2) that are none of its socket's: a filter of system calls may be the origin of any of them.
_NOT_SPLICED = frozenset((errno.EACCES, errno.EINVAL, errno.ENOMEM, errno.ENOSYS, errno.EPERM))


class Outcome(Enum):
    """Why a way goes no further."""

    __hash__ = object.__hash__

    MORE = auto()  # others have their turn
    EMPTY = auto()
    """The source has nothing more at present."""
    BLOCKED = auto()
    """The target takes nothing more at present."""
    ENDED = auto()
    """The source has shut its half, and the target has all."""
    SOURCE_BROKEN = auto()
    """The source was reset, and the target has all."""
    TARGET_BROKEN = auto()
    """The target was reset, or takes nothing more ever."""


# Names of the module, which are found in a tenth of the time.
MORE, EMPTY, BLOCKED, ENDED, SOURCE_BROKEN, TARGET_BROKEN = Outcome


class Carrier:
    """Moves the bytes of ways.

    :param pipes: lends pipes; closed with this.
    :param spliced: where bytes are counted.
    :param conversed: takes note of a way that moved one piece; None where nobody looks for that.
    :param stopwatch: returns seconds.
    """

    def __init__(
        self,
        pipes: Pipes,
        spliced: Tally,
        conversed: Callable[[object], None] | None,
        stopwatch: Callable[[], float],
    ) -> None:
        self._pipes = pipes
        self._spliced = spliced
        self._conversed = conversed
        self._stopwatch = stopwatch
        self._buffer = memoryview(bytearray(BULK_BYTES))

    def carry(self, way: Way, deadline: float) -> Outcome:
        """Move what a way has, in a few rounds, until a time of the stopwatch; return why it ended."""
        pieces = 0
        for turn in range(ROUNDS):
            if turn and self._stopwatch() >= deadline:
                return MORE
            if (way.kept or way.piped) and (outcome := self._deliver(way)):
                return outcome
            if way.ended:
                return ENDED
            try:
                if way.bulk:
                    pipe = self._pipes.borrow()
                    if pipe is None:
                        outcome = self._copy(way)
                        if outcome:
                            return outcome
                        continue
                    if self._fill(way, pipe):
                        continue
                count = way.source.recv_into(self._buffer, COPIED_BYTES, MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                # Everything that came before has been taken.
                return SOURCE_BROKEN
            if not count:
                way.ended = True
                continue
            pieces += 1
            piece = self._buffer[:count]
            try:
                taken = way.target.send(piece, _SEND_FLAGS)
            except BlockingIOError:
                taken = 0
            except OSError:
                return TARGET_BROKEN
            self._spliced.bytes += taken
            way.bulk = count >= COPIED_BYTES
            if taken < count:
                way.kept = bytes(piece[taken:])
            elif not way.bulk and not way.thorough:
                break
        else:
            return MORE
        if pieces == 1 and self._conversed:
            self._conversed(way)
        return EMPTY

    def forget(self, way: Way) -> None:
        """Let go of the bytes that a way has for its target."""
        way.kept = b""
        if way.pipe:
            self._pipes.give_back(way.pipe, empty=False)
            way.pipe = None
        way.piped = 0

    def close(self) -> None:
        """Close the pipes; more calls do nothing."""
        self._pipes.close()
        self._conversed = None

    def _deliver(self, way: Way) -> Outcome | None:
        """Offer to the target what a way has for it; return what is in the way of that, None if it has taken all."""
        try:
            while way.kept:
                taken = way.target.send(way.kept, _SEND_FLAGS)
                way.kept = way.kept[taken:]
                self._spliced.bytes += taken
            while way.piped and way.pipe:
                taken = os.splice(way.pipe.reader, way.target.fileno(), way.piped, flags=_SPLICE_FLAGS)
                way.piped -= taken
                self._spliced.bytes += taken
        except BlockingIOError:
            return BLOCKED
        except OSError:
            return TARGET_BROKEN
        if way.pipe:
            self._pipes.give_back(way.pipe, empty=True)
            way.pipe = None
        return None

    def _fill(self, way: Way, pipe: Pipe) -> bool:
        """Move bytes from the source of a way into a pipe; return whether there were any.

        :raises OSError: if the source was reset.
        """
        if way.waits:
            # The kernel looks at the sockets, where a receive or send says itself that it does not wait.
            for sock in (way.source, way.target):
                os.set_blocking(sock.fileno(), False)
            way.waits = False
        count, usable = -1, True
        try:
            count = os.splice(way.source.fileno(), pipe.writer, pipe.size, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NOT_SPLICED:
                raise
            self._pipes.refuse()
            usable = False
            return False
        finally:
            if count > 0:
                way.pipe, way.piped = pipe, count
            else:
                self._pipes.give_back(pipe, empty=usable)
        way.bulk = count >= COPIED_BYTES
        return count > 0

    def _copy(self, way: Way) -> Outcome | None:
        """Move bytes without a pipe, and keep none; return what is in the way of more.

        :raises OSError: if the source has nothing more at present, or was reset.
        """
        count = way.source.recv_into(self._buffer, 0, MSG_DONTWAIT | MSG_PEEK)
        way.bulk = count >= COPIED_BYTES
        way.ended = not count
        try:
            taken = way.target.send(self._buffer[:count], _SEND_FLAGS)
        except BlockingIOError:
            return BLOCKED
        except OSError:
            return TARGET_BROKEN
        self._spliced.bytes += taken
        discard(way.source, taken)
        return None
