"""The ways in which datagrams can cross, and bursts that look for differences between them."""

from __future__ import annotations

import socket
import struct
from typing import Any

from hypothesis import strategies as st

from gpasst.features import NAMES
from gpasst.linux import UDP_SEGMENT

SENDERS = 3
ENGINES: dict[str, dict[str, Any]] = {
    "superframes": {},
    "one-by-one": {"no_offload": True},
    **{f"without-{name}": {"without": name} for name in NAMES},
}


@st.composite
def bursts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Sends as (sender, payload bytes, segment bytes); a segment below the payload makes a superframe."""
    burst = []
    for _ in range(draw(st.integers(1, 12))):
        sender = draw(st.integers(0, SENDERS - 1))
        kind = draw(st.sampled_from(["train", "single", "superframe"]))
        size = draw(st.sampled_from([0, 1, 64, 1400, 1472, 1473, 8000]) | st.integers(0, 3000))
        if kind == "train":
            burst += [(sender, size, size)] * draw(st.integers(2, 20))
        elif kind == "single" or not size:
            burst.append((sender, size, size))
        else:
            segment = min(size, 1400)
            burst.append((sender, draw(st.integers(segment, segment * 20)), segment))
    return burst


def datagrams(payload: bytes, segment: int) -> list[bytes]:
    return [payload[i : i + segment] for i in range(0, len(payload), segment)] if payload else [b""]


def send_all(senders: list[socket.socket], burst: list[tuple[int, int, int]], to: Any) -> list[list[bytes]]:
    """Send a burst; return what each sender sent, datagram by datagram."""
    sent: list[list[bytes]] = [[] for _ in senders]
    for number, (index, size, segment) in enumerate(burst):
        payload = bytes((number * 31 + i) & 0xFF for i in range(size))
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))] if segment < size else []
        senders[index].sendmsg([payload], control, 0, to)
        sent[index] += datagrams(payload, segment)
    return sent


def receive_all(receiver: socket.socket, count: int) -> dict[Any, list[bytes]]:
    got: dict[Any, list[bytes]] = {}
    for _ in range(count):
        data, sender = receiver.recvfrom(65535)
        got.setdefault(sender[:2], []).append(data)
    return got
