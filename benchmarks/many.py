"""gpasst beside Debian's pasta and passt with many flows at once, where nothing can be joined.

Theory of operation: as in `run.py`, but each contender is started afresh for each load, since one may be slower after a
load than before it, and the contenders take turns load by load. Ports in rotation are flooded by `udp_load.c`; whether
it could send more than a contender moves, `--veth` shows: the same load over a plain veth pair. The rate that was
delivered is that at which the datagrams arrived, from the first to the last of them. The peer of a guest on the stream
is passt.

DNS is dnsperf in the namespace and dnsmasq on the host, with names of its own. A thousand exchanges at once are on as
many TCP connections (`tcp_load.c`), all from one thread. Connections and mappings exist before anything is measured.
Processor time is that of the proxy, its helper and its children; what their resident memory has grown by is divided by
the number of ports or connections.

    python benchmarks/many.py [--rounds N] [--seconds S] [--only TEXT] [--veth] [--json] [--list]
                              [--options WORDS] [--before-options WORDS]

`GPASST` in the environment names a checkout of another version of gpasst, which becomes one more contender, "before";
`--options` are for gpasst and `--before-options` for that other one, which is this version where `GPASST` is not set:

    python benchmarks/many.py --only "100 ports" --before-options="--without batch"

Needs root, and Debian's packages passt, iproute2, procps, gcc, libc6-dev, dnsperf and dnsmasq-base. `PASTA` and `PASST`
name other binaries of the peers. Nothing leaves the namespaces; the load is bounded in time.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from figures import Figures
from lab import (
    BEFORE,
    GATEWAY,
    GPASST,
    PASST,
    PASTA,
    VETH_HOST,
    Contender,
    Failed,
    Lab,
    compiled,
    ended,
    finish,
    generator,
    line,
    say,
    start,
    tell,
)
from many_rows import CONTENDERS, LABELS, LOADS, PEER, VETH, Load, print_table, table
from report import about, asked, publish, wanted

Program = subprocess.Popen[str]
MTU = 65520  # bytes
LEAST_COUNT = 1000  # of ports, for what each adds to the memory to stand out
SETTLE_SECONDS = 0.3  # for what follows the start, and for the last datagrams to arrive
SPEAK_SECONDS = 1.6  # until the namespace's kernel has used its link-local address, which pasta learns by that
DNS_PORT = 7053
NAMES = 100  # that dnsmasq knows
DNS_FIGURES = {  # what dnsperf prints
    "asked": r"Queries sent:\s+(\d+)",
    "answered": r"Queries completed:\s+(\d+)",
    "seconds": r"Run time \(s\):\s+([\d.]+)",
    "average": r"Average Latency \(s\):\s+([\d.]+)",
}
PROGRAMS = ("ip", "sysctl", "gcc", "dnsperf", "dnsmasq")


class Bench:
    """Runs the loads that were chosen.

    :param folder: for compiled programs and the names of DNS.
    :param names: of `CONTENDERS`.
    :param options: more words for the command lines of contenders.
    :param rate: datagrams a second of a load of many ports; 0: as many as there can be.
    """

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        names: Sequence[str],
        options: Mapping[str, Sequence[str]],
        seconds: float,
        rate: float,
    ) -> None:
        self._lab = lab
        self._names = names
        self._options = options
        self._seconds = seconds
        self._rate = rate
        self._paths = compiled(folder, "udp_load", "tcp_load")
        self._questions = folder / "questions"
        self._questions.write_text("".join(f"name{i}.test A\n" for i in range(NAMES)), encoding="ascii")
        self._answers = folder / "answers"
        self._answers.write_text("".join(f"192.0.2.{i} name{i}.test\n" for i in range(NAMES)), encoding="ascii")

    def run(self, loads: Sequence[Load], rounds: int) -> list[dict[str, Any]]:
        """Run the loads; return rows of medians and ratios."""
        results = {load.label: {name: Figures() for name in self._names if load.suits(name)} for load in loads}
        with suppress(KeyboardInterrupt):  # the figures until then are figures, too
            for turn in range(rounds):
                for number, load in enumerate(loads):
                    progress = f"round {turn + 1} of {rounds}, load {number + 1} of {len(loads)}"
                    for name, figures in results[load.label].items():
                        say(f"{progress}: {name}, {load.label}")
                        try:
                            self._measure(name, load, figures)
                        except Failed as problem:
                            print(f"{name}, {load.label}: {problem}", file=sys.stderr)
        return table(results)

    def _measure(self, name: str, load: Load, figures: Figures) -> None:
        """Run one load over a new contender once."""
        mtu = MTU if load.kind == "crowd" else 0
        contender = Contender(self._lab, name, load.guest, tcp_mtu=mtu, options=self._options.get(name, ()))
        kinds: dict[str, Callable[[Contender, Load, Figures], None]] = {
            "ports": self._ports,
            "answers": self._answers_to_ports,
            "ask": self._ask,
            "dns": self._dns,
            "crowd": self._crowd,
        }
        try:
            time.sleep(SPEAK_SECONDS if load.ipv6 else SETTLE_SECONDS)
            kinds[load.kind](contender, load, figures)
        finally:
            contender.close()

    def _ports(self, contender: Contender, load: Load, figures: Figures) -> None:
        bind, address, port = contender.targets(load.outward, guest=load.guest, ipv6=load.ipv6)
        inside = "" if load.guest else contender.netns
        sender_at, receiver_at = (inside, "") if load.outward else ("", inside)
        memory = contender.memory_kb()
        with ExitStack() as stack:
            if load.guest and not load.outward:
                receiver = generator(contender.path, "receive", port, load.size, program="guest.py")
            else:
                bind = "0.0.0.0" if load.guest else bind
                receiver = start(self._paths["udp_load"], "receive", bind, port, netns=receiver_at)
            stack.enter_context(ended(receiver))
            line(receiver, "ready")
            if load.guest and load.outward:
                words = ("send", port, load.size, self._seconds, load.count)
                sender = generator(contender.path, *words, program="guest.py")
            else:
                words = ("flood", address, port, load.size, self._seconds, load.count, self._rate)
                sender = start(self._paths["udp_load"], *words, netns=sender_at)
            stack.enter_context(ended(sender))
            self._flood(contender, sender, receiver, figures)
            if load.count >= LEAST_COUNT:
                figures.memory_kb.append((contender.memory_kb() - memory) / load.count)

    def _answers_to_ports(self, contender: Contender, load: Load, figures: Figures) -> None:
        bind, address, port = contender.targets(outward=True, ipv6=load.ipv6)
        program = self._paths["udp_load"]
        words = ("answer", bind, port, load.size, self._seconds, load.count, self._rate)
        with ended(start(program, *words)) as sender:
            line(sender, "ready")
            with ended(start(program, "listen", address, port, load.count, netns=contender.netns)) as receiver:
                line(receiver, "ready")
                self._flood(contender, sender, receiver, figures)

    def _flood(self, contender: Contender, sender: Program, receiver: Program, figures: Figures) -> None:
        """Let one program flood another by way of the contender."""
        line(sender, "warm")
        tell(receiver, "zero")
        line(receiver, "zeroed")
        before = contender.processor_seconds()
        tell(sender, "go")
        sent = finish(sender)
        time.sleep(SETTLE_SECONDS)
        spent = contender.processor_seconds() - before
        came = finish(receiver)
        if not came["received"]:
            raise Failed("nothing arrived")
        figures.add(came["received"], sent["sent"], came["seconds"], spent)

    def _ask(self, contender: Contender, load: Load, figures: Figures) -> None:
        bind, address, port = contender.targets(load.outward)
        asking, answering = (contender.netns, "") if load.outward else ("", contender.netns)
        with ended(generator("echo", bind, port, netns=answering)) as server:
            line(server, "ready")
            before = contender.processor_seconds()
            result = finish(generator("ask", address, port, load.size, self._seconds, netns=asking))
            spent = contender.processor_seconds() - before
        figures.add_trips(result["trips"] - result["lost"], result, spent)

    def _crowd(self, contender: Contender, load: Load, figures: Figures) -> None:
        _, address, port = contender.targets(load.outward)
        asking, answering = (contender.netns, "") if load.outward else ("", contender.netns)
        memory = contender.memory_kb()
        with ended(start(self._paths["tcp_load"], "serve", port, netns=answering)) as server:
            line(server, "ready")
            words = ("crowd", f"{address}:{port}", load.size, self._seconds, load.count)
            with ended(start(self._paths["tcp_load"], *words, netns=asking)) as client:
                line(client, "warm")
                before = contender.processor_seconds()
                figures.memory_kb.append((contender.memory_kb() - memory) / load.count)
                tell(client, "go")
                result = finish(client)
                spent = contender.processor_seconds() - before
        figures.add_trips(result["trips"], result, spent)

    def _dns(self, contender: Contender, load: Load, figures: Figures) -> None:
        address = VETH_HOST if contender.name == VETH else GATEWAY
        service = ["dnsmasq", "-k", "-C", "/dev/null", "-R", "-h", "-H", self._answers, "-p", DNS_PORT]
        seconds = max(1, round(self._seconds))  # dnsperf knows no parts of one
        asks = ["dnsperf", "-s", address, "-p", DNS_PORT, "-d", self._questions, "-c", load.count, "-l", seconds]
        with ended(start(*service, "-u", "root", "--log-facility=/dev/null", "--pid-file")) as server:
            time.sleep(SETTLE_SECONDS)
            if server.poll() is not None:
                raise Failed("dnsmasq does not start")
            before = contender.processor_seconds()
            with ended(start(*asks, netns=contender.netns)) as client:
                output, _ = client.communicate(timeout=seconds + 20)
            spent = contender.processor_seconds() - before
        found = {name: re.search(pattern, output) for name, pattern in DNS_FIGURES.items()}
        result = {name: float(match[1]) for name, match in found.items() if match}
        if result.keys() != DNS_FIGURES.keys() or not result["answered"]:
            raise Failed(f"dnsperf had no answers:\n{output}")
        figures.add(int(result["answered"]), int(result["asked"]), result["seconds"], spent)
        figures.median_us.append(result["average"] * 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure gpasst beside pasta and passt with many flows at once.")
    parser.add_argument("--veth", action="store_true", help="measure a plain veth pair, too")
    parser.add_argument("--rate", type=float, default=0.0, help="datagrams a second from many ports [without a bound]")
    parser.add_argument("--options", default="", metavar="WORDS", help="more options of gpasst, in one argument")
    parser.add_argument("--before-options", default=None, metavar="WORDS", help="those of the version before")
    given = asked(parser, LABELS, CONTENDERS, rounds=5)
    if GPASST and not (Path(GPASST) / "gpasst" / "__main__.py").is_file():
        raise SystemExit(f"GPASST names no checkout of gpasst: {GPASST}")
    left_out = set(given.without)
    left_out |= set() if given.veth else {VETH}
    left_out |= set() if GPASST or given.before_options is not None else {BEFORE}
    names = [name for name in CONTENDERS if name not in left_out]
    loads = [load for load in LOADS if wanted(given, load.label)]
    for program in (*PROGRAMS, *((PASTA, PASST) if PEER in names else ())):
        if shutil.which(program) is None:
            packages = "iproute2, procps, passt, gcc, libc6-dev, dnsperf and dnsmasq-base"
            raise SystemExit(f"the benchmark needs {program}; install Debian's {packages}")
    options = {"gpasst": shlex.split(given.options), BEFORE: shlex.split(given.before_options or "")}
    lab = Lab(ipv6=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = Bench(lab, Path(folder), names, options, given.seconds, given.rate).run(loads, given.rounds)
    finally:
        lab.close()
    depends = about(given, rate=given.rate, options=options)
    publish(given, "many", {"about": depends, "rows": rows}, print_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
