"""What waits for a rate: a queue of bounded length in front of a link of so many bits a second.

Theory of operation: a part is cut into pieces that take no longer than `PIECE_SECONDS` at the rate, or are one frame.
The first piece is on the link; those behind it wait. The next piece begins when the one before has left, however late
that is noticed, so no time of the link is lost. What finds no room is dropped at the tail, or drops the oldest that
wait (Linux: sch_fifo.c, pfifo and pfifo_head_drop).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gpasst.impair.part import Part
from gpasst.impair.rule import SECOND, Queue

ORDINARY: Final = Queue(frames=1000)  # as netem's (tc-netem(8): limit)
PIECE_SECONDS: Final = 0.0005
_BITS: Final = 8


class RateQueue:
    """The queue of one rule in one direction.

    :param rate: bits a second.
    :param limit: what may wait.
    :ivar parts: the pieces, from the one that is on the link on.
    """

    def __init__(self, rate: int, limit: Queue) -> None:
        self._rate = rate
        self._most_frames = limit.frames
        self._most_bytes = limit.size or limit.time * rate // (_BITS * SECOND)
        self._head = limit.head
        self._piece_bytes = int(rate * PIECE_SECONDS) // _BITS
        self._frames = 0
        self._bytes = 0
        self._free_at = 0.0
        self.parts: deque[Part] = deque()

    def enter(self, part: Part) -> list[Part]:
        """Let a part wait, in pieces; return what is dropped: parts of it, or what waited before."""
        dropped = []
        frames = max(1, self._piece_bytes // max(1, part.run.length))
        rest: Part | None = part
        while rest is not None:
            piece, rest = rest, rest.cut(rest.first + frames) if rest.frames > frames else None
            if self._head:
                while len(self.parts) > 1 and self._room(piece) < piece.frames:
                    dropped.append(self._drop_oldest())
            room = self._room(piece)
            if room < piece.frames:
                excess = piece.cut(piece.first + room)
                if rest is not None and not self._head:
                    excess.stop, rest = rest.stop, None
                dropped.append(excess)
            if room:
                self._count(piece, 1)
                self.parts.append(piece)
        return dropped

    def begin(self, now: float) -> float:
        """Put the first piece on the link; return when it will have left, in seconds.

        :param now: when the piece before has left, or when this one came.
        """
        piece = self.parts[0]
        self._free_at = max(now, self._free_at) + piece.size * _BITS / self._rate
        return self._free_at

    def end(self) -> None:
        """Take the first piece, which has left, out of the queue."""
        self._count(self.parts.popleft(), -1)

    def _room(self, piece: Part) -> int:
        """Return how many frames of a piece find room; an empty queue has some for every frame."""
        if not self.parts:
            return piece.frames
        if self._most_frames:
            return max(0, min(piece.frames, self._most_frames - self._frames))
        if self._bytes + piece.size <= self._most_bytes:
            return piece.frames
        return max(0, min(piece.frames, (self._most_bytes - self._bytes) // max(1, piece.run.length)))

    def _drop_oldest(self) -> Part:
        """Return the oldest frame that waits, which is not on the link; it waits no more."""
        oldest = self.parts[1]
        if oldest.frames == 1:
            del self.parts[1]
            self._count(oldest, -1)
            return oldest
        self._count(oldest, -1)
        self.parts[1] = oldest.cut(oldest.first + 1)
        self._count(self.parts[1], 1)
        return oldest

    def _count(self, piece: Part, sign: int) -> None:
        self._frames += sign * (piece.frames)
        self._bytes += sign * piece.size
