"""Ten minutes of everything at once, behind a tap and behind a stream, or half a minute in the short form.

    GPASST_SOAK_SECONDS=600 pytest -s tests/soak/mixed.py

Theory of operation: one process has a proxy with a tap and one with a stream (`tests.support.soak.proxy`). Their
guests, the remote machine and the host each run a program (`tests.support.soak.load`) that serves the others and asks
them: long streams, short connections, QUIC, bursts of datagrams, and names. The flows of one port have weather, whose
rules change every three seconds, and the others have none. Every record says who sent it, to whom, and its number.

Memory, descriptors and timers are compared between two times of silence, one after a first part of the load, when all
that is made once has been made, and one at the end. In both, all flows have expired.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpasst.testing.flat import usage
from tests.support.lab import FAR4, FAR6, HOST4, HOST6, Remote
from tests.support.need import need, need_module
from tests.support.soak.started import Ordered, Place, behind_stream, behind_tap, here, proxies

pytestmark = pytest.mark.usefixtures("tun", "remote")

SECONDS = float(os.environ.get("GPASST_SOAK_SECONDS", "30"))
FIRST_SHARE = 4  # of the seconds, the part of the load before the first silence
STEP_SECONDS = 3.0  # from one look, and one weather, to the next
STILL_SECONDS = 60.0  # without a record, after which a flow counts as stuck; TCP waits for some in bad weather
SILENCE_SECONDS = 60.0  # until all flows must have ended
IDLE_SECONDS = 2  # --udp-timeout
ALLOWED_KIB = 8192  # of memory, that the allocator and the caches may keep
# Kept in numbers that are bounded: connections whose headers were written last, fates of the last rules, deadlines that
# were cancelled, and the arenas of batches of many flows, a few for each link and family once there was one.
CACHED = {"Connection", "Sender", "Receiver", "ReceiveWindow", "Header", "Fate", "FateLog", "Flow", "Deadline", "Arena"}
SPARE_OBJECTS = 8  # of a kind; readers know the last peer, and pipes are kept for the next splice pair
REFILL_SECONDS = 1.5
SPARE_DESCRIPTORS = 4  # of raw sockets, which are made for the first error of each family
SPARE_TIMERS = 2  # what looks at the connections of a proxy may still be due for those that have ended

TAP, STREAM, REMOTE, HOST = 1, 2, 3, 4
CLEAN, ROUGH, DNS, QUIC, NS = 7000, 7001, 53, 4433, 7200  # ports
BEHIND = {TAP: 0, STREAM: 100}  # what is added to the ports of a guest where the host forwards them
FAR, NEAR = {4: FAR4, 6: FAR6}, {4: HOST4, 6: HOST6}
LOOPBACK, EVERY = {4: "127.0.0.1", 6: "::1"}, {4: "0.0.0.0", 6: "::"}

WEATHERS: tuple[tuple[str, ...], ...] = (
    (f"udp dport {ROUGH}: loss 5% duplicate 2% reorder 5%", f"tcp sport {ROUGH}: loss 1% delay 5ms±2ms"),
    (f"dport {ROUGH}: delay 20ms±10ms", f"udp dport {QUIC}: loss 2% delay 5ms±2ms", "udp sport 53: loss 5% delay 10ms"),
    (f"udp sport {ROUGH}: corrupt 5%", f"tcp dport {ROUGH}: corrupt 1%", f"udp sport {QUIC}: corrupt 2%"),
    (f"sport {ROUGH}: rate 50mbit queue 50ms", f"udp dport {QUIC}: reorder 10% delay 3ms"),
    (f"to host udp dport {ROUGH} nth every 50: rebind", f"to host udp dport {QUIC} nth 10: rebind"),
    (),
)


def flows() -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield which machine asks for what."""
    for guest, more in BEHIND.items():
        for kind, family, port in (
            ("stream", 4, CLEAN),
            ("stream", 6, ROUGH),
            ("short", 6, CLEAN),
            ("short", 4, ROUGH),
            ("datagrams", 4, CLEAN),
            ("datagrams", 6, CLEAN),
            ("datagrams", 4, ROUGH),
            ("names", 4, DNS),
            ("names", 6, DNS),
            ("quic", 4, QUIC),
            ("quic", 6, QUIC),
        ):
            yield guest, {"kind": kind, "peer": REMOTE, "host": FAR[family], "port": port}
        for kind, family, port in (
            ("stream", 6, CLEAN),
            ("short", 4, CLEAN),
            ("short", 6, ROUGH),
            ("datagrams", 4, CLEAN),
            ("datagrams", 6, ROUGH),
        ):
            yield REMOTE, {"kind": kind, "peer": guest, "host": NEAR[family], "port": port + more}
    for kind, family in (("stream", 4), ("short", 6), ("datagrams", 4), ("datagrams", 6)):
        yield HOST, {"kind": kind, "peer": TAP, "host": LOOPBACK[family], "port": CLEAN}
        yield TAP, {"kind": kind, "peer": HOST, "host": LOOPBACK[family], "port": NS}


