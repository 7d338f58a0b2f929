"""What an exchange from outside waits beside a flood of the guest.

Theory of operation: for each kind of flood one guest is opened in a fresh network namespace with a veth pair, and a
port of it is forwarded. An outside client asks that port every 20 ms while a program in the guest floods: with new
peers (one port, ever new remote ends), new mappings (ever new ports), ARP requests, echo requests, or nothing. The
standard error of the proxy is counted, since a flood must not fill a log.

    python benchmarks/floods.py [--seconds N] [--package DIR] [KIND ...]

Needs root. Prints JSON: for each kind the number of answers, those that did not come within half a second, median and
99 % in milliseconds, and bytes of log. Nothing leaves the namespace.
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

KINDS = ("none", "peers", "mappings", "arp", "echo")
PORT = 5000
HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
INTERVAL_SECONDS = 0.02  # from one question to the next
TIMEOUT_SECONDS = 0.5
WARM_SECONDS = 1.0  # of flood before the first question

SURROUNDINGS = f"""
ip link set lo up
ip link add up0 type veth peer name up1
ip link set up0 up
ip link set up1 up
ip addr add {HOST}/24 dev up0
ip route add default via {GATEWAY}
ip neigh add {GATEWAY} lladdr 02:00:00:00:00:01 dev up0
exec "$@"
"""

GUEST = """
import itertools, os, socket, struct, sys
kind, port = sys.argv[1], int(sys.argv[2])
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("0.0.0.0", port))
print("ready", flush=True)
if not os.fork():
    while True:
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
def peers():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    for number in itertools.count():
        yield lambda: sock.sendto(b"x", (f"198.51.100.{number // 60000 % 250 + 1}", number % 60000 + 1000))
def mappings():
    while True:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            yield lambda: sock.sendto(b"x", ("198.51.100.9", 9))
def frames(build):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("up0", 0))
    mac = sock.getsockname()[4]
    for number in itertools.count():
        yield lambda: sock.send(build(mac, number))
def arp(mac, number):
    ask = bytes.fromhex("0001080006040001") + mac + bytes((192, 0, 2, 2)) + bytes(6) + bytes((192, 0, 2, 77))
    return b"\\xff" * 6 + mac + b"\\x08\\x06" + ask
def echo(mac, number):
    message = struct.pack(">BBHHH", 8, 0, 0, number & 0xFFFF, 1)
    message = message[:2] + struct.pack(">H", 0xFFFF - sum(struct.unpack(">4H", message)) % 0xFFFF) + message[4:]
    head = struct.pack(">BBHHHBBH4s4s", 69, 0, 28, 0, 0, 64, 1, 0, bytes((192, 0, 2, 2)), bytes((198, 51, 100, 9)))
    head = head[:10] + struct.pack(">H", 0xFFFF - sum(struct.unpack(">10H", head)) % 0xFFFF) + head[12:]
    return b"\\xff" * 6 + mac + b"\\x08\\x00" + head + message
floods = {"none": lambda: (), "peers": peers, "mappings": mappings, "arp": lambda: frames(arp),
          "echo": lambda: frames(echo)}
for send in floods[kind]():
    try:
        send()
    except OSError:
        pass
sys.stdin.read()
"""


def measure(kind: str, seconds: float, package: str) -> dict[str, float]:
    """Measure one kind of flood for so many seconds; return the figures."""
    command = [sys.executable, "-m", "gpasst", "pasta", "--config-net", "--runas", "root"]
    command += ["-u", str(PORT), "-U", "none", "--", sys.executable, "-c", GUEST, kind, str(PORT)]
    with tempfile.TemporaryFile() as log, socket.socket(type=socket.SOCK_DGRAM) as client:
        proxy = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": package},
            start_new_session=True,
        )
        try:
            assert proxy.stdout is not None
            assert proxy.stdout.readline() == b"ready\n"
            client.settimeout(TIMEOUT_SECONDS)
            client.connect((HOST, PORT))
            time.sleep(WARM_SECONDS)
            waits, lost = ask(client, seconds)
        finally:
            os.killpg(proxy.pid, 9)
            proxy.wait()
        size = os.fstat(log.fileno()).st_size
    figures: dict[str, float] = {"answers": len(waits), "lost": lost, "log_bytes": size}
    if waits:
        figures["median_ms"] = round(1e3 * statistics.median(waits), 1)
        figures["p99_ms"] = round(1e3 * sorted(waits)[int(len(waits) * 0.99)], 1)
    return figures


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


def main() -> None:
    """Measure the kinds that are asked for, each in a namespace of its own, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--package", default=str(Path(__file__).resolve().parents[1]), help="checkout to measure")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all unless given")
    given = parser.parse_args()
    report = {}
    for kind in given.kinds or KINDS:
        if given.here:
            report[kind] = measure(kind, given.seconds, given.package)
            continue
        again = [sys.executable, __file__, "--here", "--seconds", str(given.seconds), "--package", given.package, kind]
        inside = ["unshare", "-n", "sh", "-ec", SURROUNDINGS, "sh", *again]
        report |= json.loads(subprocess.run(inside, stdout=subprocess.PIPE, check=True).stdout)
    print(json.dumps(report, indent=None if given.here else 2))


if __name__ == "__main__":
    main()
