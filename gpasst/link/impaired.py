"""A link with weather: rules of impairment between the link and everything else.

Theory of operation: each direction has an engine (`gpasst.impair.engine`), which is offered what crosses and answers
with what leaves now. Both are out of the way while they have nothing to do:

1. To the guest, the writes of the link are diverted here (`gpasst.link.port.divert`) while rules are in force or frames
   are held. A run that no rule is about, or that leaves whole and unchanged, is written by the link's own method.
2. From the guest, the reader asks `take` about each frame while `link.gate` is set. A frame that no rule is about is
   joined with those that repeat it, as ever; one that leaves at once and unchanged is carried where it lies.
3. Everything else is copied, as its superframe. Parts of it that leave are cut (`gpasst.packet.superframe`), changed
   (`gpasst.packet.alteration`), and written to the link, or carried by the reader as if they had just been read.
4. One deadline waits for what the engines hold. A turn of it lasts about half a millisecond; the rest has its own.
   Where turns follow each other closely, each is put off a little, so that it lets go of several frames: waking for
   each costs as much as carrying it.

A frame from the guest is recorded when it has been read, one to the guest when the link has taken it, and one that is
lost with its fate. A receiver drops a frame with a wrong checksum; the proxy, which looks at none, drops one here that
was changed so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gpasst.counters import Counters, Drop
from gpasst.impair.action import PASS, Action, Answer
from gpasst.impair.active import ActiveRule
from gpasst.impair.engine import Engine
from gpasst.impair.facts import Flow, Run
from gpasst.impair.log import FateLog
from gpasst.impair.rule import Rule
from gpasst.link.flows import Flows
from gpasst.link.held import Item
from gpasst.link.port import FREE, PASSED, TAKEN, ImpairableLink, RunHeader, divert
from gpasst.packet.alteration import corrupt, mark_congestion, protected
from gpasst.packet.superframe import VIRTIO
from gpasst.wire import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC

TO_GUEST: Final = "guest"
TO_HOST: Final = "host"
TURN_SECONDS = 0.0005  # of releasing, after which others have their turn
ACTIONS_PER_LOOK = 16  # at the clock
BUSY_SECONDS = 0.0005  # between two turns that follow each other closely
PUT_OFF_SECONDS = 0.00008
ANSWERS_WAITING = 256  # to be given in one turn; more are not given

LOGS_KEPT = 16  # of rules that have ended

_GSO_TYPE = VIRTIO_NET_CODEC.offset("gso_type")


class Deadline(Protocol):
    """An entry of the proxy's timers."""

    when: float

    def cancel(self) -> None:
        """Call no more."""


class Reader(Protocol):
    """What carries the frames of the guest: the reader of the link."""

    def caught_up(self) -> bool:
        """Let frames that came before be carried; return whether they have been."""

    def inject(self, data: bytes) -> None:
        """Carry a frame or superframe, given with its virtio-net header, as if it had just been read."""

    def settle(self) -> None:
        """Do what follows from frames that were injected."""


