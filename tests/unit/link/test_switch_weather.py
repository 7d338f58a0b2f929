"""Weather between the ports of a switch: where it acts, when frames leave, and what is recorded (under 2 s)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.impair.action import Answer
from gpasst.impair.active import ActiveRule
from gpasst.impair.facts import LINK, TO_GUEST, Flow
from gpasst.impair.grammar import parse
from gpasst.link import switch_weather
from gpasst.link.edge import Means
from gpasst.link.recorder import Recorder
from gpasst.link.switch import Data, InnerPort
from gpasst.link.switch_weather import Edges, SwitchWeather, link_keys, pair_keys
from gpasst.packet.segmentation import split
from gpasst.switch.partition import Partition
from gpasst.wire import VIRTIO_NET_BLANK
from tests.support.frames import udp
from tests.support.records import Kept
from tests.support.superframes import udp_superframe
from tests.support.switches import BROADCAST, World, mac
from tests.support.times import Times

SEED = 7


class Case(World):
    """A switch with weather, ports a, b and c, and timers that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.times = Times()
        self.errors: list[Exception] = []
        self.answered: list[tuple[Answer, bytes]] = []
        self.means = Means(self.times.at, self.counters, lambda: self.times.now, self.errors.append, lambda: 0.0)
        self.weather = SwitchWeather(self.switch, self.answers, self.means)
        self.sent = 0

    def answers(self, kind: Answer, flow: Flow, frame: bytes, mtu: int) -> list[bytes]:
        self.answered.append((kind, frame))
        return [frame[6:12] + frame[:6] + b"\x08\0answer"]

    def link(self, name: str) -> Edges:
        return Edges(self.weather, LINK, link_keys(name))

    def pair(self, one: str, other: str) -> Edges:
        return Edges(self.weather, LINK, pair_keys(one, other))

    def send(self, one: int = 0, other: int = 1, data: bytes | None = None) -> bytes:
        """Send a datagram from one port to another; return it."""
        self.sent += 1
        data = VIRTIO_NET_BLANK + udp(b"%d" % self.sent) if data is None else data
        addressed = data[:10] + mac(other) + mac(one) + data[22:]
        self.switch.forward(self.ports[one], addressed)
        return addressed

    def broadcast(self) -> None:
        self.switch.forward(self.ports[0], VIRTIO_NET_BLANK + BROADCAST + mac(0) + udp()[12:])

    def at_rest(self) -> bool:
        """Return whether nothing stands between the ports any more."""
        return self.switch.between is None


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.weather.close()
    assert made.errors == []
    assert made.at_rest()


def test_a_link_has_weather_for_all_that_its_host_sends_and_receives(case: Case) -> None:
    rules = case.link("a").add(parse("loss 100%"), SEED)
    for one, other in ((0, 1), (1, 0), (2, 0), (1, 2)):
        case.send(one, other)
    case.broadcast()
    assert case.got() == [0, 0, 1]
    assert [rule.hits for rule in rules] == [2, 2]
    assert case.counters.drops == {Drop.IMPAIRED: 4}
    case.weather.remove(rules)
    assert case.at_rest()
    assert case.send() in case.ports[1].got


def test_what_is_between_two_hosts_concerns_no_others(case: Case) -> None:
    case.pair("a", "b").add(parse("loss 100%"), SEED)
    for one, other in ((0, 1), (1, 0), (2, 0), (1, 2), (0, 2)):
        case.send(one, other)
    case.broadcast()
    assert case.got() == [1, 0, 3], "a broadcast is lost to one of its receivers"
    assert not case.ports[0].ways.keys() & {mac(1) + mac(0)}
    assert case.ports[0].ways.keys() == {mac(2) + mac(0)}, "others have their way"


@pytest.mark.parametrize(("to", "got"), [("guest", [0, 1, 0]), ("host", [1, 0, 0]), ("", [0, 0, 0])])
def test_the_first_of_two_is_the_guest(case: Case, to: str, got: list[int]) -> None:
    case.pair("a", "b").add(parse(f"{'to ' + to if to else 'udp'}: loss 100%"), SEED)
    case.send(0, 1)
    case.send(1, 0)
    assert case.got() == got


def test_frames_cross_both_links_and_what_is_between(case: Case) -> None:
    """Delays add up, and frames keep their order."""
    case.link("a").add(parse("to host: delay 10ms"), SEED)
    case.pair("a", "b").add(parse("to host: delay 20ms"), SEED)
    case.link("b").add(parse("to guest: delay 30ms"), SEED)
    sent = [case.send(0, 1) for _ in range(3)]
    start = case.times.now
    case.times.pass_to(start + 0.0599)
    assert case.ports[1].got == []
    case.times.pass_to(start + 0.0605)
    assert case.ports[1].got == sent


