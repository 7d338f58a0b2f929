"""The examples of docs/weather.md, run. Takes 0.3 s.

``python -m tests.unit.test_weather_page`` prints the page with what the examples do now.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import gpasst.weather
from gpasst.impair.action import Action
from gpasst.impair.engine import Engine
from gpasst.impair.facts import ARP, ICMP, TCP, UDP, Flow, Run
from gpasst.impair.grammar import build, parse
from gpasst.impair.parts import PARTS
from gpasst.wire import TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN

PAGE = Path(__file__).parents[2] / "docs" / "weather.md"
TEXT = PAGE.read_text(encoding="utf-8")
ARROW = "->"
SEED = 7
GUEST = bytes((192, 0, 2, 2))
STREAM = Flow(TCP, 4, GUEST, bytes((198, 51, 100, 1)), 40000, 80)
QUERY = Flow(UDP, 4, GUEST, bytes((192, 0, 2, 53)), 5353, 53)
QUERY6 = Flow(
    UDP,
    6,
    bytes.fromhex("20010db8000000000000000000000002"),
    bytes.fromhex("20010db8000000000000000000000053"),
    5353,
    53,
)
FRAMES = (
    (STREAM, 74, TCP_SYN),
    (QUERY, 80, 0),
    (STREAM, 1514, TCP_ACK | TCP_PSH),
    (QUERY, 80, 0),
    (Flow(ICMP, 4, GUEST, bytes((192, 0, 2, 1))), 98, 0),
    (QUERY, 80, 0),
    (STREAM, 1514, TCP_ACK),
    (QUERY6, 100, 0),
    (Flow(ARP), 42, 0),
    (STREAM, 66, TCP_FIN | TCP_ACK),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[list[str], str]]:
    """Return the rules of each example, and what the page says of them."""
    found: list[tuple[list[str], str]] = []
    rules: list[str] = []
    for line in "".join(blocks("weather")).splitlines():
        if line.startswith(ARROW):
            found.append((rules, line))
            rules = []
        else:
            rules.append(line)
    assert not rules
    return found


def shown(action: Action, now: float) -> str:
    """Return how the page shows a frame that leaves, empty for one that is lost."""
    number, treatment = action.run.item, action.treatment
    if treatment.lost:
        return f"{number}?" if treatment.answer else ""
    signs = ("!" * (treatment.corrupt >= 0)) + ("*" * treatment.mark) + ("~" * treatment.rebind)
    late = round(now - number, 1)
    return f"{number}{signs}" + (f"+{late:g}ms" if late else "")


def crossing(rules: list[str]) -> str:
    """Return what the page should say of rules."""
    engine = Engine("host")
    for rule in map(parse, rules):
        if rule.to != "guest":
            engine.add(rule, SEED if rule.seed is None else rule.seed)
    left: list[str] = []

    def wait(until: float) -> None:
        while (due := engine.next_due) is not None and due <= until:
            left.extend(shown(action, due * 1000) for action in engine.due(due))

    for number, (flow, length, flags) in enumerate(FRAMES, 1):
        now = number / 1000
        wait(now)
        left.extend(shown(action, number) for action in engine.offer(Run(flow, number, length, flags=flags), now))
    wait(float("inf"))
    return " ".join([ARROW, *filter(None, left)])


@pytest.mark.parametrize(("rules", "said"), examples(), ids=["; ".join(rules) for rules, _ in examples()])
def test_examples_do_what_the_page_says(rules: list[str], said: str) -> None:
    assert crossing(rules) == said


def test_every_part_has_an_example() -> None:
    words = {word.rstrip(":") for rules, _ in examples() for rule in rules for word in rule.split()}
    words |= set(re.findall(r"\w+(?==)", "".join(blocks("python"))))
    assert set(PARTS) - words - {"protocol"} == set()


class Net:
    """What the Python examples call; every rule is read."""

    def impair(self, weather: Any = None, one_way: bool = False, **parts: Any) -> Net:
        if weather is None:
            assert build(**parts)
        else:
            assert [gpasst.weather.rules(rule) for rule in ([weather] if isinstance(weather, str) else weather)]
        return self

    def weather(self, steps: list[tuple[float, Any]]) -> None:
        for _, weather in steps:
            self.impair(list(weather) or "CLEAR")

    def link(self, host: str) -> Net:
        return self

    def between(self, one: str, other: str) -> Net:
        return self

    def partition(self, *groups: list[str]) -> None:
        assert groups

    def __enter__(self) -> Net:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("source", blocks("python"))
def test_python_examples_are_read(source: str) -> None:
    exec(source, {"net": Net(), "lan": Net(), "gpasst": gpasst, "a": "a", "b": "b", "c": "c"})


def test_profiles_are_listed_with_their_sources() -> None:
    for profile in gpasst.weather.PROFILES.values():
        assert f"| `{profile.name}` | {profile.source} |" in TEXT


if __name__ == "__main__":
    text = TEXT
    for rules, said in examples():
        before = "\n".join(rules) + "\n"
        text = text.replace(before + said, before + crossing(rules))
    print(text, end="")
