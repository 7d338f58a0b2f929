"""A switch with weather: frames of any bytes at any port, while rules and partitions come and go."""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.impair.action import Answer
from gpasst.impair.facts import LINK, Flow
from gpasst.impair.grammar import parse
from gpasst.link.edge import Means
from gpasst.link.switch_weather import Edges, SwitchWeather, link_keys, pair_keys
from gpasst.switch.partition import Partition
from gpasst.switch.table import LEARNED_PER_PORT
from tests.support.fuzz.choices import Choices
from tests.support.fuzz.frames import any_frame
from tests.support.fuzz.targets.guest import ADDRESSES
from tests.support.switches import BROADCAST, World, mac
from tests.support.times import Times

RULES = tuple(
    map(
        parse,
        (
            "loss 30%",
            "delay 20ms±5ms",
            "udp: duplicate 50%",
            "corrupt 100%",
            "rate 1mbit queue 5 frames",
            "mtu 100",
            "tcp: reset",
            "unreachable port",
            "reorder 50% delay 1ms",
            "ecn mark",
        ),
    )
)
NAMES = "abc"
GROUPS = ((("a",), ("b",)), (("a", "b"),), (("a",), ("b", "c")))
SECONDS = 10
HEADS = (bytes(10), bytes((1, 5, 42, 0, 100, 0, 34, 0, 6, 0)), bytes((1, 1, 54, 0, 100, 0, 34, 0, 16, 0)), b"\xff" * 10)
"""Virtio-net headers: of a single frame, of superframes of UDP and TCP, and of none."""


def take(data: bytes) -> None:
    """Forward what the bytes say; in the end nothing is held."""
    choices, world, times = Choices(data), World(), Times()
    errors: list[Exception] = []
    means = Means(times.at, world.counters, lambda: times.now, errors.append, lambda: 0.0)
    weather = SwitchWeather(world.switch, _answers, means)
    partitions: list[Partition] = []
    while choices.more:
        kind = choices.number(8)
        if kind < 5:
            head, to = choices.pick(HEADS), choices.pick((mac(1), mac(0), mac(2), mac(9), BROADCAST))
            sender = choices.pick((mac(0), mac(1), mac(9)))
            frame = any_frame(choices, to, sender, ADDRESSES) if kind < 4 else to + sender + choices.piece(512)
            world.switch.forward(world.ports[choices.number(3)], head + frame)
        elif kind == 5:
            keys = link_keys(choices.pick(NAMES)) if choices.flag() else pair_keys("a", choices.pick("bc"))
            rules = Edges(weather, LINK, keys).add(choices.pick(RULES), choices.number(256))
            if choices.flag():
                weather.remove(rules)
        elif kind == 6:
            times.pass_to(times.now + choices.number(256) / 100)
        elif partitions and choices.flag():
            weather.heal(partitions.pop())
        else:
            partitions.append(Partition(choices.pick(GROUPS)))
            weather.cut(partitions[-1])
        assert len(world.switch.table) <= LEARNED_PER_PORT * len(NAMES)
    times.pass_to(times.now + SECONDS)
    weather.close()
    assert world.switch.between is None
    assert errors == []
    assert Drop.INTERNAL not in world.counters.drops


def _answers(kind: Answer, flow: Flow, frame: bytes, mtu: int) -> list[bytes]:
    """Return an answer, as the rules of answering would build it."""
    del kind, flow, mtu
    return [frame[6:12] + frame[:6] + b"\x08\0answer"]
