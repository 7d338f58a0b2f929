"""The builder of a network's weather, which is loaded with the first rule or partition."""

from __future__ import annotations

from gpasst.counters import Counters
from gpasst.link.edge import Means
from gpasst.link.switch import Switch
from gpasst.link.switch_weather import SwitchWeather
from gpasst.path.switch_answers import answers
from gpasst.proxy.failures import Failures
from gpasst.proxy.timers import Timers


def build_switch_weather(switch: Switch, counters: Counters, timers: Timers, failures: Failures) -> SwitchWeather:
    """Make the weather between the ports of a switch."""

    def failed(error: Exception) -> None:
        failures.caught(error, "internal error of weather; the frame is lost")

    return SwitchWeather(switch, answers, Means(timers.at, counters, timers.clock, failed))