def test_a_rule_that_ends_lets_go_of_what_it_holds(case: Case) -> None:
    rules = case.link("b").add(parse("to guest udp: delay 10ms"), SEED)
    sent = [case.send() for _ in range(3)]
    case.weather.remove(rules)
    case.weather.remove(rules)
    assert case.ports[1].got == sent
    assert case.at_rest()
    assert [log.rule for log in case.weather.logs()] == ["to guest udp: delay 10ms seed 7"]


def test_a_superframe_is_cut_where_fates_differ(case: Case) -> None:
    case.link("b").add(parse("nth 2: loss 100%"), SEED)
    data = udp_superframe(4, bytes(3000), 1000)
    case.send(data=data)
    frames = [frame for got in case.ports[1].got for frame in split(got)]
    assert len(frames) == 2
    assert [frame[12:] for frame in frames] == [frame[12:] for index, frame in enumerate(split(data)) if index != 1]


def test_what_leaves_unchanged_is_the_same_superframe(case: Case) -> None:
    case.link("b").add(parse("delay 5ms"), SEED)
    sent = case.send(data=udp_superframe(4, bytes(3000), 1000))
    case.times.pass_to(case.times.now + 0.0055)
    assert case.ports[1].got == [sent]


def test_the_same_frames_meet_the_same_fates_again(case: Case) -> None:
    def fates() -> list[list[tuple[int, str]]]:
        rules = case.pair("a", "b").add(parse("loss 50%"), SEED)
        for _ in range(40):
            case.send(0, 1)
            case.send(1, 0)
        case.weather.remove(rules)
        return [rule.log.fates for rule in rules]

    assert fates() == fates()


def test_a_partition_cuts_off_and_counts_frames(case: Case) -> None:
    partition = Partition([["a"], ["b", "c"]])
    case.weather.cut(partition)
    case.send(0, 1)
    case.send(2, 0, udp_superframe(4, bytes(3000), 1000))
    case.send(1, 2)
    case.broadcast()
    assert case.got() == [0, 0, 1]
    assert partition.hits == 6
    assert case.counters.drops == {Drop.IMPAIRED_PARTITION: 6}
    assert case.ports[1].ways, "those who still reach each other have their way"
    case.weather.heal(partition)
    case.weather.heal(partition)
    assert case.at_rest()
    case.send(0, 1)
    assert case.got() == [0, 1, 1]


def test_several_partitions_all_count(case: Case) -> None:
    first, second = Partition([["a"], ["b"]]), Partition([["a"], ["c"]])
    case.weather.cut(first)
    case.weather.cut(second)
    case.broadcast()
    assert case.got() == [0, 0, 0]
    case.weather.heal(first)
    case.broadcast()
    assert case.got() == [0, 1, 0]


def test_what_is_lost_is_recorded_where_it_was_lost(case: Case) -> None:
    sink = Kept()
    recorder = Recorder(case.switch, "lan", lambda: 0, lambda: None)
    recorder.add(sink)
    rules = case.link("a").add(parse("to host nth 2: loss 100%"), SEED)
    for _ in range(2):
        case.send()
    case.weather.remove(rules)
    case.pair("a", "b").add(parse("loss 100%"), SEED)
    case.send()
    case.weather.cut(Partition([["b"]]))
    case.send()
    recorder.remove(sink)
    assert [(record.link, record.to_guest, record.comment) for record in sink.records] == [
        ("a", False, ""),
        ("b", True, ""),
        ("a", False, "lost"),
        ("a", False, ""),
        ("b", True, "lost"),
        ("a", False, ""),
        ("b", True, "lost: partition"),
    ]


def test_parts_of_a_superframe_are_recorded_with_their_fates(case: Case) -> None:
    sink = Kept()
    recorder = Recorder(case.switch, "lan", lambda: 0, lambda: None)
    recorder.add(sink)
    case.link("a").add(parse("to host nth 2: loss 100%"), SEED)
    case.send(data=udp_superframe(4, bytes(3000), 1000))
    recorder.remove(sink)
    found = [(record.link, record.count, record.comment) for record in sink.records if not record.to_guest]
    assert found == [("a", 1, ""), ("a", 1, "lost"), ("a", 1, "")]


def test_senders_of_lost_frames_are_answered_soon_and_past_all_rules(case: Case) -> None:
    case.pair("a", "b").add(parse("unreachable port"), SEED)
    case.link("a").add(parse("to guest: loss 100%"), SEED)
    case.weather.cut(Partition([["a"], ["c"]]))
    sent = case.send()
    assert case.got() == [0, 0, 0]
    case.times.pass_to(case.times.now)
    assert case.answered == [(Answer.PORT, sent[10:])]
    assert case.ports[0].got == [VIRTIO_NET_BLANK + mac(0) + mac(1) + b"\x08\0answer"]


def test_frames_that_are_held_for_a_port_that_is_gone_are_counted(case: Case) -> None:
    case.link("b").add(parse("to guest: delay 5ms"), SEED)
    case.link("a").add(parse("to host nth 2: delay 5ms"), SEED)
    case.send()
    case.send()
    for port in case.ports[:2]:
        case.switch.remove(port)
    case.times.pass_to(case.times.now + 1)
    assert case.counters.drops == {Drop.LINK_DOWN: 2}
    assert case.got() == [0, 0, 0]


