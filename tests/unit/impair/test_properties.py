"""What holds for every rule: forms, batches, and that no frame is lost without a reason. Takes 6 s."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.errors import ConfigurationError
from gpasst.impair.action import Action, Treatment
from gpasst.impair.engine import Engine
from gpasst.impair.facts import ARP, ICMP, PROTOCOLS, TCP, UDP, Flow, Run
from gpasst.impair.grammar import build, parse, text
from gpasst.impair.parts import PARTS, TCP_FLAGS
from gpasst.impair.rule import Rule

FLOWS = (
    Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53),
    Flow(UDP, 6, bytes.fromhex("20010db8000000000000000000000002"), bytes(15) + b"\1", 53, 40000),
    Flow(TCP, 4, bytes((192, 0, 2, 2)), bytes((198, 51, 100, 1)), 40000, 80),
    Flow(ICMP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53))),
    Flow(ARP),
)

probabilities = st.one_of(st.floats(0, 1), st.integers(0, 100).map("{}%".format), st.just("0.1"))
times = st.one_of(st.floats(1e-6, 10), st.integers(1, 5000).map("{}ms".format), st.integers(1, 999).map("{}us".format))
ports = st.one_of(
    st.integers(1, 65535), st.tuples(st.integers(1, 99), st.integers(100, 65535)).map("{0[0]}-{0[1]}".format)
)
addresses = st.one_of(st.ip_addresses(), st.sampled_from(["192.0.2.0/24", "2001:db8::/32", "::", "0.0.0.0/0"]))
matches = st.fixed_dictionaries(
    {},
    optional={
        "to": st.sampled_from(["guest", "host"]),
        "protocol": st.lists(st.sampled_from(PROTOCOLS), min_size=1, max_size=3),
        "src": st.lists(addresses, min_size=1, max_size=2),
        "dst": addresses,
        "sport": st.lists(ports, min_size=1, max_size=3),
        "dport": ports,
        "size": st.sampled_from(["100", "1000-", "1-599,601-65000"]),
        "nth": st.one_of(st.integers(1, 50), st.sampled_from(["1-5", "2,4-6,9-", "every 3"])),
        "flags": st.sampled_from(["syn", "psh,!fin", "!cwr", *TCP_FLAGS]),
    },
)
lossy = st.fixed_dictionaries(
    {},
    optional={
        "loss": st.one_of(probabilities, st.sampled_from(["burst", "burst p=10% r=50% bad=90%"])),
        "duplicate": probabilities,
        "corrupt": st.one_of(probabilities, st.sampled_from(["payload", "payload 20%"])),
        "mtu": st.integers(68, 2000),
        "ecn": st.sampled_from(["mark", "mark 30%"]),
        "rebind": st.booleans(),
    },
)
late: st.SearchStrategy[Any] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"delay": times}),
    st.fixed_dictionaries(
        {"delay": times, "jitter": times, "distribution": st.sampled_from([None, "uniform", "normal", "pareto"])}
    ),
    st.fixed_dictionaries({"distribution": st.lists(times, min_size=1, max_size=5)}),
)
moved: st.SearchStrategy[Any] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"reorder": probabilities}),
    st.fixed_dictionaries({"reorder": probabilities, "gap": st.integers(1, 5)}),
)
slow: st.SearchStrategy[Any] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "rate": st.one_of(st.integers(1000, 10**10), st.just("1.5mbit")),
            "queue": st.sampled_from([None, "1 frames", "5 frames head", "3KiB", "2000 head", "20ms", "1ms head"]),
        }
    ),
)
ends = st.fixed_dictionaries({}, optional={"seed": st.integers(0, 1 << 64), "continue_": st.booleans()})
final = st.sampled_from([{"partition": True}, {"reset": True}, {"unreachable": "net"}, {"unreachable": "port"}])


picks = st.fixed_dictionaries(
    {}, optional={"nth": st.sampled_from(["1-5", "2,4-6,9-", "every 3"]), "size": st.just("600")}
)


@st.composite
def rules(draw: st.DrawFn, match: st.SearchStrategy[Any], *effects: st.SearchStrategy[Any]) -> Rule:
    """Rules of keywords; one that contradicts itself is replaced by another."""
    keywords: dict[str, Any] = {**draw(match), **draw(ends)}
    for effect in draw(st.sampled_from([effects, effects, effects, (final,)])):
        keywords.update(draw(effect))
    try:
        return build(**keywords)
    except ConfigurationError as error:
        assert "\n" not in str(error)
        return build(duplicate=0.3, continue_=True, seed=7)


@given(rules(matches, lossy, late, moved, slow))
@settings(max_examples=400, deadline=None)
def test_the_text_of_a_rule_is_parsed_to_the_rule(rule: Rule) -> None:
    assert parse(text(rule)) == rule
    assert text(parse(text(rule))) == text(rule)


words = st.one_of(
    st.sampled_from([*PARTS, *(f"{name}:" for name in PARTS), *PROTOCOLS, "5%", "20ms±5ms", "53", ":", "::", "burst"]),
    st.text(max_size=8),
)


@given(st.one_of(st.text(), st.lists(words, max_size=8).map(" ".join)))
@example("src ::: loss 1%")
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_rule_or_has_one_line_of_error(form: str) -> None:
    try:
        rule = parse(form)
    except ConfigurationError as error:
        assert len(str(error).splitlines()) == 1
        assert error.remedy
    else:
        assert parse(text(rule)) == rule


def leaving(actions: list[Action]) -> list[tuple[int, Treatment]]:
    """Return each frame that leaves: its number and its treatment."""
    return [(run.item + index, treatment) for run, first, stop, treatment in actions for index in range(first, stop)]


def drained(engine: Engine) -> list[tuple[int, Treatment]]:
    left = []
    while (due := engine.next_due) is not None:
        left += leaving(engine.due(due, most=3))
    return left


def crossing(rules: list[Rule], flow: Flow, batches: list[int]) -> tuple[list[tuple[int, Treatment]], list[str]]:
    """Return what leaves, in order, of frames that all come at once, and the logs."""
    engine = Engine("guest")
    active = [engine.add(rule, rule.seed or 0) for rule in rules]
    left, offered = [], 0
    for count in batches:
        left += leaving(engine.offer(Run(flow, offered, 600, 0, count), 5.0))
        offered += count
    left += drained(engine)
    assert (engine.frames_held, engine.bytes_held) == (0, 0)
    return left, [str(each.log) for each in active]


@given(
    st.lists(rules(picks, lossy, late, moved), min_size=1, max_size=3),
    st.sampled_from(FLOWS),
    st.lists(st.integers(1, 20), min_size=1, max_size=10),
)
@settings(max_examples=300, deadline=None)
def test_batches_change_neither_fates_nor_order(rules: list[Rule], flow: Flow, batches: list[int]) -> None:
    assert crossing(rules, flow, batches) == crossing(rules, flow, [1] * sum(batches))


@given(
    st.lists(rules(picks, lossy, late, moved, slow), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(FLOWS), st.integers(1, 50), st.integers(0, 1500), st.floats(0, 0.2)), max_size=20
    ),
    st.sets(st.integers(0, 20), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_every_frame_leaves_once_lost_or_not(
    rules: list[Rule], offers: list[tuple[Flow, int, int, float]], ends: set[int]
) -> None:
    engine = Engine("guest")
    active = [engine.add(rule, 7) for rule in rules]
    offered, now, left = 0, 0.0, []
    for index, (flow, count, length, pause) in enumerate(offers):
        if index in ends and active:
            engine.remove(active.pop())
        left += leaving(engine.offer(Run(flow, offered, length, length // 2, count, 0xFF), now))
        offered += count
        now += pause
        due = engine.next_due
        if due is not None and due <= now:
            left += leaving(engine.due(now))
    for each in active:
        engine.remove(each)
    left += drained(engine)
    numbers = [number for number, _ in left]
    assert set(numbers) == set(range(offered))
    assert all((treatment.drop is None) == (not treatment.lost) for _, treatment in left)
    if not any(rule.duplicate for rule in rules):
        assert len(numbers) == offered
    assert (engine.frames_held, engine.bytes_held) == (0, 0)
