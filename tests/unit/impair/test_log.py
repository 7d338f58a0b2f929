"""The log of fates. Takes 0.1 s."""

from __future__ import annotations

from gpasst.impair.engine import Engine
from gpasst.impair.facts import ARP, LINK, TCP, TO_GUEST, TO_HOST, UDP, Flow, Place, Run
from gpasst.impair.grammar import parse
from gpasst.impair.log import LOG_FRAMES, latest

FLOW = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53)


def engine_of(rule: str, seed: int = 7) -> Engine:
    engine = Engine("guest")
    engine.add(parse(rule), seed)
    return engine


def test_a_log_names_rule_seed_fate_and_flow() -> None:
    engine = engine_of("udp nth 2-3: loss 100%", seed=5)
    engine.offer(Run(FLOW, None, 100, 60, 3), 0)
    assert str(engine.rules[0].log).splitlines() == [
        "udp nth 2-3: loss 100% seed 5 [to the guest]",
        "2 lost: udp 192.0.2.2:40000 > 192.0.2.53:53, 100 bytes",
        "3 lost: udp 192.0.2.2:40000 > 192.0.2.53:53, 60 bytes",
    ]


def test_links_of_networks_have_names_of_their_own() -> None:
    """They are part of a log, and fates depend on them."""
    rule = parse("udp: loss 50%")
    places = [
        Place("lan.link('a')", ("to a on lan", "from a on lan")),
        Place("lan.link('b')", ("to b on lan", "from b on lan")),
    ]
    logs = []
    for towards, place in [(TO_GUEST, LINK), *((to, place) for place in places for to in (TO_GUEST, TO_HOST))]:
        engine = Engine(towards, place)
        logs.append(engine.add(rule, 7).log)
        engine.offer(Run(FLOW, None, 100, count=100), 0)
    assert len({tuple(log.fates) for log in logs}) == len(set(logs)) == 5
    assert logs[1].title == "udp: loss 50% seed 7 [to a on lan]"
    assert logs[1].copy() == logs[1]


def test_every_fate_has_words() -> None:
    rule = "delay 20ms±5ms reorder 50% gap 2 duplicate 50% corrupt 50% ecn mark 50% loss 10%"
    engine = engine_of(rule)
    engine.offer(Run(FLOW, None, 100, count=200), 0)
    words = {word.split()[0] for _, fate in engine.rules[0].log.fates for word in fate.split(", ")}
    assert words == {"lost", "behind", "delay", "twice", "corrupt", "mark"}
    assert engine_of("loss 0%").rules[0].log.fates == []


def test_flows_of_all_kinds_have_names() -> None:
    assert str(Flow(ARP)) == "arp"
    assert str(Flow(TCP, 6, bytes(16), bytes(15) + b"\1", 1, 2)) == "tcp [::]:1 > [::1]:2"


def test_equal_rules_seeds_and_frames_make_equal_logs() -> None:
    logs = []
    for seed, batch in ((7, 1), (7, 5), (8, 1)):
        engine = engine_of("loss 50%", seed)
        for _ in range(0, 20, batch):
            engine.offer(Run(FLOW, None, 100, count=batch), 0)
        logs.append(engine.rules[0].log)
    assert logs[0] == logs[1] != logs[2]
    assert hash(logs[0]) == hash(logs[1])
    assert logs[0] != "log"


def test_the_last_frames_are_kept_however_many_came_at_once() -> None:
    logs = []
    for batch in (1, 13):
        engine = engine_of("loss 50%")
        for _ in range(0, 13 * 1000, batch):
            engine.offer(Run(FLOW, None, 100, count=batch), 0)
        logs.append(engine.rules[0].log)
    assert len(logs[0]) == len(list(logs[0])) == LOG_FRAMES
    assert logs[0] == logs[1]
    assert next(iter(logs[0])).n == 3001


def test_a_log_keeps_no_frames() -> None:
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    engine = engine_of("loss 100%")
    for _ in range(10):
        engine.offer(Run(FLOW, Item(), 100), 0)
    assert len(engine.rules[0].log) == 10
    assert Item.alive == 0


def test_the_latest_lines_of_several_logs() -> None:
    first, second = engine_of("udp: loss 100%"), engine_of("partition")
    for now in range(5):
        first.offer(Run(FLOW, None, 100), 2 * now)
        second.offer(Run(Flow(ARP), None, 42, count=2), 2 * now + 1)
    lines = latest([first.rules[0].log, second.rules[0].log], 4)
    assert lines == [
        "partition seed 7 [to the guest]: 8 lost: partition: arp, 42 bytes",
        "udp: loss 100% seed 7 [to the guest]: 5 lost: udp 192.0.2.2:40000 > 192.0.2.53:53, 100 bytes",
        "partition seed 7 [to the guest]: 9 lost: partition: arp, 42 bytes",
        "partition seed 7 [to the guest]: 10 lost: partition: arp, 42 bytes",
    ]
    assert latest([], 4) == latest([first.rules[0].log], 0) == []
