"""The data path of one guest on the test's bench: its link only records, its host sockets are real ones.

The guest's gateway stands for the host's loopback, so what it sends there reaches sockets of the test.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from gpasst.counters import Counters
from gpasst.features import ALL, Feature
from gpasst.flow.guest import Guest
from gpasst.host.descriptors import Descriptors
from gpasst.host.receive import Receiver, sender_key
from gpasst.host.receive_contiguous import ContiguousReceiver
from gpasst.host.receive_framed import FramedReceiver
from gpasst.host.ring import Ring
from gpasst.host.ring_forms import open_ring
from gpasst.link.port import RunHeader
from gpasst.link.recorder import Recorder
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.packet.parse import Packet, parse_ip
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.udp_many import ManySenders
from gpasst.path.udp_ready import ReadyMappings
from gpasst.path.udp_sockets import MappingSockets, ServiceHandler, UdpSockets
from gpasst.testing import free_port
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.nat import UdpNat
from tests.support import scripted
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILY, LOOPBACK
from tests.support.networks import guest_network

GUEST = {4: GUEST4, 6: GUEST_LINK_LOCAL}
GATEWAY = {4: GATEWAY4, 6: GATEWAY6}
NOW = 1000  # seconds


class Link:
    """A guest's end that keeps what is written to it."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.ready = True
        self.full = False
        self.frames: list[bytes] = []
        self.runs: list[tuple[RunHeader, int, int, bytes]] = []
        self.flushed = 0

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        self.runs.append((header, total, segment, b"".join(payload)))

    def write_bare(self, header: RunHeader) -> None:
        self.runs.append((header, 0, 0, b""))

    def write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def flush(self) -> None:
        self.flushed += 1

    @property
    def payloads(self) -> list[bytes]:
        """The datagrams of all runs."""
        return [
            data[at : at + segment] if total else b""
            for _, total, segment, data in self.runs
            for at in (range(0, total, segment) if total else (0,))
        ]


class Bench:
    """UDP between a guest and the host, with all that it needs.

    :param end: takes the place of the link, and batches of many senders are carried as columns.
    :param ring: for these, None for none.
    :ivar ready: watches the sockets of mappings.
    :ivar watched: these sockets.
    :ivar alone: those of them that have a watcher each.
    """

    def __init__(
        self,
        features: frozenset[Feature] = ALL,
        carried: bool = True,
        end: Callable[[Counters], Tap | Stream] | None = None,
        ring: Ring | None = None,
    ) -> None:
        self.link = Link()
        self.counters = Counters()
        self.end = end(self.counters) if end else None
        self.guest = Guest(guest_network(), GUEST_MAC, ip(GUEST_LINK_LOCAL))
        self.watched: list[UdpSocket] = []
        opener = MappingSockets(self.guest, Feature.GRO in features, self._watch, self._unwatch, Descriptors())
        self.nat = UdpNat(self.guest, opener, sender_key, now=NOW)
        link = self.end or self.link
        self.icmp = IcmpToGuest(link, self.guest, self.counters)
        self.services: dict[tuple[int, int], ServiceHandler] = {}
        kind = FramedReceiver if isinstance(self.end, Stream) else ContiguousReceiver
        receivers: dict[int, Receiver] = {family: kind(family) for family in (4, 6)}
        self.time = 0.0
        many = ManySenders(self.nat, self.end, ring) if self.end else None
        self.udp = UdpSockets(
            self.nat,
            link,
            self.icmp,
            None,
            receivers,
            self.services,
            self.counters,
            features,
            carried,
            lambda: self.time,
            many,
        )
        self.epoll = select.epoll()
        step, carry = self.udp.step, self.udp.carry_unknown
        self.alone: list[UdpSocket] = []
        self.ready = ReadyMappings(
            self.epoll, self.alone.append, self.alone.remove, step, carry, many, self.counters, lambda: self.time
        )

    def _watch(self, udp_socket: UdpSocket) -> None:
        self.ready.watch(udp_socket)
        self.watched.append(udp_socket)

    def _unwatch(self, udp_socket: UdpSocket) -> None:
        self.ready.unwatch(udp_socket)
        self.watched.remove(udp_socket)

    def send(
        self, family: int, target: tuple[Any, ...], payload: bytes = b"?", port: int = 0, segment: int = 0
    ) -> None:
        """Let the guest send to a socket of the test; without `port` from one that is free on the host."""
        packet = udp_packet(family, port or free_port("udp"), target[1], payload)
        self.udp.outbound(replace(packet, segment=segment))

    def receive(self) -> None:
        """Move what the host sockets hold."""
        for udp_socket in list(self.watched):
            self.udp.step(udp_socket)

    def close(self) -> None:
        self.nat.close()
        assert self.watched == self.alone == [], "everything has been closed"
        self.ready.close()


@contextmanager
def bench(
    features: frozenset[Feature] = ALL,
    carried: bool = True,
    end: Callable[[Counters], Tap | Stream] | None = None,
    ring: Ring | None = None,
) -> Iterator[Bench]:
    """A bench that is cleared in the end."""
    made = Bench(features, carried, end, ring)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def ringed(wanted: bool) -> Iterator[Ring | None]:
    """A ring, or none where none is wanted."""
    with ExitStack() as stack:
        made = open_ring() if wanted else None
        if made is not None:
            stack.callback(made.close)
        yield made


@contextmanager
def far_end(room: int = 1 << 22) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What stands for a tap here, and its other end; `room` is in bytes."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        for sock in (near, far):
            sock.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        yield near, far


def frames_of(far: socket.socket) -> list[bytes]:
    """Return the frames that have been written to a tap, each behind its virtio-net header."""
    found = []
    while True:
        try:
            found.append(far.recv(1 << 17))
        except BlockingIOError:
            return [frame for frame in found if frame]  # to find out whether it takes a ring's writes, one is empty


@contextmanager
def server(family: int) -> Iterator[socket.socket]:
    """A socket on the host's loopback."""
    with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK[family], 0))
        sock.settimeout(2)
        yield sock


def udp_frame(family: int, port: int, to_port: int, payload: bytes, target: str = "") -> bytes:
    """Return the frame of a datagram of the guest, to its gateway unless told otherwise."""
    (packet,) = scripted.udp_packets(GUEST[family], port, target or GATEWAY[family], to_port, payload, 65535)
    return HOST_MAC + GUEST_MAC + packet


def udp_packet(family: int, port: int, to_port: int, payload: bytes, target: str = "") -> Packet:
    """Return the same as a packet."""
    return parse_ip(memoryview(udp_frame(family, port, to_port, payload, target)))
