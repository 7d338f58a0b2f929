"""Turns: others have theirs when the time is over, and the next one begins when they return."""

from __future__ import annotations

from gpasst.path.budget import TURN_SECONDS, Turns


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
