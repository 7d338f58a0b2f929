"""The window that the guest is promised, and the budget of all promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.tcp.window import SCALE, WINDOW_FIRST, WINDOW_MAXIMUM, WINDOW_MINIMUM, Budget, ReceiveWindow

FIRST = 0xFFFFF000  # the numbers wrap around soon


def opened(budget: Budget | None = None, scale: int = SCALE) -> ReceiveWindow:
    window = ReceiveWindow(budget or Budget())
    window.start(FIRST, scale)
    return window


def right(window: ReceiveWindow) -> int:
    """Return how far the right edge is from the first byte."""
    return (window.edge - FIRST) % 2**32


def test_the_first_window_is_that_of_the_syn() -> None:
    budget = Budget()
    window = opened(budget)
    assert right(window) == 65535
    assert budget.promised == 65535


def test_a_field_is_rounded_up_so_that_the_edge_stays() -> None:
    window = opened()
    assert window.advertise(FIRST, full=False) == 256
    assert right(window) == 65536
    assert window.advertise(FIRST + 1, full=True) == 256
    assert right(window) == 65537


def test_a_filled_window_doubles_up_to_the_maximum() -> None:
    window = opened()
    acknowledged, fields = FIRST, []
    for _ in range(6):
        fields.append(window.advertise(acknowledged, full=False))
        acknowledged = window.edge
    # Twice the first one, then twice that and so on, in units of 256 bytes.
    assert fields == [256, 512, 1024, 2048, 2048, 2048]


def test_a_window_that_is_hardly_filled_stays() -> None:
    window = opened()
    for count in range(1, 100):
        assert window.advertise(FIRST + 1000 * count, full=False) == 256


def test_while_data_is_kept_the_edge_stays() -> None:
    window = opened()
    window.advertise(FIRST, full=False)
    assert window.advertise(FIRST + 32768, full=True) == 128
    assert window.advertise(FIRST + 65536, full=True) == 0
    assert right(window) == 65536


def test_without_scaling_a_window_has_16_bits() -> None:
    window = opened(scale=0)
    acknowledged = FIRST
    for _ in range(5):
        assert window.advertise(acknowledged, full=False) == 65535
        acknowledged = window.edge


def test_what_is_beyond_the_budget_is_not_promised() -> None:
    budget = Budget(limit=WINDOW_FIRST)
    first, second = opened(budget), opened(budget)
    assert (right(first), right(second)) == (65535, WINDOW_MINIMUM)
    assert second.advertise(FIRST + 4000, full=False) * 256 == WINDOW_MINIMUM
    first.release()
    assert second.advertise(FIRST + 8000, full=False) * 256 == 65536


def test_a_window_gets_what_the_budget_has_left() -> None:
    budget = Budget(limit=100_000)
    first, second = opened(budget), opened(budget)
    assert (right(first), right(second)) == (65535, 4096)
    assert first.advertise(FIRST + 65535, full=False) * 256 == 96000
    assert second.advertise(FIRST + 4096, full=False) * 256 == 4096
    assert budget.promised == 100096


def test_an_end_gives_the_promise_back_once() -> None:
    budget = Budget()
    windows = [opened(budget) for _ in range(2)]
    for window in windows:
        window.advertise(FIRST, full=False)
    windows[0].release()
    windows[0].release()
    assert budget.promised == 65536


@pytest.mark.parametrize("scale", [0, SCALE])
@given(
    steps=st.lists(st.tuples(st.integers(0, 600_000), st.booleans()), max_size=30),
    limit=st.sampled_from([1000, 200_000, 1 << 28]),
)
def test_the_edge_never_moves_back(scale: int, steps: list[tuple[int, bool]], limit: int) -> None:
    budget = Budget(limit)
    window = opened(budget, scale)
    acknowledged, before = 0, right(window)
    for count, full in steps:
        acknowledged += min(count, before - acknowledged)
        field = window.advertise((FIRST + acknowledged) % 2**32, full)
        now = right(window)
        assert now == acknowledged + (field << scale)
        assert now >= before
        assert now - acknowledged <= WINDOW_MAXIMUM
        if not full:
            assert now - acknowledged >= WINDOW_MINIMUM
        assert budget.promised == now - acknowledged
        before = now
    window.release()
    assert budget.promised == 0
