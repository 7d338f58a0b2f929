"""What the rounds of a load gave, and how the medians of them become ratios and cells of a table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Figures:
    """What the rounds of one contender under one load gave.

    :ivar delivered: a second.
    :ivar loss: share of what was sent.
    :ivar processor_us: of the proxy, for each that was delivered.
    :ivar memory_kb: of the proxy, more for each port or connection.
    """

    delivered: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    processor_us: list[float] = field(default_factory=list)
    median_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    memory_kb: list[float] = field(default_factory=list)

    def add(self, arrived: int, sent: int, seconds: float, spent: float) -> None:
        """Add a round in which so many arrived within so many seconds, and the proxy spent so many of a processor."""
        self.delivered.append(arrived / seconds if seconds else 0.0)
        self.loss.append(1 - arrived / max(1, sent))
        self.processor_us.append(spent / max(1, arrived) * 1e6)

    def add_trips(self, answered: int, result: dict[str, float], spent: float) -> None:
        """Add a round of questions; the result is what the program that asked printed."""
        self.add(answered, answered + int(result["lost"]), result["seconds"], spent)
        self.median_us.append(result["median_us"])
        self.p99_us.append(result["p99_us"])

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in asdict(self).items() if values}


def ratio(medians: dict[str, dict[str, float]], other: str, name: str) -> float | None:
    """Return a median of gpasst as a multiple of another contender's, or None where either is missing."""
    ours, theirs = medians["gpasst"].get(name), medians[other].get(name)
    return round(ours / theirs, 3) if ours is not None and theirs else None


def cell(value: float | None, width: int, digits: int = 0, unit: str = "") -> str:
    """Format one cell of a table."""
    return f"{'-' if value is None else f'{value:,.{digits}f}{unit}':>{width}}"
