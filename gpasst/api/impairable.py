"""What may have weather: the link of a `Connection`, and parts of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from gpasst.api.limits import limited
from gpasst.api.opened import Opened

if TYPE_CHECKING:
    from gpasst.api.impairments import Impairment, Schedule, Weather, Weathered
    from gpasst.impair.rule import Rule

T = TypeVar("T")
W = TypeVar("W", bound="Impairment")


class Impairable:
    """What may have weather."""

    @limited()
    def impair(self, weather: Weather | None = None, /, **parts: Any) -> Impairment:
        """Let weather act on what crosses here, until `remove` or the end of the connection or network.

        ::

            with net.impair("to guest udp sport 53: loss 30% seed 7") as rule:
                ...
            with net.impair(to="guest", protocol="udp", sport=53, loss=0.3, seed=7): ...
            net.impair(gpasst.weather.CAFE_WIFI)

        :param weather: rules, as text or as a profile; None for one rule in keywords.
        :param parts: the parts of a rule (docs/weather.md); of other weather its ``seed`` alone.
        :return: the rules in force, which a ``with`` statement ends.
        :raises ConfigurationError: naming the part that is wrong, and the remedy.
        """
        from gpasst.api.impairments import Impairment, rules_of

        rules = rules_of(weather, parts)
        return self._start_weather(Impairment(self._call_weathered, rules, self._seed()), rules)

    @limited()
    def weather(self, schedule: Iterable[tuple[float, Weather]]) -> Schedule:
        """Let weather change with time, until `remove` or the end of the connection or network.

        ::

            net.weather([(0, CLEAR), (2.0, PARTITION), (5.0, CLEAR)])

        :param schedule: seconds from now on, and the weather that is in force from then on, as `impair` takes it.
        :return: the schedule, which a ``with`` statement ends.
        :raises ConfigurationError: naming what is wrong, and the remedy.
        """
        from gpasst.api.impairments import Schedule, steps_of

        steps = steps_of(schedule)
        rules = [rule for _, rules in steps for rule in rules]
        return self._start_weather(Schedule(self._call_weathered, steps, self._seed()), rules)

    def _seed(self) -> int:
        """Return the seed of rules that have none."""
        from gpasst.api.seed import default

        return default()

    def _start_weather(self, made: W, rules: Iterable[Rule]) -> W:
        """Let weather begin.

        :raises ConfigurationError: if a rule can match nothing here, or this is not open.
        """
        raise NotImplementedError

    def _call_weathered(self, function: Callable[[Weathered], T]) -> T | None:
        """Call `function` on the hub with where rules act, if this is open."""
        raise NotImplementedError


class ImpairableConnection(Impairable, Opened):
    """A connection whose link may have weather."""

    def fates(self, last: int = 20) -> list[str]:
        """Return what weather did last, a line for each frame, the newest last.

        :param last: lines at most.
        :raises ConfigurationError: if that is no number.
        """
        from gpasst.impair.log import latest

        return self._call(lambda proxy: latest(proxy.fates(), last))

    def _call_weathered(self, function: Callable[[Weathered], T]) -> T | None:
        if self._proxy is None or self._runtime is None:
            return None
        return self._call(lambda proxy: function(proxy.impaired()))

    def _start_weather(self, made: W, rules: Iterable[Rule]) -> W:
        from gpasst.api.impairments import check

        check(self.config, self._splices, rules)
        self._call(lambda proxy: made.start(proxy.impaired()))
        return made

    def _impair_at_once(self) -> list[str]:
        """Put the rules of the options in force, on the proxy's hub; return what they are, with their seeds."""
        from gpasst.api.impairments import Impairment, check, rules_of
        from gpasst.api.seed import default

        rules = rules_of(self.config.impair, {})
        check(self.config, self._splices, rules)
        made = Impairment(self._call_weathered, rules, default())
        made.start(self._opened().impaired())
        return [f"impairment: {rule}" for rule in made.rules]

    @property
    def _splices(self) -> bool:
        """Whether loopback traffic passes by the link."""
        return self.mode == "pasta" and not self.config.no_splice
