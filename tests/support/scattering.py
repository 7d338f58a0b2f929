"""Peers with sockets of their own, and how what is sent to them arrives."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import pytest

from gpasst.counters import Counters
from gpasst.flow.sender import ControlMessage, Sender, SocketAddress
from gpasst.host.arena import Arena
from gpasst.host.ring_forms import open_ring
from gpasst.host.scatter import ROWS, Refused, Rows, Scatter
from gpasst.host.send import sender_to
from gpasst.linux import (
    IP_RECVTOS,
    IP_RECVTTL,
    IP_TOS,
    IP_TTL,
    IPV6_HOPLIMIT,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVTCLASS,
    IPV6_TCLASS,
    SOL_UDP,
    UDP_GRO,
)
from gpasst.udp.mapping import Mapping, Peer, ServedSocket, UdpSocket
from tests.support.families import ANY, FAMILY, LEVEL, LOOPBACK
from tests.support.rings import PATIENCE, Asked, asked, sockets

ROOM = 1 << 16  # bytes of the arena for each payload
MARKS = {4: (IP_TOS, IP_TTL), 6: (IPV6_TCLASS, IPV6_HOPLIMIT)}
REPORTS = {4: (IP_RECVTOS, IP_RECVTTL), 6: (IPV6_RECVTCLASS, IPV6_RECVHOPLIMIT)}


class Sent(NamedTuple):
    """One send, as it arrives."""

    datagrams: list[bytes]
    segment: int  # 0 for a single datagram
    tos_ttl: int
    source: str


class Service:
    """What stands for a socket where a service of the program is the peer."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def fileno(self) -> int:
        raise AssertionError("it has none")

    def sendto(self, data: memoryview, address: SocketAddress, /) -> int:
        del address
        self.taken.append(bytes(data))
        return len(data)

    def sendmsg(self, buffers: Iterable[memoryview], ancdata: Iterable[ControlMessage] = (), *_: Any) -> int:
        if any(level == SOL_UDP for level, _, _ in ancdata):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.sendto(memoryview(b"".join(buffers)), ("", 0))


class Flow:
    """A peer, and the socket of the host that its datagrams reach."""

    def __init__(self, stack: ExitStack, family: int, service: Service | None = None, port: int | None = None) -> None:
        self.sock = stack.enter_context(socket.socket(FAMILY[family], socket.SOCK_DGRAM))
        self.sock.bind((ANY[family], 0))
        self.sock.setblocking(False)
        (self.receiver,) = sockets(stack, family, 1)
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
        for option in REPORTS[family]:
            self.receiver.setsockopt(LEVEL[family], option, 1)
        self.family = family
        self.service = service
        address = socket.inet_pton(FAMILY[family], LOOPBACK[family])
        to = self.receiver.getsockname()[1] if port is None else port
        standing: Any = self.sock if service is None else service
        kind = UdpSocket if service is None else ServedSocket
        mapping = Mapping(address, self.sock.getsockname()[1])
        self.peer = Peer(mapping, kind(family, 0, standing), (address, to), (address, to, 0), b"")

    @property
    def sender(self) -> Sender:
        return self.peer.sender or sender_to(self.peer)

    def arrived(self, count: int) -> list[Sent]:
        """Return the sends of so many datagrams; there must be no more."""
        found: list[Sent] = []
        self.receiver.settimeout(PATIENCE)
        while (left := count - sum(len(sent.datagrams) for sent in found)) > 0:
            found.append(self._receive())
        assert not left
        self.receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.receiver.recv(1)
        return found

    def _receive(self) -> Sent:
        data, control, _, source = self.receiver.recvmsg(1 << 17, 200)
        values = {(level, kind): value for level, kind, value in control}
        (segment,) = struct.unpack("@i", values.pop((SOL_UDP, UDP_GRO), bytes(4)))
        # Linux reports a TOS of IPv4 as one byte, everything else as an int.
        tos, ttl = (values[LEVEL[self.family], kind][0] for kind in MARKS[self.family])
        pieces = [data[at : at + segment] for at in range(0, len(data), segment)] if segment else [data]
        return Sent(pieces, segment, tos << 8 | ttl, source[0])


class World:
    """What sends, and from where."""

    def __init__(self, stack: ExitStack, ringed: bool, groups: bool = True) -> None:
        self._stack = stack
        self.arena = Arena(ROWS * ROOM)
        self.counters = Counters()
        self.asked: Asked | None = None
        ring = None
        if ringed:
            ring = open_ring()
            stack.callback(ring.close)
            self.asked = stack.enter_context(asked(ring))
        self.scatter = Scatter(self.arena, self.counters, groups, ring)
        self._places = 0

    def flows(self, family: int, count: int, **named: Any) -> list[Flow]:
        return [Flow(self._stack, family, **named) for _ in range(count)]

    def put(self, data: bytes) -> int:
        """Write a payload; return its address."""
        at = self._places % ROWS * ROOM
        self._places += 1
        self.arena.bytes[at : at + len(data)] = data
        return self.arena.address + at

    def rows(self, sent: Iterable[tuple[Flow, bytes]]) -> Rows:
        rows = Rows()
        for flow, data in sent:
            rows.peers.append(flow.peer)
            rows.senders.append(flow.sender)
            rows.places.append(self.put(data))
            rows.lengths.append(len(data))
        return rows

    def send(self, family: int, sent: Iterable[tuple[Flow, bytes]]) -> Refused:
        return self.scatter.send(family, self.rows(sent))

    def tallies(self) -> tuple[int, int, int]:
        down = self.counters.udp.down
        return down.datagrams, down.bytes, down.superframes

    @property
    def calls(self) -> list[list[int]]:
        """The calls of the ring so far."""
        return [] if self.asked is None else self.asked.calls


def payload(turn: int, size: int = 8) -> bytes:
    """Return one of several payloads, that differ unless they are empty."""
    return (turn.to_bytes(2, "big") * (size // 2 + 1))[-size:] if size else b""


def in_turns(flows: list[Flow], sizes: list[int], first: int = 0) -> Iterator[tuple[Flow, bytes]]:
    """Each flow's datagrams, of such sizes, between those of others; `first` is the number of the first ones."""
    for turn, size in enumerate(sizes, first):
        for flow in flows:
            yield flow, payload(turn, size)


def shapes(sent: list[Sent]) -> list[tuple[int, int]]:
    """Return segment and number of datagrams of each send."""
    return [(one.segment, len(one.datagrams)) for one in sent]


def datagrams(sent: list[Sent]) -> list[bytes]:
    return list(chain.from_iterable(one.datagrams for one in sent))
