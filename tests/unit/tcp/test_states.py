"""The states of a connection, and the transitions between them."""

from __future__ import annotations

import itertools

import pytest

from gpasst.tcp.states import OPENING, RECEIVING, TRANSITIONS, Event, State, after


def reached(starts: set[State]) -> set[State]:
    states = set(starts)
    while True:
        more = states | {after(state, event) for state in states for event in Event}
        if more == states:
            return states
        states = more


def test_every_state_can_be_reached_from_a_first_segment() -> None:
    assert reached({State.CONNECTING, State.SYN_SENT}) == set(State)


@pytest.mark.parametrize("event", Event)
def test_closed_is_final(event: Event) -> None:
    assert after(State.CLOSED, event) is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_every_state_ends_with_a_reset_and_can_end(state: State) -> None:
    assert after(state, Event.ABORT) is State.CLOSED
    assert State.CLOSED in reached({state})


def test_an_event_without_entry_changes_nothing() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) not in TRANSITIONS:
            assert after(state, event) is state


def test_no_way_leads_back() -> None:
    for state in set(State) - {State.CLOSED}:
        beyond = {after(state, event) for event in Event} - {state}
        assert state not in reached(beyond)


@pytest.mark.parametrize(
    "order",
    [
        (Event.FIN, Event.FIN_ACKNOWLEDGED, Event.GUEST_FIN),
        (Event.FIN, Event.GUEST_FIN, Event.FIN_ACKNOWLEDGED),
        (Event.GUEST_FIN, Event.FIN, Event.FIN_ACKNOWLEDGED),
    ],
)
def test_both_sides_end_in_any_order(order: tuple[Event, ...]) -> None:
    states = list(itertools.accumulate(order, after, initial=State.ESTABLISHED))
    assert states[-1] is State.CLOSED
    assert len(set(states)) == 4


def test_data_of_the_guest_comes_until_its_fin() -> None:
    assert not OPENING & RECEIVING
    assert all(after(state, Event.GUEST_FIN) not in RECEIVING for state in RECEIVING)
