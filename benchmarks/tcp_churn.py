"""What short spliced connections leave behind: descriptors, pipes and memory of the proxy, before, during and after.

Theory of operation: clients open a connection from one loopback to the other, exchange a byte and close, at a rate,
over four forwarded ports; through one alone, the source ports of closed connections would run out. Once a second what
the proxy holds is read from /proc. Before that, a second of the same load fills its caches and pools; after it, another
one shows whether what is left grows. Half of the connections come from the host and half from the namespace, unless one
side is chosen.

    python benchmarks/tcp_churn.py [--seconds S] [--rate N] [--side SIDE] [--without NAME] [--json]

Needs root, and Debian's packages passt, iproute2, procps, gcc and libc6-dev. `--seconds 5` is the short form. Nothing
leaves the namespaces; the load is bounded in time and rate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lab import Contender, Failed, Lab, comma_list, compiled, ended, finish, line, say, start

NAMES = ("gpasst", "pasta")
SIDES = {"both": (False, True), "host": (False,), "namespace": (True,)}  # whether clients are in the namespace
WARM_UP_SECONDS = 1.0
MORE = 6  # the load that follows is this many times shorter
SETTLE_SECONDS = 4.0  # for what was closed to be given back, and for pools to fill
AT_ONCE = 4  # connections of one client program


class Churn:
    """Clients and servers of one contender."""

    def __init__(self, program: Path, contender: Contender, side: str, rate: int) -> None:
        self._program = program
        self._contender = contender
        self._ways = SIDES[side]
        self._rate = rate / len(self._ways)  # of each way

    def load(self, seconds: float) -> tuple[dict[str, float], list[dict[str, int]]]:
        """Open and close connections; return counts and latency, and what the proxy held each second."""
        samples = []
        with ExitStack() as stack:
            clients = []
            for outward in self._ways:
                address, ports = self._contender.loopback(outward)
                client_at, server_at = (self._contender.netns, "") if outward else ("", self._contender.netns)
                line(stack.enter_context(ended(start(self._program, "serve", *ports, netns=server_at))), "ready")
                words = ("connect", f"{address}:{comma_list(ports)}", 1, seconds, AT_ONCE, self._rate)
                clients.append(stack.enter_context(ended(start(self._program, *words, netns=client_at))))
            began = time.monotonic()
            while any(client.poll() is None for client in clients):
                time.sleep(min(1.0, seconds / 2))
                samples.append(self._contender.holds())
                say(f"{self._contender.name}: {time.monotonic() - began:.0f} of {seconds:.0f} s, {samples[-1]}")
            done = [finish(client) for client in clients]
        return {
            "connections": sum(one["trips"] for one in done),
            "lost": sum(one["lost"] for one in done),
            "seconds": max(one["seconds"] for one in done),
            "median_us": max(one["median_us"] for one in done),  # of the slower way
            "p99_us": max(one["p99_us"] for one in done),
        }, samples


def soak(program: Path, contender: Contender, side: str, rate: int, seconds: float) -> dict[str, Any]:
    """Return what connections at a rate cost, and what the proxy holds before, at most, and after."""
    churn = Churn(program, contender, side, rate)
    churn.load(WARM_UP_SECONDS)
    time.sleep(SETTLE_SECONDS)
    before, spent = contender.holds(), contender.processor_seconds()
    done, samples = churn.load(seconds)
    spent = contender.processor_seconds() - spent
    time.sleep(SETTLE_SECONDS)
    after = contender.holds()
    churn.load(seconds / MORE)
    time.sleep(SETTLE_SECONDS)
    return {
        **done,
        "processor_us_each": round(spent / done["connections"] * 1e6, 1),
        "before": before,
        "most": {name: max(sample[name] for sample in samples) for name in before},
        "after": after,
        "after_more": contender.holds(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what short spliced connections leave behind.")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=1000, help="connections a second, of both sides together")
    parser.add_argument("--side", default="both", choices=SIDES, help="where clients are")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, help="leave out a contender")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark makes network namespaces; run it as root")
    report: dict[str, dict[str, Any]] = {}
    lab = Lab()
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = compiled(Path(folder), "tcp_load")["tcp_load"]
            for name in (name for name in NAMES if name not in given.without):
                try:
                    with closing(Contender(lab, name, spliced=True)) as contender:
                        report[name] = soak(program, contender, given.side, given.rate, given.seconds)
                except Failed as problem:
                    report[name] = {"stopped": str(problem)}
    finally:
        lab.close()
    if given.json:
        print(json.dumps({"rate": given.rate, "side": given.side, **report}, indent=1))
    else:
        for name, figures in report.items():
            print(*(f"{name}, {key}: {value}" for key, value in figures.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
