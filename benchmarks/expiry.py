"""What the end of all peers at once costs the traffic: the longest turn of the scan, and the longest wait for it.

Theory of operation: the benchmark fills a NAT with peers of one age, on one mapping and then on many, each with a
socket of its own. It lets them expire on an event loop that has something else to do as well, a descriptor that is
always ready. How long a turn of the timers takes is measured around each one, by the wall and by the processor: a busy
machine interrupts a turn, which only the wall shows. The longest time between two calls for the descriptor is what a
frame would have waited.

    python benchmarks/expiry.py [--peers N] [--mappings N] [--json]

Nothing is sent. Peers have addresses of TEST-NET-1 (RFC 5737) and of no host.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event

from gpasst.config import Config
from gpasst.counters import Counters
from gpasst.flow.guest import Guest
from gpasst.flow.network import build_network
from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.helper.client import Helper
from gpasst.host.descriptors import Descriptors, reserve
from gpasst.host.receive import sender_key
from gpasst.path.udp_sockets import MappingSockets
from gpasst.proxy.scan import Scan
from gpasst.proxy.timers import Timers
from gpasst.proxy.workers import WRITE, Watchers
from gpasst.udp.nat import UdpNat
from gpasst.udp.table import PEERS_LIMIT

TIMEOUT = 180
GUEST, DESTINATION = bytes((192, 0, 2, 2)), bytes((192, 0, 2, 9))
GUEST_PORT, PORT = 5000, 1024  # the first of each
PORTS = 60000  # destinations that differ in their port alone


def guest() -> Guest:
    """Return a guest of IPv4 alone."""
    with Helper.start() as helper:
        network = build_network(Config(ipv4_only=True), helper.facts(), parse_resolver_file(""))
    return Guest(network, bytes(6), None)


class Longest:
    """The longest of many durations."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0
        self.count = 0

    def around(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that calls `function` and takes its time."""

        def timed() -> Any:
            wall, processor = time.perf_counter(), time.thread_time()
            try:
                return function()
            finally:
                self.wall = max(self.wall, time.perf_counter() - wall)
                self.processor = max(self.processor, time.thread_time() - processor)
                self.count += 1

        return timed


def expire(peers: int, mappings: int) -> dict[str, float]:
    """Let `peers` on `mappings` expire; return milliseconds and counts."""
    hub, counters = gevent.get_hub(), Counters()
    watchers, who = Watchers(hub, counters), guest()
    opener = MappingSockets(
        who,
        True,
        lambda opened: watchers.watch(opened, opened.socket.fileno(), lambda: None) if opened.socket else None,
        watchers.unwatch,
        Descriptors(),
    )
    nat = UdpNat(who, opener, sender_key)
    for number in range(peers):
        nat.outbound(
            4,
            GUEST,
            (int.from_bytes(DESTINATION, "big") + number // PORTS).to_bytes(4, "big"),
            GUEST_PORT + number % mappings,
            PORT + number % PORTS,
        )
    if len(nat.tables[4]) != peers:
        raise SystemExit(f"only {len(nat.tables[4])} of {peers} peers could be set up; raise ulimit -n")
    turns, done = Longest(), gevent.event.Event()
    timers = Timers(watchers)
    timers.run = turns.around(timers.run)  # type: ignore[method-assign]

    def ended(_: int) -> None:
        if not len(nat.tables[4]):
            done.set()

    scan = Scan(timers, lambda: 2 * TIMEOUT, TIMEOUT, counters, [nat.scan], [ended])
    reader, writer = os.pipe()
    last, gap = time.perf_counter(), 0.0

    def turn() -> None:
        nonlocal last, gap
        now = time.perf_counter()
        gap, last = max(gap, now - last), now

    watchers.watch("traffic", writer, turn, events=WRITE)
    began = time.perf_counter()
    done.wait()
    took = time.perf_counter() - began - 1  # the second before the scan
    scan.close()
    timers.close()
    watchers.close()
    os.close(reader)
    os.close(writer)
    return {
        "peers": peers,
        "mappings": mappings,
        "turns": turns.count,
        "whole_ms": round(took * 1000, 1),
        "longest_turn_ms": round(turns.wall * 1000, 2),
        "longest_turn_processor_ms": round(turns.processor * 1000, 2),
        "longest_wait_ms": round(gap * 1000, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long the end of all peers at once stops the traffic.")
    parser.add_argument("--peers", type=int, default=PEERS_LIMIT)
    parser.add_argument("--mappings", type=int, default=4096, help="as the limit of open files allows")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = given.mappings if hard == resource.RLIM_INFINITY else min(given.mappings, hard - reserve(hard) - 64)
    rows = [expire(given.peers, mappings) for mappings in (1, room)]
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(*(f"{name}: {value}" for name, value in row.items()), sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
