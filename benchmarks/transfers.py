"""Whether spliced transfers arrive whole when the sender closes at once, and what the proxy holds afterwards.

Theory of operation: each transfer is a connection of its own from one loopback to the other, over which one end writes
and then closes, without a shutdown and without a wait. Its last bytes, the end of the stream and the hang-up therefore
reach the proxy together. The other end compares every byte (`tcp_load.c`, give and take). The client is on the host or
in the namespace, and is the sender or the receiver: four rows. The contenders take turns in each of them. A row is run
in parts, and between two of them its progress is printed; transfers of which a connection was never had are missing.

    python benchmarks/transfers.py [--transfers N] [--size BYTES] [--at-once N] [--only TEXT] [--without NAME] [--json]

Needs root, and Debian's packages passt, iproute2, procps, gcc and libc6-dev. 20000 transfers of 1 MiB in each row take
about 3 minutes; `--transfers 1000` is the short form. Nothing leaves the namespaces; the load is bounded in count, and
whatever stalls is given up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import Contender, Failed, Lab, compiled, ended, finish, line, say, start

NAMES = ("gpasst", "pasta")
PART = 1000  # transfers between two lines of progress
MOST_SIZE = 1 << 20  # bytes, of tcp_load
SETTLE_SECONDS = 2.0  # for pools to fill, and for what was closed to be given back
FLAWS = ("too_short", "too_long", "different", "broken", "missing", "not_given")


@dataclass(frozen=True)
class Row:
    """Transfers in one direction.

    :ivar outward: whether the client is in the namespace.
    :ivar client_sends: whether the client is the sender, or the receiver.
    """

    outward: bool
    client_sends: bool

    @property
    def label(self) -> str:
        way = "namespace to host" if self.outward else "host to namespace"
        return f"{way}, client {'sends' if self.client_sends else 'receives'}"


ROWS = [Row(outward, sends) for outward in (False, True) for sends in (True, False)]


def part(program: Path, contender: Contender, row: Row, size: int, count: int, at_once: int) -> dict[str, float]:
    """Move so many transfers; return how many were whole, how the rest failed, and the seconds."""
    address, ports = contender.loopback(row.outward)
    client_at, server_at = (contender.netns, "") if row.outward else ("", contender.netns)
    server_does, client_does = ("take", "give") if row.client_sends else ("give", "take")
    fifo = program.with_suffix(".ends")
    os.mkfifo(fifo)
    try:
        amount = (size, count, at_once, fifo)
        with ended(start(program, server_does, ports[0], *amount, netns=server_at)) as server:
            line(server, "ready")
            with ended(start(program, client_does, f"{address}:{ports[0]}", *amount, netns=client_at)) as client:
                done = {**finish(client), **finish(server)}
    finally:
        fifo.unlink()
    arrived = sum(done[name] for name in ("whole", "too_short", "too_long", "different", "broken"))
    return {**done, "missing": count - arrived, "not_given": count - done["given"]}


def measure(program: Path, contender: Contender, row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """Run a row over one contender; return counts, rate, processor time and what the proxy holds."""
    part(program, contender, row, given.size, min(PART, given.transfers), given.at_once)  # its caches and pools
    time.sleep(SETTLE_SECONDS)
    before, spent = contender.holds(), contender.processor_seconds()
    total = dict.fromkeys(("whole", *FLAWS, "seconds"), 0.0)
    left, stopped = given.transfers, ""
    while left:
        count = min(PART, left)
        try:
            done = part(program, contender, row, given.size, count, given.at_once)
        except Failed as problem:
            stopped = str(problem)
            break
        for name in total:
            total[name] += done[name]
        left -= count
        say(f"{contender.name}, {row.label}: {given.transfers - left} of {given.transfers}, {total['whole']:.0f} whole")
    spent = contender.processor_seconds() - spent
    time.sleep(SETTLE_SECONDS)
    gbit = total["whole"] * given.size * 8e-9
    return {
        "transfers": given.transfers - left,
        **{name: int(total[name]) for name in ("whole", *FLAWS)},
        "gbit_per_second": round(gbit / total["seconds"], 2) if total["seconds"] else 0.0,
        "processor_ms_per_gbit": round(spent / gbit * 1e3, 1) if gbit else None,
        "before": before,
        "after": contender.holds(),
        **({"stopped": stopped} if stopped else {}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Count spliced transfers that arrive whole when closed at once.")
    parser.add_argument("--transfers", type=int, default=20000, help="in each row")
    parser.add_argument("--size", type=int, default=MOST_SIZE, help=f"bytes of a transfer, 9 to {MOST_SIZE}")
    parser.add_argument("--at-once", type=int, default=4, help="transfers that are open at the same time")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, help="leave out a contender")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark makes network namespaces; run it as root")
    if not 9 <= given.size <= MOST_SIZE:
        raise SystemExit(f"--size {given.size}: a transfer has 9 to {MOST_SIZE} bytes")
    report: dict[str, dict[str, Any]] = {}
    lab = Lab()
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = compiled(Path(folder), "tcp_load")["tcp_load"]
            for row in (row for row in ROWS if given.only in row.label):
                report[row.label] = {}
                for name in (name for name in NAMES if name not in given.without):
                    try:
                        with closing(Contender(lab, name, spliced=True)) as contender:
                            report[row.label][name] = measure(program, contender, row, given)
                    except Failed as problem:
                        report[row.label][name] = {"transfers": 0, "stopped": str(problem)}
    finally:
        lab.close()
    if given.json:
        print(json.dumps({"size": given.size, "at_once": given.at_once, "rows": report}, indent=1))
    else:
        for label, contenders in report.items():
            for name, figures in contenders.items():
                print(f"{label}, {name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
