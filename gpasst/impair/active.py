"""A rule in force, in one direction of one link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gpasst.impair.action import Treatment
from gpasst.impair.facts import LINK, Place, Run
from gpasst.impair.fate import PASSES, Chooser, Fate, treatment_of_long, treatment_of_lost
from gpasst.impair.grammar import essence, text
from gpasst.impair.hold import BEHIND, ORDINARY, PASSING, QUEUE, WAIT, Holder, Part, Steps
from gpasst.impair.log import FateLog
from gpasst.impair.match import Matcher
from gpasst.impair.rule import Rule
from gpasst.records import replace
from gpasst.wire import ETHERNET_CODEC

_ETHERNET: Final = ETHERNET_CODEC.size  # bytes that do not count for an MTU
_NOT_CHOSEN: Final = Fate("not chosen")  # of a frame that `nth` leaves out: it passes those that wait behind it


class ActiveRule(Holder):
    """A rule in force.

    :param rule: the rule.
    :param seed: what its chance depends on.
    :param towards: the direction.
    :param place: the link.
    :ivar rule: the rule.
    :ivar seed: what its chance depends on.
    :ivar hits: frames that it has matched; a superframe counts as the frames that it stands for.
    """

    def __init__(self, rule: Rule, seed: int, towards: str, place: Place = LINK) -> None:
        log = FateLog(text(replace(rule, seed=seed)), towards, place)
        super().__init__(rule.rate, rule.queue or ORDINARY, rule.in_order, log)
        self.rule = rule
        self.seed = seed
        self.hits = 0
        self._n = 0
        self._forced: dict[int, Fate] | None = None
        self._matcher = Matcher(rule)
        self._chooser = Chooser(rule, f"{place.name(towards)} {essence(rule)}", seed)
        self._steady, self._chancy = self._chooser.steady, self._chooser.chancy
        self._alike = not (self._matcher.picks or rule.mtu)
        self._changes = bool(rule.corrupt or rule.mark or rule.rebind)
        self._waits = bool(rule.in_order and (rule.jitter or rule.delays))
        self._wait: Steps = ((self, WAIT, rule.delay),) if rule.delay or self._waits else ()
        self._simple = self.queue is None and not rule.gap
        self._lost = treatment_of_lost(rule)
        self._too_long = treatment_of_long(rule)
        self._long = Fate(self._too_long.lost)
        self.concerns = self._matcher.concerns

    @property
    def error(self) -> BaseException | None:
        """What the rule's predicate has raised first, None if it has not; such frames do not match."""
        return self._matcher.error

    def force(self, fates: Mapping[int, Fate]) -> None:
        """Let frames of some numbers meet these fates, and all others pass, whatever chance says."""
        self._forced = dict(fates)
        self._alike = False

    def judge(self, part: Part, now: float, parts: list[Part]) -> None:
        """Decide about the frames of a part.

        :param part: frames that no earlier rule has decided about.
        :param now: seconds.
        :param parts: what they fall into is added to it, in order.
        """
        first, stop = part.first, part.stop
        if self._alike and (stop - first == 1 or not self._chancy):
            n = self._n + 1
            self._n += stop - first
            self._settle(part, first, stop, self._chooser.fate(n) if self._chancy else self._steady, n, now, parts)
            return
        self._judge_each(part, now, parts)

    def _judge_each(self, part: Part, now: float, parts: list[Part]) -> None:
        """Decide about the frames of a part one by one, and keep together those of one fate."""
        first, stop = part.first, part.stop
        run, numbered = part.run, 0
        fate: Fate | None = None
        for index in range(first, stop):
            found = self._fate(run, index)
            # What changes its place, is doubled or is corrupt stands alone, however many frames came at once.
            if found != fate or (found is not None and (found.place or found.twice or found.corrupt >= 0)):
                if index > first:
                    self._settle(part, first, index, fate, numbered, now, parts)
                first, fate, numbered = index, found, self._n
        self._settle(part, first, stop, fate, numbered, now, parts)

    def _fate(self, run: Run, index: int) -> Fate | None:
        """Return the fate of a frame, None for one that the rule is not about."""
        if self._alike:
            self._n += 1
            return self._chooser.fate(self._n)
        if not self._matcher.fits(run, index):
            return None
        self._n += 1
        n = self._n
        if not self._matcher.selects(n):
            return _NOT_CHOSEN if self.rule.gap else None
        if self._forced is not None:
            return self._forced.get(n, PASSES)
        fate = self._chooser.fate(n)
        mtu = self.rule.mtu
        if mtu and not fate.lost and run.frame_bytes(index, index + 1) - _ETHERNET > mtu:
            return self._long
        return fate

    def _settle(
        self, part: Part, first: int, stop: int, fate: Fate | None, n: int, now: float, parts: list[Part]
    ) -> None:
        """Add what becomes of the frames of one fate, the first of which has number `n`."""
        if stop - first != part.stop - part.first:
            part = Part(part.run, first, stop, part.treatment, part.steps)
        parts.append(part)
        if fate is None:
            return
        if fate is _NOT_CHOSEN:
            part.steps = (*part.steps, (self, PASSING, n - first))
            return
        self.hits += stop - first
        self.log.add(now, n, stop - first, fate, part.run, stop)
        part.open = self.rule.goes_on
        if fate.lost:
            part.treatment = self._too_long if fate == self._long else self._lost
            part.steps, part.open = (), False
            return
        if self._changes:
            part.treatment = self._changed(part.treatment, fate)
        steps = self._wait if self._simple and fate.delay == self.rule.delay else self._steps(fate, n, n - first)
        part.steps = part.steps + steps if part.steps else steps
        if fate.twice:
            parts.append(Part(part.run, first, stop, part.treatment, part.steps, part.open))

    def _changed(self, treatment: Treatment, fate: Fate) -> Treatment:
        """Return a treatment with what a fate changes."""
        mark, rebind = treatment.mark or fate.mark, treatment.rebind or fate.rebind
        if fate.corrupt < 0:
            if (mark, rebind) == (treatment.mark, treatment.rebind):
                return treatment
            return replace(treatment, mark=mark, rebind=rebind)
        return replace(treatment, corrupt=fate.corrupt, payload=self.rule.payload, mark=mark, rebind=rebind)

    def _steps(self, fate: Fate, n: int, offset: int) -> Steps:
        """Return what holds frames of a fate, the first of which has number `n`, and index `n` - `offset`."""
        steps: Steps = ()
        if self.rule.gap:
            steps = ((self, BEHIND, n + fate.place) if fate.place else (self, PASSING, offset),)
        if self.queue is not None:
            steps = (*steps, (self, QUEUE, offset))
        return (*steps, (self, WAIT, fate.delay)) if fate.delay or self._waits else steps
