"""Millions of hostile frames of a guest, on a tap and on a stream, and an exchange beside them.

    GPASST_HOSTILE_FRAMES=10000000 pytest -s tests/soak/hostile.py

Theory of operation: the proxy runs in a process of its own (`tests.support.soak.proxy`). Its guest
(`tests.support.soak.flooder`) sends frames that are wrong in every place as fast as it can, and answers on one port,
which the remote machine asks every 20 ms. The exchange is older than the flood.

1. No frame vanishes: what the guest has sent, the proxy has read; on a tap, what the kernel has dropped there is in the
   device's own counters.
2. Nothing of the exchange is lost but what a counter shows.
3. Memory is compared between the first tenth of the flood, when tables and rates are filled, and its end.

Only the long form looks at times, since the short one runs beside other tests.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.testing.flat import usage
from tests.support.lab import HOST4, Remote
from tests.support.soak.started import Ordered, behind_tap, here, proxies

pytestmark = pytest.mark.usefixtures("tun", "remote")

FRAMES = int(os.environ.get("GPASST_HOSTILE_FRAMES", "100000"))
LONG_FRAMES = 1_000_000  # from which on times count
WARM_SHARE = 10  # of the frames, the part before memory is looked at first
PORT = 5000
IDLE_SECONDS = 5  # --udp-timeout
INTERVAL_SECONDS = 0.02  # from one answer to the next question
ANSWER_SECONDS = 0.5  # until an answer counts as lost
SETTLE_SECONDS = 10.0  # until the proxy has read what was sent
LIMIT_SECONDS = 0.02  # of 99 % of the answers
ALLOWED_KIB = 10 << 10
# What a question or an answer may be lost for; a known flow has no rate.
LOSSES = (Drop.TAP_FULL, Drop.TAP_FAILED, Drop.STREAM_FULL, Drop.SEND_FULL, Drop.SEND_FAILED)


class Exchange:
    """Questions of the remote machine, and how long their answers took."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.waits: list[float] = []
        self.asked = self.lost = 0

    def once(self) -> None:
        self.asked += 1
        question, began = str(self.asked).encode(), time.perf_counter()
        self._client.send(question)
        try:
            while self._client.recv(100) != question:
                continue
            self.waits.append(time.perf_counter() - began)
        except TimeoutError:
            self.lost += 1

    def during(self, guest: Ordered) -> Any:
        """Ask until the guest has an answer of its own to its last order; return that."""
        while not select.select([guest.output], [], [], INTERVAL_SECONDS)[0]:
            self.once()
        return guest.answer()


def read(net: dict[str, Any]) -> int:
    """Return how many frames the proxy has read, those of illegal length included."""
    return int(net["frames_down"] + net["drops"].get(Drop.FRAME_LENGTH.value, 0))


@pytest.mark.parametrize("mode", ["pasta", "passt"])
def test_a_hostile_guest(remote: Remote, tmp_path: Path, mode: str) -> None:
    options: dict[str, Any] = {"udp_ports": str(PORT), "udp_timeout": IDLE_SECONDS}
    options |= {"config_net": True} if mode == "pasta" else {"socket": str(tmp_path / "socket")}
    with ExitStack() as stack:
        proxy = stack.enter_context(proxies(tmp_path / "proxy", **{mode: options}))
        path = [] if mode == "pasta" else [json.loads(proxy.opened)["path"]]
        place = behind_tap(proxy) if mode == "pasta" else here
        guest = stack.enter_context(Ordered("flooder", [str(PORT), *path], tmp_path / "guest", place))
        client = stack.enter_context(remote.socket())
        client.settimeout(ANSWER_SECONDS)
        client.connect((HOST4, PORT))
        exchange = Exchange(client)
        while not exchange.waits:
            exchange.once()
            assert exchange.asked < 10, "nobody answers"
        exchange = Exchange(client)

        def look() -> dict[str, Any]:
            counters: dict[str, Any] = proxy.order(json.dumps({"do": "look"}))[mode]
            return counters

        start, before = usage(proxy.pid).memory, look()
        at_start = guest.order("0")
        memory, began = [], time.monotonic()
        for frames in (FRAMES // WARM_SHARE, FRAMES - FRAMES // WARM_SHARE):
            guest.send(str(frames))
            exchange.during(guest)
            memory.append(usage(proxy.pid).memory)
        seconds = time.monotonic() - began
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            done, after = guest.order("0"), look()
            moved = {name: count - at_start[name] for name, count in done.items()}
            found = read(after) - read(before)
            if moved["read"] + moved["dropped"] >= FRAMES and found >= moved["read"]:
                break
            time.sleep(INTERVAL_SECONDS)
    waits = sorted(exchange.waits)
    worst = waits[int(len(waits) * 0.99)]
    print(f"\n{mode}: {FRAMES} frames in {seconds:.0f} s, {found} read, {moved['dropped']} dropped by the kernel")
    print(f"exchange: {len(waits)} answers, {exchange.lost} lost of {exchange.asked}, median", end=" ")
    print(f"{1e3 * statistics.median(waits):.1f} ms, 99 % {1e3 * worst:.1f} ms, most {1e3 * waits[-1]:.1f} ms")
    print(f"memory: {start} KiB before, {memory[0]} after a tenth, {memory[1]} at the end")
    print(f"dropped: {after['drops']}")

    log = proxy.errors.read_text(encoding="utf-8")
    assert not after["drops"].get(Drop.INTERNAL.value), log
    assert "Traceback" not in log, log
    # On a tap, the guest's kernel sends its answers, too, and some frames of its own.
    assert moved["read"] + moved["dropped"] >= FRAMES, "frames have vanished on the way"
    assert found >= moved["read"], "frames have vanished in the proxy"
    losses = sum(after["drops"].get(reason.value, 0) for reason in LOSSES) + moved["dropped"]
    assert exchange.lost <= losses, "answers have vanished"
    assert memory[1] <= memory[0] + ALLOWED_KIB
    if FRAMES >= LONG_FRAMES:
        assert worst <= LIMIT_SECONDS
