"""The engine of one direction of one link: rules in, runs of frames in, actions out.

Theory of operation:

1. `Engine.offer` asks the rules in their order. The first rule that matches a frame decides its fate, unless the rule
   says ``continue``. Frames of one fate that follow each other stay together, so a superframe crosses whole, or in few
   parts, where its rules allow.
2. A part that passes takes the steps of its rules, one after the other: it lets others pass it, waits for its turn at a
   rate, and waits for a time (`gpasst.impair.hold`). All fates are decided when a frame is offered, so no fate but
   that of a full queue depends on time.
3. What leaves later stands in one heap by time. `Engine.due` returns what has come up; `Engine.next_due` says when that
   will be.
4. A rule that is removed lets go of what it holds: that is overdue at once, in the order in which it came to the rule.
   While anything is overdue, what is offered goes behind it.

NOTE: all that is held together is limited in frames and in bytes, and so is what several engines hold that share a
`Room`; frames beyond are lost with a reason of their own. An offer takes time in proportion to its frames and the rules
that match its flow; what is held adds a logarithm.
"""

from __future__ import annotations

import heapq
from collections import deque
from operator import itemgetter
from typing import Final

from gpasst.counters import Drop
from gpasst.impair.action import PASS, Action, Treatment
from gpasst.impair.active import ActiveRule
from gpasst.impair.facts import LINK, Flow, Place, Run
from gpasst.impair.fate import HELD_FULL, QUEUE_FULL
from gpasst.impair.hold import BEHIND_SECONDS, PASSING, QUEUE, WAIT, Holder, Part, Room
from gpasst.impair.rule import SECOND, Rule

HELD_FRAMES: Final = 32768
HELD_BYTES: Final = 64 << 20
FLOWS_REMEMBERED: Final = 4096
ACTIONS_PER_STEP: Final = 128  # about as many as frames are read in one step of the tap

_Entry = tuple[float, int, Part, int]  # when it is due, the order in which its step began, the part, the step
_SERIAL: Final = itemgetter(1)  # of an entry
_QUEUE_FULL: Final = Treatment(str(QUEUE_FULL), Drop.IMPAIRMENT_QUEUE)
_HELD_FULL: Final = Treatment(str(HELD_FULL), Drop.IMPAIRMENT_FULL)


