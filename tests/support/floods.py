"""Frames of many flows of a guest: each to a socket of its own on the host, where that holds them all."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any
from unittest import mock

import pytest

from gpasst.features import Feature
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import Reads
from gpasst.testing import free_port
from tests.support.bench import udp_frame
from tests.support.rings import sockets
from tests.support.taps import Case, received, stream, tap

Link = Callable[[frozenset[Feature], Ring | None], AbstractContextManager[Case]]

LINKS = pytest.mark.parametrize("link", [tap, stream])
RINGS = pytest.mark.parametrize("ringed", [True, False], ids=["ring", "no ring"])


def ports(count: int) -> list[int]:
    """Return ports of the guest that are free on the host."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port("udp"))
    return sorted(found)


def introduce(case: Case, family: int, guests: list[int], to: int) -> None:
    """Make flows known, and let the reader expect frames of many."""
    for _ in range(2):
        case.give(*(udp_frame(family, port, to, b"known") for port in guests))
        case.move()


def by_number(datagrams: list[bytes]) -> dict[bytes, list[bytes]]:
    """Return datagrams by flow, whose number is their first byte."""
    flows: dict[bytes, list[bytes]] = {}
    for data in datagrams:
        flows.setdefault(data[:1], []).append(data)
    return flows


def marked(frame: bytes, tos: int, ttl: int) -> bytes:
    """Return a frame with another TOS and TTL, or traffic class and hop limit."""
    changed = bytearray(frame)
    if frame[14] >> 4 == 4:
        changed[15], changed[22] = tos, ttl
    else:
        changed[14:16] = ((6 << 12 | tos << 4) & 0xFFFF).to_bytes(2, "big")
        changed[21] = ttl
    return bytes(changed)


class Refusing:
    """A socket whose every send the kernel refuses."""

    def __init__(self) -> None:
        self._ends = os.pipe()

    def fileno(self) -> int:
        return self._ends[1]

    def sendto(self, *_: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    sendmsg = sendto

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


class Flood:
    """Flows of a guest that take turns.

    :param stack: closes the sockets of the host.
    :param case: the guest, behind a tap or a stream.
    :param family: 4 or 6.
    :param count: how many.
    """

    def __init__(self, stack: ExitStack, case: Case, family: int, count: int) -> None:
        self.case, self.family, self.count = case, family, count
        self.guests = ports(count)
        self.hosts = sockets(stack, family, count)
        for host in self.hosts:
            host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._turns = [0] * count
        self.sent: list[list[bytes]] = [[] for _ in range(count)]
        for _ in range(2):
            case.give(*self.frames(count))
            case.move()

    def frame(self, flow: int, size: int = 2) -> bytes:
        """Return the next frame of a flow, with a payload of so many bytes, at least 2."""
        data = self._turns[flow].to_bytes(2, "big") * (size // 2) + bytes(size % 2)
        self._turns[flow] += 1
        self.sent[flow].append(data)
        return udp_frame(self.family, self.guests[flow], self.hosts[flow].getsockname()[1], data)

    def frames(self, count: int, size: int = 2) -> list[bytes]:
        """Return so many frames, of all flows in turns."""
        return [self.frame(flow, size) for flow in islice(cycle(range(self.count)), count)]

    def arrived(self) -> list[list[bytes]]:
        """Return what each flow's socket has received, and forget it."""
        return [received(host) for host in self.hosts]

    def clear(self) -> None:
        """Forget what was sent; it must have arrived, each flow's in order."""
        assert self.arrived() == self.sent
        self.sent = [[] for _ in range(self.count)]


class Feed:
    """Has the guest send frames just before they are read, so that its socket need not hold them all.

    :ivar left: frames to come.
    :ivar by_ring: reads by the ring so far.
    """

    def __init__(self, case: Case) -> None:
        self.left: deque[bytes] = deque()
        self.by_ring = 0
        self._case = case

    def before(self, count: int) -> None:
        """Send up to so many frames."""
        self._case.give(*(self.left.popleft() for _ in range(min(count, len(self.left)))))


@contextmanager
def fed(case: Case) -> Iterator[Feed]:
    """Let the tap of a case have frames just before they are read."""
    feed, readv, read = Feed(case), os.readv, Reads.read

    def one(fd: int, vectors: Any) -> int:
        feed.before(1)
        return readv(fd, vectors)

    def many(form: Reads, fd: int, first: int) -> list[int]:
        feed.by_ring += 1
        feed.before(ENTRIES)
        return read(form, fd, first)

    with mock.patch.object(os, "readv", one), mock.patch.object(Reads, "read", many):
        yield feed
