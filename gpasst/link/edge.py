"""An edge: one direction of one link with weather.

Theory of operation: an edge has an engine (`gpasst.impair.engine`), which is offered what crosses and answers with what
leaves now, and an outlet, where that goes. It does what the engine has decided:

1. What leaves whole and unchanged is left to the caller, who carries it where it lies (`Edge.offer`).
2. Everything else is copied, as its superframe. Parts of it that leave are cut (`gpasst.packet.superframe`), changed
   (`gpasst.packet.alteration`), and handed to the outlet; parts that are lost are counted, and shown to it.
3. One deadline waits for what the engine holds. A turn of it lasts about half a millisecond; the rest has its own.
   Where turns follow each other closely, each is put off a little, so that it lets go of several frames: waking for
   each costs as much as carrying it.
4. Answers to senders of lost frames are given in a turn of their own, soon (`AnswerQueue`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gpasst.counters import Counters
from gpasst.impair.action import PASS, Action, Answer
from gpasst.impair.active import ActiveRule
from gpasst.impair.engine import Engine
from gpasst.impair.facts import Flow, Run
from gpasst.link.held import Item
from gpasst.link.recorder import Recorder
from gpasst.packet.alteration import corrupt, mark_congestion
from gpasst.records import dataclass

TURN_SECONDS: Final = 0.0005  # of releasing, after which others have their turn
ACTIONS_PER_LOOK: Final = 16  # at the clock
BUSY_SECONDS: Final = 0.0005  # between two turns that follow each other closely
PUT_OFF_SECONDS: Final = 0.00008
ANSWERS_WAITING: Final = 256  # to be given in one turn; more are not given
LOGS_KEPT: Final = 16  # of rules that have ended


class Deadline(Protocol):
    """An entry of the timers."""

    when: float

    def cancel(self) -> None:
        """Call no more."""


@dataclass(frozen=True, slots=True)
class Means:
    """What edges work with.

    :ivar at: calls a function once at a time; the function gets the present time.
    :ivar counters: where drops are counted.
    :ivar clock: returns monotonic seconds, those of `at`.
    :ivar failed: takes an internal error, which costs the part of a run that met it.
    :ivar stopwatch: returns seconds, for the budget of a turn.
    """

    at: Callable[[float, Callable[[float], None]], Deadline]
    counters: Counters
    clock: Callable[[], float]
    failed: Callable[[Exception], None]
    stopwatch: Callable[[], float] = time.perf_counter


class Outlet(Protocol):
    """Where an edge leads to."""

    def keep(self, run: Run, actions: list[Action]) -> None:
        """Take note of a run that was offered just now and does not leave as it is.

        :param actions: what is about to be done with it, and with others.
        """

    def leave(self, run: Run, data: bytes, count: int, damaged: bool) -> None:
        """Carry what leaves.

        :param run: the run that it is a part of.
        :param data: its virtio-net header and the frame.
        :param count: how many frames it is.
        :param damaged: whether a bit is wrong, which a checksum may show.
        """

    def lose(self, run: Run, data: bytes, fate: str, fresh: bool) -> None:
        """Record what is lost.

        :param fate: why, in words.
        :param fresh: whether it belongs to a run that was noted just now (`keep`).
        """

    def answer(self, kind: Answer, flow: Flow, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost.

        :param frame: from the destination MAC address on.
        :param mtu: bytes of an IP packet, of `Answer.TOO_BIG`.
        """

    def rebind(self, flow: Flow) -> None:
        """Let the host's end of a flow have another port from now on."""

    def caught_up(self) -> bool:
        """Let what came before be carried; return whether it has been, so that what was held may leave."""

    def settle(self) -> None:
        """Do what follows from what has left in a turn."""

    def changed(self) -> None:
        """Take note that there may be nothing left to do here, or something again."""


class AnswerQueue:
    """Answers that wait for their turn: they are not given in the midst of the step that lost the frame.

    :param means: what it works with.
    :param given: called when the answers of a turn have been given.
    :ivar giving: whether answers are given now, which are subject to no rule.
    """

    def __init__(self, means: Means, given: Callable[[], object]) -> None:
        self._means = means
        self._given = given
        self._waiting: list[Callable[[], None]] = []
        self.giving = False

    def put(self, answer: Callable[[], None]) -> None:
        """Let an answer be given soon."""
        if not self._waiting:
            self._means.at(self._means.clock(), self._give)
        if len(self._waiting) < ANSWERS_WAITING:
            self._waiting.append(answer)

    def clear(self) -> None:
        """Forget the answers that wait."""
        self._waiting.clear()

    def _give(self, now: float) -> None:
        waiting, self._waiting = self._waiting, []
        self.giving = True
        try:
            for answer in waiting:
                try:
                    answer()
                except Exception as error:
                    self._means.failed(error)
        finally:
            self.giving = False
            self._given()


