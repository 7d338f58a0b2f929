"""What happens to the n-th frame of a rule."""

from __future__ import annotations

from typing import Final, NamedTuple

from gpasst.counters import Drop
from gpasst.impair.action import LOST, Answer, Treatment
from gpasst.impair.chance import (
    BLOCK_SHIFT,
    IN_BLOCK,
    QUANTILE_SHIFT,
    SCALE_SHIFT,
    UNIFORM,
    WORD_BITS,
    Bursts,
    Sequence,
    quantiles,
    threshold,
)
from gpasst.impair.quantities import show_time
from gpasst.impair.rule import CERTAIN, Rule

AT_ONCE: Final = -1  # the place of a frame that leaves before those which are delayed
_ANSWERS: Final = {"port": Answer.PORT, "host": Answer.HOST, "net": Answer.NET, "admin": Answer.ADMIN}


class Fate(NamedTuple):
    """What a rule does to one frame.

    :ivar lost: why it is lost; empty if it passes.
    :ivar delay: microseconds that it is held.
    :ivar place: frames that it lets pass before it, or `AT_ONCE`; 0 for its own place.
    :ivar twice: whether it crosses twice.
    :ivar corrupt: what chooses the bit that is flipped, -1 for none.
    :ivar mark: whether it is marked as CE, if it is ECN-capable.
    :ivar rebind: whether its flow's port on the host changes before.
    """

    lost: str = ""
    delay: int = 0
    place: int = 0
    twice: bool = False
    corrupt: int = -1
    mark: bool = False
    rebind: bool = False

    def __str__(self) -> str:
        if self.lost:
            return self.lost
        shown = []
        if self.rebind:
            shown.append("rebind")
        if self.place == AT_ONCE:
            shown.append("at once")
        elif self.place:
            shown.append(f"behind {self.place}")
        if self.delay:
            shown.append(f"delay {show_time(self.delay)}")
        if self.twice:
            shown.append("twice")
        if self.corrupt >= 0:
            shown.append(f"corrupt {self.corrupt}")
        if self.mark:
            shown.append("mark")
        return ", ".join(shown) or "pass"


PASSES: Final = Fate()
QUEUE_FULL: Final = Fate("lost: queue full")
HELD_FULL: Final = Fate("lost: more held than can be kept")


class Chooser:
    """The chance of one rule.

    :param rule: the rule.
    :param name: what its chance depends on besides the seed.
    :param seed: the seed.
    :ivar steady: the fate of frames that chance leaves alone.
    :ivar chancy: whether there is any chance.
    """

    def __init__(self, rule: Rule, name: str, seed: int) -> None:
        def sequence(effect: str) -> Sequence:
            return Sequence(name, seed, effect)

        self._loss = sequence("loss")
        self._lost_below = threshold(rule.loss)
        self._lost = Fate(LOST.lost)
        self._bursts = Bursts(rule.burst, self._loss, sequence("state")) if rule.burst else None
        self._delay, self._jitter = rule.delay, rule.jitter
        self._quantiles = quantiles(rule.distribution or UNIFORM) if rule.jitter else ()
        self._delays = rule.delays
        self._times = sequence("delay")
        self._reorder, self._moved_below = sequence("reorder"), threshold(rule.reorder)
        self._place = rule.gap or AT_ONCE
        self._duplicate, self._twice_below = sequence("duplicate"), threshold(rule.duplicate)
        self._corrupt, self._corrupt_below = sequence("corrupt"), threshold(rule.corrupt)
        self._bits = sequence("bit")
        self._mark, self._mark_below = sequence("ecn"), threshold(rule.mark)
        self._late = bool(rule.jitter or rule.delays)
        self._varies = bool(self._late or rule.reorder or rule.duplicate or rule.corrupt or 0 < rule.mark < CERTAIN)
        self._mixed = bool(rule.reorder or rule.duplicate or rule.corrupt or rule.mark or rule.rebind)
        self.chancy = bool(rule.loss or rule.burst or self._varies)
        self._rebind = rule.rebind
        self.steady = Fate(delay=rule.delay, mark=rule.mark == CERTAIN, rebind=rule.rebind)
        lost = treatment_of_lost(rule)
        if lost is not LOST:
            # None of its frames passes.
            self.steady = Fate(lost.lost)

    def fate(self, n: int) -> Fate:
        """Return the fate of the `n`-th frame, from 1 on; each `n` is asked for once, in order."""
        if self._lost_below:
            # As `Sequence.number`, without its call.
            loss = self._loss
            if n >> BLOCK_SHIFT != loss.block:
                loss.load(n >> BLOCK_SHIFT)
            if loss.numbers[n & IN_BLOCK] < self._lost_below:
                return self._lost
        elif self._bursts and self._bursts.lost(n):
            return self._lost
        if not self._varies:
            return self.steady
        delay = self._delay_of(n) if self._late else self._delay
        if not self._mixed:
            return Fate("", delay)
        place = 0
        if self._moved_below and self._reorder.number(n) < self._moved_below:
            place = self._place
            delay = 0 if place == AT_ONCE else delay
        corrupt = self._corrupt_below and self._corrupt.number(n) < self._corrupt_below
        return Fate(
            "",
            delay,
            place,
            bool(self._twice_below and self._duplicate.number(n) < self._twice_below),
            self._bits.number(n) if corrupt else -1,
            bool(self._mark_below and self._mark.number(n) < self._mark_below),
            self._rebind,
        )

    def _delay_of(self, n: int) -> int:
        number = self._times.number(n)
        if self._delays:
            return self._delays[number * len(self._delays) >> WORD_BITS]
        late = self._jitter * self._quantiles[number >> QUANTILE_SHIFT] >> SCALE_SHIFT
        return max(0, self._delay + late)


def treatment_of_lost(rule: Rule) -> Treatment:
    """Return what is done with a frame that the rule's effects lose, but for the MTU."""
    if rule.reset:
        return Treatment("lost: reset", Drop.IMPAIRED_RESET, Answer.RESET)
    if rule.unreachable:
        lost = f"lost: unreachable {rule.unreachable}"
        return Treatment(lost, Drop.IMPAIRED_UNREACHABLE, _ANSWERS[rule.unreachable])
    return Treatment("lost: partition", Drop.IMPAIRED_PARTITION) if rule.partition else LOST


def treatment_of_long(rule: Rule) -> Treatment:
    """Return what is done with a packet that is longer than the rule's MTU."""
    answer = Answer.TOO_BIG if rule.icmp else None
    return Treatment(f"lost: mtu {rule.mtu}", Drop.IMPAIRED_MTU, answer, rule.mtu)
