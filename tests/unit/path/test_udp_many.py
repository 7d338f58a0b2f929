"""Batches of many senders to one listener, as columns and row by row: the same frames reach the guest."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.host.sockets import new_udp_socket, stand_in
from gpasst.link.port import divert
from gpasst.link.tap import Tap
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.packet.segmentation import split
from gpasst.path import udp_slots
from gpasst.path.udp_many import FEW, JOIN_FROM, MANY
from gpasst.path.udp_slots import Heads
from gpasst.udp.header import Header
from gpasst.udp.mapping import Listener
from gpasst.wire import UDP4, UDP6
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.bench import Bench, bench, far_end, frames_of, ringed
from tests.support.families import FAMILIES, FAMILY, LOOPBACK

MOVED = bytes.fromhex("0200000000aa")
RINGS = pytest.mark.parametrize("ring", [True, False], ids=["ring", "no ring"])
SENDERS = 12
HEAD = {4: UDP4.size, 6: UDP6.size}
MARKS = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
Datagram = tuple[int, bytes]  # TOS and TTL, payload
# Sender, payload bytes, TOS.
SENDS = st.lists(
    st.tuples(st.integers(0, SENDERS - 1), st.sampled_from([0, 1, 64, 64, 1400]), st.sampled_from([0, 0, 0, 8])),
    min_size=1,
    max_size=60,
)


class Record:
    """A recorder's stand-in."""

    def write(self, to_guest: bool, *parts: bytes, comment: str = "") -> None:
        assert to_guest
        assert not comment


class Ground:
    """A listener with senders on the host, and the guest's end of the tap."""

    def __init__(self, it: Bench, family: int, far: socket.socket, senders: list[socket.socket]) -> None:
        self.it, self.family, self.far, self.senders = it, family, far, senders
        assert isinstance(it.end, Tap)
        self.tap = it.end
        sock = new_udp_socket(family, gro=True, packet_info=True)
        stand_in(sock, family)
        sock.bind((LOOPBACK[family], 0))
        self.listener = Listener(family, sock.getsockname()[1], sock, target=7000)
        it.nat.listen(self.listener)
        for sender in senders:
            sender.connect((LOOPBACK[family], self.listener.port))

    def send(self, sends: list[tuple[int, int, int]]) -> None:
        for number, (who, size, tos) in enumerate(sends):
            self.senders[who].setsockopt(*MARKS[self.family], tos)
            self.senders[who].send(bytes([number & 0xFF]) * size)

    def step(self) -> int:
        return self.it.udp.step(self.listener)

    def frames(self) -> list[bytes]:
        return frames_of(self.far)

    def flows(self) -> dict[int, list[Datagram]]:
        """Return what the guest receives, by the sender's index."""
        ports = {peer.shown[1]: peer.remote[1] for peer in self.listener.peers()}
        indices = {sender.getsockname()[1]: i for i, sender in enumerate(self.senders)}
        flows: dict[int, list[Datagram]] = {}
        for frame in self.frames():
            for whole in split(frame):
                packet = parse_ip(memoryview(whole))
                port, _, payload = parse_udp(packet.payload)
                flows.setdefault(indices[ports[port]], []).append((packet.tos_ttl, bytes(payload)))
        return flows

    def headers(self, mac: bytes, tos_ttl: int) -> list[Header]:
        """Return new headers of each sender's frames."""
        peers = {peer.remote[1]: peer for peer in self.listener.peers()}
        found = []
        for sender in self.senders:
            peer = peers[sender.getsockname()[1]]
            (address, port), mapping = peer.shown, peer.mapping
            found.append(Header(self.family, mac, HOST_MAC, address, mapping.guest, port, mapping.port))
            found[-1].set_tos_ttl(tos_ttl)
        return found

    def meet(self) -> None:
        """Let every sender become known, and leave the listener as it is after a batch of many senders."""
        for _ in range(2):
            self.send([(i, 1, 0) for i in range(SENDERS)])
            self.step()
        self.frames()
        assert self.listener.scattered == self.tap.bare


