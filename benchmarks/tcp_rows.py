"""What the rows of TCP are called, and how their figures become tables."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from figures import cell, ratio

CONTENDERS = ("gpasst", "pasta", "veth")
MTUS = (1500, 65520)
SIZE = 64  # bytes of an exchange


@dataclass(frozen=True)
class TcpLoad:
    """One kind of TCP traffic in one direction.

    :ivar kind: bulk, connect, ask, or beside: ask beside a bulk stream.
    :ivar mtu: in bytes; 0: the contender's own choice.
    :ivar spliced: whether it passes from one loopback to the other.
    :ivar at_once: streams or connections.
    :ivar client_sends: which end of a spliced stream sends; the client is always on the side that the load comes from.
    """

    kind: str
    outward: bool
    mtu: int = 65520
    guest: bool = False
    spliced: bool = False
    at_once: int = 1
    client_sends: bool = True

    @property
    def size(self) -> int:
        """The bytes of an exchange."""
        return 1 if self.spliced and self.kind == "connect" else SIZE

    @property
    def label(self) -> str:
        inside = "guest" if self.guest else "namespace"
        way = f"{inside} to host" if self.outward else f"host to {inside}"
        streams = "1 stream" if self.at_once == 1 else f"{self.at_once} streams"
        what = {
            "bulk": f"{streams}, client {'sends' if self.client_sends else 'receives'}"
            if self.spliced
            else f"MTU {self.mtu}",
            "connect": f"connect, exchange {self.size} B, close",
            "ask": f"exchange {self.size} B",
            "beside": f"exchange {self.size} B beside a stream",
        }[self.kind]
        several = f", {self.at_once} at once" if self.kind == "connect" and self.at_once > 1 else ""
        return f"tcp, {'spliced, ' if self.spliced else ''}{way}, {what}{several}"

    @property
    def units(self) -> tuple[str, str]:
        """What is delivered a second, and in what the processor time for each is."""
        return ("Gbit", "ms") if self.kind == "bulk" else ("connections" if self.kind == "connect" else "trips", "us")

    def suits(self, contender: str) -> bool:
        return contender in CONTENDERS and not (self.guest and contender == "veth")


SPLICED = (
    *(
        TcpLoad("bulk", outward, 0, spliced=True, at_once=streams, client_sends=sends)
        for outward in (False, True)
        for streams in (1, 8)
        for sends in (True, False)
    ),
    *(
        TcpLoad("connect", outward, 0, spliced=True, at_once=at_once)
        for outward in (False, True)
        for at_once in (1, 16)
    ),
    *(TcpLoad("ask", outward, 0, spliced=True) for outward in (False, True)),
)
LOADS = (
    *(TcpLoad("bulk", outward, mtu) for outward in (True, False) for mtu in MTUS),
    *(TcpLoad(kind, outward) for kind in ("connect", "ask", "beside") for outward in (True, False)),
    *(TcpLoad("bulk", outward, mtu, guest=True) for outward in (True, False) for mtu in MTUS),
    *SPLICED,
)
IDLE, PAUSES = "tcp, idle connections", ("tcp, pauses, namespace to host", "tcp, pauses, host to namespace")


LABELS = (*(load.label for load in LOADS), IDLE, *PAUSES)
NOTHING: dict[str, Any] = {"rows": [], "idle": {}, "pauses": {}}


@dataclass
class Figures:
    """What the rounds of one contender under one load gave; units are those of the load."""

    delivered: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    median_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)  # Gbit/s of the stream beside exchanges
    failed: int = 0

    def medians(self) -> dict[str, float]:
        values = {name: value for name, value in asdict(self).items() if isinstance(value, list) and value}
        return {**{name: statistics.median(value) for name, value in values.items()}, "failed": self.failed}


def table(loads: list[TcpLoad], results: dict[str, dict[str, Figures]]) -> list[dict[str, Any]]:
    """Turn figures into rows of medians and ratios."""
    rows = []
    for load in loads:
        medians = {name: entry.medians() for name, entry in results[load.label].items()}
        row: dict[str, Any] = {"load": load.label, "units": load.units, **medians}
        for other, prefix in (("pasta", ""), ("veth", "veth_")):
            if "gpasst" in medians and other in medians:
                for name, words in (("delivered", "delivered"), ("median_us", "latency"), ("p99_us", "p99")):
                    row[f"{prefix}{words}_ratio"] = ratio(medians, other, name)
        if "gpasst" in medians and "pasta" in medians:
            row["processor_ratio"] = ratio(medians, "pasta", "processor")
        rows.append(row)
    return rows


def print_table(report: dict[str, Any]) -> str:
    """Return the tables of the TCP rows."""
    head = (
        f"{'load':<74}{'delivered/s':>12}{'pasta':>10}{'veth':>10}{'ratio':>7}{'of veth':>8}{'processor/unit':>16}"
        f"{'pasta':>10}{'ratio':>7}{'p50 us':>8}{'pasta':>8}{'p99 us':>9}{'pasta':>9}{'stream':>8}{'pasta':>7}"
        f"{'failed':>8}{'pasta':>6}"
    )
    lines = [head, "-" * len(head)] if report["rows"] else []
    for row in report["rows"]:
        ours, theirs = row.get("gpasst", {}), row.get("pasta", {})
        unit, processor = row["units"]
        digits = 2 if unit == "Gbit" else 0
        lines.append(
            f"{row['load']:<74}"
            + cell(ours.get("delivered"), 12, digits)
            + cell(theirs.get("delivered"), 10, digits)
            + cell(row.get("veth", {}).get("delivered"), 10, digits)
            + cell(row.get("delivered_ratio"), 7, 2)
            + cell(row.get("veth_delivered_ratio"), 8, 2)
            + cell(ours.get("processor"), 16, 1, f" {processor}")
            + cell(theirs.get("processor"), 10, 1)
            + cell(row.get("processor_ratio"), 7, 2)
            + cell(ours.get("median_us"), 8, 1)
            + cell(theirs.get("median_us"), 8, 1)
            + cell(ours.get("p99_us"), 9, 1)
            + cell(theirs.get("p99_us"), 9, 1)
            + cell(ours.get("stream"), 8, 2)
            + cell(theirs.get("stream"), 7, 2)
            + cell(ours.get("failed"), 8)
            + cell(theirs.get("failed"), 6)
        )
    lines += [f"{IDLE}, {name}: {figures}" for name, figures in report["idle"].items()]
    for label, contenders in report["pauses"].items():
        lines += [f"{label}, {name}: {figures}" for name, figures in contenders.items()]
    return "\n".join(lines)
