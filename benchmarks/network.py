"""Hosts of a `gpasst.Network` beside a veth pair and beside a kernel bridge, under the same loads, in the same run.

Theory of operation: each contender is four hosts, a to d, of which each is a network namespace: those of a network of
gpasst, those of a bridge of the kernel, and for the plain pair two that one veth pair connects. The contenders take
turns within a round; every figure is the median over the rounds, and only ratios are worth quoting. Loads go from a to
b. "beside a flood" is an exchange between a and b while c floods the network as fast as it can.

A stream has the congestion control that a program gets that does not choose, or cubic: bbr, the default of some
machines, paces itself, so that a pair of the kernel moves a third of what cubic makes it move.

Processor time is that of the process of gpasst. The kernel does much of a receiver's work in the time of the one that
sends, so that of the other contenders is in their programs and not known.

    python benchmarks/network.py [--rounds N] [--seconds S] [--only TEXT] [--output FOLDER] [--json] [--list]

`run.py` has these rows as well. Needs root, and Debian's packages iproute2, procps and iperf3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lab import (
    HERE,
    RECEIVE_BUFFER,
    Failed,
    await_listener,
    ended,
    finish,
    generator,
    line,
    run,
    say,
    start,
    usable_congestion_control,
)
from network_rows import BRIDGE, CONTENDERS, COUNTS, LABELS, LOADS, MTUS, OPENING, Figures, Load, print_table, table
from report import about, asked, publish, wanted

HOSTS = ("a", "b", "c", "d")
PORT = 7001
NOBODY = "02:00:00:00:00:99"  # a MAC address that no host has
SETTLE_SECONDS = 0.2  # for the last datagrams to arrive
START_SECONDS = 1.0  # for what follows the start, as duplicate address detection
WARM_SECONDS = 0.5  # of flood before the exchange


class Place:
    """Four hosts, or two, on one network.

    :param mtu: in bytes.
    :ivar netns: the namespace of each host, by its name.
    :ivar address: likewise.
    :ivar process: the process that carries frames, 0 where the kernel does.
    """

    process = 0

    def __init__(self, name: str, mtu: int) -> None:
        self.stack = ExitStack()
        self.netns: dict[str, str] = {}
        self.address: dict[str, str] = {}
        try:
            if name == "gpasst":
                self._network(mtu)
            else:
                self._kernel(mtu, bridge=name == BRIDGE)
            for netns in self.netns.values():
                run("ip", "netns", "exec", netns, "sysctl", "-q", "-w", f"net.ipv4.tcp_rmem={RECEIVE_BUFFER}")
            time.sleep(START_SECONDS)
        except BaseException:
            self.stack.close()
            raise

    def processor_seconds(self) -> float:
        tasks = Path(f"/proc/{self.process}/task").glob("*/schedstat") if self.process else ()
        return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9

    def flood(self, target: str) -> tuple[str, int]:
        """Return the address and port that host c floods, prepared."""
        if target == "another host":
            return self.address["d"], PORT + 1
        prefix = self.address["a"].rpartition(".")[0]
        if target == "everybody":
            return f"{prefix}.255", PORT + 1
        device = self._run_in("c", "ip", "-o", "route", "get", self.address["a"]).split(" dev ")[1].split()[0]
        self._run_in("c", "ip", "neigh", "replace", f"{prefix}.99", "lladdr", NOBODY, "dev", device)
        return f"{prefix}.99", PORT + 1

    def close(self) -> None:
        self.stack.close()

    def _run_in(self, host: str, *command: str) -> str:
        inside = ["ip", "netns", "exec", self.netns[host], *command]
        return subprocess.run(inside, stdout=subprocess.PIPE, text=True, check=True).stdout

    def _named(self, name: str, process: int = 0) -> str:
        """Make a namespace, or name that of a process, until the end; return its name."""
        full = f"gpasst-bench-{os.getpid()}-{name}"
        run("ip", "netns", *(("attach", full, str(process)) if process else ("add", full)))
        self.stack.callback(run, "ip", "netns", "del", full)
        return full

    def _network(self, mtu: int) -> None:
        command = (sys.executable, HERE / "network_hosts.py", "serve", mtu, *HOSTS)
        program = start(*command)
        self.stack.callback(finish, program)
        assert program.stdout is not None
        text = program.stdout.readline()
        if not text:
            raise Failed("gpasst does not start; see the message above")
        self.process = program.pid
        for host, place in json.loads(text).items():
            self.netns[host] = self._named(host, place["pid"])
            self.address[host] = place["address"]

    def _kernel(self, mtu: int, bridge: bool) -> None:
        hosts = HOSTS if bridge else HOSTS[:2]
        for number, host in enumerate(hosts, 1):
            self.netns[host] = self._named(host)
            self.address[host] = f"10.99.0.{number}"
        switch = self._named("switch") if bridge else ""
        if bridge:
            run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", switch, "link", "set", "br0", "up", "mtu", str(mtu))
            for host, netns in self.netns.items():
                peer = ("type", "veth", "peer", "name", "lan", "netns", netns)
                run("ip", "-n", switch, "link", "add", f"v{host}", *peer)
                run("ip", "-n", switch, "link", "set", f"v{host}", "master", "br0", "up", "mtu", str(mtu))
        else:
            one, other = self.netns.values()
            run("ip", "-n", one, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", other)
        for host, netns in self.netns.items():
            run("ip", "-n", netns, "link", "set", "lo", "up")
            run("ip", "-n", netns, "link", "set", "lan", "up", "mtu", str(mtu))
            run("ip", "-n", netns, "address", "add", f"{self.address[host]}/24", "brd", "+", "dev", "lan")


class Bench:
    """Runs the loads that were chosen.

    :param wanted: whether a row is.
    """

    def __init__(self, names: list[str], wanted: Callable[[str], bool], rounds: int, seconds: float) -> None:
        self._names = [name for name in CONTENDERS if name in names]
        self._loads = [load for load in LOADS if wanted(load.label)]
        self._counts = [count for count, label in zip(COUNTS, OPENING, strict=True) if wanted(label)]
        self._rounds = rounds
        self._seconds = seconds
        self._cubic = usable_congestion_control() == "cubic"

    def run(self) -> dict[str, Any]:
        """Run the loads; return rows, and the figures of opening."""
        results = {load.label: {name: Figures() for name in self._names if load.suits(name)} for load in self._loads}
        for turn in range(self._rounds):
            for mtu in MTUS:
                for name in self._names:
                    mine = [load for load in self._loads if load.mtu == mtu and load.suits(name)]
                    if mine:
                        self._round(name, mtu, mine, results, f"round {turn + 1} of {self._rounds}")
        opening = {}
        for count in self._counts if "gpasst" in self._names else ():
            say(f"opening {count} hosts")
            program = start(sys.executable, HERE / "network_hosts.py", "open", count)
            opening[f"network, opening {count} hosts"] = finish(program)
        return {"rows": table(self._loads, results), "opening": opening}

    def _round(self, name: str, mtu: int, loads: list[Load], results: dict[str, dict[str, Figures]], turn: str) -> None:
        place = Place(name, mtu)
        try:
            for load in loads:
                say(f"{turn}: {name}, {load.label}")
                try:
                    self._measure(place, load, results[load.label][name])
                except Failed as problem:
                    print(f"{name}, {load.label}: {problem}", file=sys.stderr)
        finally:
            place.close()

    def _measure(self, place: Place, load: Load, figures: Figures) -> None:
        before = place.processor_seconds()
        if load.kind == "stream":
            gbit, seconds = self._stream(place, load)
            figures.delivered.append(gbit / seconds)
            figures.processor.append((place.processor_seconds() - before) / gbit * 1e3)
            return
        mode = ("echo",) if load.kind == "ask" else ("receive",)
        words = (*mode, "0.0.0.0", PORT, *((int(load.segments > 1),) if load.kind == "datagrams" else ()))
        with ended(generator(*words, netns=place.netns["b"])) as receiver, flooded(place, load.flood, self._seconds):
            line(receiver, "ready")
            target = (place.address["b"], PORT, load.size, self._seconds)
            before = place.processor_seconds()
            if load.kind == "ask":
                done = finish(generator("ask", *target, netns=place.netns["a"]))
                answered = done["trips"] - done["lost"]
                figures.delivered.append(answered / done["seconds"])
                figures.loss.append(done["lost"] / max(1, done["trips"]))
                figures.median_us.append(done["median_us"])
                figures.p99_us.append(done["p99_us"])
            else:
                sent = finish(generator("send", *target, load.segments, netns=place.netns["a"]))
                time.sleep(SETTLE_SECONDS)
                answered = finish(receiver)["received"]
                figures.delivered.append(answered / sent["seconds"])
                figures.loss.append(1 - answered / max(1, sent["sent"]))
            if not load.flood:
                figures.processor.append((place.processor_seconds() - before) / max(1, answered) * 1e6)

    def _stream(self, place: Place, load: Load) -> tuple[float, float]:
        """Run iperf3; return the Gbit that arrived, and seconds."""
        if load.choice and not self._cubic:
            raise Failed("sockets may not have cubic here")
        with ended(start("iperf3", "-s", "-1", "-p", PORT, netns=place.netns["b"])):
            await_listener(PORT, place.netns["b"])
            seconds = max(1, round(self._seconds))  # iperf3 knows no parts of one, and 0 has no end
            words = ("-c", place.address["b"], "-p", PORT, "-t", seconds, "-J", "--connect-timeout", "3000")
            choice = ("-C", load.choice) if load.choice else ()
            output, _ = start("iperf3", *words, *choice, netns=place.netns["a"]).communicate(timeout=seconds + 10)
        report = json.loads(output or "{}")
        received = report.get("end", {}).get("sum_received", {})
        if not received.get("bytes"):
            raise Failed(f"iperf3 moved nothing: {report.get('error', 'no message')}")
        return received["bytes"] * 8e-9, received["seconds"]


@contextmanager
def flooded(place: Place, target: str, seconds: float) -> Iterator[None]:
    """Let host c flood for the time of the block; nothing without a target."""
    if not target:
        yield
        return
    address, port = place.flood(target)
    words = ("send", address, port, 64, seconds + 2 * WARM_SECONDS, 1)
    with ended(generator(*words, netns=place.netns["c"])):
        time.sleep(WARM_SECONDS)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a network of gpasst beside a veth pair and a bridge.")
    given = asked(parser, LABELS, CONTENDERS, seconds=2.0)
    names = [name for name in CONTENDERS if name not in given.without]
    report = Bench(names, partial(wanted, given), given.rounds, given.seconds).run()
    publish(given, "network", {"about": about(given), **report}, print_table(report))
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