def test_what_all_edges_hold_together_is_limited(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_weather, "ROOM_FRAMES", 5)
    weather = case.weather = SwitchWeather(case.switch, case.answers, case.means)
    for name in "bc":
        case.link(name).add(parse("to guest: delay 5ms"), SEED)
    for _ in range(4):
        case.broadcast()
    assert case.counters.drops == {Drop.IMPAIRMENT_FULL: 3}
    case.times.pass_to(case.times.now + 1)
    assert case.got() == [0, 3, 2]
    for _ in range(2):
        case.broadcast()
    weather.close()
    assert case.counters.drops == {Drop.IMPAIRMENT_FULL: 3}


def test_rules_belong_to_a_name_and_outlive_its_port(case: Case) -> None:
    case.link("b").add(parse("loss 100%"), SEED)
    port = case.ports[1]
    case.switch.remove(port)
    case.switch.add(port, mac(1))
    case.send()
    assert case.got() == [0, 0, 0]


def test_a_part_of_this_process_gets_nothing_with_a_wrong_checksum(case: Case) -> None:
    got: list[bytes] = []

    def take(data: Data) -> None:
        got.append(bytes(data))

    case.switch.add(InnerPort("router", take, lambda: None, case.counters), mac(9))
    case.link("router").add(parse("to guest: corrupt 100%"), SEED)
    rules = case.link("b").add(parse("to guest: corrupt 100%"), SEED)
    sent = [case.send(0, 1), case.send(0, 9)]
    assert case.ports[1].got != sent[:1]
    assert len(case.ports[1].got) == 1, "a kernel looks at checksums"
    assert got == []
    case.weather.remove(rules)
    case.link("a").add(parse("to host: corrupt 100%"), SEED)
    case.send(0, 9)
    assert got == []
    assert case.counters.drops == {Drop.CHECKSUM: 2}


def test_a_schedule_changes_nothing_after_the_end(case: Case) -> None:
    called: list[str] = []
    case.link("a").after(1.0, lambda: called.append("first"))
    case.pair("a", "b").after(2.0, lambda: called.append("second"))
    case.times.pass_to(case.times.now + 1.5)
    case.link("a").add(parse("delay 5s"), SEED)
    case.send()
    case.weather.close()
    case.times.pass_to(case.times.now + 10)
    assert called == ["first"]
    assert case.got() == [0, 0, 0]


def test_directions_of_a_rule_are_those_of_its_part(case: Case) -> None:
    one_way = Edges(case.weather, LINK, {TO_GUEST: ("", "a")})
    assert [rule.log.towards for rule in one_way.add(parse("loss 5%"), SEED)] == ["guest"]
    assert [rule.log.towards for rule in case.link("a").add(parse("loss 5%"), SEED)] == ["guest", "host"]


ROUTES = [(one, other) for one in range(3) for other in range(3) if one != other]
DELAYS = ["delay 3ms", "delay 8ms±4ms reorder 0%", "rate 1mbit", "udp nth every 2: delay 5ms", "reorder 50% gap 2"]
PLACES: list[Callable[[Case], Edges]] = [
    lambda case: case.link("a"),
    lambda case: case.link("b"),
    lambda case: case.pair("a", "b"),
]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(ROUTES)),
        st.tuples(st.just("superframe"), st.sampled_from(ROUTES)),
        st.tuples(st.just("rule"), st.tuples(st.sampled_from(range(len(PLACES))), st.sampled_from(DELAYS))),
        st.tuples(st.just("end"), st.none()),
        st.tuples(st.just("pass"), st.integers(1, 30)),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=100, deadline=None)
def test_weather_that_only_delays_loses_and_doubles_nothing(taken: list[tuple[str, Any]]) -> None:
    """Whatever rules come and go, and whenever: each frame arrives once, at its receiver."""
    case = Case()
    rules: list[tuple[Edges, list[ActiveRule]]] = []
    wanted: list[list[bytes]] = [[], [], []]
    for kind, value in taken:
        if kind in ("send", "superframe"):
            data = udp_superframe(4, b"%4d" % case.sent * 700, 1000) if kind == "superframe" else None
            sent = case.send(value[0], value[1], data)
            wanted[value[1]] += split(sent)
        elif kind == "rule":
            part = PLACES[value[0]](case)
            rules.append((part, part.add(parse(value[1]), SEED)))
        elif kind == "end" and rules:
            part, active = rules.pop(0)
            part.remove(active)
        elif kind == "pass":
            case.times.pass_to(case.times.now + value / 1000)
    for part, active in rules:
        part.remove(active)
    case.times.pass_to(case.times.now + 10)
    got = [[frame for data in port.got for frame in split(data)] for port in case.ports]
    assert [sorted(frames) for frames in got] == [sorted(frames) for frames in wanted]
    assert case.errors == []
    assert case.at_rest()
    assert not case.counters.drops
