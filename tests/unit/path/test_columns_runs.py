"""Frames of many flows that have several each: they leave in runs, as if each were carried by itself."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, cast
from unittest import mock

import pytest

from gpasst.counters import Drop
from gpasst.features import ALL, Feature
from gpasst.flow.sender import Sender
from gpasst.host.scatter import Scatter
from gpasst.host.send import sender_to
from gpasst.linux import (
    IORING_OP_READ,
    IORING_OP_SEND,
    IORING_OP_SENDMSG,
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
from gpasst.path.budget import SHALLOW
from gpasst.testing import free_port
from gpasst.udp.mapping import Peer
from tests.support.bench import NOW, udp_frame
from tests.support.bench import ringed as ring
from tests.support.families import FAMILIES, LEVEL, LOOPBACK
from tests.support.floods import LINKS, RINGS, Flood, Link, Refusing, marked, ports
from tests.support.rings import PATIENCE, Asked, asked
from tests.support.taps import WAYS, Case

FLOWS = 10
DEEP = 240  # frames that both links carry in one step, once the tap was deepened
MARKED = 0x28 << 8 | 128  # TOS and TTL
PLAIN = 64
REPORTS = {4: (IP_RECVTOS, IP_RECVTTL), 6: (IPV6_RECVTCLASS, IPV6_RECVHOPLIMIT)}
MARKS = {4: (IP_TOS, IP_TTL), 6: (IPV6_TCLASS, IPV6_HOPLIMIT)}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class Deep:
    """A guest whose next step carries many frames together.

    :ivar asked: what its ring was asked for, None without one.
    """

    def __init__(
        self,
        stack: ExitStack,
        link: Link,
        ringed: bool,
        family: int = 4,
        count: int = FLOWS,
        features: frozenset[Feature] = ALL,
    ) -> None:
        made = stack.enter_context(ring(ringed))
        self.asked: Asked | None = None if made is None else stack.enter_context(asked(made))
        self.case: Case = stack.enter_context(link(features, made))
        self.flood = Flood(stack, self.case, family, count)
        self.deepen()

    def deepen(self) -> None:
        for depth in (64, 128):
            self.case.give(*self.flood.frames(depth))
            assert self.case.reader.step() == depth
        self.flood.clear()
        if self.asked is not None:
            self.asked.calls.clear()
            self.asked.segments.clear()

    def carry(self, frames: list[bytes]) -> tuple[int, int, int]:
        """Carry frames in one step; return datagrams, bytes and superframes that it has sent."""
        before = self._tallies()
        self.case.give(*frames)
        assert self.case.reader.step() == len(frames)
        datagrams, total, superframes = (now - old for now, old in zip(self._tallies(), before, strict=True))
        return datagrams, total, superframes

    def _tallies(self) -> tuple[int, int, int]:
        down = self.case.counters.udp.down
        return down.datagrams, down.bytes, down.superframes

    def sends(self) -> set[int]:
        """The operations that the ring was asked for, but those that read."""
        assert self.asked is not None
        return {operation for call in self.asked.calls for operation in call} - {IORING_OP_READ}


@FAMILIES
@LINKS
@RINGS
def test_each_flow_keeps_its_order(stack: ExitStack, family: int, link: Link, ringed: bool) -> None:
    deep = Deep(stack, link, ringed, family, 2 * FLOWS)
    for size in (10, 7):
        assert deep.carry(deep.flood.frames(DEEP, size)) == (DEEP, size * DEEP, 2 * FLOWS)
        deep.flood.clear()
        if ringed:
            assert deep.sends() == {IORING_OP_SENDMSG}
        deep.deepen()
    assert deep.case.counters.drops == {}


@FAMILIES
@LINKS
@RINGS
@pytest.mark.parametrize(
    ("size", "counts", "superframes"),
    [
        (2, (80, 80, 80), 6),
        (2, (64, 64, 64), 3),
        (2, (65, 65, 65), 3),
        (2, (200, 1, 2), 5),
        (1400, (60, 60), 4),
        (1400, (46, 47), 2),
    ],
)
def test_long_runs_are_cut_in_order(
    stack: ExitStack, family: int, link: Link, ringed: bool, size: int, counts: tuple[int, ...], superframes: int
) -> None:
    deep = Deep(stack, link, ringed, family)
    frames = [
        deep.flood.frame(flow, size) for turn in range(max(counts)) for flow, count in enumerate(counts) if turn < count
    ]
    assert deep.carry(frames) == (len(frames), size * len(frames), superframes)
    deep.flood.clear()
    assert deep.case.counters.drops == {}


@LINKS
@pytest.mark.parametrize(
    ("flows", "count", "runs", "early"),
    [(70, 139, 0, False), (70, 140, 70, True), (FLOWS, SHALLOW, FLOWS, False), (FLOWS, SHALLOW + 1, FLOWS, True)],
)
def test_runs_are_made_where_flows_have_two_on_average(
    stack: ExitStack, link: Link, flows: int, count: int, runs: int, early: bool
) -> None:
    """Early, before anything is looked up by frame, where there are so many that this is likely."""
    deep = Deep(stack, link, True, count=flows)
    frames = deep.flood.frames(count)
    with mock.patch.object(Scatter, "send", autospec=True, side_effect=Scatter.send) as by_frame:
        assert deep.carry(frames) == (count, 2 * count, runs)
    deep.flood.clear()
    assert deep.sends() == {IORING_OP_SENDMSG if runs else IORING_OP_SEND}
    assert by_frame.called != early


@FAMILIES
@LINKS
@RINGS
@pytest.mark.parametrize("odd", ["longer", "unknown flow", "marked"])
@pytest.mark.parametrize("place", [0, 30, 130, DEEP - 1])
def test_odd_ones_stand_among_runs(
    stack: ExitStack, family: int, link: Link, ringed: bool, odd: str, place: int
) -> None:
    """What is before these is not overtaken by what is behind."""
    deep = Deep(stack, link, ringed, family)
    flood = deep.flood
    frames = flood.frames(place)
    if odd == "longer":
        frames.append(flood.frame(place % FLOWS, 3))
    elif odd == "marked":
        frames.append(marked(flood.frame(place % FLOWS), 0x28, 128))
    else:
        (port,) = ports(1)
        frames.append(udp_frame(family, port, flood.hosts[0].getsockname()[1], b"?!"))
    frames += flood.frames(DEEP - 1 - place)
    deep.case.give(*frames)
    assert deep.case.reader.step() == DEEP
    deep.case.move()
    while deep.case.backlog.frames:
        deep.case.backlog.step()
    if odd == "unknown flow":
        arrived = flood.arrived()
        arrived[0].remove(b"?!")
        assert arrived == flood.sent
    else:
        flood.clear()
    assert deep.case.counters.drops == {}


def with_marks(flood: Flood) -> list[list[tuple[bytes, int]]]:
    """Return what each flow's socket has received, with TOS and TTL."""
    family = flood.family
    found: list[list[tuple[bytes, int]]] = []
    for host in flood.hosts:
        found.append([])
        try:
            while True:
                data, control, _, _ = host.recvmsg(2000, 200)
                values = {(level, kind): value[0] for level, kind, value in control}
                tos, ttl = (values[LEVEL[family], kind] for kind in MARKS[family])
                found[-1].append((data, tos << 8 | ttl))
        except BlockingIOError:
            pass
    return found


