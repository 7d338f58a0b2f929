"""A link with weather: rules of impairment between the link and everything else.

Theory of operation: each direction is an edge (`gpasst.link.edge`). Both are out of the way while they have nothing to
do:

1. To the guest, the writes of the link are diverted here (`gpasst.link.port.divert`) while rules are in force or frames
   are held. A run that no rule is about, or that leaves whole and unchanged, is written by the link's own method.
2. From the guest, the reader asks `take` about each frame while `link.gate` is set. A frame that no rule is about is
   joined with those that repeat it, as ever; one that leaves at once and unchanged is carried where it lies.
3. What leaves later, or changed, is written to the link, or carried by the reader as if it had just been read.

A frame from the guest is recorded when it has been read, one to the guest when the link has taken it, and one that is
lost with its fate. A receiver drops a frame with a wrong checksum; the proxy, which looks at none, drops one here that
was changed so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from gpasst.counters import Counters, Drop
from gpasst.impair.action import Action, Answer
from gpasst.impair.active import ActiveRule
from gpasst.impair.engine import Engine
from gpasst.impair.facts import TO_GUEST, TO_HOST, Flow, Run
from gpasst.impair.log import FateLog
from gpasst.impair.rule import Rule
from gpasst.link.edge import LOGS_KEPT, AnswerQueue, Deadline, Edge, Means, record_offered
from gpasst.link.flows import Flows
from gpasst.link.held import Item, run_of
from gpasst.link.port import FREE, PASSED, TAKEN, ImpairableLink, RunHeader, divert
from gpasst.packet.alteration import protected
from gpasst.packet.superframe import VIRTIO
from gpasst.wire import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC

_GSO_TYPE = VIRTIO_NET_CODEC.offset("gso_type")


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
        means = Means(at, counters, clock, failed, stopwatch)
        self._link = link
        self._offloads = offloads
        self._at, self._clock = at, clock
        self._write_run, self._write_bare, self._write_frame = link.write_run, link.write_bare, link.write_frame
        self._flows = Flows()
        self._answers = queue = AnswerQueue(means, link.flush)
        self._up = Edge(Engine(TO_GUEST), _Up(link, answers, queue, self._switch), queue, means)
        self._down = Edge(Engine(TO_HOST), _Down(link, reader, answers, counters, self._switch), queue, means)
        self._edges = self._up, self._down
        self._ended: deque[FateLog] = deque(maxlen=LOGS_KEPT)
        self._closed = False
        self._diverts = False

    # --- Rules ------------------------------------------------------------------------------------------------------

    def add(self, rule: Rule, seed: int) -> list[ActiveRule]:
        """Put a rule in force, behind those that are; return it once for each of its directions."""
        engines = [edge.engine for edge in self._edges if rule.to in ("", edge.engine.towards)]
        added = [engine.add(rule, seed) for engine in engines]
        self._switch()
        return added

    def remove(self, rules: Iterable[ActiveRule]) -> None:
        """End rules. What they hold leaves at once, in order; those that have ended are ignored."""
        rules = list(rules)
        self._ended += [rule.log for rule in rules if not rule.removed]
        for edge in self._edges:
            edge.remove(rules)

    def after(self, seconds: float, change: Callable[[], None]) -> None:
        """Call a function once, after so many seconds, unless this is closed before."""
        self._at(self._clock() + seconds, lambda _: None if self._closed else change())

    def logs(self) -> list[FateLog]:
        """Return the logs of the rules in force, and of the last that have ended."""
        return [*self._ended, *(rule.log for edge in self._edges for rule in edge.engine.rules)]

    def close(self) -> None:
        """End all rules, and forget what is held."""
        self._closed = True
        for edge in self._edges:
            edge.close()
        self._answers.clear()
        self._switch()

    def _switch(self) -> None:
        """Stand between the link and the rest where that is needed, and nowhere else."""
        if self._up.active != self._diverts:
            self._diverts = not self._diverts
            divert(self._link, self if self._diverts else None)
        self._link.gate = self if self._down.active else None

    # --- To the guest -----------------------------------------------------------------------------------------------

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Take a run that is written to the link."""
        buffer = header.buffer
        flow, flags = self._flows.find(buffer, 0, len(buffer))
        if self._answers.giving or not self._up.engine.concerns(flow):
            self._write_run(header, total, segment, payload)
            return
        count = -(-total // segment) if total else 1
        size = header.size
        last = size + total - (count - 1) * segment
        item = Item(
            lambda: self._link.superframe(header, total, segment, payload), True, VIRTIO + size, header.protocol
        )
        if not self._up.offer(Run(flow, item, size + segment if count > 1 else last, last, count, flags, item.parsed)):
            self._write_run(header, total, segment, payload)

    def write_bare(self, header: RunHeader) -> None:
        """Take a frame without payload that is written to the link."""
        buffer, size = header.buffer, header.size
        flow, flags = self._flows.find(buffer, 0, len(buffer))
        if self._up.engine.concerns(flow) and not self._answers.giving:
            item = Item(lambda: bytes(header.fill(0, 0)), True, VIRTIO + size, header.protocol)
            if self._up.offer(Run(flow, item, size, flags=flags, parsed=item.parsed)):
                return
        self._write_bare(header)

    def write_frame(self, frame: bytes) -> None:
        """Take a complete frame that is written to the link."""
        data = VIRTIO_NET_BLANK + frame
        flow, flags = self._flows.find(data, 0, len(data))
        if self._up.engine.concerns(flow) and not self._answers.giving:
            item = Item(lambda: data, True, len(data))
            if self._up.offer(Run(flow, item, len(frame), flags=flags, parsed=item.parsed)):
                self._link.flush()
                return
        self._write_frame(frame)

    # --- From the guest ---------------------------------------------------------------------------------------------

    def take(self, buffer: memoryview, at: int, end: int) -> int:
        """Return what becomes of a frame of the guest; see `gpasst.link.port.Gate.take`."""
        flow, flags = self._flows.find(buffer, at, end)
        if not self._down.engine.concerns(flow):
            return FREE
        bare = at + VIRTIO
        if self._offloads:
            item = Item(lambda: bytes(buffer[at:end]), False)
        else:
            item = Item(lambda: VIRTIO_NET_BLANK + buffer[bare:end], False)
        run = run_of(flow, flags, item, end - bare, self._offloads and buffer[at + _GSO_TYPE] > 0)
        return TAKEN if self._down.offer(run) else PASSED


class _Up:
    """Leads to the guest (`gpasst.link.edge.Outlet`)."""

    def __init__(self, link: ImpairableLink, answers: Answers, queue: AnswerQueue, changed: Callable[[], None]) -> None:
        self._link = link
        self._answers = answers
        self._queue = queue
        self.settle = link.flush
        self.changed = changed

    def keep(self, run: Run, actions: list[Action]) -> None:
        """Record nothing: a frame is recorded when the link has taken it."""

    def leave(self, run: Run, data: bytes, count: int, damaged: bool) -> None:
        """Write what leaves to the link."""
        self._link.write_held(data, count, run.item.head, run.flow.family, run.item.protocol)

    def lose(self, run: Run, data: bytes, fate: str, fresh: bool) -> None:
        """Record what is lost."""
        if self._link.recorder is not None:
            self._link.recorder.write(True, data, comment=fate)

    def answer(self, kind: Answer, flow: Flow, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost."""
        self._answers.answer(kind, flow, True, frame, mtu)

    def rebind(self, flow: Flow) -> None:
        """Let the flow's socket be exchanged soon: the frame comes from there, in the midst of a step."""
        self._queue.put(lambda: self._answers.rebind(flow, True))

    def caught_up(self) -> bool:
        """Return True: what was written before has left."""
        return True


class _Down:
    """Leads from the guest to its reader (`gpasst.link.edge.Outlet`)."""

    def __init__(
        self, link: ImpairableLink, reader: Reader, answers: Answers, counters: Counters, changed: Callable[[], None]
    ) -> None:
        self._link = link
        self._reader = reader
        self._answers = answers
        self._counters = counters
        self.caught_up, self.settle, self.changed = reader.caught_up, reader.settle, changed

    def keep(self, run: Run, actions: list[Action]) -> None:
        """Record a run of the guest, which has been read."""
        if self._link.recorder is not None:
            record_offered(self._link.recorder, run, actions)

    def leave(self, run: Run, data: bytes, count: int, damaged: bool) -> None:
        """Let the reader carry what leaves."""
        if damaged and protected(data):
            self._counters.drop(Drop.CHECKSUM)
        else:
            self._reader.inject(data)

    def lose(self, run: Run, data: bytes, fate: str, fresh: bool) -> None:
        """Record what is lost."""
        if self._link.recorder is not None and not fresh:
            self._link.recorder.write(False, data, comment=fate)

    def answer(self, kind: Answer, flow: Flow, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost."""
        self._answers.answer(kind, flow, False, frame, mtu)

    def rebind(self, flow: Flow) -> None:
        """Exchange the flow's socket before the frame leaves."""
        self._answers.rebind(flow, False)
