"""The wheel of deadlines."""

from __future__ import annotations

import weakref

from hypothesis import given
from hypothesis import strategies as st

from gpasst.tcp.timers import TICKS, Wheel


class Item:
    """What has a deadline."""

    def __init__(self) -> None:
        self.armed = 0


def taken(wheel: Wheel[Item], now: float) -> list[Item]:
    found = []
    while (item := wheel.take(now)) is not None:
        assert item.armed == 0
        found.append(item)
    return found


def test_nothing_is_due_on_an_empty_wheel() -> None:
    wheel: Wheel[Item] = Wheel()
    assert wheel.earliest() is None
    assert wheel.take(1e9) is None


def test_an_item_is_due_within_a_tick_of_its_time() -> None:
    wheel, item = Wheel[Item](), Item()
    wheel.add(item, 101.0, 100.0)
    assert wheel.earliest() == 101 + 1 / TICKS
    assert wheel.take(101.0) is None
    assert taken(wheel, 101 + 1 / TICKS) == [item]
    assert wheel.earliest() is None


def test_far_items_share_whole_seconds() -> None:
    wheel, items = Wheel[Item](), [Item() for _ in range(64)]
    for index, item in enumerate(items):
        wheel.add(item, 130 + index / 100, 100.0)
    assert {item.armed for item in items} == {131 * TICKS}
    assert taken(wheel, 130.9) == []
    assert sorted(map(id, taken(wheel, 131.0))) == sorted(map(id, items))


def test_the_last_entry_of_an_item_counts() -> None:
    wheel, item = Wheel[Item](), Item()
    wheel.add(item, 130.0, 100.0)
    wheel.add(item, 101.0, 100.0)
    assert taken(wheel, 102.0) == [item]
    assert taken(wheel, 200.0) == []


def test_an_item_that_is_taken_out_is_kept_no_more() -> None:
    wheel, item = Wheel[Item](), Item()
    gone = weakref.ref(item)
    wheel.add(item, 130.0, 100.0)
    wheel.add(item, 101.0, 100.0)
    wheel.remove(item)
    assert not item.armed
    del item
    assert gone() is None
    assert taken(wheel, 200.0) == []


def test_an_item_without_entry_is_taken_out() -> None:
    wheel, item = Wheel[Item](), Item()
    wheel.add(item, 101.0, 100.0)
    wheel.clear()
    for _ in range(2):
        wheel.remove(item)
    assert not item.armed


def test_an_item_that_is_due_already_is_taken_at_once() -> None:
    wheel, item = Wheel[Item](), Item()
    wheel.add(item, 50.0, 100.0)
    assert taken(wheel, 100.0) == [item]


def test_a_cleared_wheel_is_empty() -> None:
    wheel, item = Wheel[Item](), Item()
    wheel.add(item, 50.0, 100.0)
    wheel.clear()
    assert wheel.earliest() is None
    assert wheel.take(1000.0) is None


@given(st.lists(st.floats(0, 5000), max_size=40))
def test_items_are_due_in_order_and_never_early(times: list[float]) -> None:
    wheel = Wheel[Item]()
    due = {}
    for when in times:
        item = Item()
        due[item] = when
        wheel.add(item, when, 0.0)
    order = []
    while (earliest := wheel.earliest()) is not None:
        for item in taken(wheel, earliest):
            assert 0 <= earliest - due[item] <= 1 + 1 / TICKS
            order.append(earliest)
    assert len(order) == len(times)
    assert order == sorted(order)