class Engine:
    """The rules of one direction of one link, and the frames that they hold.

    It belongs to one thread and one event loop. Times are seconds of one clock that never goes back.

    :param towards: the direction, `TO_GUEST` or `TO_HOST`. Fates depend on its name, so a rule of both directions has
        fates of its own in each.
    :param place: the link.
    :param room: what it may hold together with others, None for no such limit.
    :ivar towards: the direction.
    :ivar rules: the rules in force, in their order.
    :ivar frames_held: frames that are held now, at most `HELD_FRAMES`.
    :ivar bytes_held: bytes of the runs that they belong to, at most `HELD_BYTES`: a run is in memory as a whole.
    """

    def __init__(self, towards: str, place: Place = LINK, room: Room | None = None) -> None:
        self.towards = towards
        self._place = place
        self._room = room
        self.rules: list[ActiveRule] = []
        self._concerned: dict[Flow, tuple[ActiveRule, ...]] = {}
        self._heap: list[_Entry] = []
        self._overdue: deque[Part] = deque()
        self._serial = 0
        self.frames_held = 0
        self.bytes_held = 0

    def add(self, rule: Rule, seed: int) -> ActiveRule:
        """Put a rule in force, behind those that are.

        :param rule: a rule of this direction, or of both.
        :param seed: what its chance depends on.
        """
        active = ActiveRule(rule, seed, self.towards, self._place)
        self.rules.append(active)
        self._concerned.clear()
        return active

    def remove(self, active: ActiveRule) -> None:
        """End a rule. What it holds is due at once, in the order in which it came to the rule: see `due`.

        A rule that is not in force is ignored.
        """
        if active not in self.rules:
            return
        active.removed = True
        self.rules.remove(active)
        self._concerned.clear()
        waiting: list[_Entry] = []
        behind: list[_Entry] = []
        kept: list[_Entry] = []
        for entry in self._heap:
            _, _, part, step = entry
            if part.step == step:
                holder, kind, _ = part.steps[step - 1]
                if holder is not active:
                    kept.append(entry)
                elif kind != QUEUE:
                    (waiting if kind == WAIT else behind).append(entry)
        heapq.heapify(kept)
        self._heap = kept
        # The later step has what came first.
        self._overdue += [part for _, _, part, _ in sorted(waiting, key=_SERIAL)]
        if active.queue is not None:
            self._overdue += active.queue.parts
        self._overdue += [part for _, _, part, _ in sorted(behind, key=_SERIAL)]

    def forget(self) -> None:
        """End all rules, and what they hold with them."""
        self.rules.clear()
        self._concerned.clear()
        self._heap.clear()
        self._overdue.clear()
        if self._room is not None:
            self._room.give(self.frames_held, self.bytes_held)
        self.frames_held = self.bytes_held = 0

    def concerns(self, flow: Flow) -> bool:
        """Return whether any rule may match frames of a flow; where none may, they need not be offered.

        While frames wait that a rule has let go of, every flow has to be offered, so that none overtakes.
        """
        return bool(self._overdue or self._concerning(flow))

    def offer(self, run: Run, now: float) -> list[Action]:
        """Return what leaves at once of a frame or a superframe, and of what it has let pass; the rest is held.

        :param run: the frames.
        :param now: seconds.
        """
        parts = [Part(run, 0, run.count, PASS)]
        for active in self._concerned.get(run.flow) or self._concerning(run.flow):
            if len(parts) == 1 and not parts[0].open:
                break
            judged: list[Part] = []
            for part in parts:
                if part.open:
                    active.judge(part, now, judged)
                else:
                    judged.append(part)
            parts = judged
        actions: list[Action] = []
        for part in parts:
            if part.steps or self._overdue:
                self._advance(part, now, actions, bool(self._overdue))
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
        :param most: parts to look at; where there are more, `next_due` is not later than `now`. A part that goes on
            waiting is no action.
        """
        actions: list[Action] = []
        while self._overdue and most > 0:
            most -= 1
            self._advance(self._overdue.popleft(), now, actions, False)
        while self._heap and self._heap[0][0] <= now and most > 0:
            most -= 1
            at, _, part, step = heapq.heappop(self._heap)
            if part.step != step:
                continue
            active, kind, _ = part.steps[step - 1]
            if kind == QUEUE:
                assert active.queue is not None
                active.queue.end()
                self._serve(active, at)
            self._advance(part, at, actions, bool(self._overdue))
        return actions

    def _concerning(self, flow: Flow) -> tuple[ActiveRule, ...]:
        found = self._concerned.get(flow)
        if found is None:
            if len(self._concerned) >= FLOWS_REMEMBERED:
                self._concerned.clear()
            found = self._concerned[flow] = tuple(active for active in self.rules if active.concerns(flow))
        return found

    def _advance(self, part: Part, at: float, actions: list[Action], behind: bool) -> None:
        """Take a part to its next step, or let it leave; and with it those that it passes.

        :param at: when its last step ended.
        :param behind: whether it leaves behind what is overdue.
        """
        going = [part]
        while going:
            passing = self._step(going.pop(), at, actions, behind)
            going += reversed(passing)

    def _step(self, part: Part, at: float, actions: list[Action], behind: bool) -> list[Part]:
        """Do what `_advance` does; return what goes on with its steps behind one where it passes others, in order."""
        steps = part.steps
        while part.step < len(steps):
            active, kind, number = steps[part.step]
            part.step += 1
            if active.removed:
                continue
            if kind == PASSING:
                if not active.behind or active.behind[0][0] >= number + part.stop:
                    continue
                return self._passing(active, part, number)
            if not (part.order or self._hold(part)):
                self._lose(part, _HELD_FULL, actions)
            elif kind == WAIT:
                due = at + number / SECOND
                if active.latest is not None:
                    due = active.latest = max(due, active.latest)
                self._serial += 1
                heapq.heappush(self._heap, (due, self._serial, part, part.step))
            elif kind == QUEUE:
                self._enter(active, part, at, actions)
            else:
                active.behind.append((number, part, part.step))
                self._push(at + BEHIND_SECONDS, part)
            return []
        part.step = len(steps) + 1
        if behind and not part.treatment.lost:
            if part.order or self._hold(part):
                self._overdue.append(part)
            else:
                self._lose(part, _HELD_FULL, actions)
            return []
        if part.order:
            self._let_go(part)
        actions.append(Action(part.run, part.first, part.stop, part.treatment))
        return []

    def _passing(self, active: Holder, part: Part, offset: int) -> list[Part]:
        """Return a part that passes, and each frame behind that has let as many pass as it had to, in order.

        :param offset: number of the rule's frame at index 0 of the run.
        """
        end = offset + part.stop
        going = []
        rest: Part | None = part
        while active.behind and active.behind[0][0] < end:
            number, waiting, step = active.behind.popleft()
            if waiting.step != step:
                continue
            before = number + 1 - offset
            if rest is not None and before > rest.first:
                passing, rest = rest, rest.cut(before) if before < rest.stop else None
                going.append(passing)
            going.append(waiting)
        if rest is not None:
            going.append(rest)
        return going

    def _enter(self, active: Holder, part: Part, at: float, actions: list[Action]) -> None:
        """Let a part wait for its turn at the rate of a rule."""
        queue = active.queue
        assert queue is not None
        idle = not queue.parts
        for dropped in queue.enter(part):
            _, _, offset = dropped.steps[dropped.step - 1]
            active.log.add(at, offset + dropped.first, dropped.frames, QUEUE_FULL, dropped.run, dropped.stop)
            self._lose(dropped, _QUEUE_FULL, actions)
        if idle:
            self._serve(active, at)

    def _serve(self, active: Holder, at: float) -> None:
        """Put what waits for the rate of a rule on the link."""
        queue = active.queue
        assert queue is not None
        if queue.parts:
            self._push(queue.begin(at), queue.parts[0])

    def _push(self, due: float, part: Part) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, part, part.step))

    def _hold(self, part: Part) -> bool:
        """Count a part as held that is not; return whether there is room."""
        frames = self.frames_held + part.stop - part.first
        run = part.run
        whole = run.length if run.count == 1 and not run.last else run.frame_bytes(0, run.count)
        size = 0 if run.held else whole
        if frames > HELD_FRAMES or self.bytes_held + size > HELD_BYTES:
            return False
        if self._room is not None and not self._room.take(part.frames, size, self.frames_held, self.bytes_held):
            return False
        self.frames_held = frames
        self.bytes_held += size
        run.held += part.frames
        part.size = whole if part.frames == run.count else run.frame_bytes(part.first, part.stop)
        self._serial += 1
        part.order = self._serial
        return True

    def _lose(self, part: Part, treatment: Treatment, actions: list[Action]) -> None:
        if part.order:
            self._let_go(part)
        actions.append(Action(part.run, part.first, part.stop, treatment))

    def _let_go(self, part: Part) -> None:
        """Count a part as held no more."""
        run = part.run
        self.frames_held -= part.frames
        run.held -= part.frames
        size = 0 if run.held else run.frame_bytes(0, run.count)
        self.bytes_held -= size
        if self._room is not None:
            self._room.give(part.frames, size)
