"""The log of fates: what happened to which frame of a rule."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Final

from gpasst.impair.facts import LINK, Flow, Place, Run
from gpasst.impair.fate import Fate
from gpasst.records import dataclass
from gpasst.values import check_count

LOG_FRAMES: Final = 10_000  # the last of which are kept

_Entry = tuple[float, int, int, Fate, Flow, int, int]  # time, first n, frames, fate, flow, length, bytes of the last


@dataclass(frozen=True, slots=True)
class Line:
    """What happened to one frame.

    :ivar n: its number among the frames that the rule matched, `nth` and `every` left out.
    :ivar fate: what happened, in words.
    :ivar flow: protocol, source and destination.
    :ivar length: bytes of the frame, without preamble and FCS.
    """

    n: int
    fate: str
    flow: str
    length: int

    def __str__(self) -> str:
        return f"{self.n} {self.fate}: {self.flow}, {self.length} bytes"


class FateLog:
    """What happened to the last `LOG_FRAMES` frames that one rule matched in one direction.

    Two logs are equal if the rules, the seeds and all lines are. `fates` leaves out what a run of a program changes by
    itself, such as a port that the kernel chose.

    :ivar rule: the text of the rule, with its seed.
    :ivar towards: the direction.
    :ivar place: the link.
    """

    def __init__(self, rule: str, towards: str, place: Place = LINK) -> None:
        self.rule = rule
        self.towards = towards
        self.place = place
        self._entries: deque[_Entry] = deque()
        self._frames = 0

    def add(self, now: float, n: int, count: int, fate: Fate, run: Run, stop: int) -> None:
        """Enter what happened to consecutive frames.

        :param now: seconds.
        :param n: number of the first.
        :param count: frames.
        :param fate: what happened to each.
        :param run: where they come from; it is not kept.
        :param stop: index behind the last of them in the run.
        """
        last = run.last if run.last and stop == run.count else run.length
        entries = self._entries
        entries.append((now, n, count, fate, run.flow, run.length, last))
        self._frames += count
        if self._frames > LOG_FRAMES:
            while self._frames - entries[0][2] >= LOG_FRAMES:
                self._frames -= entries.popleft()[2]

    def frames(self, most: int = LOG_FRAMES) -> Iterator[tuple[float, int, Fate, Flow, int]]:
        """Yield time, number, fate, flow and bytes of each frame; the time in seconds of the engine's clock.

        :param most: frames, the last of which are yielded.
        """
        entries, frames = [], 0
        for entry in reversed(self._entries):
            if frames >= most:
                break
            entries.append(entry)
            frames += entry[2]
        skipped = max(0, frames - most)
        for now, n, count, fate, flow, length, last in reversed(entries):
            for index in range(skipped, count):
                yield now, n + index, fate, flow, last if index == count - 1 else length
            skipped = 0

    def last(self, most: int = LOG_FRAMES) -> Iterator[tuple[float, Line]]:
        """Yield the time of each frame, in seconds of the engine's clock, and what happened to it.

        :param most: frames, the last of which are yielded.
        """
        for now, n, fate, flow, length in self.frames(most):
            yield now, Line(n, str(fate), str(flow), length)

    @property
    def key(self) -> tuple[str, str]:
        """The name of the direction, and the rule."""
        return self.place.name(self.towards), self.rule

    @property
    def title(self) -> str:
        """The rule and the direction, in words."""
        return f"{self.rule} [{self.place.shown(self.towards)}]"

    @property
    def fates(self) -> list[tuple[int, str]]:
        """The number and the fate of each frame."""
        return [(line.n, line.fate) for line in self]

    def __iter__(self) -> Iterator[Line]:
        return (line for _, line in self.last())

    def copy(self) -> FateLog:
        """Return a log of the same, to which nothing is added."""
        made = FateLog(self.rule, self.towards, self.place)
        made._entries, made._frames = self._entries.copy(), self._frames
        return made

    def __len__(self) -> int:
        return min(self._frames, LOG_FRAMES)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FateLog):
            return NotImplemented
        return self.key == other.key and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self)])


def latest(logs: Iterable[FateLog], most: int) -> list[str]:
    """Return the last lines of several logs, each with its rule and direction, the newest last.

    :param most: lines.
    :raises ConfigurationError: if that is no number.
    """
    check_count("last", most)
    lines = [(now, f"{log.title}: {line}") for log in logs for now, line in log.last(most)]
    return [text for _, text in sorted(lines, key=itemgetter(0))[-most:]] if most else []
