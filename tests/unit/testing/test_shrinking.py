"""The smallest weather that still fails, and how it is described. Takes 0.5 s."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.impair.active import ActiveRule
from gpasst.impair.engine import Engine
from gpasst.impair.facts import UDP, Flow, Place, Run
from gpasst.impair.fate import Fate
from gpasst.impair.grammar import build, parse, text
from gpasst.impair.rule import Rule
from gpasst.testing.shrinking import Disturbance, Exhausted, describe, disturbances, moved_up, pasted, smallest

FLOW = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53)
LOST = Fate("lost")


def disturbed(n: int, fate: Fate = LOST, rule: str = "udp dport 53: loss 30%", place: int = 0) -> Disturbance:
    return Disturbance(place, ("host", rule, 0), parse(rule), "host", n, fate, str(FLOW), 80)


def numbers(found: Sequence[Disturbance]) -> list[int]:
    return [item.n for item in found]


@given(st.sets(st.integers(1, 60), min_size=1, max_size=4), st.integers(61, 80))
@settings(max_examples=50, deadline=None)
def test_what_is_needed_is_left(needed: set[int], count: int) -> None:
    found = smallest([disturbed(n) for n in range(1, count)], lambda kept: needed <= set(numbers(kept)))
    assert set(numbers(found)) == needed


def test_one_of_many_is_found_in_few_runs() -> None:
    runs = []

    def fails(kept: Sequence[Disturbance]) -> bool:
        runs.append(kept)
        return 617 in numbers(kept)

    assert numbers(smallest([disturbed(n) for n in range(1, 1001)], fails)) == [617]
    assert len(runs) <= 20


def test_one_kind_is_tried_alone_before_all() -> None:
    late = [disturbed(n, Fate(delay=20000)) for n in range(1, 40)]
    lost = [disturbed(n) for n in range(40, 43)]
    found = smallest(late + lost, lambda kept: len(kept) >= 2)
    assert {item.kind for item in found} == {"lost"}


def test_numbers_move_up_where_less_is_lost() -> None:
    """A client that repeats its first query: the second one is the n-th frame behind the n - 1 that were lost."""

    def fails(kept: Sequence[Disturbance]) -> bool:
        lost = set(numbers(kept))
        first = next(n for n in range(1, 9) if n not in lost)
        return first + 1 in lost

    assert numbers(smallest([disturbed(n) for n in (1, 2, 4)], fails)) == [2]
    assert [numbers(kept) for kept in moved_up([disturbed(1), disturbed(4), disturbed(6)])] == [[3, 5], [1, 5], [1, 4]]


def test_the_smallest_so_far_is_left_when_the_runs_are_used_up() -> None:
    runs = iter([False, True])

    def fails(kept: Sequence[Disturbance]) -> bool:
        try:
            return next(runs)
        except StopIteration:
            raise Exhausted from None

    assert numbers(smallest([disturbed(n) for n in range(1, 9)], fails)) == [5, 6, 7, 8]


def test_what_a_run_can_do_without_are_its_disturbances() -> None:
    engine = Engine("host")
    active = engine.add(parse("nth 2,4: loss 100%"), 7)
    later = engine.add(parse("delay 5ms"), 8)
    engine.offer(Run(FLOW, None, 100, 60, 4), 0)
    found = disturbances({("host", "a", 0): active, ("host", "b", 0): later})
    assert [(item.key[1], item.n, str(item.fate), item.length) for item in found] == [
        ("a", 2, "lost", 100),
        ("a", 4, "lost", 60),
        ("b", 1, "delay 5ms", 100),
        ("b", 2, "delay 5ms", 100),
    ]


@pytest.mark.parametrize(
    ("n", "fate", "rule", "sentence"),
    [
        (3, LOST, "udp dport 53: loss 30%", "the 3rd datagram to port 53 is lost"),
        (1, LOST, "udp sport 53 src 192.0.2.53: loss 30%", "the 1st datagram from 192.0.2.53 from port 53 is lost"),
        (11, LOST, "loss 30%", "the 11th frame to the host is lost"),
        (22, Fate(delay=20000), "tcp: delay 20ms", "the 22nd segment to the host is 20ms late"),
        (
            113,
            Fate(twice=True, place=3),
            "icmp: duplicate 1%",
            "the 113th message to the host is 3 places late and comes twice",
        ),
        (4, Fate(corrupt=7, mark=True), "tcp,udp: corrupt 1%", "the 4th frame to the host is corrupt and is marked"),
        (4, Fate("lost: mtu 1280"), "size 1000-: mtu 1280", "the 4th frame of size 1000- is lost (mtu 1280)"),
        (1, Fate(rebind=True), "udp dst 2001:db8::: rebind", "the 1st datagram to 2001:db8:: finds another port"),
    ],
)
def test_sentences(n: int, fate: Fate, rule: str, sentence: str) -> None:
    assert describe([disturbed(n, fate, rule)])[0] == f"fails when {sentence}"


def test_a_table_and_rules() -> None:
    when = build(when=str.isdigit, protocol="udp", loss=0.5)
    assert describe(
        [disturbed(2), disturbed(15), Disturbance(1, ("host", "", 0), when, "host", 3, LOST, "udp", 9)]
    ) == [
        "fails when the 2nd datagram to port 53 is lost, and the 15th datagram to port 53 is lost, "
        "and the 3rd datagram to the host is lost",
        "",
        "frame  fate  flow                                 bytes  rule",
        "2      lost  udp 192.0.2.2:40000 > 192.0.2.53:53  80     udp dport 53: loss 30%",
        "15     lost  udp 192.0.2.2:40000 > 192.0.2.53:53  80     udp dport 53: loss 30%",
        "3      lost  udp                                  9      udp when str.isdigit: loss 50%",
        "",
        "as rules:",
        "net.impair('to host udp dport 53 nth 2,15: loss 100%')",
        "net.impair('to host udp dport 53: loss 0%')",
        "net.impair('to host udp nth 3: loss 100%')  # and when=<method 'isdigit' of 'str' objects>",
    ]
    assert describe([disturbed(n) for n in range(1, 5)])[0] == "fails when these 4 frames are disturbed"


def test_rules_of_one_direction_leave_the_other_alone() -> None:
    rule = parse("udp: loss 30%")
    both = [Disturbance(place, (to, "", 0), rule, to, 2, LOST, "udp", 9) for place, to in enumerate(("guest", "host"))]
    assert [text(each) for each in pasted(both)] == [
        "to guest udp nth 2: loss 100%",
        "to host udp nth 2: loss 100%",
    ]


def test_rules_of_a_network_name_its_links() -> None:
    rule = parse("udp: loss 30%")
    owners = [(Place(f"lan.link('{name}')", (f"to {name} on lan", f"from {name} on lan")), "guest") for name in "ab"]
    found = [
        Disturbance(place, (str(name), "", 0), rule, to, 2, LOST, "udp", 9, name)
        for place, (name, to) in enumerate(owners)
    ]
    lines = describe(found)
    assert lines[0] == "fails when the 2nd datagram to a on lan is lost, and the 2nd datagram to b on lan is lost"
    assert lines[-2:] == [f"lan.link('{name}').impair('to guest udp nth 2: loss 100%')" for name in "ab"]


def test_a_long_table_is_cut() -> None:
    lines = describe([disturbed(n) for n in range(1, 101)])
    assert lines[0] == "fails when these 100 frames are disturbed"
    assert "and 80 more" in lines
    assert len(lines) < 30
    assert lines[-1] == "net.impair('to host udp dport 53 nth 1-100: loss 100%')"


def left(
    rules: Sequence[Rule], fates: dict[int, dict[int, Fate]] | None = None
) -> tuple[list[object], list[ActiveRule]]:
    """Return what leaves, when and how, of 30 frames that come one in a millisecond, and the rules."""
    engine, found = Engine("host"), []
    active = [engine.add(rule, 7) for rule in rules]
    for place, each in enumerate(active):
        if fates is not None:
            each.force(fates.get(place, {}))
    for number in range(1, 31):
        found += [(number / 1000, action) for action in engine.offer(Run(FLOW, number, 100 + number), number / 1000)]
        while (due := engine.next_due) is not None and due <= number / 1000:
            found += [(due, action) for action in engine.due(due)]
    while (due := engine.next_due) is not None:
        found += [(due, action) for action in engine.due(due)]
    return [
        (round(at, 6), action.run.item, action.treatment.lost, action.treatment.corrupt >= 0, action.treatment.mark)
        for at, action in found
    ], active


@pytest.mark.parametrize(
    "rules",
    [
        ["udp: loss 30%"],
        ["loss 20% delay 5ms±4ms"],
        ["reorder 30% gap 2 loss 10%"],
        ["delay 3ms duplicate 30% ecn mark 40% loss 20%"],
        ["udp: loss 20% continue", "dport 53: loss 20% delay 1ms"],
        ["delay 3ms duplicate 30% ecn mark 40% loss 20% continue", "udp: loss 20%"],
        ["mtu 107"],
        ["nth 3,9: partition", "corrupt 20%"],
        ["nth 3,9: unreachable port", "size 110-: loss 50%"],
    ],
)
def test_pasted_rules_do_what_has_happened(rules: list[str]) -> None:
    """Frames that the first rule has taken from the second one stay away from it."""
    parsed = [parse(rule) for rule in rules]
    before, active = left(parsed)
    found = disturbances({("host", text(each.rule), place): each for place, each in enumerate(active)})
    assert len(found) > 1
    assert left(pasted(found))[0] == before
    fates: dict[int, dict[int, Fate]] = {}
    for item in found:
        fates.setdefault(item.place, {})[item.n] = item.fate
    assert left(parsed, fates)[0] == before
