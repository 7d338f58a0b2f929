"""What is no weather, and what is no schedule. Takes 0.1 s."""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.api.impairments import rules_of, steps_of
from gpasst.errors import ConfigurationError


@pytest.mark.parametrize("weather", [5, object(), [5], [None], [["loss 5%"]]])
def test_what_is_no_weather_is_refused(weather: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is no (weather|rule); write it like 'udp dport 53: loss 30%'$"):
        rules_of(weather, {})
    with pytest.raises(ConfigurationError, match=r"is no (weather|rule); write it like 'udp dport 53: loss 30%'$"):
        steps_of([(0, weather)])


@pytest.mark.parametrize("schedule", [5, [5], [(0,)], ["CLEAR"], [("0", "CLEAR")]])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^weather takes pairs, not .*; write it like "):
        steps_of(schedule)
