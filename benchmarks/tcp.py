"""The rows of TCP: bulk, short connections, exchanges, a guest on the stream, idle connections, and pauses.

Theory of operation: bulk over a tap is moved by iperf3, one stream, with the congestion control of the whole lab. The
client of "host to namespace" is on the host and addresses the host's own, not loopback, so that the stream crosses the
tap. Everything else is moved by programs of our own (`tcp_load.c`), and the guest of the stream is `tcp_guest.c`; both
are compiled at the start. A load that a contender does not carry counts as failed and leaves the others alone.

Processor time is that of the proxy and its helper, user and system together, from the scheduler's account. The kernel
does much of the receiving side's work in the time of the one that sends.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import GATEWAY, HERE, Contender, Failed, Lab, finish, line, listeners, start
from tcp_rows import CONTENDERS, IDLE, LOADS, MTUS, PAUSES, SIZE, Figures, TcpLoad, table

PROGRAMS = ("tcp_load", "tcp_guest")
IDLE_CONNECTIONS = 10000
IDLE_SECONDS = 10.0
SPARE_DESCRIPTORS = 1000
SETTLE_SECONDS = 0.5  # for what follows the start of a contender
PAUSE_MS = 50.0  # longer pauses are counted
SPARE_SECONDS = 10  # after which a stalled iperf3 is ended


@dataclass(frozen=True)
class Plan:
    """How often and how long.

    :ivar seconds: of exchanges, and of one measurement of a guest.
    :ivar bulk_seconds: of one iperf3, and of a transfer that is watched for pauses.
    :ivar transfers: how many transfers of each direction are watched for pauses.
    """

    rounds: int
    seconds: float
    bulk_seconds: float
    transfers: int


class Bench:
    """Runs the TCP loads that were chosen."""

    def __init__(self, lab: Lab, folder: Path, names: list[str], wanted: Callable[[str], bool], plan: Plan) -> None:
        self._lab = lab
        self._names = [name for name in names if name in CONTENDERS]
        self._plan = plan
        self._loads = [load for load in LOADS if wanted(load.label)]
        self._idle = wanted(IDLE)
        self._pauses = [label for label in PAUSES if wanted(label)]
        self._paths = {name: folder / name for name in PROGRAMS}
        for name, path in self._paths.items():
            subprocess.run(["gcc", "-O2", "-o", path, HERE / f"{name}.c"], check=True)

    def run(self) -> dict[str, Any]:
        """Run the loads; return rows, figures of idle connections and of pauses."""
        results = {load.label: {name: Figures() for name in self._names if load.suits(name)} for load in self._loads}
        for turn in range(self._plan.rounds):
            for name in self._names:
                for guest, mtu in ((guest, mtu) for guest in (False, True) for mtu in MTUS):
                    mine = [one for one in self._loads if (one.guest, one.mtu) == (guest, mtu) and one.suits(name)]
                    self._round(name, guest, mtu, mine, results, f"round {turn + 1} of {self._plan.rounds}")
        idle = {name: self._hold(name) for name in self._names if name != "veth"} if self._idle else {}
        pauses = {label: {name: self._watch(name, label) for name in self._names} for label in self._pauses}
        return {"rows": table(self._loads, results), "idle": idle, "pauses": pauses}

    def _round(
        self, name: str, guest: bool, mtu: int, loads: list[TcpLoad], results: dict[str, dict[str, Figures]], turn: str
    ) -> None:
        if not loads:
            return
        try:
            contender = Contender(self._lab, name, guest, tcp_mtu=mtu)
        except Failed as problem:
            print(problem, file=sys.stderr)
            for load in loads:
                results[load.label][name].failed += 1
            return
        try:
            time.sleep(SETTLE_SECONDS)
            for load in loads:
                say(f"{turn}: {name}, {load.label}")
                try:
                    self._measure(contender, load, results[load.label][name])
                except Failed as problem:
                    print(f"{name}, {load.label}: {problem}", file=sys.stderr)
                    results[load.label][name].failed += 1
        finally:
            contender.close()

    def _load(self, *words: object, netns: str = "") -> subprocess.Popen[str]:
        return start(self._paths["tcp_load"], *words, netns=netns)

    def _measure(self, contender: Contender, load: TcpLoad, figures: Figures) -> None:
        before = contender.processor_seconds()
        if load.kind != "bulk":
            done = self._exchange(contender, load)
            trips = done["trips"]
            figures.delivered.append(trips / done["seconds"])
            figures.median_us.append(done["median_us"])
            figures.p99_us.append(done["p99_us"])
            if load.kind == "beside":
                figures.stream.append(done["stream"])
            else:
                figures.processor.append((contender.processor_seconds() - before) / trips * 1e6)
            figures.failed += done["lost"]
            return
        gbit, seconds = self._guest(contender, load) if load.guest else self._iperf(contender, load.outward)
        figures.delivered.append(gbit / seconds)
        figures.processor.append((contender.processor_seconds() - before) / gbit * 1e3)

    def _iperf(self, contender: Contender, outward: bool) -> tuple[float, float]:
        """Run iperf3; return the Gbit that arrived, and seconds."""
        _, address, port = contender.targets(outward)
        client_at, server_at = (contender.netns, "") if outward else ("", contender.netns)
        with ended(start("iperf3", "-s", "-1", "-p", port, netns=server_at)):
            await_listener(port, server_at)
            seconds = max(1, round(self._plan.bulk_seconds))  # iperf3 knows no parts of one, and 0 has no end
            words = ("-c", address, "-p", port, "-t", seconds, "-C", self._lab.congestion, "-J")
            client = start("iperf3", *words, "--connect-timeout", "3000", netns=client_at)
            try:
                output, _ = client.communicate(timeout=seconds + SPARE_SECONDS)
            except subprocess.TimeoutExpired:
                client.terminate()  # it prints what it has
                output, _ = client.communicate(timeout=SPARE_SECONDS)
        report = json.loads(output or "{}")
        received = report.get("end", {}).get("sum_received", {})
        if not received.get("bytes"):
            raise Failed(f"iperf3 moved nothing: {report.get('error', 'no message')}")
        return received["bytes"] * 8e-9, received["seconds"]

    def _guest(self, contender: Contender, load: TcpLoad) -> tuple[float, float]:
        """Run the guest on the stream; return the Gbit that arrived, and seconds."""
        _, address, port = contender.targets(load.outward, guest=True)
        guest = (self._paths["tcp_guest"], contender.path, load.mtu)
        if load.outward:
            receiver = self._load("sink", port)
            with ended(receiver):
                line(receiver, "ready")
                finish(start(*guest, "send", port, self._plan.seconds))
                received = finish(receiver)
        else:
            receiver = start(*guest, "receive", port)
            with ended(receiver):
                line(receiver, "ready")
                finish(self._load("flood", address, port, self._plan.seconds))
                received = finish(receiver)
        if not received["received"]:
            raise Failed("nothing arrived")
        return received["received"] * 8e-9, received["seconds"]

    def _exchange(self, contender: Contender, load: TcpLoad) -> dict[str, Any]:
        """Exchange for some seconds; return what the client printed."""
        _, address, port = contender.targets(load.outward)
        client_at, server_at = (contender.netns, "") if load.outward else ("", contender.netns)
        with ExitStack() as stack:
            server = self._load("serve", port + 1, netns=server_at)
            stack.enter_context(ended(server))
            line(server, "ready")
            if load.kind == "beside":
                sink = self._load("sink", port + 2, netns=server_at)
                stack.enter_context(ended(sink))
                line(sink, "ready")
                stream = self._load("flood", address, port + 2, self._plan.seconds + 1.0, netns=client_at)
                stack.enter_context(ended(stream))
                time.sleep(0.5)  # until the stream is at full speed
            mode = "connect" if load.kind == "connect" else "ask"
            done = finish(self._load(mode, address, port + 1, SIZE, self._plan.seconds, netns=client_at))
            if load.kind == "beside":
                finish(stream)
                moved = finish(sink)
                done["stream"] = moved["received"] * 8e-9 / (moved["seconds"] or 1)
            return done

    def _hold(self, name: str) -> dict[str, float]:
        """Measure what connections from the namespace cost that do nothing."""
        say(f"{name}, {IDLE}")
        try:
            contender = Contender(self._lab, name, tcp_mtu=65520)
        except Failed as problem:
            print(problem, file=sys.stderr)
            return {}
        try:
            time.sleep(SETTLE_SECONDS)
            nothing = idle_ms(contender)
            count = IDLE_CONNECTIONS
            if name == "pasta":
                # It takes two descriptors for each, and a processor when it runs out of them.
                count = min(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - SPARE_DESCRIPTORS)
            memory, descriptors = contender.memory_kb(), contender.descriptors()
            _, _, port = contender.targets(True)
            server = self._load("serve", port)
            with ended(server):
                line(server, "ready")
                began = time.monotonic()
                client = self._load("hold", GATEWAY, port, count, netns=contender.netns)
                with ended(client):
                    line(client, "ready")
                    opened = time.monotonic() - began
                    time.sleep(SETTLE_SECONDS)
                    return {
                        "connections": count,
                        "opened_in_seconds": round(opened, 2),
                        "processor_ms_in_10_s": round(idle_ms(contender), 2),
                        "processor_ms_in_10_s_without": round(nothing, 2),
                        "memory_kb_each": round((contender.memory_kb() - memory) / count, 3),
                        "descriptors_each": round((contender.descriptors() - descriptors) / count, 3),
                    }
        except Failed as problem:
            print(f"{name}, {IDLE}: {problem}", file=sys.stderr)
            return {}
        finally:
            contender.close()

    def _watch(self, name: str, label: str) -> dict[str, float]:
        """Watch transfers for pauses."""
        outward = label == PAUSES[0]
        longest, rates, failed = [], [], 0
        try:
            contender = Contender(self._lab, name, tcp_mtu=65520)
        except Failed as problem:
            print(problem, file=sys.stderr)
            return {}
        try:
            time.sleep(SETTLE_SECONDS)
            _, address, port = contender.targets(outward)
            client_at, server_at = (contender.netns, "") if outward else ("", contender.netns)
            for turn in range(self._plan.transfers):
                say(f"{name}, {label}, {turn + 1} of {self._plan.transfers}")
                sink = self._load("sink", port, netns=server_at)
                with ended(sink):
                    line(sink, "ready")
                    try:
                        finish(self._load("flood", address, port, self._plan.bulk_seconds, netns=client_at))
                        done = finish(sink)
                    except Failed as problem:
                        print(f"{name}, {label}: {problem}", file=sys.stderr)
                        failed += 1
                        continue
                longest.append(done["longest_pause_ms"])
                rates.append(done["received"] * 8e-9 / (done["seconds"] or 1))
        finally:
            contender.close()
        if not longest:
            return {"failed": failed}
        return {
            "transfers": len(longest),
            "failed": failed,
            "longest_ms": max(longest),
            "median_of_longest_ms": round(statistics.median(longest), 1),
            "over_50_ms": sum(pause > PAUSE_MS for pause in longest),
            "gbit_per_second": round(statistics.median(rates), 3),
        }


def say(progress: str) -> None:
    print(progress, end="\r\x1b[K", file=sys.stderr)


@contextmanager
def ended(program: subprocess.Popen[str]) -> Iterator[None]:
    """End a program with the block, if it has not ended by itself."""
    try:
        yield
    finally:
        if program.poll() is None:
            program.kill()
        program.communicate()


def await_listener(port: int, netns: str) -> None:
    deadline = time.monotonic() + 5
    while f":{port:04X} 0" not in listeners(netns):
        if time.monotonic() > deadline:
            raise Failed(f"nothing listens on port {port}")
        time.sleep(0.02)


def idle_ms(contender: Contender) -> float:
    """Return the processor time of doing nothing for `IDLE_SECONDS`, in milliseconds."""
    before = contender.processor_seconds()
    time.sleep(IDLE_SECONDS)
    return (contender.processor_seconds() - before) * 1e3
