"""Which floods the kernel is asked to sample, and when no longer."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

import pytest

from gpasst.counters import Counters
from gpasst.path.budget import Crowd
from gpasst.path.filter_program import PORTS_LIMIT, SAMPLED, program
from gpasst.path.tap_filter import CROWD_SHARE, FLOOD_PER_SECOND, FLOODING_SCANS, FULL_SHARE, TapFilter
from gpasst.path.unknown import ARP, DHCP, FLOW, NDP, PART, RATES

FLOOD = 10 * FLOOD_PER_SECOND
GATEWAY = frozenset((bytes((192, 0, 2, 1)),))
NOTHING = b""


class Backlog:
    """What the filter sees of a backlog."""

    def __init__(self) -> None:
        self.seen = [0] * len(RATES)
        self.new_ports: list[int] = []
        self.crowd = Crowd()


class Tap:
    """A tap that keeps each program it is given."""

    def __init__(self) -> None:
        self.programs: list[bytes] = []
        self.failure = 0

    def set_filter(self, code: bytes) -> None:
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        self.programs.append(code)


class Case:
    def __init__(self) -> None:
        self.tap, self.backlog, self.counters = Tap(), Backlog(), Counters()
        self.active: list[int] = []
        self.full = False
        self.filter = TapFilter(
            cast(Any, self.tap),
            cast(Any, self.backlog),
            self.counters,
            GATEWAY,
            self.ports,
            lambda: not self.full,
        )

    def ports(self, most: int) -> list[int]:
        assert most == PORTS_LIMIT
        return self.active

    def second(self, kind: int = 0, frames: int = 0, known: int = 0) -> None:
        """Let a second pass in which so many frames of a kind came, and so many of known flows."""
        self.backlog.seen[kind] += frames
        self.counters.frames_down += frames + known
        self.filter.scan(0)


def expected(*kinds: int, ports: tuple[int, ...] = ()) -> bytes:
    return program(kinds, ports, GATEWAY)


def test_a_flood_is_sampled_until_it_ends() -> None:
    case = Case()
    case.second(ARP, FLOOD)
    assert case.tap.programs == [expected(ARP)]
    case.second(ARP, FLOOD // SAMPLED)
    assert case.tap.programs == [expected(ARP)], "it goes on"
    case.second(ARP, 10)
    assert case.tap.programs == [expected(ARP), NOTHING]
    case.second(ARP, 10)
    assert len(case.tap.programs) == 2


@pytest.mark.parametrize("kind", range(len(RATES)))
def test_what_is_no_flood_passes(kind: int) -> None:
    case = Case()
    case.second(kind, max(FLOOD_PER_SECOND, 2 * RATES[kind].per_second))
    assert case.tap.programs == []
    case.second(kind, max(FLOOD_PER_SECOND, 2 * RATES[kind].per_second) + 1)
    assert len(case.tap.programs) == 1


def test_two_floods_are_sampled_by_one_program() -> None:
    case = Case()
    case.backlog.seen[NDP] += FLOOD
    case.second(PART, FLOOD)
    assert case.tap.programs == [expected(NDP, PART)]


def test_active_ports_are_spared_but_for_those_that_flood() -> None:
    case = Case()
    case.active = [5000, 33000]
    case.backlog.new_ports = [33000, 5000, 33000, 40000]
    case.second(FLOW, FLOOD)
    assert case.tap.programs == [expected(FLOW, ports=(5000,))]
    case.active = [5000, 5001]
    case.second(FLOW, FLOOD // SAMPLED)
    assert case.tap.programs[1:] == [expected(FLOW, ports=(5000, 5001))]


def test_a_port_that_floods_is_not_spared_as_soon_as_it_shows_less() -> None:
    case = Case()
    case.active = [5000, 33000]
    case.backlog.new_ports = [33000, 33000]
    case.second(FLOW, FLOOD)
    case.backlog.new_ports = []
    for _ in range(FLOODING_SCANS):
        assert case.tap.programs[-1] == expected(FLOW, ports=(5000,))
        case.second(FLOW, FLOOD // SAMPLED)
    assert case.tap.programs[-1] == expected(FLOW, ports=(5000, 33000))


def test_new_flows_beside_more_traffic_of_known_ones_are_not_sampled() -> None:
    case = Case()
    case.second(FLOW, FLOOD, known=FLOOD)
    assert case.tap.programs == []


@pytest.mark.parametrize("kind", range(len(RATES)))
def test_where_the_queue_is_full_less_is_a_flood(kind: int) -> None:
    case = Case()
    limit = RATES[kind].per_second // FULL_SHARE
    for full, frames, sampled in ((False, limit + 1, False), (True, limit, False), (True, limit + 1, True)):
        case.full = full
        case.second(kind, frames)
        assert (case.tap.programs == [expected(kind)]) == sampled


def test_where_the_queue_is_full_half_of_the_traffic_of_known_flows_may_be_new_ones() -> None:
    case = Case()
    case.full = True
    case.second(FLOW, FLOOD, known=2 * FLOOD)
    assert case.tap.programs == []
    case.second(FLOW, FLOOD, known=2 * FLOOD - 1)
    assert case.tap.programs == [expected(FLOW)]


def test_a_flood_that_was_sampled_goes_on_while_it_exceeds_its_rate() -> None:
    case = Case()
    case.full = True
    case.second(ARP, RATES[ARP].per_second)
    case.full = False
    case.second(ARP, RATES[ARP].per_second // SAMPLED + 1)
    assert case.tap.programs == [expected(ARP)]
    case.second(ARP, RATES[ARP].per_second // SAMPLED)
    assert case.tap.programs == [expected(ARP), NOTHING]


def crowded(case: Case, kind: int, frames: int, known: int = 0) -> None:
    """Let so many frames come while the queue is not empty once in a tenth of a second."""
    case.filter.look(0.0)
    case.backlog.seen[kind] += frames
    case.counters.frames_down += frames + known
    case.filter.look(0.1)


@pytest.mark.parametrize("kind", range(len(RATES)))
def test_a_queue_that_stays_full_is_looked_at_at_once(kind: int) -> None:
    limit = RATES[kind].per_second // (10 * FULL_SHARE)
    for frames, sampled in ((limit, False), (limit + 1, True)):
        case = Case()
        crowded(case, kind, frames)
        assert (case.tap.programs == [expected(kind)]) == sampled


def test_what_came_before_the_queue_was_full_does_not_count() -> None:
    case = Case()
    case.backlog.seen[ARP] += FLOOD
    crowded(case, ARP, 1)
    assert case.tap.programs == []


def test_few_frames_of_a_kind_beside_much_traffic_are_no_flood() -> None:
    case = Case()
    crowded(case, DHCP, 4, known=4 * CROWD_SHARE)
    assert case.tap.programs == []
    crowded(case, DHCP, 5, known=4 * CROWD_SHARE)
    assert case.tap.programs == [expected(DHCP)]


def test_a_look_ends_no_sampling() -> None:
    case = Case()
    case.second(ARP, FLOOD)
    crowded(case, NDP, FLOOD)
    crowded(case, NDP, 0)
    assert case.tap.programs == [expected(ARP), expected(ARP, NDP)]


def test_a_look_takes_note_of_ports_that_have_turned_out_to_flood() -> None:
    case = Case()
    case.active = [5000, 33000]
    crowded(case, FLOW, FLOOD)
    case.backlog.new_ports = [33000, 33000]
    crowded(case, FLOW, FLOOD)
    assert case.tap.programs == [expected(FLOW, ports=(5000, 33000)), expected(FLOW, ports=(5000,))]


def test_nothing_is_left_on_the_tap() -> None:
    case = Case()
    case.filter.close()
    assert case.tap.programs == []
    case.second(ARP, FLOOD)
    case.filter.close()
    case.filter.close()
    assert case.tap.programs[1:] == [NOTHING]


def test_a_kernel_that_refuses_is_not_asked_again() -> None:
    case = Case()
    case.tap.failure = errno.EPERM
    case.second(ARP, FLOOD)
    case.tap.failure = 0
    case.second(ARP, FLOOD)
    assert case.tap.programs == []
