"""Where a test acts in a network: the link of a host, what is between two hosts, and partitions.

Theory of operation: a section is named by hosts, and is asked for anew at each call, on the hub. So it may be kept
while rules and captures come and go.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from gpasst.api.handle import Handle
from gpasst.api.impairable import Impairable
from gpasst.api.observed import Observer
from gpasst.api.seed import default
from gpasst.errors import ConfigurationError

if TYPE_CHECKING:
    from gpasst.api.captures import Observable
    from gpasst.api.impairments import Impairment, Schedule, Weather, Weathered
    from gpasst.api.network_base import NetworkBase
    from gpasst.capture.history import History
    from gpasst.impair.facts import Place
    from gpasst.impair.rule import Rule
    from gpasst.link.switch_weather import Key
    from gpasst.proxy.lan import Lan
    from gpasst.runtime import Runtime
    from gpasst.switch.partition import Partition as Groups

T = TypeVar("T")
W = TypeVar("W", bound="Impairment")


def load() -> None:
    """Import what weather needs, which takes longer than a step on the hub may."""
    importlib.import_module("gpasst.proxy.build_switch_weather")


class Section(Impairable):
    """Where rules act in a network.

    :param network: the network.
    """

    def __init__(self, network: NetworkBase) -> None:
        self._network = network

    def _edges(self) -> tuple[Place, dict[str, Key]]:
        """Return how its directions are called, and what they are."""
        raise NotImplementedError

    def _seed(self) -> int:
        return default() if self._network.seed is None else self._network.seed

    def _start_weather(self, made: W, rules: Iterable[Rule]) -> W:
        from gpasst.api.impairments import loopback_in

        load()
        _, keys = self._edges()
        for rule in rules:
            if rule.rebind:
                raise ConfigurationError(
                    "rebind: a network translates no addresses", "put a router with NAT there, and call its rebind"
                )
            if rule.to and rule.to not in keys:
                raise ConfigurationError(f"to {rule.to}: one_way has one direction", "leave one of both out")
            if named := loopback_in(rule):
                raise ConfigurationError(f"{named}: no loopback address crosses a link", "name a host's address")
        self._network.call(lambda lan: made.start(self._weathered(lan)))
        return made

    def _call_weathered(self, function: Callable[[Weathered], T]) -> T | None:
        return self._network.call_open(lambda lan: function(self._weathered(lan)))

    def _weathered(self, lan: Lan) -> Weathered:
        from gpasst.link.switch_weather import Edges

        return Edges(lan.weather(), *self._edges())


class Link(Section, Observer):
    """The link of a host: ``to="guest"`` is to the host, ``to="host"`` from it.

    :param network: the network.
    :param name: the host's name.
    :param history: what was recorded on the network, None if nothing is.
    """

    def __init__(self, network: NetworkBase, name: str, history: History | None) -> None:
        super().__init__(network)
        self._name = name
        self._history = history

    def __repr__(self) -> str:
        return f"<link of {self._name} on {self._network.name}>"

    def _edges(self) -> tuple[Place, dict[str, Key]]:
        from gpasst.impair.facts import Place
        from gpasst.link.switch_weather import link_keys

        name, network = self._name, self._network.name
        place = Place(f"{network}.link({name!r})", (f"to {name} on {network}", f"from {name} on {network}"))
        return place, link_keys(name)

    def _observing(self) -> tuple[Runtime, Observable]:
        return self._network.here(), self._network.observable(self._name)

    def _observed(self) -> tuple[Runtime, Observable | None]:
        return self._observing()


class Between:
    """What is between two hosts, in both directions, of which each counts for itself.

    To a rule that names a direction the first host is the guest: ``to="guest"`` is to the first, ``to="host"`` to the
    second. So a profile with another rate down than up has the first host at its end.

    :param network: the network.
    :param one: the name of the first host.
    :param other: that of the second.
    """

    def __init__(self, network: NetworkBase, one: str, other: str) -> None:
        self._network = network
        self._ends = one, other

    def __repr__(self) -> str:
        return f"<{self._ends[0]} and {self._ends[1]} on {self._network.name}>"

    def impair(self, weather: Weather | None = None, /, *, one_way: bool = False, **parts: Any) -> Impairment:
        """Let weather act on what one host sends to the other, until `remove` or the end of the network.

        ::

            with lan.between(a, b).impair(delay="40ms", loss=0.01): ...

        :param weather: rules, as text or as a profile; None for one rule in keywords.
        :param one_way: whether only frames from the first host to the second are meant.
        :param parts: the parts of a rule (docs/weather.md); of other weather its ``seed`` alone.
        :return: the rules in force, which a ``with`` statement ends.
        :raises ConfigurationError: naming the part that is wrong, and the remedy.
        """
        return _Pair(self._network, self._ends, one_way).impair(weather, **parts)

    def weather(self, schedule: Iterable[tuple[float, Weather]], *, one_way: bool = False) -> Schedule:
        """Let weather change with time, until `remove` or the end of the network.

        :param schedule: seconds from now on, and the weather that is in force from then on, as `impair` takes it.
        :param one_way: as of `impair`.
        :return: the schedule, which a ``with`` statement ends.
        :raises ConfigurationError: naming what is wrong, and the remedy.
        """
        return _Pair(self._network, self._ends, one_way).weather(schedule)


class _Pair(Section):
    """What is between two hosts, in one direction or in both."""

    def __init__(self, network: NetworkBase, ends: tuple[str, str], one_way: bool) -> None:
        super().__init__(network)
        self._ends = ends
        self._one_way = one_way

    def _edges(self) -> tuple[Place, dict[str, Key]]:
        from gpasst.impair.facts import TO_GUEST, Place
        from gpasst.link.switch_weather import pair_keys

        (one, other), network = self._ends, self._network.name
        names = f"from {other} to {one} on {network}", f"from {one} to {other} on {network}"
        keys = pair_keys(one, other)
        if self._one_way:
            del keys[TO_GUEST]
        return Place(f"{network}.between({one!r}, {other!r})", names), keys


class Partition(Handle):
    """A partition, until `remove` or the end of the network.

    :param network: the network.
    :param groups: the names of the hosts of each group.
    """

    def __init__(self, network: NetworkBase, groups: list[list[str]]) -> None:
        from gpasst.switch.partition import Partition as Groups

        load()
        self._network = network
        self._names = groups
        self._groups: Groups = Groups(groups)
        network.call(lambda lan: lan.weather().cut(self._groups))

    def __repr__(self) -> str:
        return f"<partition {' | '.join(', '.join(group) for group in self._names)}>"

    @property
    def hits(self) -> int:
        """How many frames it has cut off; a superframe counts as the frames that it stands for."""
        return self._groups.hits

    def remove(self) -> None:
        """Let the hosts reach each other again. More calls do nothing."""
        self._network.call_open(lambda lan: lan.weather().heal(self._groups))

    def close(self) -> None:
        """Do what `remove` does."""
        self.remove()
