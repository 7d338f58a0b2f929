"""What hosts send to their gateway: known flows at one look, all else by the backlog, and what is not its own."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from gpasst.counters import Drop
from gpasst.formats import VIRTIO_NET_BLANK
from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet.build import wrap, wrap_udp
from gpasst.path.backlog import Backlog, Queue
from gpasst.path.fastpath import FastPath
from gpasst.path.uplink_reader import ALONE_SECONDS, LANES_KNOWN, UplinkReader
from gpasst.testing import free_port
from gpasst.wire import VIRTIO_NET_HDR_GSO_UDP_L4
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, HOST_MAC, ip
from tests.support.bench import Bench, bench, server, udp_frame
from tests.support.families import FAMILIES
from tests.support.questions import request, router_solicitation, solicitation

GROUP4, GROUP6 = b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01"
ARP = b"\x08\x06"
GSO = struct.Struct("<BBHHHH").pack


class Case:
    """A reader, and the frames that its backlog has dispatched.

    :ivar asked: how often a step of the backlog was asked for.
    """

    def __init__(self, it: Bench) -> None:
        self.it = it
        self.dispatched: list[tuple[bytes, int]] = []
        self.asked = 0
        routers = it.guest.routers
        fastpath = FastPath(it.nat.tables)
        self.backlogs: list[Backlog] = []
        self.placed = {GUEST_MAC}

        def make() -> Queue:
            self.backlogs.append(Backlog(self._dispatch, fastpath.knows, self._ask, it.counters, routers=routers))
            return Queue(self.backlogs[-1], self._ask)

        self.reader = UplinkReader(
            HOST_MAC, routers, fastpath, it.udp, make, lambda mac: mac in self.placed, it.counters
        )

    def _dispatch(self, frame: memoryview, segment: int) -> None:
        self.dispatched.append((bytes(frame), segment))

    def _ask(self) -> None:
        self.asked += 1

    def take(self, frame: bytes, virtio: bytes = VIRTIO_NET_BLANK) -> list[tuple[bytes, int]]:
        """Take a frame; return what the backlog makes of it."""
        self.reader.take(virtio + frame)
        before = len(self.dispatched)
        for backlog in self.backlogs:
            backlog.drain(float("inf"))
        return self.dispatched[before:]


@contextmanager
def case() -> Iterator[Case]:
    with bench() as it:
        yield Case(it)


@FAMILIES
def test_a_datagram_of_a_known_peer_leaves_at_once(family: int) -> None:
    with case() as it, server(family) as sock:
        port = free_port("udp")
        it.it.send(family, sock.getsockname(), b"first", port)
        sock.recv(100)
        assert it.take(udp_frame(family, port, sock.getsockname()[1], b"second")) == []
        assert sock.recv(100) == b"second"
        assert it.asked == 0


@FAMILIES
def test_a_superframe_of_a_known_peer_leaves_as_its_datagrams(family: int) -> None:
    with case() as it, server(family) as sock:
        port = free_port("udp")
        it.it.send(family, sock.getsockname(), b"first", port)
        sock.recv(100)
        frame = udp_frame(family, port, sock.getsockname()[1], b"aaabbbcc")
        assert it.take(frame, GSO(1, VIRTIO_NET_HDR_GSO_UDP_L4, 0, 3, 0, 0)) == []
        assert [sock.recv(100) for _ in range(3)] == [b"aaa", b"bbb", b"cc"]


@FAMILIES
@pytest.mark.parametrize("known", [False, True])
def test_superframes_that_no_kernel_makes_are_dropped(family: int, known: bool) -> None:
    with case() as it, server(family) as sock:
        port, to = free_port("udp"), sock.getsockname()[1]
        if known:
            it.it.send(family, sock.getsockname(), b"first", port)
        frame = udp_frame(family, port, to, bytes(UDP_MAX_SEGMENTS + 300))
        for segment in (0, 1):
            assert it.take(frame, GSO(1, VIRTIO_NET_HDR_GSO_UDP_L4, 0, segment, 0, 0)) == []
        assert it.it.counters.drops == {Drop.MALFORMED_UDP: 2}


@FAMILIES
def test_a_datagram_of_an_unknown_peer_goes_by_the_backlog(family: int) -> None:
    with case() as it:
        frame = udp_frame(family, 4000, 5000, b"abcdef")
        assert it.take(frame) == [(frame, 0)]
        assert it.take(frame, GSO(1, VIRTIO_NET_HDR_GSO_UDP_L4, 0, 2, 0, 0)) == [(frame, 2)]
        assert it.asked == 2


@FAMILIES
def test_no_frame_overtakes_those_of_its_flow_in_the_backlog(family: int) -> None:
    with case() as it, server(family) as sock:
        port = free_port("udp")
        it.it.send(family, sock.getsockname(), b"first", port)
        sock.recv(100)
        frames = [udp_frame(family, port, sock.getsockname()[1], data) for data in (b"a", b"b", b"c")]
        it.take(udp_frame(family, port, 9, b"another flow"))
        it.dispatched.clear()
        (backlog,) = it.backlogs
        for frame in frames[:2]:
            backlog.add(memoryview(frame), 0)
        backlog.drain(0.0)
        assert backlog.behind
        it.reader.take(VIRTIO_NET_BLANK + frames[2])
        backlog.drain(float("inf"))
        carried = [frame for frame, _ in it.dispatched]
        assert carried + ([frames[2]] if len(carried) == 2 else []) == frames


def test_questions_to_everybody_are_taken() -> None:
    with case() as it:
        questions = [
            b"\xff" * 6 + GUEST_MAC + ARP + bytes(request(GATEWAY4)),
            wrap(GROUP6, GUEST_MAC, ip(GUEST6), ip("ff02::1:ff00:1"), 58, bytes(solicitation(GATEWAY6).payload)),
            wrap_udp(b"\xff" * 6, GUEST_MAC, ip("0.0.0.0"), ip("255.255.255.255"), 68, 67, b"discover"),
            wrap_udp(GROUP6, GUEST_MAC, ip("fe80::9"), ip("ff02::1:2"), 546, 547, b"solicit"),
        ]
        for question in questions:
            assert it.take(question) == [(question, 0)]


def test_which_questions_are_the_gateways_own() -> None:
    with case() as it:
        asked = {GATEWAY4: True, GUEST4: False}
        for address, expected in asked.items():
            frame = b"\xff" * 6 + GUEST_MAC + ARP + bytes(request(address))
            assert it.reader.answers(VIRTIO_NET_BLANK + frame) is expected
        for packet, expected in (
            (solicitation(GATEWAY6), True),
            (solicitation(GUEST6), False),
            (router_solicitation(), True),
        ):
            frame = wrap(GROUP6, GUEST_MAC, packet.source, packet.destination, 58, bytes(packet.payload))
            assert it.reader.answers(VIRTIO_NET_BLANK + frame) is expected
        discover = wrap_udp(b"\xff" * 6, GUEST_MAC, ip("0.0.0.0"), ip("255.255.255.255"), 68, 67, b"discover")
        assert it.reader.answers(VIRTIO_NET_BLANK + discover)
        gossip = wrap_udp(GROUP4, GUEST_MAC, ip(GUEST4), ip("224.0.0.1"), 5353, 5353, b"gossip")
        assert not it.reader.answers(VIRTIO_NET_BLANK + gossip)
        assert not it.reader.answers(VIRTIO_NET_BLANK + b"\xff" * 6 + GUEST_MAC + b"\x08\x00")


def test_other_frames_to_groups_and_those_for_others_are_not_its_business() -> None:
    with case() as it:
        for frame in (
            wrap_udp(GROUP4, GUEST_MAC, ip(GUEST4), ip("224.0.0.1"), 5353, 5353, b"gossip"),
            wrap_udp(GROUP6, GUEST_MAC, ip(GUEST6), ip("ff02::fb"), 5353, 5353, b"gossip"),
            b"\xff" * 6 + GUEST_MAC + b"\x88\xb5" + bytes(50),
            GUEST_MAC + udp_frame(4, 4000, 5000, b"flooded")[6:],
            b"\xff" * 6 + GUEST_MAC + b"\x08\x00",
        ):
            assert it.take(frame) == []
        assert it.it.counters.drops == {}
        assert it.it.counters.frames_down == 0


@FAMILIES
def test_each_host_has_a_lane_of_its_own_and_strangers_share_one(family: int) -> None:
    with case() as it:
        hosts = [GUEST_MAC[:5] + bytes((last,)) for last in (1, 2)]
        it.placed = set(hosts)
        frame = udp_frame(family, 4000, 5000, b"abc")
        for mac in (*hosts, *hosts, b"\2\2\2\2\2\1", b"\2\2\2\2\2\2"):
            it.reader.take(VIRTIO_NET_BLANK + frame[:6] + mac + frame[12:])
        assert [backlog.frames for backlog in it.backlogs] == [2, 2, 2]


def test_lanes_are_found_again_however_many_addresses_are_invented() -> None:
    with case() as it:
        frame = udp_frame(4, 4000, 5000, b"abc")
        for number in range(LANES_KNOWN + 10):
            it.take(frame[:6] + b"\2\2" + number.to_bytes(4, "big") + frame[12:])
        it.take(frame)
        assert len(it.backlogs) == 2


class Connections:
    """What takes each segment, and has work from then on (`TcpFrames`)."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.did: list[str] = []

    def frame(self, *_: object) -> int:
        self.queue.append(1)
        return 1

    def run(self, deadline: float) -> None:
        assert deadline > 0
        self.queue.clear()
        self.did.append("at once")

    def ask(self) -> None:
        self.did.append("later")


def test_what_follows_from_a_segment_waits_where_segments_come_in_numbers() -> None:
    with bench() as it:
        times = [100.0]
        tcp = Connections()
        routers = it.guest.routers
        fastpath = FastPath(it.nat.tables)
        backlog = Backlog(lambda frame, segment: None, fastpath.knows, lambda: None, it.counters, routers=routers)
        queue = Queue(backlog, lambda: None)
        reader = UplinkReader(
            HOST_MAC,
            routers,
            fastpath,
            it.udp,
            lambda: queue,
            lambda mac: True,
            it.counters,
            cast(Any, tcp),
            lambda: times[-1],
        )
        frame = VIRTIO_NET_BLANK + HOST_MAC + GUEST_MAC + b"\x08\0" + bytes(60)
        for seconds in (0, 0, ALONE_SECONDS / 2, 1):
            times.append(100.0 + seconds)
            reader.take(frame)
        assert tcp.did == ["at once", "later", "later", "at once"]