class Answers(Protocol):
    """What a rule does beside the link."""

    def answer(self, kind: Answer, flow: Flow, to_guest: bool, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost.

        :param frame: from the destination MAC address on.
        :param mtu: bytes of an IP packet, of `Answer.TOO_BIG`.
        """

    def rebind(self, flow: Flow, to_guest: bool) -> None:
        """Let the host's end of a flow have another port from now on."""


class Impaired:
    """Weather between a link and everything else.

    :param link: the link.
    :param reader: carries the frames of the guest.
    :param answers: does what rules do beside the link.
    :param at: calls a function once at a time; the function gets the present time.
    :param offloads: whether frames of the guest have virtio-net headers.
    :param counters: where drops are counted.
    :param clock: returns monotonic seconds, those of `at`.
    :param failed: takes an internal error, which costs the part of a run that met it.
    :param stopwatch: returns seconds, for the budget of a turn.
    """

    def __init__(
        self,
        link: ImpairableLink,
        reader: Reader,
        answers: Answers,
        at: Callable[[float, Callable[[float], None]], Deadline],
        offloads: bool,
        counters: Counters,
        clock: Callable[[], float],
        failed: Callable[[Exception], None],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link = link
        self._reader = reader
        self._answers = answers
        self._at = at
        self._offloads = offloads
        self._counters = counters
        self._clock = clock
        self._failed = failed
        self._stopwatch = stopwatch
        self._write_run, self._write_bare, self._write_frame = link.write_run, link.write_bare, link.write_frame
        self._flows = Flows()
        self._up, self._down = Engine(TO_GUEST), Engine(TO_HOST)
        self._ended: deque[FateLog] = deque(maxlen=LOGS_KEPT)
        self._closed = False
        self._released = self._put_off = 0.0
        self._diverts = False
        self._deadline: Deadline | None = None
        self._answering: list[Callable[[], None]] = []
        self._aside = False  # while answers are written, which are subject to no rule

    # --- Rules ------------------------------------------------------------------------------------------------------

    def add(self, rule: Rule, seed: int) -> list[ActiveRule]:
        """Put a rule in force, behind those that are; return it once for each of its directions."""
        engines = [engine for engine in (self._up, self._down) if rule.to in ("", engine.towards)]
        added = [engine.add(rule, seed) for engine in engines]
        self._switch()
        return added

    def remove(self, rules: Iterable[ActiveRule]) -> None:
        """End rules. What they hold leaves at once, in order; those that have ended are ignored."""
        for rule in rules:
            if not rule.removed:
                self._ended.append(rule.log)
            for engine in (self._up, self._down):
                engine.remove(rule)
        self._release(self._clock())

    def after(self, seconds: float, change: Callable[[], None]) -> None:
        """Call a function once, after so many seconds, unless this is closed before."""
        self._at(self._clock() + seconds, lambda _: None if self._closed else change())

    def logs(self) -> list[FateLog]:
        """Return the logs of the rules in force, and of the last that have ended."""
        return [*self._ended, *(rule.log for engine in (self._up, self._down) for rule in engine.rules)]

    def close(self) -> None:
        """End all rules, and forget what is held."""
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._up, self._down = Engine(TO_GUEST), Engine(TO_HOST)
        self._answering.clear()
        self._switch()

    def _switch(self) -> None:
        """Stand between the link and the rest where that is needed, and nowhere else."""
        up = bool(self._up.rules) or self._up.next_due is not None
        if up != self._diverts:
            self._diverts = up
            divert(self._link, self if up else None)
        self._link.gate = self if self._down.rules or self._down.next_due is not None else None

    # --- To the guest -----------------------------------------------------------------------------------------------

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Take a run that is written to the link."""
        buffer = header.buffer
        flow, flags = self._flows.find(buffer, 0, len(buffer))
        if self._aside or not self._up.concerns(flow):
            self._write_run(header, total, segment, payload)
            return
        count = -(-total // segment) if total else 1
        size = header.size
        last = size + total - (count - 1) * segment
        item = Item(
            lambda: self._link.superframe(header, total, segment, payload), True, VIRTIO + size, header.protocol
        )
        if not self._offer(Run(flow, item, size + segment if count > 1 else last, last, count, flags, item.parsed)):
            self._write_run(header, total, segment, payload)

    def write_bare(self, header: RunHeader) -> None:
        """Take a frame without payload that is written to the link."""
        buffer, size = header.buffer, header.size
        flow, flags = self._flows.find(buffer, 0, len(buffer))
        if self._up.concerns(flow) and not self._aside:
            item = Item(lambda: bytes(header.fill(0, 0)), True, VIRTIO + size, header.protocol)
            if self._offer(Run(flow, item, size, flags=flags, parsed=item.parsed)):
                return
        self._write_bare(header)

    def write_frame(self, frame: bytes) -> None:
        """Take a complete frame that is written to the link."""
        data = VIRTIO_NET_BLANK + frame
        flow, flags = self._flows.find(data, 0, len(data))
        if self._up.concerns(flow) and not self._aside:
            item = Item(lambda: data, True, len(data))
            if self._offer(Run(flow, item, len(frame), flags=flags, parsed=item.parsed)):
                self._link.flush()
                return
        self._write_frame(frame)

    def _offer(self, run: Run) -> bool:
        """Offer a run to the engine of the guest's direction; return whether nothing is left to do with it."""
        actions = self._up.offer(run, self._clock())
        if _unchanged(actions, run):
            return False
        run.item.keep()
        self._do_all(actions)
        self._arm()
        return True

    # --- From the guest ---------------------------------------------------------------------------------------------

    def take(self, buffer: memoryview, at: int, end: int) -> int:
        """Return what becomes of a frame of the guest; see `gpasst.link.port.Gate.take`."""
        flow, flags = self._flows.find(buffer, at, end)
        if not self._down.concerns(flow):
            return FREE
        bare = at + VIRTIO
        if self._offloads:
            item = Item(lambda: bytes(buffer[at:end]), False)
        else:
            item = Item(lambda: VIRTIO_NET_BLANK + buffer[bare:end], False)
        if self._offloads and buffer[at + _GSO_TYPE]:
            item.keep()
            whole = item.shape
            last = len(item.data) - (whole.count - 1) * whole.size - VIRTIO
            length = whole.payload - VIRTIO + whole.size if whole.count > 1 else last
            run = Run(flow, item, length, last, whole.count, flags, item.parsed)
        else:
            run = Run(flow, item, end - bare, flags=flags, parsed=item.parsed)
        actions = self._down.offer(run, self._clock())
        if _unchanged(actions, run):
            return PASSED
        item.keep()
        if self._link.recorder is not None:
            self._record(run, actions)
        self._do_all(actions, run)
        self._arm()
        return TAKEN

    def _record(self, run: Run, actions: list[Action]) -> None:
        """Record a run of the guest, which has been read: lost parts apart, with their fates."""
        recorder, item, at = self._link.recorder, run.item, 0
        assert recorder is not None
        for action in actions:
            if action.run is run and action.treatment.lost:
                if action.first > at:
                    recorder.write(False, item.part(at, action.first, run.count))
                part = item.part(action.first, action.stop, run.count)
                recorder.write(False, part, comment=action.treatment.lost)
                at = action.stop
        if at < run.count:
            recorder.write(False, item.part(at, run.count, run.count))

    # --- Both ways --------------------------------------------------------------------------------------------------

    def _do_all(self, actions: list[Action], fresh: Run | None = None) -> None:
        """Do what an engine has decided.

        :param fresh: a run whose lost parts have been recorded.
        """
        for action in actions:
            try:
                self._do(action, action.run is fresh)
            except Exception as error:
                self._failed(error)

    def _do(self, action: Action, recorded: bool) -> None:
        run, first, stop, treatment = action
        item: Item = run.item
        data = item.part(first, stop, run.count)
        count, to_guest = stop - first, item.to_guest
        if treatment.rebind and to_guest:
            # It comes from the socket that would be exchanged.
            self._answer(lambda: self._answers.rebind(run.flow, True))
        elif treatment.rebind:
            self._answers.rebind(run.flow, False)
        if treatment.drop is not None:
            self._counters.drop(treatment.drop, count)
            if self._link.recorder is not None and not recorded:
                self._link.recorder.write(to_guest, data, comment=treatment.lost)
            if (kind := treatment.answer) is not None:
                frame, mtu = item.frame(first), treatment.mtu
                self._answer(lambda: self._answers.answer(kind, run.flow, to_guest, frame, mtu))
            return
        if treatment.corrupt >= 0:
            data = corrupt(data, treatment.corrupt, treatment.payload)
            if not to_guest and not treatment.payload and protected(data):
                self._counters.drop(Drop.CHECKSUM)
                return
        if treatment.mark:
            data = mark_congestion(data)
        if to_guest:
            self._link.write_held(data, count, item.head, run.flow.family, item.protocol)
        else:
            self._reader.inject(data)

    def _answer(self, answer: Callable[[], None]) -> None:
        """Let an answer be given in a turn of its own, soon."""
        if not self._answering:
            self._at(self._clock(), self._answer_all)
        if len(self._answering) < ANSWERS_WAITING:
            self._answering.append(answer)

    def _answer_all(self, now: float) -> None:
        answering, self._answering = self._answering, []
        self._aside = True
        try:
            for answer in answering:
                try:
                    answer()
                except Exception as error:
                    self._failed(error)
        finally:
            self._aside = False
            self._link.flush()

    def _arm(self) -> None:
        """Wait for the earliest of what is held."""
        up, down = self._up.next_due, self._down.next_due
        due = down if up is None or (down is not None and down < up) else up
        armed = self._deadline
        if due is None:
            return
        due += self._put_off
        if armed is not None and armed.when <= due:
            return
        if armed is not None:
            armed.cancel()
        self._deadline = self._at(due, self._release)

    def _release(self, now: float) -> None:
        """Let go of what is due at `now`, for `TURN_SECONDS`."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._put_off = PUT_OFF_SECONDS if now - self._released < BUSY_SECONDS else 0.0
        self._released = now
        until = self._stopwatch() + TURN_SECONDS
        try:
            if self._release_from(self._up, now, until):
                self._link.flush()
            due = self._down.next_due
            if due is not None and due <= now:
                # Frames of the guest that came before go first.
                if self._reader.caught_up():
                    self._release_from(self._down, now, until)
                self._reader.settle()
        finally:
            self._switch()
            self._arm()

    def _release_from(self, engine: Engine, now: float, until: float) -> bool:
        """Let go of what an engine has to return by `now`, until a time of the stopwatch; return whether it had any."""
        any_due = False
        while (due := engine.next_due) is not None and due <= now:
            any_due = True
            self._do_all(engine.due(now, ACTIONS_PER_LOOK))
            if self._stopwatch() >= until:
                break
        return any_due


def _unchanged(actions: list[Action], run: Run) -> bool:
    """Return whether a run leaves at once, whole and as it is, and nothing else does."""
    if len(actions) != 1:
        return False
    ((leaving, first, stop, treatment),) = actions
    return leaving is run and treatment is PASS and stop - first == run.count
