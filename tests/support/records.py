"""What a recorder hands over, kept."""

from __future__ import annotations

from collections.abc import Sequence

from gpasst.capture.record import Record


class Kept:
    """A sink that keeps its records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.batches: list[int] = []
        self.closed = 0

    def take(self, records: Sequence[Record]) -> None:
        self.records += records
        self.batches.append(len(records))

    def close(self) -> None:
        self.closed += 1
