"""Superframes of a tap: what no kernel makes is dropped before it costs anything."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.path.budget import Crowd
from gpasst.path.fastpath import FastPath
from gpasst.path.tap_reader import TapReader
from gpasst.udp.header import Header
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.nat import Host

GUEST, SERVER = {4: ip(GUEST4), 6: ip(GUEST6)}, {4: ip(SERVER4), 6: ip(SERVER6)}


class Kept:
    """A backlog that keeps the segment size of each frame."""

    def __init__(self) -> None:
        self.frames = 0
        self.behind = self.full = False
        self.crowd = Crowd()
        self.segments: list[int] = []

    def add(self, frame: memoryview, segment: int) -> None:
        del frame
        self.segments.append(segment)


class Tap:
    """A tap that is a socket: one message, one frame."""

    def __init__(self) -> None:
        self.recorder = self.gate = None
        self.program, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._device.setblocking(False)
        self.fd = self._device.fileno()

    def close(self) -> None:
        self.program.close()
        self._device.close()


@FAMILIES
@pytest.mark.parametrize(
    ("size", "segment", "expected"),
    [
        (UDP_MAX_SEGMENTS, 1, True),
        (64 * 1000, 1000, True),
        (UDP_MAX_SEGMENTS * 10 - 1, 10, True),
        (65000, 1, False),
        (65000, 500, False),
    ],
)
def test_a_superframe_has_no_more_segments_than_a_kernel_makes(
    family: int, size: int, segment: int, expected: bool
) -> None:
    tap, kept, counters, host = Tap(), Kept(), Counters(), Host()
    reader = TapReader(
        cast(Any, tap),
        FastPath(host.path.tables),
        cast(Any, None),
        cast(Any, None),
        cast(Any, kept),
        counters,
    )
    header = Header(family, HOST_MAC, GUEST_MAC, GUEST[family], SERVER[family], 5000, 53)
    tap.program.send(bytes(header.fill(size, segment)) + bytes(size))
    reader.step()
    tap.close()
    assert kept.segments == ([segment] if expected else [])
    assert counters.drops == ({} if expected else {Drop.MALFORMED_UDP: 1})
