"""The longest idle one of many flows, found in a bounded number of looks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gpasst.flow.second_chance import LOOKS, longest_idle


@dataclass
class Flow:
    heard: float
    entered: float


def table(count: int) -> OrderedDict[int, Flow]:
    """Return flows that came one after the other, and were idle since."""
    return OrderedDict((number, Flow(number, number)) for number in range(count))


def test_of_none_it_is_none() -> None:
    assert longest_idle(table(0)) is None


def test_of_idle_flows_it_is_the_oldest() -> None:
    flows = table(3)
    assert longest_idle(flows) is flows[0]
    assert list(flows) == [0, 1, 2], "nothing moves"


def test_an_active_flow_goes_to_the_end() -> None:
    flows = table(3)
    flows[0].heard = 10.0
    assert longest_idle(flows) is flows[1]
    assert list(flows) == [1, 2, 0]
    assert flows[0].entered == 10.0


def test_where_all_were_active_the_order_of_entry_decides() -> None:
    flows = table(3)
    for flow in flows.values():
        flow.heard = 10.0
    assert longest_idle(flows) is flows[0]
    assert [flow.entered for flow in flows.values()] == [10.0] * 3


def test_the_looks_are_bounded() -> None:
    flows = table(LOOKS + 5)
    for flow in flows.values():
        flow.heard = 1000.0
    assert longest_idle(flows) is flows[LOOKS]
    assert [flow.entered for flow in flows.values()].count(1000.0) == LOOKS


@given(st.lists(st.sampled_from(range(8)), max_size=30))
def test_it_is_the_longest_idle_one_where_the_looks_suffice(active: list[int]) -> None:
    flows = table(8)
    for now, number in enumerate(active, 10):
        flows[number].heard = now
        if now % 5 == 0:
            longest_idle(flows)
    found = longest_idle(flows)
    # What was never active has the time of its entry.
    idle = [flow for flow in flows.values() if flow.heard < 10]
    if idle:
        assert found is min(idle, key=lambda flow: flow.heard)
    assert found in flows.values()
