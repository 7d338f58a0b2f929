"""A guest whose frames the test writes, behind a tap or a stream, up to the host's sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

from gpasst.features import ALL, Feature
from gpasst.formats import VIRTIO_NET_BLANK
from gpasst.host.ring import Ring
from gpasst.link.tap import Tap
from gpasst.path.backlog import Backlog
from gpasst.path.dispatch import Dispatch
from gpasst.path.fastpath import FastPath
from gpasst.path.stream_reader import StreamReader
from gpasst.path.tap_reader import TapReader
from tests.support.bench import NOW, Bench

UDP = 17
WAYS = [ALL, ALL - {Feature.JOIN}, ALL - {Feature.GSO}, frozenset[Feature]()]


class Case:
    """A guest behind a tap, which is a socket here; the host's sockets are real ones on loopback."""

    def __init__(self, features: frozenset[Feature] = ALL, ring: Ring | None = None) -> None:
        self.bench = Bench(features)
        self.counters = self.bench.counters
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours = ours
        ours.setblocking(False)
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.tap = Tap(ours.fileno(), self.counters, {"udp": frozenset((4, 6))})
        self.time = 0.0
        self.ticks = 0.0  # seconds that each look at the clock takes
        self.asked = 0
        self.arps = 0
        handlers = {(family, UDP): self.bench.udp.outbound for family in (4, 6)}
        dispatch = Dispatch(self.bench.guest, self.arp, handlers, self.counters, lambda: NOW)
        self.fastpath = fastpath = FastPath(self.bench.nat.tables)
        self.backlog = Backlog(dispatch.frame, fastpath.knows, self.again, self.counters, self.clock)
        self.reader: Any = TapReader(
            self.tap,
            fastpath,
            self.bench.udp,
            self.bench.icmp,
            self.backlog,
            self.counters,
            features,
            self.clock,
            ring=ring,
        )

    def clock(self) -> float:
        self.time += self.ticks
        return self.time

    def arp(self, payload: memoryview) -> None:
        self.arps += 1

    def again(self) -> None:
        self.asked += 1

    def give(self, *frames: bytes, virtio: bytes = VIRTIO_NET_BLANK) -> None:
        """Let the guest send frames."""
        for frame in frames:
            self.theirs.send(virtio + frame)

    def move(self) -> int:
        """Take steps until nothing is left; return how many frames that were."""
        moved = 0
        while step := self.reader.step():
            moved += step
        return moved

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        self.bench.close()


class StreamCase(Case):
    """The same behind a stream."""

    def __init__(self, features: frozenset[Feature] = ALL, ring: Ring | None = None) -> None:
        super().__init__(features, ring)
        self.ours.close()
        self.theirs.close()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.recorder = self.gate = None
        self.reader = StreamReader(
            cast(Any, self),
            self.fastpath,
            self.bench.icmp,
            self.backlog,
            self.again,
            self.counters,
            features,
            self.clock,
            ring=ring,
        )

    @property
    def socket(self) -> socket.socket:
        """What the reader takes for the stream's socket."""
        return self.ours

    def give(self, *frames: bytes, virtio: bytes = b"") -> None:
        """Let the guest send frames."""
        self.theirs.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))


@contextmanager
def tap(features: frozenset[Feature] = ALL, ring: Ring | None = None) -> Iterator[Case]:
    """A case that is cleared in the end."""
    with closing(Case(features, ring)) as made:
        yield made


@contextmanager
def stream(features: frozenset[Feature] = ALL, ring: Ring | None = None) -> Iterator[StreamCase]:
    """The same behind a stream."""
    with closing(StreamCase(features, ring)) as made:
        yield made


def received(host: socket.socket) -> list[bytes]:
    """Return the datagrams that a socket has."""
    host.setblocking(False)
    found = []
    while True:
        try:
            found.append(host.recv(65535))
        except BlockingIOError:
            return found
