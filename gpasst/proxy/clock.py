"""The time of a proxy: one clock, which tests may replace."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Monotonic time.

    :param source: returns seconds, at the speed of CLOCK_MONOTONIC.
    :ivar source: as above; replacing it moves the proxy in time.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self.source = source

    def now(self) -> int:
        """Return the present time in whole seconds."""
        return int(self.source())

    def precise(self) -> float:
        """Return the present time in seconds."""
        return self.source()
