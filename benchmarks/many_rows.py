"""What the rows of many flows are called, and how their figures become a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from figures import Figures, cell, ratio
from lab import BEFORE

PEER, VETH = "pasta", "veth"
CONTENDERS = ("gpasst", BEFORE, PEER, VETH)
SIZES = (64, 1200)  # bytes
PORTS = (100, 10000)
STREAM_PORTS = 100
CLIENTS = 50  # of dnsperf
CONNECTIONS = 1000


@dataclass(frozen=True)
class Load:
    """One kind of traffic in one direction.

    :ivar kind: ports; answers, to so many ports of the inside from one of the host; ask; dns; or crowd, exchanges on
        all connections at once.
    :ivar size: in bytes.
    :ivar count: ports, clients or connections.
    :ivar guest: whether the inside is a guest on the stream.
    """

    kind: str
    outward: bool
    size: int = 64
    count: int = 1
    ipv6: bool = False
    guest: bool = False

    @property
    def label(self) -> str:
        inside = "guest" if self.guest else "namespace"
        what = {
            "ports": f"{self.count} ports, {self.size} B, IPv{6 if self.ipv6 else 4}",
            "answers": f"answers to {self.count} ports, {self.size} B, IPv{6 if self.ipv6 else 4}",
            "ask": f"request and response, {self.size} B",
            "dns": f"dnsperf -c {self.count}",
            "crowd": f"tcp, {self.count} exchanges of {self.size} B at once",
        }[self.kind]
        return f"many, {f'{inside} to host' if self.outward else f'host to {inside}'}, {what}"

    def suits(self, contender: str) -> bool:
        return contender != VETH or not self.guest


LOADS = (
    *(
        Load("ports", outward, size, ports, ipv6)
        for outward in (True, False)
        for ports in PORTS
        for size in SIZES
        for ipv6 in (False, True)
    ),
    *(Load("ports", outward, size, STREAM_PORTS, guest=True) for outward in (True, False) for size in SIZES),
    *(Load("answers", False, count=ports) for ports in PORTS),
    Load("dns", True, count=CLIENTS),
    *(Load("crowd", outward, count=CONNECTIONS) for outward in (True, False)),
    *(Load("ask", outward) for outward in (True, False)),
)
LABELS = tuple(load.label for load in LOADS)
RATIOS = {"delivered": "delivered", "processor": "processor_us", "latency": "median_us", "p99": "p99_us"}


def table(results: dict[str, dict[str, Figures]]) -> list[dict[str, Any]]:
    """Turn figures into rows of medians, and of ratios of gpasst's to those of the others."""
    rows = []
    for label, figures in results.items():
        medians = {name: entry.medians() for name, entry in figures.items() if entry.delivered}
        row: dict[str, Any] = {"load": label, **medians}
        for other in (PEER, BEFORE, VETH):
            if "gpasst" in medians and other in medians:
                row[f"of_{other}"] = {
                    name: value
                    for name, figure in RATIOS.items()
                    if (value := ratio(medians, other, figure)) is not None
                }
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> str:
    before, veth = (any(f"of_{name}" in row for row in rows) for name in (BEFORE, VETH))
    head = (
        f"{'load':<60}{'delivered/s':>12}{'peer':>10}{'ratio':>7}{'loss':>7}{'peer':>7}{'us each':>9}{'peer':>8}"
        f"{'ratio':>7}{'rtt us':>11}{'peer':>11}{'p99 us':>11}{'peer':>11}{'kB each':>9}{'peer':>7}"
        + (f"{'of before':>11}{'us':>7}{'rtt':>7}" if before else "")
        + (f"{'of veth':>9}" if veth else "")
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        ours, theirs, ratios = row.get("gpasst", {}), row.get(PEER, {}), row.get(f"of_{PEER}", {})
        lines.append(
            f"{row['load']:<60}"
            + cell(ours.get("delivered"), 12)
            + cell(theirs.get("delivered"), 10)
            + cell(ratios.get("delivered"), 7, 2)
            + cell(percent(ours), 7, 1, "%")
            + cell(percent(theirs), 7, 1, "%")
            + cell(ours.get("processor_us"), 9, 2)
            + cell(theirs.get("processor_us"), 8, 2)
            + cell(ratios.get("processor"), 7, 2)
            + cell(ours.get("median_us"), 11, 1)
            + cell(theirs.get("median_us"), 11, 1)
            + cell(ours.get("p99_us"), 11, 1)
            + cell(theirs.get("p99_us"), 11, 1)
            + cell(ours.get("memory_kb"), 9, 2)
            + cell(theirs.get("memory_kb"), 7, 2)
        )
        if before:
            earlier = row.get(f"of_{BEFORE}", {})
            lines[-1] += cell(earlier.get("delivered"), 11, 2) + cell(earlier.get("processor"), 7, 2)
            lines[-1] += cell(earlier.get("latency"), 7, 2)
        if veth:
            lines[-1] += cell(row.get(f"of_{VETH}", {}).get("delivered"), 9, 2)
    return "\n".join(lines)


def percent(figures: dict[str, float]) -> float | None:
    return 100 * figures["loss"] if "loss" in figures else None
