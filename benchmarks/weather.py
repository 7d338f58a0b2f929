"""How exactly weather keeps its promises: delays, rates, and the shares of frames that are lost, doubled or moved.

Theory of operation: a fresh network namespace is the host; a `gpasst.Pasta` in it has rules in force. One program sends
through them and another one receives, each a process of its own, in the guest or on the host. Times of arrival are
those of the receiver's kernel (SO_TIMESTAMPNS), so they leave out when the receiving program wakes. With ``--network``
the guest is a host of a `gpasst.Network`, whose link has the rules, and the other program runs on another host of it.

* *delay*: 10 000 datagrams a second under a delay of 20 ms: how much later than that they arrive.
* *rate*: what passes a rate in two seconds, as Ethernet frames, by UDP that sends more than that and by TCP.
* *shares*: of 100 000 datagrams, beside the interval in which the share of a fair chance lies 999 times in 1000. What
  a full queue of the kernel loses before weather sees it is left out.

    python benchmarks/weather.py [--json] [--network] [--seconds N] [CASE ...]

Needs root. Nothing leaves the namespace.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
PORT = 5000  # forwarded to the guest
OUT = 6000  # of a server on the host
DELAY_SECONDS, PER_SECOND = 0.02, 10_000
RATES = {"10mbit": 1e7, "100mbit": 1e8, "1gbit": 1e9}
PAYLOAD = 1400  # bytes; frames of 1442
HEADERS = {"udp": 42, "tcp": 54}  # bytes of a frame before the payload
SEGMENT = 1446  # bytes of a TCP segment at MTU 1500 without timestamps
SHARE_FRAMES = 100_000
QUANTILE = 3.29  # of the normal distribution, for 99.9 % on both sides
GSO, GRO = 103, 104  # UDP_SEGMENT, UDP_GRO (linux/udp.h)
TIMESTAMPS = 35  # SO_TIMESTAMPNS (asm-generic/socket.h)
IDLE_SECONDS = 1.5  # after which nothing more comes
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

_stamp = struct.Struct("@qq").unpack


# --- The programs -----------------------------------------------------------------------------------------------------


def bound(kind: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
    sock.bind(("0.0.0.0", port))
    return sock


def receive_late(port: int) -> dict[str, float]:
    """Return how long datagrams took, in seconds, from the time that each carries."""
    sock = bound(socket.SOCK_DGRAM, port)
    sock.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
    sock.settimeout(IDLE_SECONDS + 5)
    print("ready", flush=True)
    took = []
    try:
        while True:
            data, controls, _, _ = sock.recvmsg(64, 64)
            seconds, nanoseconds = _stamp(controls[0][2][:16])
            took.append(seconds * 1_000_000_000 + nanoseconds - int.from_bytes(data[:8], "big"))
            sock.settimeout(IDLE_SECONDS)
    except TimeoutError:
        pass
    took = sorted(took[len(took) // 10 :])
    return {"count": len(took), "median": took[len(took) // 2] / 1e9, "most": took[len(took) * 99 // 100] / 1e9}


def send_late(address: str, port: int, seconds: float) -> None:
    """Send datagrams that carry their time, so many a second."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    begin, sent = time.perf_counter(), 0
    while sent < seconds * PER_SECOND:
        due = (time.perf_counter() - begin) * PER_SECOND
        while sent < due:
            sock.send(time.time_ns().to_bytes(8, "big") + bytes(32))
            sent += 1
        time.sleep(0.00005)


def receive_udp(port: int) -> dict[str, float]:
    """Return the datagrams that came, and the seconds from the first to the last."""
    sock = bound(socket.SOCK_DGRAM, port)
    sock.setsockopt(socket.SOL_UDP, GRO, 1)
    sock.settimeout(IDLE_SECONDS + 5)
    print("ready", flush=True)
    count, first, last = -1, 0.0, 0.0
    buffer = bytearray(1 << 16)
    try:
        while True:
            size = sock.recv_into(buffer)
            last = time.perf_counter()
            if count < 0:
                count, first = 0, last
                sock.settimeout(IDLE_SECONDS)
            else:
                count += size // PAYLOAD
    except TimeoutError:
        pass
    return {"bytes": count * (PAYLOAD + HEADERS["udp"]), "seconds": last - first}