@FAMILIES
@LINKS
@RINGS
def test_marks_stay_with_their_datagrams(stack: ExitStack, family: int, link: Link, ringed: bool) -> None:
    """Those of a whole step, and those that change within one."""
    deep = Deep(stack, link, ringed, family)
    flood = deep.flood
    for host in flood.hosts:
        for option in REPORTS[family]:
            host.setsockopt(LEVEL[family], option, 1)
    for marks in (
        [PLAIN] * DEEP,
        [MARKED] * DEEP,
        [MARKED] * DEEP,
        [PLAIN] * (DEEP // 2) + [MARKED] * (DEEP // 2),
        [MARKED] * 10 + [PLAIN] * (DEEP - 10),
        [PLAIN] * (DEEP - 5) + [MARKED] * 5,
    ):
        frames = [marked(frame, tos >> 8, tos & 0xFF) for frame, tos in zip(flood.frames(DEEP), marks, strict=True)]
        assert deep.carry(frames)[:2] == (DEEP, 2 * DEEP)
        expected = [list(zip(sent, marks[flow::FLOWS], strict=True)) for flow, sent in enumerate(flood.sent)]
        assert with_marks(flood) == expected
        flood.sent = [[] for _ in range(FLOWS)]
        deep.deepen()


@FAMILIES
@LINKS
def test_peers_of_runs_are_active(stack: ExitStack, family: int, link: Link) -> None:
    deep = Deep(stack, link, False, family)
    table = deep.case.bench.nat.tables[family]
    for now in (NOW + 1, NOW + 2):
        assert not any(expired.mappings for expired in table.scan(now, 10))
    assert {table.idle_seconds(peer) for peer in table} == {1}
    deep.carry(deep.flood.frames(DEEP))
    assert not any(expired.mappings for expired in table.scan(NOW + 3, 10))
    assert {table.idle_seconds(peer) for peer in table} == {0}


def peer_of(deep: Deep, flow: int) -> Peer:
    (found,) = (
        peer for peer in deep.case.bench.nat.tables[deep.flood.family] if peer.mapping.port == deep.flood.guests[flow]
    )
    return found


@FAMILIES
@LINKS
@RINGS
def test_a_refused_run_is_reported_and_the_rest_is_sent(
    stack: ExitStack, family: int, link: Link, ringed: bool
) -> None:
    deep = Deep(stack, link, ringed, family)
    refusing = stack.enter_context(closing(Refusing()))
    peer = peer_of(deep, 3)
    peer.sender = Sender(cast(Any, refusing), sender_to(peer).address)
    each = DEEP // FLOWS
    assert deep.carry(deep.flood.frames(DEEP)) == (DEEP - each, 2 * (DEEP - each), FLOWS - 1)
    deep.flood.sent[3] = []
    deep.flood.clear()
    assert deep.case.counters.drops == {Drop.SEND_FAILED: each}
    (report,) = deep.case.bench.link.frames
    # It quotes the datagram, whose source port says which flow it was.
    assert struct.pack(">H", deep.flood.guests[3]) in report


@FAMILIES
@LINKS
@RINGS
def test_an_earlier_error_of_a_socket_costs_no_run(stack: ExitStack, family: int, link: Link, ringed: bool) -> None:
    deep = Deep(stack, link, ringed, family)
    for flow in range(0, FLOWS, 2):
        sock: Any = peer_of(deep, flow).udp_socket.socket
        sock.sendto(b"?", (LOOPBACK[family], free_port("udp")))
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(1000 * PATIENCE) == [(sock.fileno(), select.POLLERR)]
    # The call of the ring met the error, and the run is sent again; without it, the call of the run itself met it.
    assert deep.carry(deep.flood.frames(DEEP)) == (DEEP, 2 * DEEP, FLOWS if ringed else FLOWS // 2)
    deep.flood.clear()
    assert deep.case.counters.drops == {}


@FAMILIES
@LINKS
@RINGS
@pytest.mark.parametrize("features", WAYS[1:], ids=["no joining", "no GSO", "neither"])
def test_without_joining_or_offload_there_are_no_superframes(
    stack: ExitStack, family: int, link: Link, ringed: bool, features: frozenset[Feature]
) -> None:
    """Not even for senders whose control messages make messages of their sends."""
    deep = Deep(stack, link, ringed, family, features=features)
    for host in deep.flood.hosts:
        host.setsockopt(SOL_UDP, UDP_GRO, 1)
    frames = [
        marked(frame, 0x28, 128) if number % FLOWS < FLOWS - 1 else frame
        for number, frame in enumerate(deep.flood.frames(DEEP))
    ]
    assert deep.carry(frames) == (DEEP, 2 * DEEP, 0)
    if deep.asked is not None:
        assert deep.sends() == {IORING_OP_SEND, IORING_OP_SENDMSG}
        assert not any(deep.asked.segments)
    # Such a socket would receive a superframe as one.
    deep.flood.clear()
