"""Frames that wait: in turns, in order within a flow, and no more of them than there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.path.backlog import (
    BYTES_LIMIT,
    COUNTED,
    CROWDED_LIMIT,
    FRAMES_LIMIT,
    FRAMES_PER_LOOK,
    GROUP_SHARE,
    ROOM,
    Backlog,
)
from gpasst.path.budget import BACKLOG_SECONDS, CROWDED_BACKLOG_SECONDS, CROWDED_SECONDS
from gpasst.path.unknown import ARP, FLOW, RATES, flow_of

FOREVER = 1e9  # seconds
MACS = bytes(12)
UDP, TCP, ICMP, ICMPV6, HOP_BY_HOP, FRAGMENT = 17, 6, 1, 58, 0, 44


def ip4(
    port: int, data: bytes = b"", protocol: int = UDP, first: int = 0x45, fragment: int = 0, source: int = 0
) -> bytes:
    head = bytes((first, 0, 0, 0, 0, 0, *fragment.to_bytes(2, "big"), 64, protocol, 0, 0))
    return MACS + b"\x08\x00" + head + source.to_bytes(4, "big") + bytes(4) + port.to_bytes(2, "big") + bytes(2) + data


def ip6(port: int, data: bytes = b"", protocol: int = UDP) -> bytes:
    return MACS + b"\x86\xdd" + bytes(6) + bytes((protocol, 64)) + bytes(32) + port.to_bytes(2, "big") + bytes(2) + data


def arp(data: bytes = b"") -> bytes:
    return MACS + b"\x08\x06" + data


class Case:
    """A backlog, and what it dispatches; a dispatched UDP flow is known from then on."""

    def __init__(self, remembers: bool = True) -> None:
        self.counters = Counters()
        self.dispatched: list[bytes] = []
        self.segments: list[int] = []
        self.known: set[bytes] = set()
        self.asked = 0
        self.time = 0.0
        self.cost = 0.0  # seconds that a frame takes
        self.remembers = remembers
        self.recorder: Any = None
        self.noted: list[tuple[bytes, Drop]] = []
        self.backlog = Backlog(self.dispatch, self.knows, self.again, self.counters, lambda: self.time, link=self)

    def note(self, frame: memoryview, reason: Drop) -> None:
        """Take note of a dropped frame, in the place of a recorder."""
        self.noted.append((bytes(frame), reason))

    def dispatch(self, frame: memoryview, segment: int) -> None:
        self.dispatched.append(bytes(frame))
        self.segments.append(segment)
        self.time += self.cost
        if self.remembers:
            self.known.add(flow_of(frame))

    def knows(self, frame: bytes) -> bool:
        return flow_of(memoryview(frame)) in self.known

    def again(self) -> None:
        self.asked += 1

    def crowd(self) -> None:
        """Let the link have had more than could be read for long enough."""
        self.backlog.crowd.left(1.0)
        self.backlog.crowd.left(1.0 + CROWDED_SECONDS)

    def add(self, *frames: bytes, segment: int = 0) -> None:
        for frame in frames:
            self.backlog.add(memoryview(frame), segment)


@pytest.mark.parametrize(
    "frame",
    [
        ip4(1),
        ip4(1, protocol=TCP),
        ip6(1),
        ip6(1, protocol=ICMPV6),
        arp(),
        MACS + b"\xff\xff",
        ip4(1, first=0x46),  # options
        ip4(1, fragment=0x2000),
        ip4(1, fragment=0x0001),
        ip6(1, protocol=FRAGMENT),
        ip6(1, protocol=HOP_BY_HOP),
        ip4(1)[:-1],
        ip6(1)[:-1],
        b"",
    ],
)
def test_every_frame_waits(frame: bytes) -> None:
    case = Case()
    case.add(frame)
    assert case.dispatched == []
    assert case.backlog.frames == 1
    case.backlog.drain(FOREVER)
    assert case.dispatched == [frame]
    assert case.backlog.frames == 0


def test_fragments_keep_their_order_among_themselves() -> None:
    case = Case(remembers=False)
    case.add(ip4(1, b"1", fragment=0x2000), ip4(2), ip4(3, b"2", fragment=0x0001), ip4(4, b"3", first=0x46))
    case.backlog.drain(FOREVER)
    assert [frame[-1:] for frame in case.dispatched if frame[-1:] in b"123"] == [b"1", b"2", b"3"]
    assert case.dispatched.index(ip4(2)) == 1, "they take turns with others"


def test_a_frame_is_copied_since_its_buffer_is_used_again() -> None:
    case = Case()
    buffer = bytearray(ip4(1, b"first"))
    case.backlog.add(memoryview(buffer), 5)
    buffer[-5:] = b"other"
    case.backlog.drain(FOREVER)
    assert case.dispatched == [ip4(1, b"first")]
    assert case.segments == [5]


def test_groups_take_turns_where_frames_make_no_flow_known() -> None:
    case = Case(remembers=False)
    case.add(arp(b"1"), arp(b"2"), arp(b"3"), ip4(1, b"a", TCP), ip4(1, b"b", TCP), ip6(9))
    case.backlog.drain(FOREVER)
    assert case.dispatched == [arp(b"1"), ip4(1, b"a", TCP), ip6(9), arp(b"2"), ip4(1, b"b", TCP), arp(b"3")]


def test_the_rest_of_a_flow_follows_its_first_frame_at_once() -> None:
    """The next frame of the flow would pass by the backlog, and overtake what is still there."""
    case = Case()
    case.cost = 1.0
    case.add(ip4(1, b"a"), ip4(2, b"x"), ip4(1, b"b"), ip4(1, b"c"))
    case.backlog.drain(2.5)
    assert case.dispatched == [ip4(1, b"a"), ip4(1, b"b"), ip4(1, b"c")]
    assert (case.asked, case.backlog.behind) == (1, False)


def test_the_rest_of_a_flow_has_no_more_time_than_the_step() -> None:
    """It comes first in the next one, and until then nothing may be read."""
    case = Case()
    case.cost = 1.0
    case.add(ip4(1, b"a"), ip4(2, b"x"), ip4(1, b"b"), ip4(1, b"c"))
    case.backlog.drain(0.5)
    assert case.dispatched == [ip4(1, b"a")]
    assert (case.asked, case.backlog.behind) == (1, True)
    case.backlog.step()
    assert case.dispatched[1:] == [ip4(1, b"b")]
    assert (case.asked, case.backlog.behind) == (2, True)
    case.backlog.drain(FOREVER)
    assert case.dispatched[2:] == [ip4(1, b"c"), ip4(2, b"x")]
    assert not case.backlog.behind


def test_a_guest_that_has_gone_leaves_nothing_behind() -> None:
    case = Case()
    case.cost = 1.0
    case.add(ip4(1, b"a"), ip4(1, b"b"))
    case.backlog.drain(0.5)
    case.backlog.clear()
    assert not case.backlog.behind


def test_what_exceeds_the_rate_of_a_source_is_dropped_whatever_the_room() -> None:
    case = Case()
    rate = RATES[FLOW].burst
    for port in range(1, rate + 6):
        case.add(ip4(port))
        case.backlog.drain(FOREVER)
    assert len(case.dispatched) == rate
    assert case.counters.drops == {Drop.RATE: 5}
    case.add(ip4(9, source=1))
    assert case.backlog.frames == 1, "another source has a rate of its own"
    case.add(arp())
    assert case.backlog.frames == 2, "and so has another kind"
    case.time += 1.0
    case.add(ip4(rate + 6))
    assert case.backlog.frames == 3, "tokens come with the time"


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([4, 6])), max_size=30), st.integers(0, 5))
def test_order_within_a_flow_is_kept(flows: Sequence[tuple[int, int]], between: int) -> None:
    """Whatever is dispatched in between, and however short the steps are."""
    case = Case()
    case.cost = 1.0
    for number, (port, family) in enumerate(flows):
        frame = (ip4 if family == 4 else ip6)(port, bytes((number,)))
        while case.backlog.behind:
            case.backlog.step()
        if case.knows(frame):
            case.dispatch(memoryview(frame), 0)
        else:
            case.add(frame)
        if number % (between + 1) == between:
            case.backlog.step()
    while case.backlog.frames:
        case.backlog.step()
    assert len(case.dispatched) == len(flows)
    for flow in {flow_of(memoryview(frame)) for frame in case.dispatched}:
        numbers = [frame[-1] for frame in case.dispatched if flow_of(memoryview(frame)) == flow]
        assert numbers == sorted(numbers)


def test_a_step_ends_when_its_time_is_over_but_moves_one_frame() -> None:
    case = Case()
    case.cost = BACKLOG_SECONDS
    case.add(ip4(1), ip4(2), ip4(3))
    case.backlog.step()
    assert (len(case.dispatched), case.asked) == (1, 1)
    case.cost = 0.4 * BACKLOG_SECONDS
    case.backlog.step()
    assert (len(case.dispatched), case.asked) == (3, 1), "nothing is left to ask for"


def test_the_reason_of_a_drop_is_noted_while_somebody_records() -> None:
    case = Case(remembers=False)
    share = FRAMES_LIMIT // (GROUP_SHARE + 1)
    case.add(*[ip4(9, b"flood")] * (share + 1))
    case.recorder = case
    case.add(ip4(9, b"flood"))
    assert case.noted == [(ip4(9, b"flood"), Drop.BACKLOG)]
    rate = RATES[ARP].burst
    for _ in range(rate + 1):
        case.add(arp(b"\0"))
        case.backlog.drain(FOREVER)
    assert case.noted[1:] == [(arp(b"\0"), Drop.RATE)]


def test_one_flood_fills_only_its_share() -> None:
    case = Case(remembers=False)
    share = FRAMES_LIMIT // (GROUP_SHARE + 1)
    case.add(*[ip4(9, b"flood")] * (share + 10))
    assert case.backlog.frames == share
    assert case.counters.drops == {Drop.BACKLOG: 10}
    case.add(ip4(1))
    assert case.backlog.frames == share + 1


def test_large_frames_are_bounded_by_their_bytes() -> None:
    case = Case(remembers=False)
    large = ip4(67, bytes(65000))
    most = (BYTES_LIMIT + len(large)) // len(large) // (GROUP_SHARE + 1)
    case.add(*[large] * (most + 1))
    assert (case.backlog.frames, case.counters.drops) == (most, {Drop.BACKLOG: 1})
    for port in range(1000, 1000 + BYTES_LIMIT // len(large)):
        case.add(ip4(port, bytes(65000)))
    assert case.backlog.frames == BYTES_LIMIT // len(large)


def test_no_more_frames_are_kept_than_the_limit() -> None:
    case = Case()
    case.add(*(ip4(number, source=number // 2000) for number in range(1, FRAMES_LIMIT - 1)))
    case.add(*(ip4(1, protocol=ICMP, source=source) for source in range(4)))
    assert case.backlog.frames == FRAMES_LIMIT
    assert case.counters.drops == {Drop.BACKLOG: 2}
    case.backlog.drain(FOREVER)
    assert len(case.dispatched) == FRAMES_LIMIT
    # There is room again.
    case.add(arp())
    assert case.backlog.frames == 1


def test_a_failure_costs_one_frame() -> None:
    case = Case(remembers=False)
    fail = True

    def dispatch(frame: memoryview, segment: int) -> None:
        nonlocal fail
        if fail:
            fail = False
            raise RuntimeError("a defect")
        case.dispatch(frame, segment)

    backlog = Backlog(dispatch, case.knows, case.again, case.counters, lambda: 0.0)
    for data in (b"1", b"2", b"3"):
        backlog.add(memoryview(arp(data)), 0)
    with pytest.raises(RuntimeError):
        backlog.drain(FOREVER)
    assert (backlog.frames, case.asked) == (2, 1)
    backlog.drain(FOREVER)
    assert case.dispatched == [arp(b"2"), arp(b"3")]


def test_frames_of_a_guest_that_has_gone_are_counted() -> None:
    case = Case()
    case.add(ip4(1), ip4(2))
    case.backlog.clear()
    case.backlog.clear()
    assert case.backlog.frames == 0
    assert case.counters.drops == {Drop.NO_GUEST: 2}
    case.backlog.drain(FOREVER)
    assert case.dispatched == []


def test_the_room_of_one_group_shrinks_with_what_is_left() -> None:
    case = Case(remembers=False)
    for source in range(3):
        case.add(*(ip4(port, source=source + 1) for port in range(1, 2000)))
    case.add(*[ip4(9, b"flood")] * FRAMES_LIMIT)
    left = FRAMES_LIMIT - 3 * 1999
    taken = case.backlog.frames - 3 * 1999
    assert (left - taken) // GROUP_SHARE <= taken <= left // GROUP_SHARE


def test_while_the_link_is_crowded_fewer_frames_wait() -> None:
    case = Case()
    case.crowd()
    case.add(*(ip4(port) for port in range(1, CROWDED_LIMIT + 1)))
    assert (case.backlog.frames, case.backlog.full) == (CROWDED_LIMIT, False)
    case.add(ip4(CROWDED_LIMIT + 1))
    assert case.counters.drops == {Drop.BACKLOG: 1}
    assert case.backlog.full
    case.add(ip4(1, protocol=ICMP))
    assert case.backlog.frames == CROWDED_LIMIT + 1, "services are apart"
    assert case.backlog.full
    case.cost = CROWDED_BACKLOG_SECONDS / (ROOM - 1.5)
    case.backlog.step()
    assert case.backlog.full
    case.backlog.step()
    assert not case.backlog.full, "there is room for some"
    assert case.backlog.frames > CROWDED_LIMIT - 3 * ROOM
    case.backlog.crowd.emptied()
    case.add(*(ip4(port, source=1) for port in range(1, CROWDED_LIMIT + 1)))
    assert case.backlog.frames > CROWDED_LIMIT


def test_frames_beyond_are_counted_by_the_kind_of_some() -> None:
    case = Case()
    for _ in range(10 * COUNTED):
        case.backlog.overflow(memoryview(arp(bytes(28))))
    assert case.counters.drops == {Drop.BACKLOG: 10 * COUNTED}
    assert case.backlog.seen[ARP] == 10 * COUNTED
    for _ in range(2 * FRAMES_PER_LOOK):
        case.backlog.overflow(memoryview(ip4(9)))
    assert list(case.backlog.new_ports) == [9, 9]
    case.recorder = case
    case.backlog.overflow(memoryview(arp(b"beyond")))
    assert case.noted == [(arp(b"beyond"), Drop.BACKLOG)]


def test_a_step_is_asked_for_where_frames_wait() -> None:
    case = Case()
    case.backlog.ask()
    assert case.asked == 0
    case.add(arp())
    case.backlog.ask()
    assert case.asked == 1


def test_frames_are_counted_by_kind_and_show_their_port() -> None:
    case = Case()
    burst = RATES[FLOW].burst
    case.add(*[ip4(9, protocol=TCP)] * (2 * burst), arp(bytes(28)))
    assert (case.backlog.seen[FLOW], case.backlog.seen[ARP]) == (2 * burst, 1)
    assert set(case.backlog.new_ports) == {9}