def send_udp(address: str, port: int, seconds: float, rate: float) -> None:
    """Send a fifth more than a rate."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_UDP, GSO, PAYLOAD)
    sock.connect((address, port))
    segments = 1 if rate < 5e7 else 20
    data, step = bytes(PAYLOAD * segments), segments * (PAYLOAD + HEADERS["udp"]) * 8 / (1.2 * rate)
    begin, sent = time.perf_counter(), 0
    while sent * step < seconds:
        if time.perf_counter() - begin >= sent * step:
            sock.send(data)
            sent += 1
        else:
            time.sleep(0.0001)


def receive_tcp(port: int) -> dict[str, float]:
    sock = bound(socket.SOCK_STREAM, port)
    sock.listen()
    print("ready", flush=True)
    accepted, _ = sock.accept()
    buffer = bytearray(1 << 20)
    total = accepted.recv_into(buffer)
    first = last = time.perf_counter()
    total = 0
    while size := accepted.recv_into(buffer):
        total += size
        last = time.perf_counter()
    return {"bytes": total * (SEGMENT + HEADERS["tcp"] + 14 - 14) / SEGMENT, "seconds": last - first}


def send_tcp(address: str, port: int, seconds: float, rate: float) -> None:
    sock = socket.create_connection((address, port))
    data = bytes(1 << 16)
    until, left = time.perf_counter() + seconds, rate * seconds / 8 * SEGMENT / (SEGMENT + HEADERS["tcp"])
    while time.perf_counter() < until + 5 and left > 0:
        left -= sock.send(data)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def receive_shares(port: int) -> dict[str, float]:
    """Return how many of numbered datagrams came, came twice, and came behind a later one."""
    sock = bound(socket.SOCK_DGRAM, port)
    sock.settimeout(IDLE_SECONDS + 5)
    print("ready", flush=True)
    seen: set[int] = set()
    twice = moved = highest = 0
    try:
        while True:
            number = int.from_bytes(sock.recv(64)[:8], "big")
            sock.settimeout(IDLE_SECONDS)
            twice += number in seen
            moved += number < highest and number not in seen
            highest = max(highest, number)
            seen.add(number)
    except TimeoutError:
        pass
    return {"lost": SHARE_FRAMES - len(seen), "twice": twice, "moved": moved}


def send_shares(address: str, port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    begin = time.perf_counter()
    for number in range(1, SHARE_FRAMES + 1):
        sock.send(number.to_bytes(8, "big") + bytes(32))
        while not number % 20 and time.perf_counter() - begin < number / 15_000:
            time.sleep(0.0002)


ROLES: dict[str, Callable[..., dict[str, float] | None]] = {
    made.__name__: made
    for made in (
        receive_late,
        send_late,
        receive_udp,
        send_udp,
        receive_tcp,
        send_tcp,
        receive_shares,
        send_shares,
    )
}


def number(text: str) -> int | float | str:
    """Return an argument of a program: a number, unless it is an address."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# --- The cases --------------------------------------------------------------------------------------------------------


