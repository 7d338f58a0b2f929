"""A rule in force, in one direction of one link."""

from __future__ import annotations

from typing import Final

from gpasst.impair.action import Treatment
from gpasst.impair.facts import Run
from gpasst.impair.fate import PASSES, Chooser, Fate, treatment_of_long, treatment_of_lost
from gpasst.impair.grammar import essence, text
from gpasst.impair.hold import BEHIND, ORDINARY, PASSING, QUEUE, WAIT, Holder, Part, Steps
from gpasst.impair.log import FateLog
from gpasst.impair.match import Matcher
from gpasst.impair.rule import Rule
from gpasst.records import replace
from gpasst.wire import ETHERNET_CODEC

_ETHERNET: Final = ETHERNET_CODEC.size  # bytes that do not count for an MTU


class ActiveRule(Holder):
    """A rule in force.

    :param rule: the rule.
    :param seed: what its chance depends on.
    :param towards: the direction's name.
    :ivar rule: the rule.
    :ivar seed: what its chance depends on.
    :ivar hits: frames that it has matched; a superframe counts as the frames that it stands for.
    """

    def __init__(self, rule: Rule, seed: int, towards: str) -> None:
        super().__init__(rule.rate, rule.queue or ORDINARY, FateLog(text(replace(rule, seed=seed)), towards))
        self.rule = rule
        self.seed = seed
        self.hits = 0
        self._n = 0
        self._matcher = Matcher(rule)
        self._chooser = Chooser(rule, f"{towards} {essence(rule)}", seed)
        self._steady = self._chooser.steady
        self._whole = not (self._matcher.picks or self._chooser.chancy or rule.mtu)
        self._wait: Steps = ((self, WAIT, rule.delay),) if rule.delay else ()
        self._simple = self.queue is None and not rule.gap
        self._lost = treatment_of_lost(rule)
        self._too_long = treatment_of_long(rule)
        self._long = Fate(self._too_long.lost)
        self.concerns = self._matcher.concerns

    @property
    def error(self) -> Exception | None:
        """What the rule's predicate has raised first, None if it has not; such frames do not match."""
        return self._matcher.error

    def judge(self, part: Part, now: float, parts: list[Part]) -> None:
        """Decide about the frames of a part.

        :param part: frames that no earlier rule has decided about.
        :param now: seconds.
        :param parts: what they fall into is added to it, in order.
        """
        if self._whole:
            n = self._n + 1
            self._n += part.frames
            self._settle(part, part.first, part.stop, self._steady, n, now, parts)
            return
        run, first, fate, numbered = part.run, part.first, None, 0
        for index in range(part.first, part.stop):
            found = self._fate(run, index)
            # What changes its place, is doubled or is corrupt stands alone, however many frames came at once.
            if found != fate or (found is not None and (found.place or found.twice or found.corrupt >= 0)):
                if index > first:
                    self._settle(part, first, index, fate, numbered, now, parts)
                first, fate, numbered = index, found, self._n
        if part.stop > first:
            self._settle(part, first, part.stop, fate, numbered, now, parts)

    def _fate(self, run: Run, index: int) -> Fate | None:
        """Return the fate of a frame, None for one that the rule does not match."""
        if not self._matcher.fits(run, index):
            return None
        self._n += 1
        n = self._n
        if not self._matcher.selects(n):
            return None
        fate = self._chooser.fate(n)
        mtu = self.rule.mtu
        if mtu and not fate.lost and run.frame_bytes(index, index + 1) - _ETHERNET > mtu:
            return self._long
        return fate

    def _settle(
        self, part: Part, first: int, stop: int, fate: Fate | None, n: int, now: float, parts: list[Part]
    ) -> None:
        """Add what becomes of the frames of one fate, the first of which has number `n`."""
        run = part.run
        if fate is None:
            parts.append(Part(run, first, stop, part.treatment, part.steps))
            return
        self.hits += stop - first
        self.log.add(now, n, stop - first, fate, run, stop)
        if fate.lost:
            parts.append(Part(run, first, stop, self._too_long if fate is self._long else self._lost, (), False))
            return
        treatment = part.treatment if fate[4:] == PASSES[4:] else self._changed(part.treatment, fate)
        steps = part.steps + self._steps(fate, n, n - first)
        parts.append(Part(run, first, stop, treatment, steps, self.rule.goes_on))
        if fate.twice:
            parts.append(Part(run, first, stop, treatment, steps, self.rule.goes_on))

    def _changed(self, treatment: Treatment, fate: Fate) -> Treatment:
        """Return a treatment with what a fate changes."""
        mark, rebind = treatment.mark or fate.mark, treatment.rebind or fate.rebind
        if fate.corrupt < 0:
            return replace(treatment, mark=mark, rebind=rebind)
        return replace(treatment, corrupt=fate.corrupt, payload=self.rule.payload, mark=mark, rebind=rebind)

    def _steps(self, fate: Fate, n: int, offset: int) -> Steps:
        """Return what holds frames of a fate, the first of which has number `n`, and index `n` - `offset`."""
        if self._simple:
            return self._wait if fate.delay == self.rule.delay else ((self, WAIT, fate.delay),) if fate.delay else ()
        steps: Steps = ()
        if self.rule.gap:
            steps = ((self, BEHIND, n + fate.place) if fate.place else (self, PASSING, offset),)
        if self.queue is not None:
            steps = (*steps, (self, QUEUE, offset))
        return (*steps, (self, WAIT, fate.delay)) if fate.delay else steps
