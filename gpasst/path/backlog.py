"""Frames that may set up new state, kept until those of known flows have been carried.

Theory of operation: setting up a peer, answering ARP or building a lease costs ten to a hundred times what carrying a
frame of a known flow costs. So a reader puts a frame that it does not know here, goes on reading, and lets the backlog
be dispatched with the time that its step has left. What remains is dispatched in short steps of its own, which take
turns with all other work.

1. What exceeds the rate of its kind and source is dropped before anything is made of it (`gpasst.path.unknown`).
2. Frames are grouped by kind and flow (`flow_of`). Groups take turns, one frame each, so that one flood does not delay
   other newcomers.
3. Order within a flow is kept. Once a group's first frame has made its flow known, the next frame of that flow passes
   by here; so the rest of the group is dispatched at once. If the time is over before it is, the backlog is `behind`,
   and the reader reads nothing until it has caught up.
4. Fragments, and packets with IP options or extension headers, are groups of their own: they keep their order among
   themselves, and those frames of their flow that are known by their headers may overtake them.

NOTE: a backlog holds at most `FRAMES_LIMIT` frames and `BYTES_LIMIT` bytes, of one group at most an eighth of the room
that is left (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998): where many wait, no
group is so long that its rest delays all others. While the link is crowded (`gpasst.path.budget.Crowd`), at most
`CROWDED_LIMIT` frames wait that are for no service, and what comes beyond them is dropped by a shorter look
(`gpasst.path.fastpath`). More are dropped and counted.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from gpasst.counters import Counters, Drop
from gpasst.flow.admission import Admission
from gpasst.link.recorder import UNRECORDED, Recorded
from gpasst.path.budget import BACKLOG_SECONDS, CROWDED_BACKLOG_SECONDS, Crowd
from gpasst.path.unknown import FLOW, OTHER, PART, RATES, flow_of, kind_of, source_port

FRAMES_LIMIT = 8192
PLAIN = frozenset((FLOW, PART, OTHER))  # kinds that are no services of the proxy
CROWDED_LIMIT = 1024  # frames of these, while more come than can be read: what is dispatched in a quarter of a second
ROOM = CROWDED_LIMIT // 4  # frames for which there has to be room before any is kept again
BYTES_LIMIT = 8 << 20
GROUP_SHARE = 8  # of the room that is left, the part that one group may have
FRAMES_PER_LOOK = 32  # at the port
PORTS_KEPT = 64
COUNTED = 8  # frames that are dropped with no more than a look for their flow, of which one is counted by its kind

# Dispatches a frame of the guest: the frame, and payload bytes of each segment of a superframe, 0 for a single frame.
DispatchFrame = Callable[[memoryview, int], None]
# Frames of one flow, with their segments. Most hold one frame, for which a deque takes seven times as much.
_Group = list[tuple[bytes, int]]


class Queue(NamedTuple):
    """A backlog, and what asks for a step of it.

    :ivar backlog: keeps frames.
    :ivar again: asks for a call of `Backlog.step` soon.
    """

    backlog: Backlog
    again: Callable[[], None]


class Backlog:
    """The frames of one guest that wait to be dispatched.

    :param dispatch: dispatches a frame.
    :param knows: tells whether a frame, given whole, is one of a known flow by now.
    :param again: asks for a call of `step` soon; more calls before it do nothing.
    :param counters: where drops are counted.
    :param clock: returns seconds, for the budget of a step and for the rates.
    :param routers: addresses of the guest's gateway.
    :param link: where the frames come from, whose recorder takes note of the reason of a drop.
    :ivar frames: how many frames wait.
    :ivar seen: how many frames of each kind came.
    :ivar new_ports: source ports of UDP and TCP of no known flow that came lately, of one frame in `FRAMES_PER_LOOK`.
    :ivar crowd: whether the link has more than can be read, of which the reader takes note.
    :ivar full: whether none is kept that is for no service, since the link is crowded and enough wait.
    :ivar behind: whether frames wait whose flow is known already, so that none may be read before they are dispatched.
    """

    def __init__(
        self,
        dispatch: DispatchFrame,
        knows: Callable[[bytes], bool],
        again: Callable[[], None],
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
        routers: frozenset[bytes] = frozenset(),
        link: Recorded = UNRECORDED,
    ) -> None:
        self._dispatch = dispatch
        self._knows = knows
        self._again = again
        self._counters = counters
        self._routers = routers
        self._link = link
        self._clock = clock
        self._groups: OrderedDict[bytes, _Group] = OrderedDict()
        self.seen = [0] * len(RATES)
        self.new_ports: deque[int] = deque(maxlen=PORTS_KEPT)
        self._admissions = [Admission(rate) for rate in RATES]
        self.frames = 0
        self.behind = self.full = False
        self._bytes = self._plain = 0
        self._overflowed = self._unlooked = 0
        self.crowd = Crowd()

    def add(self, frame: memoryview, segment: int) -> None:
        """Keep a frame that is none of a known flow, or drop it if there are too many.

        :param frame: from the destination MAC address on; copied.
        :param segment: payload bytes of each segment of a superframe, 0 for a single frame.
        """
        kind, source = kind_of(frame, self._routers)
        self.seen[kind] += 1
        if kind == FLOW:
            self._unlooked += 1
            if self._unlooked >= FRAMES_PER_LOOK:
                self._look(frame)
        if not self._admissions[kind].admit(source, self._clock()):
            self._refuse(frame, Drop.RATE)
            return
        size, room = len(frame), FRAMES_LIMIT - self.frames
        if self.crowd.lasting and kind in PLAIN:
            room = min(room, CROWDED_LIMIT - self._plain)
            self.full = room <= 0
        if room <= 0 or self._bytes + size > BYTES_LIMIT:
            self._refuse(frame, Drop.BACKLOG)
            return
        key = bytes((kind,)) + flow_of(frame)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = []
        elif len(group) >= room // GROUP_SHARE or (len(group) + 1) * size > (BYTES_LIMIT - self._bytes) // GROUP_SHARE:
            self._refuse(frame, Drop.BACKLOG)
            return
        group.append((bytes(frame), segment))
        self.frames += 1
        self._plain += kind in PLAIN
        self._bytes += size

    def ask(self) -> None:
        """Ask for a step, if any frame waits."""
        if self.frames:
            self._again()

    def overflow(self, frame: memoryview) -> None:
        """Drop a frame that is none of a known flow and for no service, while the backlog is `full`.

        Of one in `COUNTED` the kind is looked at, and counts for all of them.

        :param frame: from the destination MAC address on.
        """
        self._overflowed += 1
        if self._overflowed % COUNTED and self._link.recorder is None:
            self._counters.drops[Drop.BACKLOG] += 1
            return
        kind, _ = kind_of(frame, self._routers)
        self.seen[kind] += COUNTED
        if kind == FLOW:
            self._unlooked += COUNTED
            if self._unlooked >= FRAMES_PER_LOOK:
                self._look(frame)
        self._refuse(frame, Drop.BACKLOG)

    def _look(self, frame: memoryview) -> None:
        self._unlooked = 0
        self.new_ports.append(source_port(frame))

    def _refuse(self, frame: memoryview, reason: Drop) -> None:
        self._counters.drop(reason)
        if self._link.recorder is not None:
            self._link.recorder.note(frame, reason)

    def drain(self, deadline: float) -> None:
        """Dispatch frames until `deadline`, in seconds of the clock, at least one; ask for a step for the rest."""
        groups = self._groups
        self.behind = False
        while groups:
            key, group = groups.popitem(last=False)
            try:
                self._first(group, key[0])
                while group and self._knows(group[0][0]):
                    self.behind = self._clock() >= deadline
                    if self.behind:
                        break
                    self._first(group, key[0])
            except Exception:
                self._again()
                raise
            finally:
                if group:
                    groups[key] = group
                    if self.behind:
                        groups.move_to_end(key, last=False)
            if groups and (self.behind or self._clock() >= deadline):
                self._again()
                return

    def step(self) -> None:
        """Dispatch frames for `BACKLOG_SECONDS`, or `CROWDED_BACKLOG_SECONDS`."""
        self.drain(self._clock() + (CROWDED_BACKLOG_SECONDS if self.crowd.lasting else BACKLOG_SECONDS))

    def clear(self) -> None:
        """Forget all frames: their guest has gone."""
        self.crowd.emptied()
        if self.frames:
            self._counters.drop(Drop.NO_GUEST, self.frames)
            self._groups.clear()
            self.frames = self._plain = self._bytes = 0
            self.behind = self.full = False

    def _first(self, group: _Group, kind: int) -> None:
        frame, segment = group.pop(0)
        self.frames -= 1
        self._plain -= kind in PLAIN
        self.full = self.full and self._plain > CROWDED_LIMIT - ROOM
        self._bytes -= len(frame)
        self._dispatch(memoryview(frame), segment)
