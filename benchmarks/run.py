"""gpasst beside Debian's pasta and passt and beside a plain veth pair, under the same loads, in the same run.

Theory of operation: the benchmark moves into network namespaces of its own: a host with an upstream interface, and one
guest namespace for each contender. The contenders run one after the other, round after round, so that a machine whose
speed drifts treats them alike; every figure is the median over the rounds, and only ratios are worth quoting.

The guest of passt mode is a program on the UNIX socket (`guest.py`), not a virtual machine.

The generators (`load.py`) move 64 datagrams a system call; that they are not the bottleneck is checked by the veth row,
where the same generators run without any proxy between them. Processor time is what the scheduler accounts to the
proxy's own processes (/proc/PID/task/*/schedstat, nanoseconds), the helper included.

    python benchmarks/run.py [--rounds N] [--seconds S] [--only TEXT] [--output FOLDER] [--list]

The rows of TCP are in `tcp.py`; `--only "tcp, "` runs all of them, and `--only "tcp, spliced"` those between the
two loopbacks. Those of networks of namespaces are in `network.py`; `--only network` runs them. Loads of many ports are
those of `many.py`. The whole run takes about 25 minutes.

Needs root, and Debian's packages passt, iproute2, procps, iperf3, gcc and libc6-dev. `PASTA` and `PASST` in the
environment name other binaries of the peers. Nothing leaves the namespaces; the load is bounded in time.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import network
import network_rows
import tcp
import tcp_rows
from figures import Figures, cell, ratio
from lab import CONTENDERS, PASST, PASTA, Contender, Lab, finish, generator, line, say
from report import about, asked, publish, wanted

SETTLE_SECONDS = 0.15  # for the last datagrams to arrive
START_SECONDS = 1.5  # for what follows the start, as duplicate address detection
IDLE_SECONDS = 3.0


@dataclass(frozen=True)
class Load:
    """One kind of traffic in one direction."""

    name: str
    outward: bool
    size: int
    segments: int = 1
    asks: bool = False
    spliced: bool = False
    guest: bool = False

    @property
    def label(self) -> str:
        inside = "guest" if self.guest else "namespace"
        way = f"{inside} to host" if self.outward else f"host to {inside}"
        return f"{way}{', spliced' if self.spliced else ''}, {self.name}"

    def suits(self, contender: str) -> bool:
        """Whether the load means something to a contender."""
        if contender == "plain":
            return self.name == "64 B" and not self.spliced and not self.guest
        return contender != "veth" or not (self.spliced or self.guest)


LOADS = (
    [
        load
        for outward in (True, False)
        for load in (
            Load("64 B", outward, 64),
            Load("1400 B", outward, 1400),
            Load("8000 B", outward, 8000),
            Load("GSO 40 x 1400 B", outward, 1400, segments=40),
            Load("request and response, 64 B", outward, 64, asks=True),
        )
    ]
    + [
        load
        for outward in (True, False)
        for load in (
            Load("64 B", outward, 64, spliced=True),
            Load("1400 B", outward, 1400, spliced=True),
            Load("8000 B", outward, 8000, spliced=True),
            Load("GSO 40 x 1400 B", outward, 1400, segments=40, spliced=True),
            Load("request and response, 64 B", outward, 64, asks=True, spliced=True),
        )
    ]
    + [
        Load("64 B", True, 64, guest=True),
        Load("1400 B", True, 1400, guest=True),
        Load("request and response, 64 B", True, 64, asks=True, guest=True),
        Load("64 B", False, 64, guest=True),
        Load("1400 B", False, 1400, guest=True),
        Load("GSO 40 x 1400 B", False, 1400, segments=40, guest=True),
        Load("request and response, 64 B", False, 64, asks=True, guest=True),
    ]
)


def measure(contender: Contender, load: Load, seconds: float, figures: Figures) -> None:
    """Run one load over one contender once."""
    bind, address, port = contender.targets(load.outward, load.spliced, load.guest)
    inside, outside = contender.netns, ""
    sender_at, receiver_at = (inside, outside) if load.outward else (outside, inside)
    if load.guest and not load.outward:
        mode = ("echo", port) if load.asks else ("receive", port, load.size)
        receiver = generator(contender.path, *mode, program="guest.py")
    else:
        mode = ("echo", bind, port) if load.asks else ("receive", bind, port, int(load.segments > 1))
        receiver = generator(*mode, netns="" if load.guest else receiver_at)
    line(receiver, "ready")
    if load.asks:
        if load.guest and load.outward:
            sender = generator(contender.path, "ask", port, load.size, seconds, program="guest.py")
        else:
            sender = generator("ask", address, port, load.size, seconds, netns="" if load.guest else sender_at)
        before = contender.processor_seconds()
        result = finish(sender)
        spent = contender.processor_seconds() - before
        finish(receiver)
        figures.add_trips(result["trips"] - result["lost"], result, spent)
        return
    if load.guest and load.outward:
        sender = generator(contender.path, "send", port, load.size, seconds, program="guest.py")
    else:
        arguments = ("send", address, port, load.size, seconds, load.segments)
        sender = generator(*arguments, netns="" if load.guest else sender_at)
    before = contender.processor_seconds()
    sent = finish(sender)
    time.sleep(SETTLE_SECONDS)
    spent = contender.processor_seconds() - before
    received = finish(receiver)["received"]
    figures.add(received, sent["sent"], sent["seconds"], spent)


def footprint(contender: Contender) -> dict[str, float]:
    """Measure resident memory, and the processor time spent on nothing."""
    time.sleep(START_SECONDS)
    before = contender.memory_kb()
    spent = contender.processor_seconds()
    time.sleep(IDLE_SECONDS)
    idle = contender.processor_seconds() - spent
    return {
        "memory_mb": round(before / 1024, 1),
        "idle_processor_percent": round(100 * idle / IDLE_SECONDS, 3),
    }


def table(results: dict[str, dict[str, Figures]]) -> list[dict[str, Any]]:
    """Turn figures into rows of medians and ratios."""
    rows = []
    for label, figures in results.items():
        medians = {name: entry.medians() for name, entry in figures.items() if entry.delivered}
        row: dict[str, Any] = {"load": label, **medians}
        if "gpasst" in medians and "pasta" in medians:
            row["delivered_ratio"] = ratio(medians, "pasta", "delivered")
            row["processor_ratio"] = ratio(medians, "pasta", "processor_us")
            row["latency_ratio"] = ratio(medians, "pasta", "median_us")
            row["p99_ratio"] = ratio(medians, "pasta", "p99_us")
        if "gpasst" in medians and "veth" in medians:
            row["veth_ratio"] = ratio(medians, "veth", "delivered")
            row["veth_latency_ratio"] = ratio(medians, "veth", "median_us")
            row["veth_p99_ratio"] = ratio(medians, "veth", "p99_us")
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> str:
    head = (
        f"{'load':<46}{'delivered/s':>12}{'pasta':>11}{'ratio':>7}{'of veth':>8}{'loss':>7}{'pasta':>7}"
        f"{'us/dgram':>9}{'pasta':>7}{'ratio':>7}{'rtt us':>8}{'pasta':>7}{'p99 us':>8}{'pasta':>7}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        ours, theirs = row.get("gpasst", {}), row.get("pasta", {})
        lines.append(
            f"{row['load']:<46}"
            + cell(ours.get("delivered"), 12)
            + cell(theirs.get("delivered"), 11)
            + cell(row.get("delivered_ratio"), 7, 2)
            + cell(row.get("veth_ratio"), 8, 2)
            + cell(100 * ours.get("loss", 0), 7, 1, "%")
            + cell(100 * theirs.get("loss", 0), 7, 1, "%")
            + cell(ours.get("processor_us"), 9, 2)
            + cell(theirs.get("processor_us"), 7, 2)
            + cell(row.get("processor_ratio"), 7, 2)
            + cell(ours.get("median_us"), 8, 1)
            + cell(theirs.get("median_us"), 7, 1)
            + cell(ours.get("p99_us"), 8, 1)
            + cell(theirs.get("p99_us"), 7, 1)
        )
    return "\n".join(lines)


def chart(rows: list[dict[str, Any]]) -> str:
    """Draw the ratios of what was delivered to pasta's as an SVG, on a logarithmic scale from 0.25 to 32."""
    import math

    shown = [row for row in rows if row.get("delivered_ratio")]
    left, width, step, top = 460, 520, 30, 60
    height = top + step * len(shown) + 40

    def x(value: float) -> float:
        return left + width * (math.log2(min(32, max(0.25, value))) + 2) / 7

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}"'
        ' font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/><text x="16" y="26" font-size="16">'
        "Delivered per second (datagrams, bits, connections or round trips), as a multiple of pasta's</text>",
    ]
    for mark in (0.25, 0.5, 1, 2, 4, 8, 16, 32):
        colour = "#444" if mark == 1 else "#ccc"
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="{top - 10}" y2="{height - 30}" stroke="{colour}"/>')
        parts.append(f'<text x="{x(mark)}" y="{height - 12}" font-size="11" text-anchor="middle">{mark:g} x</text>')
    for i, row in enumerate(shown):
        y, value = top + step * i, row["delivered_ratio"]
        start, end = sorted((x(1), x(value)))
        colour = "#2a7" if value >= 1 else "#c63"
        parts.append(f'<text x="{left - 12}" y="{y + 14}" font-size="12" text-anchor="end">{row["load"]}</text>')
        parts.append(f'<rect x="{start}" y="{y + 2}" width="{max(1, end - start)}" height="17" fill="{colour}"/>')
        parts.append(f'<text x="{end + 6}" y="{y + 15}" font-size="12">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure gpasst beside pasta and beside a plain veth pair.")
    parser.add_argument("--bulk-seconds", type=float, default=2.0, help="of each TCP stream over a tap")
    parser.add_argument("--transfers", type=int, default=20, help="TCP streams each way that are watched for pauses")
    labels = (*(f"udp, {load.label}" for load in LOADS), *tcp_rows.LABELS, *network_rows.LABELS)
    given = asked(parser, labels, CONTENDERS)
    names = [name for name in CONTENDERS if name not in given.without]
    chosen = partial(wanted, given)
    loads = [load for load in LOADS if chosen(f"udp, {load.label}")]
    streams = [label for label in tcp_rows.LABELS if chosen(label)]
    connected = [label for label in network_rows.LABELS if chosen(label)]
    programs = ["ip", "sysctl", *([PASTA, PASST] if "pasta" in names and (loads or streams) else [])]
    programs += ["iperf3"] if streams or connected else []
    programs += ["gcc"] if streams else []
    for program in programs:
        if shutil.which(program) is None:
            packages = "iproute2, procps, passt, iperf3, gcc and libc6-dev"
            raise SystemExit(f"the benchmark needs {program}; install Debian's {packages}")
    results: dict[str, dict[str, Figures]] = {load.label: {name: Figures() for name in names} for load in loads}
    footprints: dict[str, dict[str, float]] = {}
    plan = tcp.Plan(given.rounds, given.seconds, given.bulk_seconds, given.transfers)
    lab = Lab()
    try:
        for turn in range(given.rounds):
            for name in names:
                for guest in (False, True):
                    mine = [load for load in loads if load.guest == guest and load.suits(name)]
                    if not mine:
                        continue
                    contender = Contender(lab, name, guest)
                    try:
                        for load in mine:
                            say(f"round {turn + 1} of {given.rounds}: {name}, {load.label}")
                            measure(contender, load, given.seconds, results[load.label][name])
                    finally:
                        contender.close()
        for name in names if not given.only else ():
            if name in ("gpasst", "pasta"):
                contender = Contender(lab, name)
                try:
                    footprints[name] = footprint(contender)
                finally:
                    contender.close()
        with tempfile.TemporaryDirectory() as programs_at:
            transport = tcp.Bench(lab, Path(programs_at), names, chosen, plan).run() if streams else tcp_rows.NOTHING
        hosts = network_rows.NOTHING
        if connected:
            hosts = network.Bench([*names, network_rows.BRIDGE], chosen, given.rounds, given.bulk_seconds).run()
    finally:
        lab.close()
    rows = table(results)
    plain = [
        f"{row['load']}, one datagram at a time: {row['plain']['delivered']:,.0f} delivered/s"
        for row in rows
        if "plain" in row
    ]
    parts = (print_table(rows) if rows else "", tcp_rows.print_table(transport), network_rows.print_table(hosts))
    tables = [text for text in parts if text]
    text = "\n".join(["\n\n".join(tables), "", *plain, *(f"{name}: {figures}" for name, figures in footprints.items())])
    depends = about(
        given,
        pasta=pasta_version() if "pasta" in names and (loads or streams) else None,
        bulk_seconds=given.bulk_seconds,
        congestion=lab.congestion,
        footprint=footprints,
    )
    document = {"about": depends, "rows": rows, "tcp": transport, "network": hosts}
    publish(given, "results", document, text, chart([*rows, *transport["rows"]]))
    return 0


def pasta_version() -> str:
    return subprocess.run([PASTA, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
