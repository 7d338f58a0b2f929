"""Which floods the kernel is asked to sample, and when no longer."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

import pytest

from gpasst.counters import Counters
from gpasst.path.filter_program import PORTS_LIMIT, SAMPLED, program
from gpasst.path.tap_filter import FLOOD_PER_SECOND, FULL_SHARE, TapFilter
from gpasst.path.unknown import ARP, FLOW, NDP, PART, RATES

FLOOD = 10 * FLOOD_PER_SECOND
GATEWAY = frozenset((bytes((192, 0, 2, 1)),))
NOTHING = b""


class Backlog:
    """What the filter sees of a backlog."""

    def __init__(self) -> None:
        self.seen = [0] * len(RATES)
        self.refused_ports: list[int] = []


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
    case.backlog.refused_ports = [33000, 5000, 33000, 40000]
    case.second(FLOW, FLOOD)
    assert case.tap.programs == [expected(FLOW, ports=(5000,))]
    case.active = [5000, 5001]
    case.second(FLOW, FLOOD // SAMPLED)
    assert case.tap.programs[1:] == [expected(FLOW, ports=(5000, 5001))]


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
