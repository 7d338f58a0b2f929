"""Weather as tests hold it: rules in force, schedules of them, and the logs of what they did.

Theory of operation: text, keywords and profiles become rules before anything else happens, so a mistake leaves nothing
behind. Rules are put in force and ended on the hub, and logs are copied there. A handle outlives its rules: it
counts and shows what they did, also when the connection is closed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpasst.api import replay
from gpasst.config import Config
from gpasst.errors import ConfigurationError
from gpasst.impair.grammar import build, text
from gpasst.impair.rule import Rule
from gpasst.packet.address import family_of, is_loopback
from gpasst.records import replace
from gpasst.weather import rules as rules_in

if TYPE_CHECKING:
    from typing_extensions import Self

    from gpasst.impair.active import ActiveRule
    from gpasst.impair.log import FateLog, Line

T = TypeVar("T")

Weather = str | Rule | Iterable[str | Rule]
"""One rule or several, as text or as rules: what a profile is, too."""


class Weathered(Protocol):
    """Where rules act: the link of a proxy, or a section of a network."""

    def add(self, rule: Rule, seed: int) -> list[ActiveRule]:
        """Put a rule in force, behind those that are; return it once for each direction of each link."""

    def remove(self, rules: Iterable[ActiveRule]) -> None:
        """End rules; those that have ended are ignored."""

    def after(self, seconds: float, change: Callable[[], None]) -> None:
        """Call a function once, after so many seconds, unless what it is about is closed before."""


# Calls a function on the hub, with where rules act; returns what that returns, None if it is closed.
CallWeathered = Callable[[Callable[[Weathered], T]], T | None]

EXAMPLE = "write it like [(0, CLEAR), (2.0, PARTITION)]"  # of a schedule
RULE_EXAMPLE = "write it like 'udp dport 53: loss 30%'"
_LOOPBACK_BITS = {4: 8, 6: 128}  # of the prefix of loopback addresses


class Log:
    """What happened to the frames that rules matched, the oldest first.

    Two logs are equal if the same happened to the same frames, rule by rule.

    :ivar parts: the log of each rule in each of its directions.
    """

    def __init__(self, parts: Iterable[FateLog]) -> None:
        self.parts = tuple(parts)

    @property
    def fates(self) -> list[tuple[int, str]]:
        """The number and the fate of each frame, rule by rule: what does not depend on ports that kernels chose."""
        return [fate for part in self.parts for fate in part.fates]

    def __iter__(self) -> Iterator[Line]:
        lines = [line for part in self.parts for line in part.last()]
        return (line for _, line in sorted(lines, key=itemgetter(0)))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __eq__(self, other: object) -> bool:
        return self.parts == other.parts if isinstance(other, Log) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.parts)

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts))


class Impairment:
    """Rules of weather, in force until `remove` or the end of the connection or network.

    :param call: calls a function with where the rules act.
    :param rules: the rules.
    :param seed: the seed of those that have none.
    :ivar seed: as above; that of a single rule which has one.
    :ivar rules: the text of each rule, with its seed: together they replay it.
    """

    def __init__(self, call: CallWeathered[Any], rules: tuple[Rule, ...], seed: int) -> None:
        self._call = call
        self._rules = tuple(rule if rule.seed is not None else replace(rule, seed=seed) for rule in rules)
        self._active: list[ActiveRule] = []
        self.seed = self._rules[0].seed if len(rules) == 1 else seed
        self.rules = tuple(text(rule) for rule in self._rules)

    def start(self, weathered: Weathered) -> None:
        """Put the rules in force; on the hub."""
        self._active = enforce(weathered, self._rules)

    @property
    def hits(self) -> int:
        """How many frames the rules have matched; a superframe counts as the frames that it stands for."""
        return sum(active.hits for active in self._active)

    @property
    def log(self) -> Log:
        """What happened to the last frames that each rule matched, as it stands now."""
        taken = self._call(lambda _: self._copied())
        return Log(self._copied() if taken is None else taken)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'; '.join(self.rules)}>"

    def remove(self) -> None:
        """End the rules; what they hold leaves at once, in order. More calls do nothing.

        :raises Exception: what a rule's `when` has raised first.
        """
        self._end()
        for active in self._active:
            if active.error is not None:
                raise active.error

    def _end(self) -> None:
        self._call(lambda weathered: weathered.remove(self._active))

    def _copied(self) -> list[FateLog]:
        return [active.log.copy() for active in self._active]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.remove()
        else:
            self._end()


class Schedule(Impairment):
    """Weather that changes with time, until `remove` or the end of the connection or network.

    :param call: calls a function with where the rules act.
    :param steps: seconds after the start, and the rules from then on.
    :param seed: the seed of rules that have none.
    :ivar seed: as above.
    :ivar rules: the text of each rule, with its seed.
    """

    def __init__(self, call: CallWeathered[Any], steps: list[tuple[float, tuple[Rule, ...]]], seed: int) -> None:
        super().__init__(call, tuple(rule for _, rules in steps for rule in rules), seed)
        self.seed = seed
        self._steps = steps
        self._current: list[ActiveRule] = []
        self._ended = False

    def start(self, weathered: Weathered) -> None:
        """Begin; on the hub."""
        rules = iter(self._rules)
        for seconds, weather in self._steps:
            due = tuple(next(rules) for _ in weather)
            if seconds:
                weathered.after(seconds, lambda due=due: self._change(weathered, due))  # type: ignore[misc]
            else:
                self._change(weathered, due)

    def _change(self, weathered: Weathered, rules: tuple[Rule, ...]) -> None:
        if not self._ended:
            ended, self._current = self._current, enforce(weathered, rules)
            self._active += self._current
            weathered.remove(ended)

    def _end(self) -> None:
        def end(weathered: Weathered) -> None:
            self._ended = True
            weathered.remove(self._current)

        self._call(end)


def rules_of(weather: Weather | None, parts: dict[str, Any]) -> tuple[Rule, ...]:
    """Return the rules that `impair` was given.

    :param weather: rules, or None where `parts` have one.
    :param parts: the parts of a rule as keywords; ``seed`` may stand beside other weather.
    :raises ConfigurationError: naming what is wrong, and the remedy.
    """
    if weather is None:
        return (build(**parts),)
    if parts.keys() - {"seed"}:
        raise ConfigurationError("weather was given both as rules and as keywords", "give one of them")
    seed = build(loss=0, **parts).seed
    return tuple(
        rule if seed is None or rule.seed is not None else replace(rule, seed=seed) for rule in _listed(weather)
    )


def steps_of(schedule: Iterable[tuple[float, Weather]]) -> list[tuple[float, tuple[Rule, ...]]]:
    """Return the steps of a schedule.

    :raises ConfigurationError: naming what is wrong, and the remedy.
    """
    steps: list[tuple[float, tuple[Rule, ...]]] = []
    for entry in (schedule,) if isinstance(schedule, str) or not isinstance(schedule, Iterable) else schedule:
        if not isinstance(entry, tuple) or len(entry) != 2 or isinstance(entry[0], bool | str):  # noqa: PLR2004
            raise ConfigurationError(f"weather takes pairs, not {entry!r}", EXAMPLE)
        seconds, weather = entry
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise ConfigurationError(f"weather at {seconds!r}", "give seconds from now on, from 0")
        steps.append((seconds, tuple(_listed(weather))))
    for (before, _), (after, _) in pairwise(steps):
        if after <= before:
            raise ConfigurationError(f"weather at {after} s stands behind that at {before} s", "put them in order")
    if not steps:
        raise ConfigurationError("the schedule has no weather", EXAMPLE)
    return steps


def _listed(weather: Weather) -> Iterator[Rule]:
    """Yield the rules of weather.

    :raises ConfigurationError: if it is none, or a rule is wrong.
    """
    if not isinstance(weather, Iterable | Rule):
        raise ConfigurationError(f"{weather!r} is no weather", RULE_EXAMPLE)
    for rule in (weather,) if isinstance(weather, str | Rule) else weather:
        if not isinstance(rule, str | Rule):
            raise ConfigurationError(f"{rule!r} is no rule", RULE_EXAMPLE)
        yield from rules_in(rule) if isinstance(rule, str) else (rule,)


def check(config: Config, spliced: bool, rules: Iterable[Rule]) -> None:
    """Refuse rules that can match nothing.

    :param config: the options of the connection.
    :param spliced: whether loopback traffic passes by the link.
    :raises ConfigurationError: if there is no link, or a rule names addresses that do not cross it.
    """
    if config.splice_only:
        raise ConfigurationError("with --splice-only no frame crosses a link", "leave that option out")
    for rule in rules:
        if named := loopback_in(rule):
            raise _loopback(named, spliced)


def loopback_in(rule: Rule) -> str:
    """Return the part of a rule that names a loopback address, empty if none does."""
    for name, prefixes in (("src", rule.src), ("dst", rule.dst)):
        for address, bits in prefixes:
            if bits >= _LOOPBACK_BITS[family_of(address)] and is_loopback(address):
                return f"{name} {ipaddress.ip_address(address)}"
    return ""


def _loopback(named: str, spliced: bool) -> ConfigurationError:
    if spliced:
        return ConfigurationError(
            f"{named}: loopback traffic is spliced past the link, where no rule can meet it",
            "open with no_splice=True, and name the gateway, which stands for the host's loopback then",
        )
    return ConfigurationError(
        f"{named}: no loopback address crosses the link", "name the gateway, which stands for the host"
    )


def enforce(weathered: Weathered, rules: Iterable[Rule]) -> list[ActiveRule]:
    """Put rules in force, in their order; return each once for each of its directions."""
    added = [active for rule in rules for active in weathered.add(rule, rule.seed or 0)]
    replay.enter(added)
    return added
