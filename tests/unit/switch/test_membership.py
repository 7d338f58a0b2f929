"""Switches that are joined as a tree, whatever trunks are asked for."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.switch.membership import COOKIE_BYTES, MEMBERS_LIMIT, Membership, packed, unpacked

SWITCHES = 6


def cookie(number: int) -> bytes:
    return number.to_bytes(COOKIE_BYTES, "big")


class Room:
    """Switches, the trunks between them, and the announcements that are under way."""

    def __init__(self) -> None:
        self.switches = [Membership[int](cookie(number)) for number in range(SWITCHES)]
        self.trunks: dict[int, tuple[int, int]] = {}
        self._news: deque[tuple[int, int]] = deque()
        self._made = 0

    def join(self, *ends: int) -> bool:
        """Make a trunk between two switches, unless it is refused; return whether it was made."""
        self._made += 1
        first, second = (self.switches[end] for end in ends)
        members = first.announced(self._made), second.announced(self._made)
        refused = first.closes_loop(self._made, members[1]), second.closes_loop(self._made, members[0])
        assert refused[0] == refused[1], "both ends agree"
        if refused[0]:
            return False
        self.trunks[self._made] = ends[0], ends[1]
        self._announce(ends[0], first.put(self._made, members[1]))
        self._announce(ends[1], second.put(self._made, members[0]))
        self._settle()
        return True

    def cut(self, trunk: int) -> None:
        """End a trunk."""
        for end in self.trunks.pop(trunk):
            self._announce(end, self.switches[end].remove(trunk))
        self._settle()

    def reached(self, start: int) -> set[int]:
        """Return the switches that can be reached from one."""
        found, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            near = {end for ends in self.trunks.values() if here in ends for end in ends}
            waiting += near - found
            found |= near
        return found

    def _announce(self, here: int, trunks: list[int]) -> None:
        self._news.extend((here, trunk) for trunk in trunks)

    def _settle(self) -> None:
        """Deliver announcements until there is no news."""
        while self._news:
            here, trunk = self._news.popleft()
            (there,) = set(self.trunks[trunk]) - {here}
            members = self.switches[here].announced(trunk)
            assert not self.switches[there].closes_loop(trunk, members)
            self._announce(there, self.switches[there].put(trunk, members))


NUMBERS = st.integers(0, SWITCHES - 1)


@given(st.lists(st.one_of(st.tuples(NUMBERS, NUMBERS), st.tuples(NUMBERS))))
def test_a_trunk_is_refused_exactly_where_there_is_a_way_already(steps: list[tuple[int, ...]]) -> None:
    """Two numbers ask for a trunk between these; one cuts a trunk."""
    room = Room()
    for ends in steps:
        if len(ends) > 1:
            joined = ends[1] in room.reached(ends[0])
            assert room.join(*ends) == (not joined)
        elif room.trunks:
            room.cut(list(room.trunks)[ends[0] % len(room.trunks)])
        for number, switch in enumerate(room.switches):
            # No trunk has this number, so nothing is left out.
            assert switch.announced(0) == {cookie(found) for found in room.reached(number)}


def test_a_switch_is_not_joined_with_itself() -> None:
    switch = Membership[str](cookie(1))
    assert switch.closes_loop("trunk", switch.announced("trunk"))


def test_what_has_not_changed_is_no_news() -> None:
    switch = Membership[str](cookie(1))
    switch.put("a", frozenset((cookie(2),)))
    assert switch.put("b", frozenset((cookie(3),))) == ["a"]
    assert switch.put("b", frozenset((cookie(3),))) == []
    assert switch.remove("b") == ["a"]
    assert switch.remove("b") == []


def test_a_loop_that_nobody_knew_shows_with_the_next_announcement() -> None:
    switch = Membership[str](cookie(1))
    switch.put("a", frozenset((cookie(2),)))
    switch.put("b", frozenset((cookie(3),)))
    assert switch.closes_loop("a", frozenset((cookie(2), cookie(3))))
    assert not switch.closes_loop("a", frozenset((cookie(2), cookie(4))))


@given(st.sets(st.binary(min_size=COOKIE_BYTES, max_size=COOKIE_BYTES), min_size=1))
def test_cookies_are_announced_as_they_are(cookies: set[bytes]) -> None:
    assert unpacked(packed(frozenset(cookies))) == cookies


@pytest.mark.parametrize("size", [0, 1, COOKIE_BYTES + 1, (MEMBERS_LIMIT + 1) * COOKIE_BYTES])
def test_other_bytes_are_no_announcement(size: int) -> None:
    with pytest.raises(ValueError, match="announcement"):
        unpacked(bytes(size))
