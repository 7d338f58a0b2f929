"""The engine: which frames leave now, which later, and in what order. Takes 0.5 s."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from gpasst.counters import Drop
from gpasst.impair.action import Action, Answer
from gpasst.impair.engine import FLOWS_REMEMBERED, HELD_BYTES, HELD_FRAMES, Engine
from gpasst.impair.facts import ARP, TCP, UDP, Flow, Run
from gpasst.impair.grammar import build, parse
from gpasst.impair.hold import Room

HERE, THERE = bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53))
QUERY = Flow(UDP, 4, HERE, THERE, 40000, 53)
OTHER = Flow(UDP, 4, HERE, THERE, 40000, 54)
STREAM = Flow(TCP, 4, HERE, THERE, 40000, 80)


def engine_of(*rules: str) -> Engine:
    engine = Engine("guest")
    for rule in rules:
        engine.add(parse(rule), seed=7)
    return engine


def spans(actions: Iterable[Action]) -> list[tuple[object, int, int]]:
    return [(action.run.item, action.first, action.stop) for action in actions]


def items(actions: Iterable[Action]) -> list[object]:
    return [action.run.item for action in actions]


def offered(engine: Engine, count: int, now: float = 0, flow: Flow = QUERY, length: int = 100) -> list[Action]:
    """Offer single frames, numbered from 1 on."""
    return [action for number in range(1, count + 1) for action in engine.offer(Run(flow, number, length), now)]


def drained(engine: Engine) -> list[tuple[float, object]]:
    """Return when each frame leaves, and its number."""
    left: list[tuple[float, object]] = []
    while (due := engine.next_due) is not None:
        left += [(round(due, 6), item) for item in items(engine.due(due))]
    return left


def test_partition_loses_every_protocol() -> None:
    engine = engine_of("partition")
    arp = Flow(ARP)
    assert engine.concerns(arp)
    (action,) = engine.offer(Run(arp, "arp", 42), now=0)
    assert action.treatment.drop is Drop.IMPAIRED_PARTITION
    assert action.treatment.lost == "lost: partition"
    assert spans(engine.offer(Run(QUERY, "many", 100, count=3), now=0)) == [("many", 0, 3)]
    assert engine.rules[0].hits == 4


def test_what_no_rule_matches_is_not_concerned() -> None:
    engine = engine_of("dport 53: loss 100%")
    assert engine.concerns(QUERY)
    assert not engine.concerns(OTHER)
    assert not engine.concerns(Flow(ARP))
    assert spans(engine.offer(Run(OTHER, "whole", 100, count=9), 0)) == [("whole", 0, 9)]
    engine.remove(engine.rules[0])
    assert not engine.concerns(QUERY)


def test_the_first_rule_that_matches_decides() -> None:
    engine = engine_of("dport 53: loss 0%", "udp: loss 100%")
    assert not offered(engine, 1)[0].treatment.lost
    assert offered(engine, 1, flow=OTHER)[0].treatment.lost
    assert [rule.hits for rule in engine.rules] == [1, 1]


def test_a_rule_that_continues_asks_the_next_ones() -> None:
    engine = engine_of("udp: delay 20ms continue", "udp nth 2: loss 100%", "udp: delay 5ms")
    lost = offered(engine, 3)
    assert items(lost) == [2]
    assert drained(engine) == [(0.025, 1), (0.025, 3)]
    assert [rule.hits for rule in engine.rules] == [3, 1, 2]


def test_frames_that_nth_leaves_out_go_to_the_next_rule() -> None:
    engine = engine_of("nth 2-3: delay 1ms", "nth every 2: loss 100%")
    actions = engine.offer(Run(QUERY, 0, 100, count=6), 0)
    assert [(action.first, action.stop, bool(action.treatment.lost)) for action in actions] == [
        (0, 1, False),
        (3, 4, True),
        (4, 5, False),
        (5, 6, True),
    ]
    assert spans(engine.due(1)) == [(0, 1, 3)]


def test_delay_keeps_a_superframe_whole() -> None:
    engine = engine_of("delay 20ms")
    assert engine.offer(Run(QUERY, "run", 1400, count=45), now=10) == []
    assert engine.next_due == 10.02
    assert engine.due(10.019) == []
    assert spans(engine.due(10.02)) == [("run", 0, 45)]
    assert engine.next_due is None


def test_loss_cuts_a_superframe_only_where_fates_change() -> None:
    engine = engine_of("nth 3-4: loss 100%")
    assert spans(engine.offer(Run(QUERY, "run", 1400, count=45), 0)) == [("run", 0, 2), ("run", 2, 4), ("run", 4, 45)]


def test_jitter_lets_frames_overtake() -> None:
    engine = engine_of("distribution 10ms,1ms")
    offered(engine, 10)
    left = [item for _, item in drained(engine)]
    assert sorted(left, key=str) != left
    assert set(left) == set(range(1, 11))


def test_without_reordering_late_frames_hold_up_those_behind_them() -> None:
    strict = engine_of("distribution 10ms,0s reorder 0%")
    assert offered(strict, 10) == []
    left = drained(strict)
    assert [item for _, item in left] == list(range(1, 11))
    assert left[-1][0] == 0.01


def test_a_rule_that_ends_lets_go_in_order() -> None:
    engine = engine_of("delay 20ms")
    offered(engine, 3)
    engine.remove(engine.rules[0])
    assert engine.next_due == 0
    assert engine.concerns(OTHER)
    assert engine.offer(Run(OTHER, 4, 100), now=3) == []
    assert items(engine.due(3, most=3)) == [1, 2, 3]
    assert engine.offer(Run(OTHER, 5, 100), now=3) == []
    assert items(engine.due(3)) == [4, 5]
    assert items(engine.offer(Run(OTHER, 6, 100), now=3)) == [6]


def test_what_a_rule_lets_go_of_goes_on_to_the_next() -> None:
    engine = engine_of("delay 1s continue", "delay 20ms")
    offered(engine, 2)
    engine.remove(engine.rules[0])
    assert items(engine.due(5)) == []
    assert drained(engine) == [(5.02, 1), (5.02, 2)]


def test_a_rule_that_ends_is_skipped_by_what_is_on_its_way() -> None:
    engine = engine_of("delay 1s continue", "delay 20ms")
    offered(engine, 2)
    engine.remove(engine.rules[1])
    engine.remove(engine.rules[0])
    assert items(engine.due(0.5)) == [1, 2]


def test_removing_twice_changes_nothing() -> None:
    engine = engine_of("delay 1s")
    active = engine.rules[0]
    engine.remove(active)
    engine.remove(active)
    assert engine.next_due is None


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("nth 2: reorder 100% gap 3", [1, 3, 4, 5, 2, 6, 7, 8]),
        ("nth 2,3: reorder 100% gap 3", [1, 4, 5, 2, 6, 3, 7, 8]),
        # The last of those that pass is lost, or waits itself: the next one that passes counts.
        ("nth 2,5: reorder 100% gap 3", [1, 3, 4, 2, 6, 7, 8, 5]),
        ("nth 6: reorder 100% gap 2", [1, 2, 3, 4, 5, 7, 8, 6]),
        ("nth every 4: reorder 100% gap 1", [1, 2, 3, 5, 4, 6, 7]),
    ],
)
@pytest.mark.parametrize("batches", [[8], [1] * 8, [3, 5], [2, 2, 2, 2]])
def test_a_frame_leaves_behind_as_many_as_gap_says(rule: str, order: list[int], batches: list[int]) -> None:
    engine = engine_of(rule)
    left: list[int] = []
    number = 1
    for count in batches:
        for run, first, stop, _ in engine.offer(Run(QUERY, number, 100, count=count), 0):
            left += range(run.item + first, run.item + stop)
        number += count
    assert left == order


def test_a_frame_that_nobody_passes_leaves_after_50_ms() -> None:
    engine = engine_of("reorder 100% gap 3")
    offered(engine, 1, now=1)
    assert drained(engine) == [(1.05, 1)]
    offered(engine, 4, now=2)
    assert drained(engine) == [(2.05, 1), (2.05, 2), (2.05, 3), (2.05, 4)]


def test_reorder_without_gap_lets_frames_leave_at_once() -> None:
    engine = engine_of("delay 30ms reorder 50%")
    now = items(offered(engine, 20))
    later = [item for _, item in drained(engine)]
    assert 3 < len(now) < 17
    assert sorted(now + later, key=str) == sorted(range(1, 21), key=str)


def test_a_double_follows_its_own_and_counts_once() -> None:
    engine = engine_of("duplicate 100%")
    assert spans(engine.offer(Run(QUERY, 0, 100, count=2), 0)) == [(0, 0, 1), (0, 0, 1), (0, 1, 2), (0, 1, 2)]
    assert engine.rules[0].hits == 2


def test_treatments() -> None:
    (corrupt,) = offered(engine_of("corrupt payload"), 1)
    assert corrupt.treatment.payload
    assert 0 <= corrupt.treatment.corrupt < 1 << 32
    (marked,) = offered(engine_of("ecn mark"), 1)
    assert marked.treatment.mark
    (both,) = offered(engine_of("corrupt 100% continue", "ecn mark"), 1)
    assert both.treatment.mark
    assert both.treatment.corrupt >= 0
    first, second = offered(engine_of("udp: rebind"), 2)
    assert (first.treatment.rebind, second.treatment.rebind) == (True, False)


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("unreachable port", Answer.PORT),
        ("unreachable host", Answer.HOST),
        ("unreachable net", Answer.NET),
        ("unreachable admin", Answer.ADMIN),
        ("partition", None),
        ("loss 100%", None),
    ],
)
def test_answers(rule: str, answer: Answer | None) -> None:
    (action,) = engine_of(rule).offer(Run(QUERY, 0, 100, count=5), 0)
    assert action.treatment.answer is answer
    assert action.treatment.lost


def test_reset_is_about_tcp_alone() -> None:
    engine = engine_of("reset")
    (action,) = engine.offer(Run(STREAM, 0, 100), 0)
    assert action.treatment.answer is Answer.RESET
    assert not engine.concerns(QUERY)


def test_packets_longer_than_the_mtu_are_lost() -> None:
    engine = engine_of("mtu 1000")
    actions = engine.offer(Run(QUERY, 0, 1015, 1014, 3), 0)
    assert [(action.first, action.stop, action.treatment.lost) for action in actions] == [
        (0, 2, "lost: mtu 1000"),
        (2, 3, ""),
    ]
    assert actions[0].treatment.answer is None
    (action,) = offered(engine_of("mtu 1000 icmp"), 1, length=1015)
    assert (action.treatment.answer, action.treatment.mtu) == (Answer.TOO_BIG, 1000)


def test_what_is_held_is_limited_in_frames() -> None:
    engine = engine_of("delay 20ms")
    assert engine.offer(Run(QUERY, 0, 1, count=HELD_FRAMES), 0) == []
    (action,) = offered(engine, 1)
    assert action.treatment.drop is Drop.IMPAIRMENT_FULL
    engine.due(1)
    assert engine.frames_held == 0
    assert offered(engine, 1) == []


def test_what_is_held_is_limited_in_bytes() -> None:
    engine = engine_of("delay 20ms")
    lost = offered(engine, HELD_BYTES // 65536 + 1, length=65536)
    assert [action.treatment.drop for action in lost] == [Drop.IMPAIRMENT_FULL]


@pytest.mark.parametrize("length", [100, 2000])
def test_engines_that_hold_much_leave_room_for_those_that_hold_little(length: int) -> None:
    room = Room(1000, 1000 * 1000)
    engines = [Engine("guest", room=room) for _ in range(9)]
    for engine in engines:
        engine.add(parse("delay 20ms"), seed=7)
    lost = [action for _ in range(200) for engine in engines[:-1] for action in offered(engine, 1, length=length)]
    assert {action.treatment.drop for action in lost} == {Drop.IMPAIRMENT_FULL}
    assert offered(engines[-1], 5, length=length) == []
    for engine in engines:
        drained(engine)
    assert (room.frames, room.bytes) == (1000, 1000 * 1000)


def test_what_is_held_of_a_superframe_keeps_all_of_it() -> None:
    engine = engine_of("nth every 45: delay 20ms", "nth every 44: delay 30ms")
    size = 45 * 1400
    for number in range(HELD_BYTES // size):
        engine.offer(Run(QUERY, number, 1400, count=45), 0)
    assert HELD_BYTES - size < engine.bytes_held <= HELD_BYTES
    lost = [action for action in engine.offer(Run(QUERY, -1, 1400, count=45), 0) if action.treatment.lost]
    assert {action.treatment.drop for action in lost} == {Drop.IMPAIRMENT_FULL}
    while engine.next_due is not None:
        engine.due(engine.next_due)
    assert engine.frames_held == engine.bytes_held == 0


def test_rules_that_frames_pass_one_after_the_other_may_be_many() -> None:
    many = sys.getrecursionlimit()
    assert items(offered(engine_of(*["reorder 1e-9 continue"] * many), 2)) == [1, 2]
    engine = engine_of(*["nth 1: reorder 100% continue"] * many)
    assert offered(engine, 1) == []
    # The second lets the first go on from each rule to the next.
    assert [*items(offered(engine, 1)), *(item for _, item in drained(engine))] == [1, 1]


def test_what_goes_behind_the_overdue_is_limited_too() -> None:
    engine = engine_of("delay 20ms")
    engine.offer(Run(QUERY, 0, 1, count=HELD_FRAMES), 0)
    engine.remove(engine.rules[0])
    (action,) = offered(engine, 1)
    assert action.treatment.drop is Drop.IMPAIRMENT_FULL


def test_a_rule_that_comes_and_goes_leaves_nothing_behind() -> None:
    engine = Engine("guest")
    for _ in range(100):
        active = engine.add(parse("reorder 100% gap 9 delay 1s"), 7)
        offered(engine, 5)
        engine.remove(active)
        engine.due(0)
    assert engine.next_due is None


def test_flows_are_forgotten_before_they_are_too_many() -> None:
    engine = engine_of("dport 53: loss 100%")
    for number in range(FLOWS_REMEMBERED + 10):
        assert not engine.concerns(Flow(UDP, 4, HERE, THERE, number, 54))
    assert engine.concerns(QUERY)


def test_a_predicate_that_raises_matches_nothing_and_is_reported() -> None:
    engine = Engine("guest")
    active = engine.add(build(loss=1, when=lambda frame: frame["missing"]), 7)
    assert not engine.offer(Run(QUERY, 0, 100, parsed=lambda index: {}), 0)[0].treatment.lost
    assert isinstance(active.error, KeyError)
    assert active.hits == 0


def test_a_predicate_may_raise_what_is_no_exception() -> None:
    engine = Engine("guest")
    active = engine.add(build(loss=1, when=lambda frame: pytest.fail("not this one")), 7)
    assert not engine.offer(Run(QUERY, 0, 100, parsed=lambda index: {}), 0)[0].treatment.lost
    assert str(active.error) == "not this one"


def test_due_returns_no_more_than_is_asked_for() -> None:
    engine = engine_of("delay 20ms")
    offered(engine, 10)
    assert items(engine.due(1, most=4)) == [1, 2, 3, 4]
    assert engine.next_due is not None
    assert engine.next_due <= 1
    assert items(engine.due(1)) == [5, 6, 7, 8, 9, 10]
