"""Rules that enter a run whose weather is chosen. Takes 0.1 s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpasst.api import replay
from gpasst.impair.engine import Engine
from gpasst.impair.facts import UDP, Flow, Run
from gpasst.impair.fate import Fate
from gpasst.impair.grammar import parse

FLOW = Flow(UDP, 4, bytes(4), bytes(4), 1, 2)
TEXT = "udp: loss 50% seed 7"


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    replay.begin(None)


def lost(fates: dict[replay.Key, dict[int, Fate]] | None, *rules: str) -> list[list[int]]:
    """Return the numbers of the frames that are lost behind each rule, of ten that are offered to each."""
    replay.begin(replay.Replay(fates))
    found = []
    for rule in rules:
        engine = Engine("host")
        active = engine.add(parse(rule), 7)
        replay.enter([active])
        engine.offer(Run(FLOW, None, 100, count=10), 0)
        found.append([n for n, fate in active.log.fates if fate == "lost"])
    return found


def test_chance_decides_unless_fates_are_chosen() -> None:
    by_chance = lost(None, TEXT)
    replay.begin(None)
    assert 0 < len(by_chance[0]) < 10
    assert lost({}, TEXT) == [[]]


def test_rules_of_one_text_differ_by_their_order() -> None:
    fates = {("host", TEXT, 1): {3: Fate("lost")}, ("guest", TEXT, 0): {4: Fate("lost")}}
    assert lost(fates, TEXT, TEXT, TEXT) == [[], [3], []]


def test_rules_are_kept_in_the_order_in_which_they_came() -> None:
    run = replay.Replay()
    engine = Engine("guest")
    for text in (TEXT, "partition", TEXT):
        run.enter(engine.add(parse(text), 7))
    assert list(run.rules) == [("guest", TEXT, 0), ("guest", "partition seed 7", 0), ("guest", TEXT, 1)]


def test_what_enters_no_run_is_left_to_chance() -> None:
    engine = Engine("host")
    active = engine.add(parse("loss 100%"), 7)
    replay.enter([active])
    assert engine.offer(Run(FLOW, None, 100), 0)[0].treatment.lost
