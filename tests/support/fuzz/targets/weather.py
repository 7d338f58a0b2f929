"""Rules of weather: what is accepted has one text, which means the same, and no frame is lost without a reason."""

from __future__ import annotations

from gpasst.errors import ConfigurationError
from gpasst.impair.action import Action
from gpasst.impair.engine import Engine
from gpasst.impair.facts import ARP, TCP, UDP, Flow, Run
from gpasst.impair.grammar import parse, text
from gpasst.impair.parts import PARTS
from tests.support.fuzz.choices import Choices

FLOWS = (
    Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53),
    Flow(TCP, 6, bytes(16), bytes(15) + b"\1", 53, 40000),
    Flow(ARP),
)
WORDS = (*PARTS, *(f"{name}:" for name in PARTS), "guest", "5%", "20ms", "1mbit", "53", "1-9", "every 3", "burst", ":")
RULES = 3
DUE_LIMIT = 100_000  # events of an engine, after which it does not come to rest


def take(data: bytes) -> None:
    """Read up to three rules, and offer frames to an engine that has them."""
    choices = Choices(data)
    engine, now, offered = Engine("guest"), 0.0, 0
    for _ in range(1 + choices.number(RULES)):
        form = _form(choices)
        try:
            rule = parse(form)
        except ConfigurationError as error:
            assert str(error).isprintable()
            assert error.remedy
            continue
        assert parse(text(rule)) == rule
        engine.add(rule, choices.number(256))
    left: list[int] = []
    while choices.more:
        now += choices.number(256) / 100
        length, count = choices.number(1501), 1 + choices.number(50)
        run = Run(choices.pick(FLOWS), offered, length, length // 2, count, choices.number(256))
        left += _numbers(engine.offer(run, now))
        offered += count
        if choices.flag():
            left += _numbers(engine.due(now))
        if engine.rules and not choices.number(16):
            engine.remove(engine.rules[0])
    for active in list(engine.rules):
        engine.remove(active)
    for _ in range(DUE_LIMIT):
        if engine.next_due is None:
            break
        left += _numbers(engine.due(engine.next_due))
    assert engine.next_due is None
    assert set(left) == set(range(offered))
    assert (engine.frames_held, engine.bytes_held) == (0, 0)


def _form(choices: Choices) -> str:
    """Return the text of a rule: of words that rules have, or any."""
    if choices.flag():
        return " ".join(
            choices.pick(WORDS) if choices.flag() else choices.piece(16).decode("latin-1")
            for _ in range(choices.number(12))
        )
    return choices.piece(160).decode(errors="replace")


def _numbers(actions: list[Action]) -> list[int]:
    """Return the numbers of the frames that leave or are lost."""
    return [run.item + index for run, first, stop, _ in actions for index in range(first, stop)]
