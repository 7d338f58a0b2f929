"""Turns: others have theirs when the time is over, and the next one begins when they return. When a link is crowded."""

from __future__ import annotations

import pytest

from gpasst.path.budget import CROWDED_SECONDS, TURN_SECONDS, Crowd, Turns


def test_others_have_their_turn_whenever_the_time_is_over() -> None:
    now, looks = 100.0, 0
    taken: list[int] = []

    def others() -> None:
        nonlocal now
        taken.append(looks)
        now += 10 * TURN_SECONDS

    turns = Turns(others, lambda: now)
    for _ in range(9):
        now += TURN_SECONDS / 3.5
        looks += 1
        turns.look()
    assert taken == [4, 8]


def test_a_link_is_crowded_when_its_steps_have_left_something_for_long_enough() -> None:
    crowd = Crowd()
    noticed: list[float] = []
    crowd.notice = noticed.append
    crowd.left(1.0)
    crowd.left(1.0 + CROWDED_SECONDS / 2)
    assert (crowd.lasting, noticed) == (False, [0.0])
    crowd.left(1.0 + 2 * CROWDED_SECONDS)
    assert crowd.lasting
    crowd.left(1.0 + 2.5 * CROWDED_SECONDS)
    crowd.left(1.0 + 3.5 * CROWDED_SECONDS)
    assert noticed == pytest.approx([0.0, 2 * CROWDED_SECONDS, 1.5 * CROWDED_SECONDS])


def test_one_step_that_leaves_nothing_ends_that() -> None:
    crowd = Crowd()
    for time in (1.0, 1.0 + CROWDED_SECONDS):
        crowd.left(time)
    crowd.emptied()
    assert not crowd.lasting
    crowd.left(2.0)
    assert not crowd.lasting
