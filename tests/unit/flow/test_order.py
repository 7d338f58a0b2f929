"""The order of last use, beside a list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpasst.flow.order import Linked, Order

COUNT = 4  # of items, each of which may be in the order or not


@given(st.lists(st.tuples(st.sampled_from(["append", "remove", "renew"]), st.integers(0, COUNT - 1))))
def test_the_one_that_was_used_longest_ago_is_first(calls: list[tuple[str, int]]) -> None:
    order: Order[Linked] = Order()
    items = [Linked() for _ in range(COUNT)]
    for item in items:
        item.unlink()
    model: list[Linked] = []
    for call, number in calls:
        item = items[number]
        if (call == "append") == (item in model) and call != "renew":
            continue
        getattr(order, call)(item)
        if item in model:
            model.remove(item)
            model += [item] * (call == "renew")
        elif call == "append":
            model.append(item)
        assert (list(order), len(order), order.first) == (model, len(model), model[0] if model else None)
        assert [item in order for item in items] == [item in model for item in items]
    for item in model:
        order.remove(item)
    assert all(item.earlier is item.later is None for item in items), "a circle of references"


def test_an_item_may_leave_while_the_order_is_read() -> None:
    order: Order[Linked] = Order()
    items = [Linked() for _ in range(COUNT)]
    for item in items:
        order.append(item)
    for item in order:
        order.remove(item)
    assert len(order) == 0
