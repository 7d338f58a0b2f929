"""Frames that may set up new state, kept until those of known flows have been carried.

Theory of operation: setting up a peer, answering ARP or building a lease costs ten to a hundred times what carrying a
frame of a known flow costs. So a reader puts a frame that it does not know here, goes on reading, and lets the backlog
be dispatched with the time that its step has left. What remains is dispatched in short steps of its own, which take
turns with all other work.

1. Frames are grouped by flow: IP protocol, addresses and ports; everything that is not IP by its EtherType. Groups take
   turns, one frame each, so that one flood does not delay other newcomers.
2. Order within a flow is kept. Once a group's first frame has made its flow known, the next frame of that flow
   passes by here; so the rest of the group is dispatched at once.
3. Fragments, and packets with IP options or extension headers, belong to flows that may be known, and are never put
   here.

NOTE: a backlog holds at most `FRAMES_LIMIT` frames and `BYTES_LIMIT` bytes, of one group at most an eighth of that.
More are dropped and counted.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.formats import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_CODEC,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_CODEC,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
)
from gpasst.path.budget import BACKLOG_SECONDS

FRAMES_LIMIT = 8192
BYTES_LIMIT = 8 << 20
GROUP_SHARE = 8  # of these limits, the part that one group may fill

_IP = ETHERNET_CODEC.size
_TYPE = slice(ETHERNET_CODEC.offset("ethertype"), ETHERNET_CODEC.size)
_IPV4, _IPV6 = (kind.to_bytes(2, "big") for kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6))
_FRAGMENT = slice(_IP + IPV4_CODEC.offset("flags"), _IP + IPV4_CODEC.offset("flags") + 2)
_PROTOCOL4 = _IP + IPV4_CODEC.offset("protocol")
_PROTOCOL6 = _IP + IPV6_CODEC.offset("next_header")
_PORTS_BYTES = 4
_FLOW4 = slice(_IP + IPV4_CODEC.offset("source"), _IP + IPV4_CODEC.size + _PORTS_BYTES)
_FLOW6 = slice(_IP + IPV6_CODEC.offset("source"), _IP + IPV6_CODEC.size + _PORTS_BYTES)
_PLAIN6 = (PROTOCOL_UDP, PROTOCOL_TCP, PROTOCOL_ICMPV6)  # next headers that are no extension

# Dispatches a frame of the guest: the frame, and payload bytes of each segment of a superframe, 0 for a single frame.
DispatchFrame = Callable[[memoryview, int], None]


class Backlog:
    """The frames of one guest that wait to be dispatched.

    :param dispatch: dispatches a frame.
    :param knows: tells whether a frame, given whole, is one of a known flow by now.
    :param again: asks for a call of `step` soon; more calls before it do nothing.
    :param counters: where drops are counted.
    :param clock: returns seconds, for the budget of a step.
    :ivar frames: how many frames wait.
    """

    def __init__(
        self,
        dispatch: DispatchFrame,
        knows: Callable[[bytes], bool],
        again: Callable[[], None],
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._dispatch = dispatch
        self._knows = knows
        self._again = again
        self._counters = counters
        self._clock = clock
        self._groups: OrderedDict[bytes, deque[tuple[bytes, int]]] = OrderedDict()
        self.frames = 0
        self._bytes = 0

    def add(self, frame: memoryview, segment: int) -> None:
        """Keep a frame that is none of a known flow, or dispatch it at once where order demands that.

        :param frame: from the destination MAC address on; copied.
        :param segment: payload bytes of each segment of a superframe, 0 for a single frame.
        """
        kept = bytes(frame)
        key = flow_of(kept)
        if not key:
            self._dispatch(frame, segment)
            return
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = deque()
        size = len(kept)
        if (
            self.frames >= FRAMES_LIMIT
            or self._bytes + size > BYTES_LIMIT
            or len(group) >= FRAMES_LIMIT // GROUP_SHARE
            or (len(group) + 1) * size > BYTES_LIMIT // GROUP_SHARE
        ):
            self._counters.drop(Drop.BACKLOG)
            if not group:
                del self._groups[key]
            return
        group.append((kept, segment))
        self.frames += 1
        self._bytes += size

    def drain(self, deadline: float) -> None:
        """Dispatch frames until `deadline`, in seconds of the clock, at least one; ask for a step for the rest."""
        groups = self._groups
        while groups:
            key, group = groups.popitem(last=False)
            try:
                self._first(group)
                while group and self._knows(group[0][0]):
                    self._first(group)
            except Exception:
                self._again()
                raise
            finally:
                if group:
                    groups[key] = group
            if groups and self._clock() >= deadline:
                self._again()
                return

    def step(self) -> None:
        """Dispatch frames for `BACKLOG_SECONDS`."""
        self.drain(self._clock() + BACKLOG_SECONDS)

    def clear(self) -> None:
        """Forget all frames: their guest has gone."""
        if self.frames:
            self._counters.drop(Drop.NO_GUEST, self.frames)
            self._groups.clear()
            self.frames = self._bytes = 0

    def _first(self, group: deque[tuple[bytes, int]]) -> None:
        frame, segment = group.popleft()
        self.frames -= 1
        self._bytes -= len(frame)
        self._dispatch(memoryview(frame), segment)


def flow_of(frame: bytes) -> bytes:
    """Return the bytes that tell a frame's flow; empty for frames that must not wait (see this module's head)."""
    kind = frame[_TYPE]
    if kind == _IPV4:
        if len(frame) < _FLOW4.stop or frame[_IP] != IPV4_VERSION_IHL:
            return b""
        if int.from_bytes(frame[_FRAGMENT], "big") & IPV4_FRAGMENT_MASK:
            return b""
        return frame[_PROTOCOL4 : _PROTOCOL4 + 1] + frame[_FLOW4]
    if kind == _IPV6:
        if len(frame) < _FLOW6.stop or frame[_PROTOCOL6] not in _PLAIN6:
            return b""
        return frame[_PROTOCOL6 : _PROTOCOL6 + 1] + frame[_FLOW6]
    return kind