@contextmanager
def ground(
    family: int, superframes: bool = True, recorded: bool = False, room: int = 1 << 22, ring: bool = True
) -> Iterator[Ground]:
    with ExitStack() as stack:
        near, far = stack.enter_context(far_end(room))
        families = frozenset((4, 6)) if superframes else frozenset[int]()

        def tap(counters: Counters) -> Tap:
            return Tap(near.fileno(), counters, {"udp": families})

        it = stack.enter_context(bench(end=tap, ring=stack.enter_context(ringed(ring))))
        senders = [stack.enter_context(socket.socket(FAMILY[family], socket.SOCK_DGRAM)) for _ in range(SENDERS)]
        made = Ground(it, family, far, senders)
        if recorded:
            made.tap.recorder = cast(Any, Record())
        yield made
        assert made.listener.socket is not None
        for _ in it.nat.retire(made.listener):
            pass
        made.listener.socket.close()


@RINGS
@FAMILIES
@settings(max_examples=15, deadline=None)
@example([(i % SENDERS, 64, 0) for i in range(48)])
@example([(0, 64, 0)] * 20 + [(1, 64, 8), (1, 64, 0)] * 9)
@example([(i % 2, 64 if i % 7 else 10, 0) for i in range(60)])
@given(sends=SENDS)
def test_columns_and_rows_carry_the_same_datagrams(family: int, ring: bool, sends: list[tuple[int, int, int]]) -> None:
    with ground(family, ring=ring) as columns, ground(family, recorded=True, ring=ring) as rows:
        flows = []
        for it in (columns, rows):
            it.meet()
            it.send(sends)
            it.step()
            flows.append(it.flows())
        assert flows[0] == flows[1]
        assert sum(map(len, flows[0].values())) == len(sends)
        assert columns.it.counters.udp.up.datagrams == rows.it.counters.udp.up.datagrams
        assert columns.it.counters.udp.up.bytes == rows.it.counters.udp.up.bytes


@RINGS
@FAMILIES
def test_a_lone_datagram_is_a_frame_like_that_of_its_header(family: int, ring: bool) -> None:
    with ground(family, ring=ring) as it:
        it.meet()
        it.send([(i, 10 * i, 8 * (i % 2)) for i in range(SENDERS)])
        it.step()
        frames = it.frames()
        assert len(frames) == SENDERS
        for i, (frame, header) in enumerate(zip(frames, it.headers(GUEST_MAC, 64), strict=True)):
            header.set_tos_ttl((8 * (i % 2)) << 8 | 64)
            assert frame == bytes(header.fill(10 * i, 10 * i)) + bytes([i]) * (10 * i)


@RINGS
@FAMILIES
def test_headers_that_are_kept_are_those_of_each_datagram(family: int, ring: bool) -> None:
    """Whatever changes from one batch of equal datagrams to the next."""
    with ground(family, ring=ring) as it:
        it.meet()
        guest = it.it.nat.guest
        for size, tos, mac in (
            [(64, 0, GUEST_MAC)] * 2 + [(65, 0, GUEST_MAC)] * 2 + [(65, 8, GUEST_MAC), (65, 8, MOVED)]
        ):
            guest.learn_mac(mac)
            for _ in range(2):
                it.send([(i, size, tos) for i in range(SENDERS)])
                it.step()
                assert [frame[:-size] for frame in it.frames()] == [
                    bytes(header.fill(size, size)) for header in it.headers(mac, tos << 8 | 64)
                ]


@FAMILIES
def test_a_peer_whose_header_is_kept_counts_as_active(family: int) -> None:
    with ground(family) as it:
        it.meet()
        activity = it.it.nat.tables[family].activity
        everybody = [(i, 64, 0) for i in range(SENDERS)]
        for now in range(3):
            activity[:] = bytes(len(activity))
            it.it.udp.scan(now)
            for _ in range(2):
                it.send(everybody)
                it.step()
                assert all(activity[peer.byte] & peer.bit for peer in it.listener.peers())


