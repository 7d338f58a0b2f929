"""Timers whose clock a test sets."""

from __future__ import annotations

from collections.abc import Callable


class Deadline:
    """An entry of `Times`."""

    def __init__(self, when: float, callback: Callable[[float], None]) -> None:
        self.when = when
        self.callback: Callable[[float], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Times:
    """Timers with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.entries: list[Deadline] = []

    def at(self, when: float, callback: Callable[[float], None]) -> Deadline:
        self.entries.append(Deadline(when, callback))
        return self.entries[-1]

    def pass_to(self, now: float) -> None:
        """Call all that is due up to a time."""
        while True:
            due = [entry for entry in self.entries if entry.callback and entry.when <= now]
            if not due:
                break
            first = min(due, key=lambda entry: entry.when)
            self.now = max(self.now, first.when)
            callback, first.callback = first.callback, None
            assert callback is not None
            callback(self.now)
        self.now = now
