"""What counts drops, and can be asked whether there were any."""

from __future__ import annotations

from collections.abc import Iterable

from gpasst.counters import WEATHER, Drop, NetworkStatistics, Statistics


class Counted:
    """The base of what has counters."""

    def statistics(self) -> Statistics | NetworkStatistics:
        """Return the counters of traffic and drops."""
        raise NotImplementedError

    def assert_no_drops(self, allow: Iterable[Drop] = ()) -> None:
        """Check that nothing was dropped but what weather was asked to take.

        What every guest sends by itself counts as ignored, not as dropped.

        :param allow: reasons that are no fault.
        :raises AssertionError: naming each other reason, and how often it was one.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        allowed = {reason.value for reason in (*allow, *WEATHER)}
        drops = sorted(item for item in self.statistics().drops.items() if item[0] not in allowed)
        if drops:
            listed = ", ".join(f"{count} {reason}" for reason, count in drops)
            raise AssertionError(f"dropped: {listed}")
