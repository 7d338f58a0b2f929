"""What holds frames: parts of runs, the steps that hold them, and the queue in front of a rate.

Theory of operation: a part takes the steps of its rules one after the other (`gpasst.impair.engine`). In the queue of
a rate it is cut into pieces that take no longer than `PIECE_SECONDS` at that rate, or are one frame. The first piece is
on the link; those behind it wait. The next piece begins when the one before has left, however late that is noticed, so
no time of the link is lost. What finds no room is dropped at the tail, or drops the oldest that wait (Linux:
sch_fifo.c, pfifo and pfifo_head_drop).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gpasst.impair.action import Treatment
from gpasst.impair.facts import Run
from gpasst.impair.log import FateLog
from gpasst.impair.rule import SECOND, Queue

BEHIND: Final = 0  # until the rule's frame of this number has passed, or for `BEHIND_SECONDS`
PASSING: Final = (
    1  # not at all; what is behind it goes on. The number is that of the rule's frame at index 0 of the run
)
QUEUE: Final = 2  # until it has its turn at a rate; the number likewise
WAIT: Final = 3  # for so many microseconds
BEHIND_SECONDS: Final = 0.05  # that a frame waits for others to pass it
SHARE: Final = 8  # of what is free in a room, that one engine may hold
ORDINARY: Final = Queue(frames=1000)  # as netem's (tc-netem(8): limit)
PIECE_SECONDS: Final = 0.0005
_BITS: Final = 8

Steps = tuple[tuple["Holder", int, int], ...]
"""What holds a part, one after the other: the rule, the kind of step, and its number."""


class Part:
    """Consecutive frames of a run that have one fate.

    :param run: the run.
    :param first: index of the first frame.
    :param stop: index behind the last.
    :param treatment: what is done to them.
    :param steps: what holds them on the way.
    :ivar step: the next of the steps.
    :ivar open: whether later rules are asked about them.
    :ivar order: their place in the order of what the engine holds, 0 while they are not held.
    :ivar size: their bytes, once they are held.
    """

    __slots__ = ("first", "open", "order", "run", "size", "step", "steps", "stop", "treatment")

    def __init__(
        self, run: Run, first: int, stop: int, treatment: Treatment, steps: Steps = (), goes_on: bool = True
    ) -> None:
        self.run = run
        self.first = first
        self.stop = stop
        self.treatment = treatment
        self.steps = steps
        self.step = 0
        self.open = goes_on
        self.order = 0
        self.size = 0

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return self.stop - self.first

    def cut(self, at: int) -> Part:
        """Keep the frames before index `at`, and return the others."""
        rest = Part(self.run, at, self.stop, self.treatment, self.steps, self.open)
        rest.step, rest.order = self.step, self.order
        self.stop = at
        if self.order:
            rest.size = self.run.frame_bytes(at, rest.stop)
            self.size -= rest.size
        return rest


class Room:
    """What several engines may hold together, none of them all of it.

    Theory of operation: an engine may hold `SHARE` times what is free then (Choudhury and Hahne, Dynamic Queue Length
    Thresholds for Shared-Memory Packet Switches, 1998). So what many hold leaves room for one that holds little.

    :param frames: frames at most.
    :param size: bytes at most.
    """

    __slots__ = ("bytes", "frames")

    def __init__(self, frames: int, size: int) -> None:
        self.frames = frames
        self.bytes = size

    def take(self, frames: int, size: int, held: int, held_bytes: int) -> bool:
        """Let so much be held by an engine; return whether there is room.

        :param held: frames that it holds already.
        :param held_bytes: their bytes.
        """
        if frames > self.frames or size > self.bytes:
            return False
        if held > SHARE * self.frames or held_bytes > SHARE * self.bytes:
            return False
        self.frames -= frames
        self.bytes -= size
        return True

    def give(self, frames: int, size: int) -> None:
        """Let so much be held no more."""
        self.frames += frames
        self.bytes += size


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
                if self._head and room:
                    excess, piece = piece, piece.cut(piece.stop - room)
                else:
                    excess = piece.cut(piece.first + room)
                if rest is not None and not self._head:
                    excess.stop, excess.size, rest = rest.stop, excess.size + rest.size, None
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
        room = max(0, (self._most_bytes - self._bytes) // max(1, piece.run.length))
        # Behind the one on the link one may wait even where the limit is shorter, or none ever would.
        return min(piece.frames, room or int(len(self.parts) == 1))

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


class Holder:
    """What a rule holds.

    :param rate: bits a second, 0 for no limit.
    :param limit: what may wait for it.
    :param in_order: whether no frame overtakes another.
    :param log: the log of fates.
    :ivar log: what happened to the frames that it has matched.
    :ivar removed: whether the rule has ended.
    :ivar queue: what waits for its rate, None without one.
    :ivar latest: when the last frame ends its wait, of a rule that lets none overtake; None for other rules.
    :ivar behind: what lets others pass: the number of the frame that is the last of these, the part, and its step.
    """

    def __init__(self, rate: int, limit: Queue, in_order: bool, log: FateLog) -> None:
        self.log = log
        self.removed = False
        self.queue = RateQueue(rate, limit) if rate else None
        self.latest = 0.0 if in_order else None
        self.behind: deque[tuple[int, Part, int]] = deque()