def specification(me: int, certificate: list[str]) -> str:
    """Return what a machine serves and asks, as its program reads it."""
    addresses = {TAP: EVERY, STREAM: EVERY, REMOTE: FAR, HOST: LOOPBACK}[me].values()
    services = [(kind, port) for port in (CLEAN, ROUGH) for kind in ("tcp", "udp")]
    if me == REMOTE:
        services += [("dns", DNS), ("quic", QUIC)]
    if me == HOST:
        services = [("tcp", NS), ("udp", NS)]
    asked = [
        {**asks, "flow": number, "rough": asks["port"] % 100 == ROUGH % 100}
        for number, (sender, asks) in enumerate(flows(), 1)
        if sender == me
    ]
    served = [{"kind": kind, "address": address, "port": port} for kind, port in services for address in addresses]
    return json.dumps({"me": me, "serve": served, "ask": asked, "certificate": certificate})


@pytest.fixture
def certificate(tmp_path: Path) -> list[str]:
    """A certificate of QUIC's server, and its key."""
    need_module("aioquic")
    files = [str(tmp_path / name) for name in ("certificate.pem", "key.pem")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=soak"]
    command = [need("openssl"), "req", "-x509", *kind, "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


class Soak:
    """The proxies and the machines.

    :ivar worst: the most memory seen under load, in KiB.
    """

    def __init__(self, proxy: Ordered, machines: list[Ordered]) -> None:
        self._proxy, self._machines = proxy, machines
        self.seen: dict[str, list[int]] = {}
        self.worst = 0
        self._moved: dict[str, float] = {}
        self._weather = 0

    def ordered(self, text: str) -> None:
        """Give an order to all machines; keep what flows have exchanged.

        :raises AssertionError: naming the faults.
        """
        for machine in self._machines:
            machine.send(text)
        now, faults = time.monotonic(), []
        for machine in self._machines:
            answer = machine.answer()
            faults += answer["faults"]
            for name, (exchanged, lost) in answer["flows"].items():
                if exchanged > self.seen.get(name, [0])[0]:
                    self._moved[name] = now
                self.seen[name] = [exchanged, lost]
        assert not faults, "\n".join(faults)

    def load(self, seconds: float) -> None:
        """Let the load act for so many seconds."""
        self.ordered("go")
        self._moved = dict.fromkeys(self.seen, time.monotonic())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            rules = WEATHERS[self._weather % len(WEATHERS)]
            self._weather += 1
            self._proxy.order(json.dumps({"do": "weather", "rules": rules}))
            time.sleep(STEP_SECONDS)
            self.ordered("look")
            self.worst = max(self.worst, usage(self._proxy.pid).memory)
            now = time.monotonic()
            still = [name for name, moved in self._moved.items() if now - moved > STILL_SECONDS]
            assert not still, f"nothing moves any more: {', '.join(still)}"
        self._proxy.order(json.dumps({"do": "weather", "rules": []}))
        self.ordered("stop")

    def silence(self) -> dict[str, Any]:
        """Wait until all flows have ended; return what the process of the proxies holds then."""
        until = time.monotonic() + SILENCE_SECONDS
        while any(net[what] for net in self.look().values() for what in ("connections", "mappings", "pairs")):
            assert time.monotonic() < until, f"flows do not end: {self.look()}"
            time.sleep(STEP_SECONDS / 10)
        counted, last = self._count(), -1
        while counted["descriptors"] != last:
            # Sockets that are kept for the next splice pair are made up for once a second.
            time.sleep(REFILL_SECONDS)
            last, counted = counted["descriptors"], self._count()
        held = usage(self._proxy.pid)
        return counted | {"memory": held.memory, "processes": held.processes, "threads": held.threads}

    def _count(self) -> dict[str, Any]:
        counted: dict[str, Any] = self._proxy.order(json.dumps({"do": "count"}))
        return counted

    def look(self) -> dict[str, dict[str, Any]]:
        """Return the counters of both proxies."""
        counters: dict[str, dict[str, Any]] = self._proxy.order(json.dumps({"do": "look"}))
        return counters


def test_mixed_load_is_carried_and_leaves_nothing_behind(
    remote: Remote, certificate: list[str], tmp_path: Path
) -> None:
    ports = {guest: ",".join(f"{port + more}:{port}" for port in (CLEAN, ROUGH)) for guest, more in BEHIND.items()}
    inside = {"tcp_ns": str(NS), "udp_ns": str(NS), "config_net": True}
    both = {"udp_timeout": IDLE_SECONDS}
    with ExitStack() as stack:
        proxy = stack.enter_context(
            proxies(
                tmp_path / "proxies",
                pasta={"tcp_ports": ports[TAP], "udp_ports": ports[TAP], **inside, **both},
                passt={
                    "tcp_ports": ports[STREAM],
                    "udp_ports": ports[STREAM],
                    "socket": str(tmp_path / "socket"),
                    # A second address, of which a server that does not know better answers to another.
                    "no_ra": True,
                    **both,
                },
            )
        )
        places: dict[int, Place] = {
            TAP: behind_tap(proxy),
            STREAM: stack.enter_context(behind_stream(json.loads(proxy.opened)["path"])),
            REMOTE: here,
            HOST: here,
        }
        machines = [
            stack.enter_context(
                Ordered(
                    "load",
                    [specification(me, certificate)],
                    tmp_path / f"machine{me}",
                    place,
                    remote.popen if me == REMOTE else subprocess.Popen,
                )
            )
            for me, place in places.items()
        ]
        soak = Soak(proxy, machines)
        soak.load(SECONDS / FIRST_SHARE)
        before = soak.silence()
        soak.load(SECONDS - SECONDS / FIRST_SHARE)
        after = soak.silence()
        counters = soak.look()
    print()
    for name, (exchanged, lost) in sorted(soak.seen.items()):
        print(f"{name:16}{exchanged:10} exchanged{lost:8} lost")
    for mode, net in counters.items():
        print(f"{mode}: dropped {net['drops']}")
    print(f"memory {before['memory']} KiB before, {soak.worst} under load at most, {after['memory']} after")
    print({name: (before[name], after[name]) for name in before if name not in ("objects", "memory")})

    assert [name for name, (exchanged, _) in soak.seen.items() if not exchanged] == []
    log = proxy.errors.read_text(encoding="utf-8")
    assert [net["drops"].get("internal error", 0) for net in counters.values()] == [0, 0], log
    assert "Traceback" not in log, log
    assert [name for name in ("processes", "threads") if after[name] > before[name]] == []
    assert after["descriptors"] <= before["descriptors"] + SPARE_DESCRIPTORS
    assert after["timers"] <= before["timers"] + SPARE_TIMERS
    more = {kind: count - before["objects"].get(kind, 0) for kind, count in after["objects"].items()}
    assert {kind: count for kind, count in more.items() if count > SPARE_OBJECTS and kind not in CACHED} == {}
    assert after["memory"] <= before["memory"] + ALLOWED_KIB
