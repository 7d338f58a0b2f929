"""What namespaces cost: time to start, to open and to close them, and the processes and memory that hold them.

Theory of operation: one fresh process a round opens namespaces with `gpasst.Pasta` and measures itself. A process group
of its own tells its helper processes from others. Private memory belongs to one process alone; the proportional set
size (Pss) shares a page out among the processes that map it, so that its sum is what all of them take together.

    python benchmarks/namespaces.py [--rounds N] [--open N] [--package DIR]

Prints JSON. It measures whoever runs it: as an ordinary user /dev/net/tun has to be accessible to that user. Nothing
leaves the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUND = """
import json, os, sys, time
os.setpgid(0, 0)
sys.path.insert(0, {package!r})
began = time.perf_counter()
import gpasst
Pasta = gpasst.Pasta  # loads it
imported = time.perf_counter()

def timed(call):
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)

def make():
    return Pasta(config_net=True)

held = [make() for _ in range({count})]
opened = [timed(net.open) for net in held]
time.sleep({settle})
sys.path.insert(0, {folder!r})
from namespaces import group_memory
memory = group_memory(os.getpid())
sockets = [timed(lambda: held[0].socket().close()) for _ in range({count})]
closed = [timed(net.close) for net in held]
turns = []
for _ in range({count}):
    net = make()
    turns.append((timed(net.open), timed(net.close)))
print(json.dumps({{"import": 1e3 * (imported - began), "first": opened[0], "later": opened[1:], "close": closed,
                   "turns": turns, "socket": sockets, **memory}}))
"""
SETTLE_SECONDS = 1.0  # until what the processes do after their answers is done
MINIMUM_ROUNDS = 3


def group_memory(group: int) -> dict[str, Any]:
    """Count the helper processes of a process group, and their memory in MB; its first process is left out."""
    figures = {"processes": 0, "rss": 0.0, "pss": 0.0, "private": 0.0, "threads": 0, "descriptors": 0}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == group:
            continue
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
            figures["threads"] += len(os.listdir(folder / "task"))
            figures["descriptors"] += len(os.listdir(folder / "fd"))
        except (OSError, ProcessLookupError):
            continue
        sizes = {line.partition(":")[0]: int(line.split()[1]) / 1000 for line in lines}
        figures["processes"] += 1
        figures["rss"] += sizes["Rss"]
        figures["pss"] += sizes["Pss"]
        figures["private"] += sizes["Private_Clean"] + sizes["Private_Dirty"]
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the extremes, in milliseconds."""
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
        "count": len(values),
    }


def command_line(package: str, rounds: int) -> list[float]:
    """Time ``gpasst pasta --config-net -- true``, in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "gpasst", "pasta", "--config-net", "--", "true"],
            env={**os.environ, "PYTHONPATH": package},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        times.append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--open", type=int, default=30, help="namespaces that are open together")
    parser.add_argument("--package", default=str(Path(__file__).resolve().parents[1]), help="checkout to measure")
    given = parser.parse_args()
    rounds = []
    for _ in range(max(MINIMUM_ROUNDS, given.rounds)):
        program = ROUND.format(
            package=given.package, count=given.open, settle=SETTLE_SECONDS, folder=str(Path(__file__).parent)
        )
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
        rounds.append(json.loads(done.stdout))
    report = {
        "user": os.geteuid(),
        "open": given.open,
        "milliseconds": {
            "import": spread([one["import"] for one in rounds]),
            "first open": spread([one["first"] for one in rounds]),
            "later opens": spread([value for one in rounds for value in one["later"]]),
            "close, one after another": spread([value for one in rounds for value in one["close"]]),
            "open in turns with close": spread([turn[0] for one in rounds for turn in one["turns"]]),
            "close in turns with open": spread([turn[1] for one in rounds for turn in one["turns"]]),
            "one socket": spread([value for one in rounds for value in one["socket"]]),
            "command line": spread(command_line(given.package, given.rounds)),
        },
        "helpers": {
            name: round(statistics.median(one[name] for one in rounds), 1)
            for name in ("processes", "threads", "descriptors", "rss", "pss", "private")
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