@RINGS
def test_headers_of_too_many_peers_are_not_kept(ring: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_slots, "KEPT", SENDERS - 1)
    made: list[int] = []
    with (
        ground(4, ring=ring) as it,
        mock.patch.object(Heads, "forget", autospec=True, side_effect=Heads.forget) as forget,
    ):
        it.meet()
        forget.reset_mock()
        for second in range(2):
            for _ in range(3):
                it.send([(i, 64, 0) for i in range(SENDERS)])
                it.step()
                made.append(len(it.frames()))
            it.it.udp.scan(second)
        assert made == [SENDERS] * 6
        assert forget.call_count == 4, "once a second, and once in each when they are too many"


def test_several_datagrams_of_a_flow_are_a_superframe() -> None:
    with ground(4) as it:
        it.meet()
        it.send([(i % 2, 100, 0) for i in range(2 * JOIN_FROM)])
        it.step()
        assert [len(frame) - HEAD[4] for frame in it.frames()] == [100 * JOIN_FROM] * 2
        assert it.it.counters.udp.up.superframes == 2


def test_without_superframes_each_is_a_frame() -> None:
    with ground(4, superframes=False) as it:
        it.meet()
        it.send([(i % 2, 100, 0) for i in range(2 * JOIN_FROM)])
        it.step()
        assert [len(frame) for frame in it.frames()] == [HEAD[4] + 100] * 2 * JOIN_FROM


def test_the_layout_follows_the_senders() -> None:
    with ground(4) as it:
        it.meet()
        assert it.listener.scattered
        it.send([(0, 100, 0)] * MANY * FEW)
        it.step()
        assert not it.listener.scattered
        for _ in range(2):  # the first tells the receiver the size
            it.send([(0, 100, 0)] * 20)
            it.step()
            assert not it.listener.scattered
        assert [len(frame) for frame in it.frames()][-1] == HEAD[4] + 20 * 100, "joined as they are received"
        it.send([(i % 3, 100, 0) for i in range(MANY + 1)])
        it.step()
        assert it.listener.scattered


@RINGS
def test_new_senders_come_behind_known_ones(ring: bool) -> None:
    with ground(4, ring=ring) as it, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
        it.meet()
        new.connect((LOOPBACK[4], it.listener.port))
        it.senders.append(new)
        it.send([(SENDERS, 5, 0), (0, 6, 0), (SENDERS, 7, 0), (1, 8, 0)])
        assert it.step() == 4
        assert [len(frame) - HEAD[4] for frame in it.frames()] == [6, 8, 5, 7]


def test_weather_takes_every_run() -> None:
    with ground(4) as it:
        it.meet()
        taken: list[int] = []

        class Writer:
            def write_run(self, header: Any, total: int, segment: int, payload: list[memoryview]) -> None:
                taken.append(total)

            write_bare = write_frame = cast(Any, None)

        divert(it.tap, Writer())
        it.send([(i, 5, 0) for i in range(SENDERS)])
        it.step()
        assert taken == [5] * SENDERS
        divert(it.tap, None)
        assert it.frames() == []


@RINGS
def test_what_the_tap_does_not_take_is_counted(ring: bool) -> None:
    with ground(4, room=1, ring=ring) as it:
        it.meet()
        it.it.counters.drops.clear()
        before = it.it.counters.udp.up.datagrams
        it.send([(i, 1400, 0) for i in range(SENDERS)])
        it.step()
        arrived = len(it.frames())
        assert 0 < arrived < SENDERS
        assert it.it.counters.udp.up.datagrams - before == arrived
        assert it.it.counters.drops == {Drop.TAP_FULL: SENDERS - arrived}
        it.far.close()
        it.send([(0, 1, 0), (1, 1, 0)])
        it.step()
        assert it.it.counters.drops[Drop.TAP_FAILED] == 2, os.strerror(errno.EPIPE)
