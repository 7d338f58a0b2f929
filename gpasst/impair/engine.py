"""The engine of one direction of one link: rules in, runs of frames in, actions out.

Theory of operation:

1. `Engine.offer` asks the rules in their order. The first rule whose match fits a frame decides its fate. Frames of one
   fate that follow each other stay together, so a superframe crosses whole, or in few parts, where its rules allow.
2. What leaves later stands in one heap by time, and then by the order of its offer. `Engine.due` returns what has come
   up; `Engine.next_due` says when that will be.
3. A rule that is removed lets go of what it holds: that is overdue at once, in the order in which it was offered. While
   anything is overdue, what is offered goes behind it.

NOTE: all that is held together is limited in number and in bytes; frames beyond are lost with a reason of their own.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from gpasst.impair.action import FULL, LOST, PASS, Action, Treatment
from gpasst.impair.chance import Sequence, threshold
from gpasst.impair.facts import UNNAMED, Flow, Run
from gpasst.impair.rule import SECOND, Rule

HELD_PARTS: Final = 32768
HELD_BYTES: Final = 64 << 20
FLOWS_REMEMBERED: Final = 4096
ACTIONS_PER_STEP: Final = 128  # about as many as frames are read in one step of the tap


class ActiveRule:
    """A rule in force, in one direction of one link.

    :ivar rule: the rule.
    :ivar seed: what its chance depends on.
    :ivar hits: frames that it has matched; a superframe counts as the frames that it stands for.
    """

    def __init__(self, rule: Rule, seed: int, towards: str) -> None:
        self.rule = rule
        self.seed = seed
        self.hits = 0
        self.removed = False
        self._loss = Sequence(repr(rule), seed, "loss")
        self._lost_below = threshold(rule.loss)

    def concerns(self, flow: Flow) -> bool:
        """Return whether the rule may match frames of a flow."""
        rule = self.rule
        if rule.partition:
            return True
        if flow.protocol not in (rule.protocols or UNNAMED):
            return False
        return not rule.dport or any(first <= flow.dport <= last for first, last in rule.dport)

    def judge(self, part: _Part) -> list[_Part]:
        """Return the parts that a part falls into by the fates of its frames."""
        n, self.hits = self.hits, self.hits + part.stop - part.first
        if self.rule.partition:
            part.treatment = LOST
            return [part]
        if not self._lost_below:
            part.wait, part.holder = self.rule.delay, self
            return [part]
        parts: list[_Part] = []
        at = part.first
        fate = None
        for index in range(part.first, part.stop):
            n += 1
            lost = self._loss.number(n) < self._lost_below
            if lost != fate:
                if fate is not None:
                    parts.append(self._part(part.run, at, index, fate))
                at, fate = index, lost
        parts.append(self._part(part.run, at, part.stop, bool(fate)))
        return parts

    def _part(self, run: Run, first: int, stop: int, lost: bool) -> _Part:
        return _Part(run, first, stop, LOST, 0, self) if lost else _Part(run, first, stop, PASS, self.rule.delay, self)


class _Part:
    """Part of a run, on its way."""

    __slots__ = ("first", "holder", "order", "run", "stop", "treatment", "wait")

    def __init__(
        self, run: Run, first: int, stop: int, treatment: Treatment, wait: int, holder: ActiveRule | None
    ) -> None:
        self.run = run
        self.first = first
        self.stop = stop
        self.treatment = treatment
        self.wait = wait
        self.holder = holder
        self.order = 0

    @property
    def size(self) -> int:
        return self.run.frame_bytes(self.first, self.stop)


class Engine:
    """The rules of one direction of one link, and the frames that they hold.

    It belongs to one thread and one event loop. Times are seconds of one clock that never goes back.

    :param towards: the direction's name, ``"guest"`` or ``"host"`` on the link of a namespace.
    """

    def __init__(self, towards: str) -> None:
        self.towards = towards
        self.rules: list[ActiveRule] = []
        self._concerned: dict[Flow, tuple[ActiveRule, ...]] = {}
        self._heap: list[tuple[float, int, _Part]] = []
        self._overdue: deque[_Part] = deque()
        self._order = 0
        self._bytes = 0

    def add(self, rule: Rule, seed: int) -> ActiveRule:
        """Put a rule in force, behind those that are.

        :param rule: a rule of this direction, or of both.
        :param seed: what its chance depends on.
        """
        active = ActiveRule(rule, seed, self.towards)
        self.rules.append(active)
        self._concerned.clear()
        return active

    def remove(self, active: ActiveRule) -> None:
        """End a rule. What it holds is due at once, in the order in which it was offered: see `due`."""
        if active.removed:
            return
        active.removed = True
        self.rules.remove(active)
        self._concerned.clear()
        released = [entry for entry in self._heap if entry[2].holder is active]
        if released:
            self._heap = [entry for entry in self._heap if entry[2].holder is not active]
            heapq.heapify(self._heap)
            released.sort(key=lambda entry: entry[1])
            self._overdue += [part for _, _, part in released]

    def concerns(self, flow: Flow) -> bool:
        """Return whether any rule may match frames of a flow; where none may, they need not be offered.

        While frames wait that a rule has let go of, every flow has to be offered, so that none overtakes.
        """
        return bool(self._overdue or self._concerning(flow))

    def offer(self, run: Run, now: float) -> list[Action]:
        """Return what leaves at once of a frame or a superframe; the rest is held.

        :param run: the frames.
        :param now: seconds.
        """
        parts = [_Part(run, 0, run.count, PASS, 0, None)]
        for active in self._concerning(run.flow):
            parts = active.judge(parts[0])
            break
        actions: list[Action] = []
        for part in parts:
            if part.treatment.lost:
                actions.append(Action(run, part.first, part.stop, part.treatment))
            elif part.wait or self._overdue:
                self._hold(part, now, actions)
            else:
                actions.append(Action(run, part.first, part.stop, part.treatment))
        return actions

    @property
    def next_due(self) -> float | None:
        """When `due` has something to return, in seconds; None while nothing is held."""
        if self._overdue:
            return 0.0
        return self._heap[0][0] if self._heap else None

    def due(self, now: float, most: int = ACTIONS_PER_STEP) -> list[Action]:
        """Return what leaves by now.

        :param now: seconds.
        :param most: actions to return; where there are more, `next_due` is not later than `now`.
        """
        actions: list[Action] = []
        while self._overdue and len(actions) < most:
            self._release(self._overdue.popleft(), actions)
        while self._heap and self._heap[0][0] <= now and len(actions) < most:
            self._release(heapq.heappop(self._heap)[2], actions)
        return actions

    def _concerning(self, flow: Flow) -> tuple[ActiveRule, ...]:
        found = self._concerned.get(flow)
        if found is None:
            if len(self._concerned) >= FLOWS_REMEMBERED:
                self._concerned.clear()
            found = self._concerned[flow] = tuple(active for active in self.rules if active.concerns(flow))
        return found

    def _hold(self, part: _Part, now: float, actions: list[Action]) -> None:
        size = part.size
        if len(self._heap) + len(self._overdue) >= HELD_PARTS or self._bytes + size > HELD_BYTES:
            actions.append(Action(part.run, part.first, part.stop, FULL))
            return
        self._bytes += size
        self._order += 1
        if part.wait:
            heapq.heappush(self._heap, (now + part.wait / SECOND, self._order, part))
        else:
            self._overdue.append(part)

    def _release(self, part: _Part, actions: list[Action]) -> None:
        self._bytes -= part.size
        actions.append(Action(part.run, part.first, part.stop, part.treatment))
