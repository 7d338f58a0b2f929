"""The values of network files: what they are read as, or the fault that refuses them.

A reader takes a value as the parser of TOML returns it, and raises `ConfigurationError` with the fault alone; whoever
knows the table puts line, table, key and value before it (`gpasst.topology.source.Table`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from gpasst.config import PortSide, parse_ports
from gpasst.errors import ConfigurationError
from gpasst.impair.quantities import parse_time
from gpasst.impair.rule import SECOND
from gpasst.router.behaviour import PRESETS, SHORTEST, dependence, mapping
from gpasst.router.firewall import parse as parse_firewall
from gpasst.topology.records import CommandPlan, PortPlan
from gpasst.values import number, one_of, parse_number, shown, similar
from gpasst.weather import check as check_weather

T = TypeVar("T")

PORT_MAXIMUM: Final = 65535
COMMAND_EXAMPLE: Final = 'write it like ["ping", "-c3", "b"], or as one line of a shell'
NOT_IN_WORDS: Final = "\0"  # ends the arguments of a program (execve(2))
NONE: Final = "none"  # stands for None, which TOML lacks


def subnet(value: Any) -> str:
    """Return the text of a prefix, empty for none."""
    return text_or_none(value) or ""


def text(value: Any) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value or NOT_IN_WORDS in value:
        raise ConfigurationError("is no text", "write it in quotes")
    return value


def text_or_none(value: Any) -> str | None:
    """Return a text, None for ``none``."""
    return None if value == NONE else text(value)


def flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ConfigurationError("is neither true nor false", "write true or false, without quotes")
    return value


def whole(rule: Callable[[int], object]) -> Callable[[Any], int]:
    """Return the reader of whole numbers with a rule."""

    def read(value: Any) -> int:
        if type(value) is not int:
            raise ConfigurationError("is no whole number", "write it in digits, without quotes")
        rule(value)
        return value

    return read


def nat(value: Any) -> str | None:
    """Return the mapping behaviour of a router, or the name of a preset; None for no NAT."""
    word = text_or_none(value)
    if word in PRESETS:
        return word
    mapping(word)
    return word


def filtering(value: Any) -> str:
    """Return the filtering behaviour of a router."""
    return dependence("filtering", text(value))


def firewall(value: Any) -> tuple[str, ...]:
    """Return the rules of a firewall, which may be one."""
    rules = tuple(map(text, value if isinstance(value, list) else [value]))
    for rule in rules:
        parse_firewall(rule)
    return rules


def seconds(value: Any) -> float:
    """Return the seconds of a number, or of a text with a unit."""
    seconds = time(value) / SECOND if isinstance(value, str) else value
    if type(seconds) not in (int, float) or not SHORTEST <= seconds < float("inf"):
        raise ConfigurationError("is no number of seconds", 'write it like 120, or "120s"')
    return float(seconds)


def time(value: Any) -> int:
    """Return the microseconds of a text with a unit, or of a number of seconds."""
    return parse_time(f"{value}s" if type(value) in (int, float) else text(value))


def member(known: list[str], kind: str) -> Callable[[Any], str]:
    """Return the reader of a name that has to be known."""

    def read(value: Any) -> str:
        name = text(value)
        if name not in known:
            listed = f"name one of {', '.join(known)}" if known else "add one"
            raise ConfigurationError(f"{shown(name)} is no {kind}", f"{similar(name, known)}{listed}")
        return name

    return read


def listed(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return the reader of one value, or of a list of different ones."""

    def read_all(value: Any) -> tuple[T, ...]:
        values = tuple(map(read, value)) if isinstance(value, list) else (read(value),)
        if not values:
            raise ConfigurationError("is empty", "name one at least, or leave it out")
        if len(set(values)) < len(values):
            raise ConfigurationError("names one twice", "name each once")
        return values

    return read_all


def pair(read: Callable[[Any], str]) -> Callable[[Any], tuple[tuple[str, ...], ...]]:
    """Return the reader of two hosts."""

    def read_pair(value: Any) -> tuple[tuple[str, ...], ...]:
        names = listed(read)(value)
        if len(names) != 2:  # noqa: PLR2004
            raise ConfigurationError("are not two hosts", 'write it like ["a", "b"]')
        return tuple((name,) for name in names)

    return read_pair


def groups(read: Callable[[Any], str]) -> Callable[[Any], tuple[tuple[str, ...], ...]]:
    """Return the reader of groups of hosts that have none in common."""

    def read_groups(value: Any) -> tuple[tuple[str, ...], ...]:
        groups = tuple(map(listed(read), value)) if isinstance(value, list) else ()
        names = [name for group in groups for name in group]
        if len(groups) < 2:  # noqa: PLR2004
            raise ConfigurationError("has no two groups", 'write it like [["a"], ["b", "c"]]')
        if len(set(names)) < len(names):
            raise ConfigurationError("has a host in two groups", "put each into one")
        return groups

    return read_groups


def commands(value: Any) -> tuple[CommandPlan, ...]:
    """Return the commands of a text, of the words of one command, or of a list of commands."""
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return tuple(map(command, value))
    return (command(value),)


def command(value: Any) -> CommandPlan:
    """Return the command of a line of a shell, or of a list of words."""
    if isinstance(value, str):
        words, shell = [value], True
    else:
        words, shell = value, False
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words) or not words[0]:
        raise ConfigurationError("is no command", COMMAND_EXAMPLE)
    if any(NOT_IN_WORDS in word for word in words):
        raise ConfigurationError("has a zero byte in it, which no argument may have", "leave it out")
    return CommandPlan(tuple(words), shell)


def port(value: Any) -> PortPlan:
    """Return a port that a program binds, of a text like ``tcp 7000``."""
    protocol, port = _protocol_and_rest(value, "tcp 7000")
    number(1, PORT_MAXIMUM)(parse_number(port))
    return PortPlan(protocol, port)


def forward(value: Any) -> PortPlan:
    """Return a forward, of a text like ``tcp 8080:80``."""
    protocol, specification = _protocol_and_rest(value, "tcp 8080:80")
    rules = parse_ports(protocol, [specification], PortSide(protocol, inside=False))
    if not rules or any(rule.auto for rule in rules):
        raise ConfigurationError("names no port", "write it like tcp 8080:80")
    return PortPlan(protocol, specification)


def _protocol_and_rest(value: Any, example: str) -> tuple[str, str]:
    protocol, _, rest = text(value).strip().partition(" ")
    try:
        one_of(("tcp", "udp"))(protocol)
    except ConfigurationError:
        raise ConfigurationError(f"{shown(protocol)} is no protocol with ports", f"write it like {example}") from None
    return protocol, rest.strip()


def rules(value: Any) -> tuple[str, ...]:
    """Return the texts of rules of weather, which may be one."""
    rules = tuple(map(text, value if isinstance(value, list) else [value]))
    for rule in rules:
        check_weather(rule)
    return rules
