"""A rate, and the queue in front of it. Takes 0.2 s."""

from __future__ import annotations

import pytest

from gpasst.counters import Drop
from gpasst.impair.engine import Engine
from gpasst.impair.facts import UDP, Flow, Run
from gpasst.impair.grammar import parse

FLOW = Flow(UDP, 4, bytes(4), bytes(4), 1, 2)
# 1000 bytes take a millisecond.
RATE = "rate 8mbit"


def engine_of(rule: str) -> Engine:
    engine = Engine("guest")
    engine.add(parse(rule), seed=7)
    return engine


def left(engine: Engine) -> list[tuple[float, int, int, int]]:
    """Return when each part leaves, in milliseconds, its run and its frames."""
    found = []
    while (due := engine.next_due) is not None:
        found += [(round(due * 1000, 3), run.item, first, stop) for run, first, stop, _ in engine.due(due)]
    return found


def test_frames_leave_one_after_the_other() -> None:
    engine = engine_of(RATE)
    for number in range(3):
        assert engine.offer(Run(FLOW, number, 1000), 0.0005 * number) == []
    assert left(engine) == [(1, 0, 0, 1), (2, 1, 0, 1), (3, 2, 0, 1)]


def test_a_superframe_is_cut_into_frames() -> None:
    engine = engine_of(RATE)
    engine.offer(Run(FLOW, 0, 1000, 500, 3), 0)
    assert left(engine) == [(1, 0, 0, 1), (2, 0, 1, 2), (2.5, 0, 2, 3)]


def test_at_a_high_rate_it_is_cut_into_pieces_of_half_a_millisecond() -> None:
    engine = engine_of("rate 800mbit")
    engine.offer(Run(FLOW, 0, 1000, 0, 120), 0)
    assert left(engine) == [(0.5, 0, 0, 50), (1, 0, 50, 100), (1.2, 0, 100, 120)]


def test_a_link_that_is_looked_at_late_loses_no_time() -> None:
    engine = engine_of(RATE)
    for number in range(10):
        engine.offer(Run(FLOW, number, 1000), 0)
    assert len(engine.due(0.0055)) == 5
    assert engine.next_due == pytest.approx(0.006)
    assert len(engine.due(1)) == 5


def test_an_idle_link_saves_no_time() -> None:
    engine = engine_of(RATE)
    engine.offer(Run(FLOW, 0, 1000), 0)
    engine.due(1)
    engine.offer(Run(FLOW, 1, 1000), 5)
    assert left(engine) == [(5001, 1, 0, 1)]


def test_a_delay_begins_when_a_frame_has_left_the_link() -> None:
    engine = engine_of(f"{RATE} delay 20ms")
    engine.offer(Run(FLOW, 0, 1000, 0, 2), 0)
    engine.due(0.010)  # late
    assert left(engine) == [(21, 0, 0, 1), (22, 0, 1, 2)]


@pytest.mark.parametrize(
    ("queue", "kept"),
    [
        ("3 frames", [0, 1, 2]),
        ("3 frames head", [0, 8, 9]),
        ("3500", [0, 1, 2]),
        ("3500 head", [0, 8, 9]),
        ("3ms", [0, 1, 2]),
        ("3ms head", [0, 8, 9]),
        ("1 frames", [0]),
        ("1 frames head", [0]),
        ("1", [0, 1]),
        ("1 head", [0, 9]),
        ("0.5ms", [0, 1]),
    ],
)
@pytest.mark.parametrize("batch", [1, 10, 3])
def test_what_finds_no_room_is_dropped(queue: str, kept: list[int], batch: int) -> None:
    engine = engine_of(f"{RATE} queue {queue}")
    lost: list[int] = []
    for first in range(0, 10, batch):
        for run, start, stop, treatment in engine.offer(Run(FLOW, first, 1000, 0, min(batch, 10 - first)), 0):
            assert treatment.drop is Drop.IMPAIRMENT_QUEUE
            lost += range(run.item + start, run.item + stop)
    passed = [number + index for _, number, first, stop in left(engine) for index in range(first, stop)]
    assert passed == kept
    assert sorted(lost) == [number for number in range(10) if number not in kept]
    assert (engine.frames_held, engine.bytes_held) == (0, 0)
    dropped = [n - 1 for n, fate in engine.rules[0].log.fates if fate == "lost: queue full"]
    assert sorted(dropped) == sorted(lost)


def test_pieces_of_many_frames_are_dropped_frame_by_frame_at_the_head() -> None:
    engine = engine_of("rate 800mbit queue 60 frames head")
    lost = engine.offer(Run(FLOW, 0, 1000, 0, 100), 0)
    # 50 frames are on the link; ten of the rest have room, and 90 to 99 are the newest.
    assert sum(stop - first for _, first, stop, _ in lost) == 40
    assert left(engine)[-1][3] == 100
    assert engine.frames_held == 0


def test_a_rule_that_ends_lets_go_of_its_queue() -> None:
    engine = engine_of(RATE)
    engine.offer(Run(FLOW, 0, 1000, 0, 4), 0)
    engine.due(0.001)
    engine.remove(engine.rules[0])
    assert [action.first for action in engine.due(0.001)] == [1, 2, 3]
    assert engine.next_due is None
    assert engine.frames_held == 0


@pytest.mark.parametrize("rate", ["10mbit", "100mbit", "1gbit"])
@pytest.mark.parametrize("length", [64, 1514])
def test_the_rate_is_kept(rate: str, length: int) -> None:
    """Offered is one and a half times as much, in runs, and looked at once a millisecond."""
    engine = engine_of(f"rate {rate} queue 50ms")
    bits = {"10mbit": 10, "100mbit": 100, "1gbit": 1000}[rate] * 1_000_000
    frames, carried = 0.0, 0
    for tick in range(500):
        now = tick / 1000
        frames += 1.5 * bits / 1000 / 8 / length
        while frames >= 1:
            count = min(40, int(frames))
            engine.offer(Run(FLOW, 0, length, 0, count), now)
            frames -= count
        while (due := engine.next_due) is not None and due <= now:
            carried += sum((stop - first) * length for _, first, stop, _ in engine.due(now))
    assert carried * 8 / 0.5 == pytest.approx(bits, rel=0.02)
