"""Ages: a scan does bounded work between two pieces, and bears what happens meanwhile."""

from __future__ import annotations

from gpasst.flow.activity import BYTES_AT_ONCE, COLD_SECONDS, ITEMS_AT_ONCE, Ages, Tracked

TIMEOUT = 180
MANY = 8 * BYTES_AT_ONCE * 3  # items
AT_MOST = ITEMS_AT_ONCE + 7  # items that a piece finds active: those of a byte belong together


class Seen(Ages[Tracked]):
    """Counts the items that scans found active."""

    found = 0

    def touched(self, item: Tracked) -> None:
        self.found += 1


def filled(count: int) -> tuple[Seen, list[Tracked]]:
    ages, items = Seen(1000), [Tracked() for _ in range(count)]
    for item in items:
        ages.add(item)
    return ages, items


def mark(ages: Seen, item: Tracked) -> None:
    ages.activity[item.byte] |= item.bit


def test_marks_are_read_in_pieces() -> None:
    ages, items = filled(MANY)
    for item in items:
        mark(ages, item)
    found = 0
    for piece in ages.scan(1001, TIMEOUT):
        assert piece == []
        assert 0 < ages.found - found <= AT_MOST
        found = ages.found
    assert found == MANY
    assert {ages.idle_seconds(item) for item in items} == {0}


def test_bytes_without_marks_are_passed_over() -> None:
    ages, items = filled(MANY)
    mark(ages, items[-1])
    assert list(ages.scan(1001, TIMEOUT)) == []
    assert ages.found == 1


def test_an_item_that_came_between_two_pieces_is_not_taken_for_the_one_before() -> None:
    ages, items = filled(MANY)
    for item in items:
        mark(ages, item)
    scan = ages.scan(1001, TIMEOUT)
    assert next(scan) == []
    ages.remove(items[-1])
    new = Tracked()
    ages.add(new)
    assert all(piece == [] for piece in scan)
    assert ages.found == MANY - 1


def test_items_end_a_few_at_a_time_the_longest_idle_first() -> None:
    ages, items = filled(MANY)
    ended: list[Tracked] = []
    for piece in ages.scan(1001 + TIMEOUT, TIMEOUT):
        assert 0 < len(piece) <= ITEMS_AT_ONCE
        for item in piece:
            ages.remove(item)
        ended += piece
    assert ended == items
    assert len(ages) == 0


def test_what_is_marked_between_two_pieces_stays() -> None:
    ages, items = filled(3 * ITEMS_AT_ONCE)
    kept = items[ITEMS_AT_ONCE : 2 * ITEMS_AT_ONCE]
    for number, piece in enumerate(ages.scan(1001 + TIMEOUT, TIMEOUT)):
        for item in piece:
            ages.remove(item)
        if not number:
            for item in kept:
                mark(ages, item)
    assert list(ages) == kept
    assert ages.idle_seconds(kept[0]) == 0
    assert not any(ages.activity)


def test_items_may_come_and_go_between_two_pieces() -> None:
    ages, items = filled(3 * ITEMS_AT_ONCE)
    scan = ages.scan(1001 + TIMEOUT, TIMEOUT)
    for item in next(scan):
        ages.remove(item)
    new = Tracked()
    ages.add(new)
    ages.remove(items[ITEMS_AT_ONCE])
    ended = []
    for piece in scan:
        for item in piece:
            ages.remove(item)
        ended += piece
    assert ended == items[ITEMS_AT_ONCE + 1 :]
    assert list(ages) == [new]


def test_the_oldest_follows_marks() -> None:
    ages, items = filled(3)
    mark(ages, items[0])
    assert list(ages.scan(1001, TIMEOUT)) == []
    assert ages.oldest() is items[1]


class Cold(Ages[Tracked]):
    """Keeps what has become cold."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.reported: list[Tracked] = []

    def cold(self, item: Tracked) -> None:
        self.reported.append(item)


def test_what_becomes_cold_is_reported_once() -> None:
    ages, items = Cold(), [Tracked() for _ in range(3)]
    for item in items:
        ages.add(item)
    assert list(ages.scan(1000 + COLD_SECONDS, TIMEOUT)) == []
    assert ages.reported == []
    ages.activity[items[0].byte] |= items[0].bit
    list(ages.scan(1001 + COLD_SECONDS, TIMEOUT))
    assert ages.reported == items[1:]
    list(ages.scan(1002 + COLD_SECONDS, TIMEOUT))
    assert ages.reported == items[1:]
    ages.activity[items[1].byte] |= items[1].bit
    list(ages.scan(1002 + 2 * COLD_SECONDS, TIMEOUT))
    assert ages.reported == [*items[1:], items[0]]
    list(ages.scan(1003 + 3 * COLD_SECONDS, TIMEOUT))
    assert ages.reported == [*items[1:], *items[:2]]


def test_one_that_leaves_before_it_is_cold_is_not_reported() -> None:
    ages, items = Cold(), [Tracked() for _ in range(MANY)]
    for item in items:
        ages.add(item)
    scan = ages.scan(1001 + COLD_SECONDS, TIMEOUT)
    assert next(scan) == []
    assert ages.reported == items[:ITEMS_AT_ONCE], "in pieces"
    ages.remove(items[ITEMS_AT_ONCE])
    ages.remove(items[0])
    assert list(scan) == [[]] * (MANY // ITEMS_AT_ONCE - 2)
    assert ages.reported == items[:ITEMS_AT_ONCE] + items[ITEMS_AT_ONCE + 1 :]