class Ends:
    """Both ends of a link with weather: a guest, and whatever it speaks with.

    :ivar impair: puts rules in force.
    """

    def __init__(self, inside: Callable[..., Any], outside: Callable[..., Any], impair: Callable[[str], Any]) -> None:
        self._popen = {True: inside, False: outside}
        self._addresses = {True: HOST, False: GATEWAY}
        self.impair = impair

    def start(self, inside: bool, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--role", *map(str, words)]
        started: subprocess.Popen[str] = self._popen[inside](command, stdout=subprocess.PIPE, text=True)
        return started

    def address(self, inwards: bool) -> str:
        """Return where a program of the other end sends to."""
        return self._addresses[inwards]


class Hosts(Ends):
    """Two hosts of a network; the first one's link has weather."""

    def __init__(self, lan: Any) -> None:
        guest, other = lan.hosts("guest", "other")
        super().__init__(guest.popen, other.popen, lan.link(guest).impair)
        self._addresses = {True: guest.ip4, False: other.ip4}


@contextmanager
def opened(network: bool) -> Iterator[Ends]:
    import gpasst

    if network:
        with gpasst.Network("lan") as lan:
            yield Hosts(lan)
        return
    with gpasst.Pasta(config_net=True, mtu=1500, tcp_ports=str(PORT), udp_ports=str(PORT)) as net:
        yield Ends(net.popen, subprocess.Popen, net.impair)


def carried(net: Ends, inwards: bool, kind: str, *arguments: object) -> dict[str, float]:
    """Let a program send through weather to another one; return what that reports."""
    port = PORT if inwards else OUT
    with net.start(inwards, "receive_" + kind, port) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        with net.start(not inwards, "send_" + kind, net.address(inwards), port, *arguments) as sender:
            report = json.loads(receiver.stdout.readline())
        assert sender.returncode in (0, -15)
    return dict(report)


def delays(net: Ends, seconds: float) -> dict[str, dict[str, float]]:
    found = {}
    for inwards in (True, False):
        for text, wanted in (("", 0.0), (f"udp: delay {DELAY_SECONDS * 1000:g}ms", DELAY_SECONDS)):
            rule = net.impair(text) if text else None
            report = carried(net, inwards, "late", seconds)
            if rule is not None:
                rule.remove()
            name = f"delay {wanted * 1000:g} ms, {'host to guest' if inwards else 'guest to host'}"
            found[name] = {
                "datagrams": report["count"],
                "median_ms": 1000 * (report["median"] - wanted),
                "99%_ms": 1000 * (report["most"] - wanted),
            }
    return found


def rates(net: Ends, seconds: float) -> dict[str, dict[str, float]]:
    found = {}
    for kind in ("udp", "tcp"):
        for name, rate in RATES.items():
            for inwards in (True, False):
                with net.impair(f"to {'guest' if inwards else 'host'} {kind}: rate {name}"):
                    report = carried(net, inwards, kind, seconds, rate)
                passed = report["bytes"] * 8 / report["seconds"]
                way = "host to guest" if inwards else "guest to host"
                found[f"rate {name}, {kind}, {way}"] = {"seconds": report["seconds"], "of rate": passed / rate}
    return found


def shares(net: Ends, seconds: float) -> dict[str, dict[str, float]]:
    del seconds
    found = {}
    for effects, counted, chance in (
        ("loss 10%", "lost", 0.1),
        ("duplicate 5%", "twice", 0.05),
        ("reorder 5% gap 3", "moved", 0.05),
    ):
        for inwards in (True, False):
            way = "guest" if inwards else "host"
            with net.impair(f"to {way} udp: {effects} seed 7") as rule:
                report = carried(net, inwards, "shares")
                hits = rule.hits
            report["lost"] -= SHARE_FRAMES - hits
            room = QUANTILE * math.sqrt(hits * chance * (1 - chance))
            wanted = hits * chance
            found[f"{effects}, to {way}"] = {
                "frames": hits,
                "counted": report[counted],
                "from": wanted - room,
                "to": wanted + room,
                "inside": float(abs(report[counted] - wanted) <= room),
            }
    return found


CASES: dict[str, Callable[[Ends, float], dict[str, dict[str, float]]]] = {
    "delay": delays,
    "rate": rates,
    "shares": shares,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="measure weather")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--network", action="store_true", help="between two hosts of a network")
    parser.add_argument("--role", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        name, *values = arguments.role
        done = ROLES[name](*map(number, values))
        if done is not None:
            print(json.dumps(done), flush=True)
        return
    if "GPASST_WEATHER" not in os.environ:
        os.environ["GPASST_WEATHER"] = "1"
        command = ["unshare", "--net", "sh", "-c", SURROUNDINGS, "sh", sys.executable, *sys.argv]
        os.execvp("unshare", command)
    report: dict[str, dict[str, float]] = {}
    for case in arguments.cases or CASES:
        with opened(arguments.network) as net:
            report |= CASES[case](net, arguments.seconds)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, values in report.items():
        print(f"{name:44}", "  ".join(f"{key} {value:.3f}".rstrip("0").rstrip(".") for key, value in values.items()))


if __name__ == "__main__":
    main()