class Edge:
    """One direction of one link with weather.

    :param engine: its rules, and what they hold.
    :param outlet: where it leads to.
    :param answers: the answers to senders of lost frames.
    :param means: what it works with.
    :ivar engine: as above.
    """

    def __init__(self, engine: Engine, outlet: Outlet, answers: AnswerQueue, means: Means) -> None:
        self.engine = engine
        self._outlet = outlet
        self._answers = answers
        self._means = means
        self._counters, self._clock, self._stopwatch = means.counters, means.clock, means.stopwatch
        self._released = self._put_off = 0.0
        self._deadline: Deadline | None = None
        self._closed = False

    @property
    def active(self) -> bool:
        """Whether rules are in force here, or anything is held."""
        return bool(self.engine.rules) or self.engine.next_due is not None

    def remove(self, rules: Iterable[ActiveRule]) -> None:
        """End rules. What they hold leaves at once, in order; those of other edges are ignored."""
        if self._closed:
            return
        for rule in rules:
            self.engine.remove(rule)
        self._release(self._clock())

    def close(self) -> None:
        """End all rules, and forget what is held."""
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.engine.forget()

    def offer(self, run: Run) -> bool:
        """Offer a run; return whether nothing is left to do with it, else it goes on whole and unchanged, now."""
        actions = self.engine.offer(run, self._clock())
        if len(actions) == 1:
            ((leaving, first, stop, treatment),) = actions
            if leaving is run and treatment is PASS and stop - first == run.count:
                return False
        run.item.keep()
        self._outlet.keep(run, actions)
        self._do_all(actions, run)
        self._arm()
        return True

    def _do_all(self, actions: list[Action], fresh: Run | None = None) -> None:
        """Do what the engine has decided.

        :param fresh: a run that was noted just now.
        """
        for action in actions:
            try:
                self._do(action, action.run is fresh)
            except Exception as error:
                self._means.failed(error)

    def _do(self, action: Action, fresh: bool) -> None:
        run, first, stop, treatment = action
        outlet = self._outlet
        item: Item = run.item
        data = item.part(first, stop, run.count)
        count = stop - first
        if treatment.rebind:
            outlet.rebind(run.flow)
        if treatment.drop is not None:
            self._counters.drop(treatment.drop, count)
            outlet.lose(run, data, treatment.lost, fresh)
            if (kind := treatment.answer) is not None:
                frame, mtu = item.frame(first), treatment.mtu
                self._answers.put(lambda: outlet.answer(kind, run.flow, frame, mtu))
            return
        if treatment.corrupt >= 0:
            data = corrupt(data, treatment.corrupt, treatment.payload)
        if treatment.mark:
            data = mark_congestion(data)
        outlet.leave(run, data, count, treatment.corrupt >= 0 and not treatment.payload)

    def _arm(self) -> None:
        """Wait for the earliest of what is held."""
        due, armed = self.engine.next_due, self._deadline
        if due is None:
            return
        due += self._put_off
        if armed is not None and armed.when <= due:
            return
        if armed is not None:
            armed.cancel()
        self._deadline = self._means.at(due, self._release)

    def _release(self, now: float) -> None:
        """Let go of what is due at `now`, for `TURN_SECONDS`."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._put_off = PUT_OFF_SECONDS if now - self._released < BUSY_SECONDS else 0.0
        self._released = now
        try:
            due = self.engine.next_due
            if due is not None and due <= now:
                if self._outlet.caught_up():
                    self._release_due(now)
                self._outlet.settle()
        finally:
            self._outlet.changed()
            self._arm()

    def _release_due(self, now: float) -> None:
        engine, until = self.engine, self._stopwatch() + TURN_SECONDS
        while (due := engine.next_due) is not None and due <= now:
            self._do_all(engine.due(now, ACTIONS_PER_LOOK))
            if self._stopwatch() >= until:
                return


def record_offered(recorder: Recorder, run: Run, actions: list[Action], link: str = "") -> None:
    """Record a run that its sender has sent: lost parts apart, with their fates.

    :param actions: what is done with it, and with others.
    :param link: name of the link, of those of a switch.
    """
    item, at = run.item, 0
    for action in actions:
        if action.run is run and action.treatment.lost:
            if action.first > at:
                recorder.write(item.to_guest, item.part(at, action.first, run.count), link=link)
            part = item.part(action.first, action.stop, run.count)
            recorder.write(item.to_guest, part, comment=action.treatment.lost, link=link)
            at = action.stop
    if at < run.count:
        recorder.write(item.to_guest, item.part(at, run.count, run.count), link=link)
