"""How long a start takes, and how much memory a proxy holds, beside Debian's pasta in the same run.

Theory of operation: the contenders take turns, so that a machine whose speed drifts treats them alike. Three things are
measured, each from the start of the program:

* *command*: ``pasta --config-net -- true``, to its end.
* *joined*: podman's command line for the file of a namespace, until the program has left for the background and its
  parent has ended. That is what a container waits for.
* *at once*: many of *command* together, to the end of the last.

Memory is what a proxy of *joined* and its helper have for themselves (Private_Clean and Private_Dirty of
smaps_rollup), two seconds after the start. Processor time is user and system time of *command*, of all its processes.
Byte code is compiled before, as pip does when it installs.

    python benchmarks/start.py [--rounds N] [--at-once N] [--json]

Needs root, and Debian's packages passt and iproute2. `PASTA` in the environment names another binary of the peer.
Nothing is sent but what the kernel of a new namespace sends by itself.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpasst

PASTA = os.environ.get("PASTA") or "pasta"
CONTENDERS = {
    "gpasst": [sys.executable, "-m", "gpasst", "pasta", "--runas", "root"],
    "pasta": [PASTA, "--runas", "0"],
}
COMMAND = ["--config-net", "--", "true"]
# As podman 5.4 asks for it, but for --map-guest-addr, which pasta of Debian 12 does not have.
JOINED = [
    *("--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none"),
    *("--dns-forward", "169.254.1.1", "--no-map-gw", "--quiet", "--netns"),
]
SETTLE_SECONDS = 2.0  # the process that keeps the namespace becomes smaller after a quiet second
END_SECONDS = 5.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["PYTHONPATH"] = str(Path(gpasst.__file__).parent.parent)


def started(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(*programs: list[str]) -> tuple[float, float]:
    """Run programs together; return milliseconds to the last one's end, and of processor."""
    before, begun = os.times(), time.perf_counter()
    for program in [started(argv) for argv in programs]:
        if program.wait():
            sys.exit(f"{' '.join(program.args)}: status {program.returncode}")  # type: ignore[arg-type]
    wall, after = time.perf_counter() - begun, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return 1e3 * wall, 1e3 * processor


def private(pid: int) -> int:
    """Return the kB of memory that a process has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def inside(netns: Path) -> set[int]:
    """Return the processes in a namespace."""
    inode, found = netns.stat().st_ino, set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and os.stat(f"/proc/{entry}/ns/net").st_ino == inode:
                found.add(int(entry))
        except OSError:
            continue
    return found


def joined(name: str, folder: str) -> tuple[float, int]:
    """Connect a new namespace as podman does; return milliseconds until that is done, and kB of memory."""
    netns, pid_file = f"start{os.getpid()}", Path(folder, "pid")
    subprocess.run(["ip", "netns", "add", netns], check=True)
    path = Path("/run/netns", netns)
    try:
        wall, _ = timed([*CONTENDERS[name], "--pid", str(pid_file), *JOINED, str(path)])
        time.sleep(SETTLE_SECONDS)
        pid = int(pid_file.read_text(encoding="ascii"))
        memory = sum(private(process) for process in inside(path) | {pid})
        end = os.pidfd_open(pid)
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=True)
    if not select.select([end], [], [], END_SECONDS)[0]:
        sys.exit(f"{name} goes on without its namespace")
    os.close(end)
    pid_file.unlink(missing_ok=True)
    return wall, memory


def measure(rounds: int, at_once: int, folder: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}

    def keep(name: str, **figures: float) -> None:
        for figure, value in figures.items():
            found[name].setdefault(figure, []).append(value)

    for number in range(rounds + 1):
        for name, argv in CONTENDERS.items():
            wall, processor = timed([*argv, *COMMAND])
            until, memory = joined(name, folder)
            if number:  # the first round fills caches
                keep(name, command_ms=wall, processor_ms=processor, joined_ms=until, private_kb=memory)
    for _ in range(max(1, rounds // 5)):
        for name, argv in CONTENDERS.items():
            keep(name, at_once_ms=timed(*[[*argv, *COMMAND]] * at_once)[0])
    results = {}
    for name, figures in found.items():
        results[name] = {figure: round(statistics.median(values), 1) for figure, values in figures.items()}
        least = {f"{figure}_least": round(min(values), 1) for figure, values in figures.items()}
        share = results[name]["at_once_ms"] / (at_once * results[name]["command_ms"])
        results[name] |= least | {"at_once_share": round(share, 2)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the start beside pasta.")
    parser.add_argument("--rounds", type=int, default=15, help="of each contender, in turns [15]")
    parser.add_argument("--at-once", type=int, default=20, help="starts together [20]")
    parser.add_argument("--json", action="store_true", help="print the figures for a program to read")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("benchmarks/start.py needs root")
    compileall.compile_dir(str(Path(gpasst.__file__).parent), quiet=2)
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = measure(options.rounds, options.at_once, folder)
    if options.json:
        print(json.dumps({"at_once": options.at_once, "rounds": options.rounds, **results}, indent=1))
        return
    ours, theirs = results["gpasst"], results["pasta"]
    print(f"{'':<20}{'gpasst':>10}{'pasta':>10}{'ratio':>8}")
    for figure, value in ours.items():
        other = theirs[figure]
        print(f"{figure:<20}{value:>10.1f}{other:>10.1f}{value / other if other else 0:>8.2f}")


if __name__ == "__main__":
    main()
