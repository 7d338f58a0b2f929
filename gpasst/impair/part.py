"""A part of a run on its way through what holds frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpasst.impair.action import Treatment
from gpasst.impair.facts import Run

if TYPE_CHECKING:
    from gpasst.impair.active import ActiveRule

BEHIND: Final = 0  # until the rule's frame of this number has passed, or for `BEHIND_SECONDS`
PASSING: Final = (
    1  # not at all; what is behind it goes on. The number is that of the rule's frame at index 0 of the run
)
QUEUE: Final = 2  # until it has its turn at a rate; the number likewise
WAIT: Final = 3  # for so many microseconds
BEHIND_SECONDS: Final = 0.05  # that a frame waits for others to pass it

Steps = tuple[tuple["ActiveRule", int, int], ...]
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
    """

    __slots__ = ("first", "open", "order", "run", "step", "steps", "stop", "treatment")

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

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return self.stop - self.first

    @property
    def size(self) -> int:
        """Their bytes."""
        return self.run.frame_bytes(self.first, self.stop)

    def cut(self, at: int) -> Part:
        """Keep the frames before index `at`, and return the others."""
        rest = Part(self.run, at, self.stop, self.treatment, self.steps, self.open)
        rest.step, rest.order = self.step, self.order
        self.stop = at
        return rest
