"""The rows of TCP: bulk, short connections, exchanges, a guest on the stream, idle connections, and pauses.

Theory of operation: bulk over a tap is moved by iperf3, one stream, with the congestion control of the whole lab. The
client of "host to namespace" is on the host and addresses the host's own, not loopback, so that the stream crosses the
tap. Rows that are "spliced" have both ends on loopback, and the client is on the side that is named first. Everything
else is moved by programs of our own (`tcp_load.c`), and the guest of the stream is `tcp_guest.c`; both
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import (
    GATEWAY,
    TCP_PORTS,
    Contender,
    Failed,
    Lab,
    await_listener,
    comma_list,
    compiled,
    ended,
    finish,
    line,
    say,
    start,
)
from tcp_rows import CONTENDERS, IDLE, LOADS, PAUSES, Figures, TcpLoad, table

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
        self._paths = compiled(folder, "tcp_load", "tcp_guest")

    def run(self) -> dict[str, Any]:
        """Run the loads; return rows, figures of idle connections and of pauses."""
        results = {load.label: {name: Figures() for name in self._names if load.suits(name)} for load in self._loads}
        for turn in range(self._plan.rounds):
            for name in self._names:
                apart: dict[tuple[bool, int, bool], list[TcpLoad]] = {}  # by what the contender is opened with
                for load in self._loads:
                    if load.suits(name):
                        apart.setdefault((load.guest, load.mtu, load.spliced), []).append(load)
                for mine in apart.values():
                    self._round(name, mine, results, f"round {turn + 1} of {self._plan.rounds}")
        idle = {name: self._hold(name) for name in self._names if name != "veth"} if self._idle else {}
        pauses = {label: {name: self._watch(name, label) for name in self._names} for label in self._pauses}
        return {"rows": table(self._loads, results), "idle": idle, "pauses": pauses}

    def _round(self, name: str, loads: list[TcpLoad], results: dict[str, dict[str, Figures]], turn: str) -> None:
        """Run loads that one and the same contender carries."""
        alike = loads[0]
        try:
            contender = Contender(self._lab, name, alike.guest, tcp_mtu=alike.mtu, spliced=alike.spliced)
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
        if load.spliced:
            gbit, seconds = self._streams(contender, load)
        else:
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

    def _streams(self, contender: Contender, load: TcpLoad) -> tuple[float, float]:
        """Run spliced streams; return the Gbit that arrived, and seconds."""
        address, ports = contender.loopback(load.outward)
        client_at, server_at = (contender.netns, "") if load.outward else ("", contender.netns)
        ends: tuple[object, object] = (f"{address}:{ports[0]}", ports[0])
        sender, receiver = ends if load.client_sends else reversed(ends)
        flood, sink = ("flood", sender, self._plan.bulk_seconds, load.at_once), ("sink", receiver, load.at_once)
        client_does, server_does = (flood, sink) if load.client_sends else (sink, flood)
        with ended(self._load(*server_does, netns=server_at)) as server:
            line(server, "ready")
            with ended(self._load(*client_does, netns=client_at)) as client:
                moved = {**finish(client), **finish(server)}
        if moved["received"] != moved["sent"] or not moved["whole"]:
            raise Failed(f"{moved['received']} bytes arrived of {moved['sent']}")
        return moved["received"] * 8e-9, moved["seconds"]

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
                finish(self._load("flood", f"{address}:{port}", self._plan.seconds))
                received = finish(receiver)
        if not received["received"]:
            raise Failed("nothing arrived")
        return received["received"] * 8e-9, received["seconds"]

    def _exchange(self, contender: Contender, load: TcpLoad) -> dict[str, Any]:
        """Exchange for some seconds; return what the client printed."""
        _, address, port = contender.targets(load.outward)
        ports: Sequence[int] = range(port, port + TCP_PORTS)
        if load.spliced:
            address, ports = contender.loopback(load.outward)
        client_at, server_at = (contender.netns, "") if load.outward else ("", contender.netns)
        with ExitStack() as stack:
            asked = ports if load.kind == "connect" else ports[1:2]
            server = stack.enter_context(ended(self._load("serve", *asked, netns=server_at)))
            line(server, "ready")
            if load.kind == "beside":
                sink = stack.enter_context(ended(self._load("sink", ports[2], netns=server_at)))
                line(sink, "ready")
                flood = ("flood", f"{address}:{ports[2]}", self._plan.seconds + 1.0)
                stream = stack.enter_context(ended(self._load(*flood, netns=client_at)))
                time.sleep(0.5)  # until the stream is at full speed
            asks = (f"{address}:{comma_list(asked)}", load.size, self._plan.seconds)
            words = ("connect", *asks, load.at_once) if load.kind == "connect" else ("ask", *asks)
            done = finish(self._load(*words, netns=client_at))
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
                client = self._load("hold", f"{GATEWAY}:{port}", count, netns=contender.netns)
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
                        finish(self._load("flood", f"{address}:{port}", self._plan.bulk_seconds, netns=client_at))
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


def idle_ms(contender: Contender) -> float:
    """Return the processor time of doing nothing for `IDLE_SECONDS`, in milliseconds."""
    before = contender.processor_seconds()
    time.sleep(IDLE_SECONDS)
    return (contender.processor_seconds() - before) * 1e3
