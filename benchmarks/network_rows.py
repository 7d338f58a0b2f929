"""What the rows of networks are called, and how their figures become tables."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from figures import cell, ratio

BRIDGE = "bridge"
CONTENDERS = ("gpasst", "veth", BRIDGE)
MTUS = (1500, 65520)
FLOODS = ("another host", "everybody", "an unknown address")
COUNTS = (60, 200)


@dataclass(frozen=True)
class Load:
    """One kind of traffic.

    :ivar kind: stream, datagrams or ask.
    :ivar choice: of a stream: its congestion control, empty for the default.
    :ivar flood: where a flood goes meanwhile, empty for none.
    """

    kind: str
    mtu: int = 1500
    size: int = 64
    segments: int = 1
    choice: str = ""
    flood: str = ""

    @property
    def label(self) -> str:
        if self.kind == "stream":
            return f"network, tcp, MTU {self.mtu}{', cubic' if self.choice else ''}"
        if self.kind == "datagrams":
            many = f"GSO {self.segments} x " if self.segments > 1 else ""
            return f"network, udp, {many}{self.size} B"
        beside = f" beside a flood to {self.flood}" if self.flood else ""
        return f"network, request and response, {self.size} B{beside}"

    @property
    def unit(self) -> str:
        """What is delivered a second."""
        return {"stream": "Gbit", "datagrams": "datagrams", "ask": "trips"}[self.kind]

    def suits(self, contender: str) -> bool:
        """Whether the load means something to a contender."""
        return contender != "veth" or not self.flood


LOADS = (
    *(Load("stream", mtu, choice=choice) for mtu in MTUS for choice in ("", "cubic")),
    Load("ask"),  # before the kernel's queue is full of datagrams
    *(Load("datagrams", size=size) for size in (64, 1400)),
    Load("datagrams", size=1400, segments=40),
    *(Load("ask", flood=flood) for flood in FLOODS),
)
OPENING = tuple(f"network, opening {count} hosts" for count in COUNTS)
LABELS = (*(load.label for load in LOADS), *OPENING)
NOTHING: dict[str, Any] = {"rows": [], "opening": {}}


@dataclass
class Figures:
    """What the rounds of one contender under one load gave; units are those of the load."""

    delivered: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # ms for each Gbit, us for each datagram or trip
    median_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in asdict(self).items() if values}


def table(loads: list[Load], results: dict[str, dict[str, Figures]]) -> list[dict[str, Any]]:
    """Turn figures into rows of medians and ratios."""
    rows = []
    for load in loads:
        medians = {name: entry.medians() for name, entry in results[load.label].items() if entry.delivered}
        row: dict[str, Any] = {"load": load.label, "unit": load.unit, **medians}
        for other in CONTENDERS[1:]:
            if "gpasst" in medians and other in medians:
                for name, words in (("delivered", "delivered"), ("median_us", "latency"), ("p99_us", "p99")):
                    row[f"{other}_{words}_ratio"] = ratio(medians, other, name)
        rows.append(row)
    return rows


def print_table(report: dict[str, Any]) -> str:
    """Return the rows as a table, and the figures of opening."""
    head = (
        f"{'load':<66}{'delivered/s':>12}{'veth':>11}{'bridge':>11}{'of veth':>8}{'of br.':>7}{'loss':>7}{'veth':>7}"
        f"{'processor':>10}{'p50 us':>8}{'veth':>7}{'bridge':>7}{'p99 us':>8}{'veth':>7}{'bridge':>8}"
    )
    lines = [head, "-" * len(head)] if report["rows"] else []
    for row in report["rows"]:
        ours, pair, bridge = (row.get(name, {}) for name in CONTENDERS)
        digits = 2 if row["unit"] == "Gbit" else 0
        lines.append(
            f"{row['load']:<66}"
            + cell(ours.get("delivered"), 12, digits)
            + cell(pair.get("delivered"), 11, digits)
            + cell(bridge.get("delivered"), 11, digits)
            + cell(row.get("veth_delivered_ratio"), 8, 2)
            + cell(row.get("bridge_delivered_ratio"), 7, 2)
            + cell(100 * ours.get("loss", 0), 7, 1, "%")
            + cell(100 * pair.get("loss", 0), 7, 1, "%")
            + cell(ours.get("processor"), 10, 2)
            + "".join(cell(one.get("median_us"), 8 if one is ours else 7, 1) for one in (ours, pair, bridge))
            + "".join(cell(one.get("p99_us"), 8 if one is not pair else 7, 1) for one in (ours, pair, bridge))
        )
    return "\n".join([*lines, *(f"{label}: {figures}" for label, figures in report["opening"].items())])
