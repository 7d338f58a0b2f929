"""What short exchanges cost: a new splice pair for each, by the thousand, and what is left of them after the timeout.

Theory of operation: the benchmark moves into a network namespace of its own, starts ``gpasst pasta`` with a service in
its namespace, and asks that service again and again, each time from a new socket, so that each exchange needs a pair.
Descriptors and memory of the proxy are read from /proc before, at the end of the load and after the timeout. How long
the proxy takes for a pair is measured around the one call that sets it up, in a process of its own.

    python benchmarks/churn.py [--seconds S] [--rate N] [--timeout S] [--json]

Needs root. Nothing leaves the namespaces; the load is bounded in time and rate.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
PORT = 5001
WARM_UP = 500  # exchanges before anything is measured
SPARE_SECONDS = 4  # for the scan to notice
PAIRS = 2000  # set up to measure one

SERVICE = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", {port}))
print("ready", flush=True)
while True:
    sock.sendto(*sock.recvfrom(9))
"""

COST = """
import json, socket, statistics, time
import gpasst
with gpasst.Pasta(config_net=True, udp_ports="{port}") as net:
    splice, spent = net._proxy._splice, []
    opens = splice.open
    def timed(*arguments):
        began = time.perf_counter()
        pair = opens(*arguments)
        spent.append(time.perf_counter() - began)
        return pair
    splice.open = timed
    with net.socket() as service:
        service.bind(("0.0.0.0", {port}))
        for _ in range({pairs}):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"?", ("127.0.0.1", {port}))
                service.recv(9)
    spent.sort()
    figures = {{"median": statistics.median(spent), "p99": spent[len(spent) * 99 // 100]}}
    print(json.dumps({{name: round(value * 1e6, 1) for name, value in figures.items()}}))
"""


def state(pid: int) -> dict[str, int]:
    """Open files and resident kilobytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))
    return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "memory_kb": resident}


def processor_seconds(pid: int) -> float:
    return (
        sum(int(task.read_text(encoding="ascii").split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
        / 1e9
    )


def exchange() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", PORT))
        client.send(b"?")
        try:
            return client.recv(9) == b"?"
        except TimeoutError:
            return False


def soak(seconds: float, rate: int, timeout: int) -> dict[str, Any]:
    """Ask `rate` times a second; give what it cost and what was left."""
    service = [sys.executable, "-I", "-S", "-c", SERVICE.format(port=PORT)]
    command = [sys.executable, "-m", "gpasst", "pasta", "-f", "--config-net", "-u", str(PORT), "-U", "none"]
    proxy = subprocess.Popen(
        [*command, "--udp-timeout", str(timeout), "--runas", "root", "--", *service],
        stdout=subprocess.PIPE,
    )
    try:
        assert proxy.stdout is not None
        if proxy.stdout.readline() != b"ready\n":
            raise SystemExit("the service did not start")
        for _ in range(WARM_UP):
            exchange()
        time.sleep(timeout + SPARE_SECONDS)
        before, spent = state(proxy.pid), processor_seconds(proxy.pid)
        began = time.monotonic()
        lost, count = 0, int(seconds * rate)
        for number in range(count):
            lost += not exchange()
            ahead = began + (number + 1) / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            if number % rate == 0:
                print(f"{number // rate} of {seconds:.0f} s", end="\r\x1b[K", file=sys.stderr)
        took = time.monotonic() - began
        spent = processor_seconds(proxy.pid) - spent
        loaded = state(proxy.pid)
        time.sleep(timeout + SPARE_SECONDS)
        after = state(proxy.pid)
        for _ in range(WARM_UP * 10):
            exchange()
        time.sleep(timeout + SPARE_SECONDS)
        return {
            "exchanges": count,
            "lost": lost,
            "seconds": round(took, 1),
            "processor_us_per_exchange": round(spent / count * 1e6, 1),
            "before": before,
            "loaded": loaded,
            "after": after,
            "after_more": state(proxy.pid),
        }
    finally:
        proxy.terminate()
        proxy.communicate(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what short exchanges cost and leave behind.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=1000, help="exchanges a second")
    parser.add_argument("--timeout", type=int, default=5, help="idle seconds after which a pair ends")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark makes a network namespace; run it as root")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    program = COST.format(port=PORT, pairs=PAIRS)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    figures = {"pair_us": json.loads(done.stdout), **soak(given.seconds, given.rate, given.timeout)}
    if given.json:
        print(json.dumps(figures))
    else:
        print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
