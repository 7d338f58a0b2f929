"""The engine: which frames leave now, which later, and in what order. Takes 0.1 s."""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.impair.action import Action
from gpasst.impair.engine import Engine
from gpasst.impair.facts import ARP, UDP, Flow, Run
from gpasst.impair.rule import CERTAIN, Rule

QUERY = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53)
OTHER = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 54)


def spans(actions: list[Action]) -> list[tuple[object, int, int, str]]:
    return [(action.run.item, action.first, action.stop, action.treatment.lost) for action in actions]


def test_partition_loses_every_protocol() -> None:
    engine = Engine("guest")
    active = engine.add(Rule(partition=True), seed=1)
    arp = Flow(ARP)
    assert engine.concerns(arp)
    (action,) = engine.offer(Run(arp, "arp", 42), now=0)
    assert action.treatment.drop is Drop.IMPAIRED
    assert spans(engine.offer(Run(QUERY, "many", 100, count=3), now=0)) == [("many", 0, 3, "lost: partition")]
    assert active.hits == 4


def test_what_no_rule_matches_is_not_concerned() -> None:
    engine = Engine("guest")
    engine.add(Rule(dport=((53, 53),), loss=CERTAIN), seed=1)
    assert engine.concerns(QUERY)
    assert not engine.concerns(OTHER)
    assert not engine.concerns(Flow(ARP))


def test_delay_keeps_a_superframe_whole() -> None:
    engine = Engine("guest")
    engine.add(Rule(delay=20_000), seed=1)
    assert engine.offer(Run(QUERY, "run", 1400, count=45), now=10) == []
    assert engine.next_due == 10.02
    assert engine.due(10.019) == []
    assert spans(engine.due(10.02)) == [("run", 0, 45, "")]
    assert engine.next_due is None


def test_a_rule_that_ends_lets_go_in_order() -> None:
    engine = Engine("guest")
    active = engine.add(Rule(delay=20_000), seed=1)
    for number in range(3):
        engine.offer(Run(QUERY, number, 100), now=number)
    engine.remove(active)
    assert engine.offer(Run(QUERY, 3, 100), now=3) == []
    assert [action.run.item for action in engine.due(3)] == [0, 1, 2, 3]
    assert [action.run.item for action in engine.offer(Run(QUERY, 4, 100), now=3)] == [4]


def test_fates_do_not_depend_on_how_many_frames_come_at_once() -> None:
    whole, single = Engine("guest"), Engine("guest")
    for engine in (whole, single):
        engine.add(Rule(loss=CERTAIN // 3), seed=7)
    lost = {
        index
        for _, first, stop, why in spans(whole.offer(Run(QUERY, 0, 100, count=500), 0))
        if why
        for index in range(first, stop)
    }
    assert lost == {index for index in range(500) if single.offer(Run(QUERY, 0, 100), 0)[0].treatment.lost}
    assert 120 < len(lost) < 220
