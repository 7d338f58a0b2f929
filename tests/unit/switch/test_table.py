"""Addresses and the ports that lead to them."""

from __future__ import annotations

from gpasst.switch.table import LEARNED_PER_PORT, Table

A, B, GROUP = b"\x02aaaaa", b"\x02bbbbb", b"\x01\0\x5e\0\0\1"


def address(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def test_what_is_unknown_leads_nowhere() -> None:
    assert Table[str]().find(A) is None


def test_an_address_leads_to_the_port_it_was_seen_at() -> None:
    table = Table[str]()
    assert table.learn(A, "one")
    assert table.find(A) == "one"
    assert not table.changes


def test_an_address_moves_to_the_port_where_it_is_seen_next() -> None:
    table = Table[str]()
    table.learn(A, "one")
    table.rely(A)
    assert table.learn(A, "two")
    assert table.find(A) == "two"
    assert table.changes == 1
    table.remove("one")
    assert table.find(A) == "two"


def test_a_pinned_address_stays_and_may_not_be_used_elsewhere() -> None:
    table = Table[str]()
    table.learn(A, "two")
    table.pin(A, "one")
    assert not table.learn(A, "two")
    assert table.learn(A, "one")
    assert table.find(A) == "one"
    table.remove("two")
    assert table.find(A) == "one"


def test_an_address_that_is_not_pinned_any_more_is_learned() -> None:
    table = Table[str]()
    table.pin(A, "one")
    assert table.is_pinned(A)
    table.unpin(A, "two")
    assert not table.learn(A, "two")
    changes = table.changes
    table.unpin(A, "one")
    table.unpin(A, "one")
    assert table.changes == changes + 1
    assert table.find(A) is None
    assert table.learn(A, "two")


def test_a_group_sends_nothing() -> None:
    table = Table[str]()
    assert not table.learn(GROUP, "one")
    assert not table.find(GROUP)


def test_a_port_that_goes_takes_its_addresses_along() -> None:
    table = Table[str]()
    table.pin(A, "one")
    table.learn(B, "one")
    table.remove("one")
    assert not len(table)
    assert table.learn(A, "two")
    assert table.find(A) == "two"


def test_a_port_that_invents_addresses_loses_its_own_oldest() -> None:
    table = Table[str]()
    table.learn(A, "other")
    for number in range(LEARNED_PER_PORT):
        assert table.learn(address(number), "one")
    table.rely(address(0))
    assert table.learn(address(LEARNED_PER_PORT), "one")
    assert len(table) == LEARNED_PER_PORT + 1
    assert table.find(address(0)) is None
    assert table.find(address(1)) == "one"
    assert table.find(A) == "other"
    assert table.changes == 1


def test_what_nobody_relies_on_changes_nothing() -> None:
    table = Table[str]()
    table.learn(A, "one")
    table.rely(A)
    table.forget_relied()
    table.learn(A, "two")
    table.learn(B, "two")
    table.rely(A)
    for number in range(2 * LEARNED_PER_PORT):
        table.learn(address(number), "one")
    assert not table.changes
