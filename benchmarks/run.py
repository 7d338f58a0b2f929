"""gpasst beside Debian's pasta and passt and beside a plain veth pair, under the same loads, in the same run.

Theory of operation: the benchmark moves into network namespaces of its own: a host with an upstream interface, and one
guest namespace for each contender. The contenders run one after the other, round after round, so that a machine whose
speed drifts treats them alike; every figure is the median over the rounds, and only ratios are worth quoting.

The guest of passt mode is a program on the UNIX socket (`guest.py`), not a virtual machine.

The generators (`load.py`) move 64 datagrams a system call; that they are not the bottleneck is checked by the veth row,
where the same generators run without any proxy between them. Processor time is what the scheduler accounts to the
proxy's own processes (/proc/PID/task/*/schedstat, nanoseconds), the helper included.

    python benchmarks/run.py [--rounds N] [--seconds S] [--only TEXT] [--output FOLDER]

Needs root, and the Debian package passt. Nothing leaves the namespaces; the load is bounded in time.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CLONE_NEWNET = 0x40000000
HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
VETH_HOST, VETH_GUEST = "198.51.100.1", "198.51.100.2"
PORT_OUT, PORT_IN = 7001, 5001
LOOPBACK, PORT_SPLICED = "127.0.0.1", 7101
START_SECONDS = 1.5  # for what follows the start, as duplicate address detection
IDLE_SECONDS = 3.0
SETTLE_SECONDS = 0.15  # for the last datagrams to arrive
CONTENDERS = ("gpasst", "pasta", "veth", "plain")  # plain: gpasst moving one datagram at a time

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Load:
    """One kind of traffic in one direction."""

    name: str
    outward: bool
    size: int
    segments: int = 1
    sockets: int = 1
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


@dataclass
class Figures:
    """What the rounds of one contender under one load gave."""

    delivered: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    processor_us: list[float] = field(default_factory=list)
    median_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in asdict(self).items() if values}


LOADS = (
    [
        load
        for outward in (True, False)
        for load in (
            Load("64 B", outward, 64),
            Load("1400 B", outward, 1400),
            Load("8000 B", outward, 8000),
            Load("GSO 40 x 1400 B", outward, 1400, segments=40),
            Load("64 B, 100 ports", outward, 64, sockets=100),
            Load("64 B, 10000 ports", outward, 64, sockets=10000),
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


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Lab:
    """The host's namespace, which this process enters, and guests."""

    def __init__(self) -> None:
        self.names = {name: f"gpasst-bench-{os.getpid()}-{name}" for name in ("host", *CONTENDERS)}
        for name in self.names.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        with open(f"/run/netns/{self.names['host']}", "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for device in ("up0", "up1"):
            run("ip", "link", "set", device, "up", "mtu", "65520")
        run("ip", "address", "add", f"{HOST}/24", "dev", "up0")
        run("ip", "route", "add", "default", "via", GATEWAY)
        run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", self.names["veth"])
        run("ip", "link", "set", "v0", "up", "mtu", "65520")
        run("ip", "address", "add", f"{VETH_HOST}/24", "dev", "v0")
        run("ip", "-n", self.names["veth"], "link", "set", "v1", "up", "mtu", "65520")
        run("ip", "-n", self.names["veth"], "address", "add", f"{VETH_GUEST}/24", "dev", "v1")
        # One full queue of any contender, and ports for 10000 sockets.
        for name in self.names.values():
            for setting in ("net.ipv4.ip_local_port_range=10000 65000",):
                run("ip", "netns", "exec", name, "sysctl", "-q", "-w", setting)

    def close(self) -> None:
        for name in self.names.values():
            run("ip", "netns", "del", name)


class Contender:
    """One way between the host and its guest namespace."""

    def __init__(self, lab: Lab, name: str, guest: bool = False) -> None:
        self.name = name
        self.netns = lab.names[name]
        self.program: subprocess.Popen[bytes] | None = None
        self.extra: list[int] = []
        self.path = f"/tmp/gpasst-bench-{os.getpid()}-{name}.socket"
        if guest:
            self._serve_guests()
            return
        into, spliced = str(PORT_IN), str(PORT_SPLICED)
        gpasst = [sys.executable, "-m", "gpasst", "pasta", "-q", "-f", "--runas", "root", "-u", into, "-U", spliced]
        command = {
            "gpasst": gpasst,
            "plain": [*gpasst, "--no-offload"],
            "pasta": ["pasta", "-q", "-f", "--runas", "0", "-t", "none", "-T", "none", "-u", into, "-U", spliced],
        }.get(name)
        if command:
            before = set(os.listdir("/proc"))
            self.program = subprocess.Popen([*command, "--config-net", "--netns", f"/run/netns/{self.netns}"])
            self._await_ready()
            # The helper is no child of the proxy; it is what else started meanwhile and holds the namespace.
            mine = os.stat(f"/run/netns/{self.netns}").st_ino
            for entry in set(os.listdir("/proc")) - before:
                try:
                    if entry.isdecimal() and os.stat(f"/proc/{entry}/ns/net").st_ino == mine:
                        self.extra.append(int(entry))
                except OSError:
                    continue

    def _serve_guests(self) -> None:
        """Start passt mode."""
        into = ["-q", "-f", "-s", self.path, "-u", str(PORT_IN)]
        gpasst = [sys.executable, "-m", "gpasst", "passt", "--runas", "root", *into]
        command = {"gpasst": gpasst, "pasta": ["passt", "--runas", "0", "-t", "none", *into]}[self.name]
        self.program = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        while self.path not in Path("/proc/net/unix").read_text(encoding="utf-8"):
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not listen at {self.path}")
            time.sleep(0.02)

    def _await_ready(self) -> None:
        """Return when the namespace is configured and its listener open, the last things that happen at the start."""
        deadline = time.monotonic() + 10
        within = ("ip", "netns", "exec", self.netns)
        while time.monotonic() < deadline:
            text = subprocess.run(
                [*within, "sh", "-c", "ip -4 address; cat /proc/net/udp"], capture_output=True, text=True, check=True
            ).stdout
            if HOST in text and f":{PORT_SPLICED:04X} " in text:
                return
            time.sleep(0.02)
        raise SystemExit(f"{self.name} did not configure its namespace")

    def targets(self, load: Load) -> tuple[str, str, int]:
        """Where the receiver binds, where the sender sends, and the port."""
        if self.name == "veth":
            return "0.0.0.0", VETH_HOST if load.outward else VETH_GUEST, PORT_OUT
        if load.guest:
            return LOOPBACK, LOOPBACK, PORT_OUT if load.outward else PORT_IN
        if load.spliced:
            return "0.0.0.0", LOOPBACK, PORT_SPLICED if load.outward else PORT_IN
        return "0.0.0.0", GATEWAY if load.outward else HOST, PORT_OUT if load.outward else PORT_IN

    def processor_seconds(self) -> float:
        if self.program is None:
            return 0.0
        total = 0
        for pid in (self.program.pid, *self.extra):
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                total += int(task.read_text(encoding="ascii").split()[0])
        return total / 1e9

    def memory_kb(self) -> int:
        if self.program is None:
            return 0
        total = 0
        for pid in (self.program.pid, *self.extra):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total

    def close(self) -> None:
        if self.program is not None:
            self.program.terminate()
            self.program.wait(10)


def generator(*arguments: object, netns: str = "", program: str = "load.py") -> subprocess.Popen[str]:
    """Start a load generator on the host or in a namespace."""
    command = [sys.executable, "-I", "-S", str(HERE / program), *map(str, arguments)]
    if netns:
        command = ["ip", "netns", "exec", netns, *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(program: subprocess.Popen[str]) -> dict[str, Any]:
    """End a generator's input; give what it printed last."""
    output, _ = program.communicate(timeout=60)
    if program.returncode:
        raise SystemExit("a load generator failed; see the message above")
    lines = output.strip().splitlines()
    figures: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return figures


def line(program: subprocess.Popen[str], expected: str) -> None:
    assert program.stdout is not None
    if program.stdout.readline().strip() != expected:
        raise SystemExit(f"a load generator did not say {expected}")


def tell(program: subprocess.Popen[str], word: str) -> None:
    assert program.stdin is not None
    program.stdin.write(word + "\n")
    program.stdin.flush()


def measure(contender: Contender, load: Load, seconds: float, figures: Figures) -> None:
    """Run one load over one contender once."""
    bind, address, port = contender.targets(load)
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
        figures.delivered.append((result["trips"] - result["lost"]) / result["seconds"])
        figures.loss.append(result["lost"] / max(1, result["trips"]))
        figures.median_us.append(result["median_us"])
        figures.p99_us.append(result["p99_us"])
        figures.processor_us.append(spent / max(1, result["trips"]) * 1e6)
        return
    if load.guest and load.outward:
        sender = generator(contender.path, "send", port, load.size, seconds, program="guest.py")
    else:
        arguments = ("send", address, port, load.size, seconds, load.segments, load.sockets)
        sender = generator(*arguments, netns="" if load.guest else sender_at)
    if load.sockets > 1:
        line(sender, "warm")
        tell(receiver, "zero")
        line(receiver, "zeroed")
        before = contender.processor_seconds()
        tell(sender, "go")
    else:
        before = contender.processor_seconds()
    sent = finish(sender)
    time.sleep(SETTLE_SECONDS)
    spent = contender.processor_seconds() - before
    received = finish(receiver)["received"]
    figures.delivered.append(received / sent["seconds"])
    figures.loss.append(1 - received / max(1, sent["sent"]))
    figures.processor_us.append(spent / max(1, received) * 1e6)


def footprint(contender: Contender) -> dict[str, float]:
    """Measure resident memory, its growth by mappings and their peers, and the processor time spent on nothing."""
    time.sleep(START_SECONDS)
    before = contender.memory_kb()
    spent = contender.processor_seconds()
    time.sleep(IDLE_SECONDS)
    idle = contender.processor_seconds() - spent
    figures = Figures()
    measure(contender, Load("footprint", True, 64, sockets=10000), 0.1, figures)
    return {
        "memory_mb": round(before / 1024, 1),
        "memory_kb_per_mapping": round((contender.memory_kb() - before) / 10000, 3),
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


def ratio(medians: dict[str, dict[str, float]], other: str, name: str) -> float | None:
    ours, theirs = medians["gpasst"].get(name), medians[other].get(name)
    return round(ours / theirs, 3) if ours is not None and theirs else None


def print_table(rows: list[dict[str, Any]]) -> str:
    head = (
        f"{'load':<46}{'delivered/s':>12}{'pasta':>11}{'ratio':>7}{'of veth':>8}{'loss':>7}{'pasta':>7}"
        f"{'us/dgram':>9}{'pasta':>7}{'ratio':>7}{'rtt us':>8}{'pasta':>7}{'p99 us':>8}{'pasta':>7}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        ours, theirs = row.get("gpasst", {}), row.get("pasta", {})

        def cell(value: float | None, width: int, digits: int = 0, unit: str = "") -> str:
            return f"{'-' if value is None else f'{value:,.{digits}f}{unit}':>{width}}"

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
    """Draw the ratios of delivered datagrams to pasta's as an SVG, on a logarithmic scale from 0.25 to 32."""
    import math

    shown = [row for row in rows if row.get("delivered_ratio")]
    left, width, step, top = 330, 520, 30, 60
    height = top + step * len(shown) + 40

    def x(value: float) -> float:
        return left + width * (math.log2(min(32, max(0.25, value))) + 2) / 7

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}"'
        ' font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/><text x="16" y="26" font-size="16">'
        "Datagrams delivered per second, as a multiple of pasta's</text>",
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in each measurement")
    parser.add_argument("--only", default="", help="only loads whose name contains this")
    parser.add_argument("--without", action="append", default=[], choices=CONTENDERS, help="leave out a contender")
    parser.add_argument("--output", default="", help="folder for results.json, results.txt and results.svg")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark makes network namespaces; run it as root")
    names = [name for name in CONTENDERS if name not in given.without]
    for program in ("ip", "sysctl", *(["pasta"] if "pasta" in names else [])):
        if shutil.which(program) is None:
            raise SystemExit(f"the benchmark needs {program}; install Debian's iproute2, procps and passt")
    loads = [load for load in LOADS if given.only in load.label]
    results: dict[str, dict[str, Figures]] = {load.label: {name: Figures() for name in names} for load in loads}
    footprints: dict[str, dict[str, float]] = {}
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
                            progress = f"round {turn + 1} of {given.rounds}: {name}, {load.label}"
                            print(progress, end="\r\x1b[K", file=sys.stderr)
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
    finally:
        lab.close()
    rows = table(results)
    plain = [
        f"{row['load']}, one datagram at a time: {row['plain']['delivered']:,.0f} delivered/s"
        for row in rows
        if "plain" in row
    ]
    text = "\n".join([print_table(rows), "", *plain, *(f"{name}: {figures}" for name, figures in footprints.items())])
    about = {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "pasta": pasta_version() if "pasta" in names else None,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "footprint": footprints,
    }
    document = json.dumps({"about": about, "rows": rows}, indent=1)
    if given.output:
        folder = Path(given.output)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("results.json", document + "\n"),
            ("results.txt", text + "\n"),
            ("results.svg", chart(rows)),
        ):
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
                file.write(content)
            os.chmod(file.name, 0o644)
            os.replace(file.name, folder / name)
    print(document if given.json else text)
    return 0


def pasta_version() -> str:
    return subprocess.run(["pasta", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
