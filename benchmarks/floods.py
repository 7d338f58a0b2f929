"""What an exchange from outside waits beside a flood of the guest.

Theory of operation: for each kind of flood and each link one guest is opened in a fresh network namespace with a veth
pair, and a port of it is forwarded. An outside client asks that port every 20 ms while the guest (`flooder.py`) floods
its link as fast as it can; the exchange is older than the flood. The guest is a namespace with a tap, or a program on
the UNIX socket of passt mode. The log file of the proxy is counted, since a flood must not fill it.

On the tap the flood stands in the one queue of the kernel (10000 frames) before the guest's answer; on the stream it
stands in the socket's buffer.

    python benchmarks/floods.py [--json] [--seconds N] [--package DIR] [--link LINK] [KIND ...]

Needs root. Prints for each kind and link the number of answers, those that did not come within half a second, median
and 99 % in milliseconds, how many frames the guest sent a second, and bytes of log. Nothing leaves the namespace.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("none", "arp", "ndp", "dhcp", "echo", "fragments", "peers", "mappings")
LINKS = ("stream", "tap")
PORT = 5000
HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
HOST6, GATEWAY6 = "2001:db8::2", "2001:db8::1"
INTERVAL_SECONDS = 0.02  # from one answer to the next question
TIMEOUT_SECONDS = 0.5
WARM_SECONDS = 2.0  # of flood before the first question
START_SECONDS = 10.0
STOP_SECONDS = 10.0
FLOODER = str(Path(__file__).with_name("flooder.py"))

SURROUNDINGS = f"""
ip link set lo up
ip link add up0 type veth peer name up1
ip link set up0 up
ip link set up1 up
ip addr add {HOST}/24 dev up0
ip addr add {HOST6}/64 dev up0 nodad
ip route add default via {GATEWAY}
ip route add default via {GATEWAY6}
ip neigh add {GATEWAY} lladdr 02:00:00:00:00:01 dev up0
ip neigh add {GATEWAY6} lladdr 02:00:00:00:00:01 dev up0
echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range
exec "$@"
"""


class Case:
    """One proxy, its guest, and the client outside.

    :param link: of `LINKS`.
    :param package: checkout to measure.
    :param folder: for socket and log.
    """

    def __init__(self, kind: str, link: str, package: str, folder: Path) -> None:
        self.log = folder / "log"
        self._package = package  # what -m looks at first
        self._programs: list[subprocess.Popen[bytes]] = []
        options = ["--runas", "root", "--log-file", str(self.log), "-u", str(PORT)]
        gpasst = [sys.executable, "-m", "gpasst"]
        flooder = [sys.executable, "-I", "-S", FLOODER, kind, str(PORT)]
        environment = {**os.environ, "PYTHONPATH": package}
        if link == "tap":
            self._guest = self._start([*gpasst, "pasta", "--config-net", *options, "--", *flooder], environment)
        else:
            path = folder / "socket"
            self._start([*gpasst, "passt", "-f", *options, "--socket", str(path)], environment)
            end = time.monotonic() + START_SECONDS
            while not path.exists() and time.monotonic() < end:
                time.sleep(INTERVAL_SECONDS)
            self._guest = self._start([*flooder, str(path)], environment)
        assert self._guest.stdout is not None
        if self._guest.stdout.readline() != b"ready\n":
            raise SystemExit("the guest did not start; see the message above")

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._programs.append(
            subprocess.Popen(command, cwd=self._package, env=environment, start_new_session=True, **pipes)
        )
        return self._programs[-1]

    def flood(self) -> None:
        """Begin the flood."""
        assert self._guest.stdin is not None
        self._guest.stdin.write(b"\n")
        self._guest.stdin.flush()

    def sent(self) -> int:
        """End the flood; return how many frames it was."""
        assert self._guest.stdin is not None and self._guest.stdout is not None
        self._guest.stdin.close()
        return int(self._guest.stdout.readline())

    def close(self) -> int:
        """End everything; return bytes of log."""
        for program in reversed(self._programs):
            os.killpg(program.pid, 15)
            try:
                program.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, 9)
                program.wait()
        return self.log.stat().st_size


def measure(kind: str, link: str, seconds: float, package: str) -> dict[str, float]:
    """Measure one kind of flood on one link for so many seconds; return the figures."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(type=socket.SOCK_DGRAM) as client:
        case = Case(kind, link, package, Path(folder))
        try:
            client.settimeout(TIMEOUT_SECONDS)
            client.connect((HOST, PORT))
            ask(client, INTERVAL_SECONDS)
            case.flood()
            began = time.monotonic()
            time.sleep(WARM_SECONDS)
            waits, lost = ask(client, seconds)
            rate = case.sent() / (time.monotonic() - began)
        finally:
            size = case.close()
    figures: dict[str, float] = {"answers": len(waits), "lost": lost}
    if waits:
        figures["median_ms"] = round(1e3 * statistics.median(waits), 1)
        figures["p99_ms"] = round(1e3 * sorted(waits)[int(len(waits) * 0.99)], 1)
    return figures | {"frames_per_second": round(rate), "log_bytes": size}


def ask(client: socket.socket, seconds: float) -> tuple[list[float], int]:
    """Ask for so many seconds; return how long each answer took, and how many did not come."""
    waits, lost, end = [], 0, time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        question, began = str(number).encode(), time.perf_counter()
        client.send(question)
        try:
            while client.recv(100) != question:
                pass
            waits.append(time.perf_counter() - began)
        except TimeoutError:
            lost += 1
        time.sleep(INTERVAL_SECONDS)
    return waits, lost


def table(report: dict[str, dict[str, float]]) -> str:
    """Return the figures as rows of a Markdown table."""
    names = ("answers", "lost", "median_ms", "p99_ms", "frames_per_second", "log_bytes")
    rows = [["flood", *names], ["---"] * (1 + len(names))]
    rows += [[kind, *(str(figures.get(name, "-")) for name in names)] for kind, figures in report.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure the kinds and links that are asked for, each in a namespace of its own, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--package", default=str(Path(__file__).resolve().parents[1]), help="checkout to measure")
    parser.add_argument("--link", choices=LINKS, help="both unless given")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all unless given")
    given = parser.parse_args()
    kinds = given.kinds or KINDS
    if given.here:
        print(json.dumps(measure(kinds[0], given.link, given.seconds, given.package)))
        return
    report = {}
    for link in [given.link] if given.link else LINKS:
        for kind in kinds:
            again = [sys.executable, __file__, "--here", "--seconds", str(given.seconds), "--package", given.package]
            inside = ["unshare", "-n", "sh", "-ec", SURROUNDINGS, "sh", *again, "--link", link, kind]
            output = subprocess.run(inside, stdout=subprocess.PIPE, check=True).stdout
            report[f"{kind}, {link}"] = json.loads(output)
    print(json.dumps(report, indent=2) if given.json else table(report))


if __name__ == "__main__":
    main()
