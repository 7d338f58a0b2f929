"""A network of gpasst for the benchmark, in a process of its own.

    network_hosts.py serve MTU HOST...    open a network with these hosts, until end of input; prints where they are
    network_hosts.py open COUNT           open so many hosts, let neighbours exchange, close; prints times and memory

Private memory belongs to one process alone; that of the helper's processes counts, that of the kernel does not.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gpasst

SETTLE_SECONDS = 1.0  # until processes have done what follows their answers
ANSWER_SECONDS = 5.0
PORT = 7001


def private_kb() -> int:
    """Return the private memory of the processes of this process group, in kB."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if os.getpgid(int(folder.name)) != os.getpgid(0):
                continue
            lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
        except (OSError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
    return total


def settled() -> dict[str, int]:
    """Return what this process and its helper hold, after a moment."""
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    return {"private_kb": private_kb(), "descriptors": len(os.listdir("/proc/self/fd"))}


def serve(mtu: int, names: list[str]) -> None:
    with gpasst.Network("lan", mtu=mtu) as lan:
        places = {}
        for host in lan.hosts(*names):
            program = host.popen(["sleep", "infinity"])
            places[host.name] = {"pid": program.pid, "address": host.ip4}
        print(json.dumps(places), flush=True)
        sys.stdin.read()


def exchanged(one: Any, other: Any) -> bool:
    """Return whether a datagram of one host reaches another one."""
    with one.socket() as sender, other.socket() as receiver:
        receiver.bind((other.ip4, PORT))
        receiver.settimeout(ANSWER_SECONDS)
        sender.sendto(b"x", (other.ip4, PORT))
        try:
            return bool(receiver.recv(2) == b"x")
        except TimeoutError:
            return False


def opened(count: int) -> dict[str, Any]:
    """Open so many hosts; return the time of each in ms, what a host holds, and what stays after the end."""
    filled(count)  # what the first time leaves, the second uses again
    empty = settled()
    figures = filled(count)
    end = settled()
    return figures | {f"{name}_that_stay": end[name] - empty[name] for name in end}


def filled(count: int) -> dict[str, Any]:
    with gpasst.Network("lan") as lan:
        first = lan.host("h0")
        before = settled()
        times, hosts = [], [first]
        for number in range(1, count):
            began = time.perf_counter()
            hosts.append(lan.host(f"h{number}"))
            times.append(1e3 * (time.perf_counter() - began))
        reached = sum(exchanged(one, other) for one, other in zip(hosts, [*hosts[1:], first], strict=True))
        if reached != count:
            raise SystemExit(f"only {reached} of {count} hosts reach their neighbour")
        after = settled()
        began = time.perf_counter()
    closed = 1e3 * (time.perf_counter() - began)
    return {
        "hosts": count,
        "open_ms": round(statistics.median(times), 1),
        "open_most_ms": round(max(times), 1),
        "close_ms": round(closed / count, 1),
        **{f"{name}_each": round((after[name] - before[name]) / (count - 1), 1) for name in after},
    }


if __name__ == "__main__":
    mode, number, *rest = sys.argv[1:]
    if mode == "serve":
        serve(int(number), rest)
    else:
        os.setpgid(0, 0)
        print(json.dumps(opened(int(number))))
