"""Frames of the guest: which are taken past the backlog, which leave in one send, and which are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLIN, EPOLLOUT

import pytest

from gpasst.counters import Drop
from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN
from gpasst.linux import UIO_MAXIOV
from gpasst.packet.icmp_error import Reported, too_big
from gpasst.packet.parse import Packet, parse_ip
from gpasst.tcp.segment import MSS_MINIMUM
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.replies import refused
from tests.support.scripted_tcp import tcp_frame
from tests.support.streams import noise
from tests.support.tcp import LIMITS, OURS, TARGET, THEIRS, VIRTIO, Broken, House, Joined, breaks, house

LENGTH = 4  # bytes before a frame on a stream
LEAD = len(VIRTIO) - LENGTH
START = 16  # of the first frame in a stream's buffer
ETHERNET = 14
IP = {4: 20, 6: 40}  # bytes
Mutation = Callable[[bytearray], object]


def taken(made: House, frame: bytes) -> int:
    """Let a frame arrive alone; return how many were taken."""
    buffer = bytearray(VIRTIO + frame)
    return made.frames.frame(buffer, memoryview(buffer), 0, len(buffer))


def packet(frame: bytes) -> Packet:
    return parse_ip(memoryview(frame))


def put(at: int, *values: int) -> Mutation:
    """Return what writes bytes into a frame, counted from its IP header on."""

    def write(frame: bytearray) -> None:
        frame[ETHERNET + at : ETHERNET + at + len(values)] = bytes(values)

    return write


# --- One frame --------------------------------------------------------------------------------------------------------


@FAMILIES
def test_an_ordinary_segment_of_a_known_connection_is_taken(family: int) -> None:
    with house() as made:
        joined = made.join(family)
        frame = joined.frame(TCP_ACK | TCP_PSH, b"data")
        assert made.frames.knows(frame)
        assert taken(made, frame) == 1
        assert joined.remote.recv(99) == b"data"


@FAMILIES
def test_padding_is_no_data(family: int) -> None:
    with house() as made:
        joined = made.join(family)
        assert taken(made, joined.frame(payload=b"?") + b"padding") == 1
        assert joined.remote.recv(99) == b"?"


@pytest.mark.parametrize(
    ("family", "mutation"),
    [
        (4, put(0, 0x46)),
        (4, put(0, 0x65)),
        (4, put(6, 0x20, 0)),
        (4, put(6, 0, 1)),
        (4, put(9, 17)),
        (6, put(6, 17)),
        (6, put(6, 0)),
        (6, put(6, 44)),
        (6, put(0, 0x45)),
        (4, put(-2, 0x86, 0xDD)),
        (6, put(-2, 0x08, 0x06)),
        (4, put(13, 1)),
        (4, put(20, 1)),
        (6, put(20, 1)),
        (6, put(43, 1)),
    ],
    ids=[
        "options",
        "version-4",
        "first-fragment",
        "last-fragment",
        "udp-4",
        "udp-6",
        "hop-by-hop",
        "fragment-6",
        "version-6",
        "not-4",
        "arp",
        "address-4",
        "port-4",
        "address-6",
        "port-6",
    ],
)
def test_others_come_by_the_backlog(family: int, mutation: Mutation) -> None:
    with house() as made:
        joined = made.join(family)
        frame = bytearray(joined.frame(payload=b"data" * 20))
        mutation(frame)
        assert taken(made, bytes(frame)) == 0
        assert (made.run(), made.counters.drops) == ([], {})


@FAMILIES
def test_a_frame_that_is_cut_short_comes_by_the_backlog(family: int) -> None:
    with house() as made:
        frame = made.join(family).frame()
        for size in range(len(frame)):
            assert taken(made, frame[:size]) == 0


@pytest.mark.parametrize(
    ("family", "mutation"),
    [
        (4, put(2, 0, 45)),
        (4, put(2, 0xFF, 0xFF)),
        (4, put(2, 0, 39)),
        (4, put(2, 0, 0)),
        (4, put(32, 0x40)),
        (4, put(32, 0x70)),
        (6, put(4, 0, 25)),
        (6, put(4, 0, 19)),
        (6, put(4, 0, 0)),
        (6, put(52, 0x40)),
        (6, put(52, 0xF0)),
    ],
)
def test_sizes_that_disagree_are_dropped(family: int, mutation: Mutation) -> None:
    """A frame with 4 bytes of data: behind its end, before that of the header, or a header of impossible size."""
    with house() as made:
        joined = made.join(family)
        frame = bytearray(joined.frame(payload=b"data"))
        mutation(frame)
        assert taken(made, bytes(frame)) == 1
        assert (made.run(), made.counters.drops) == ([], {Drop.MALFORMED_TCP: 1})


@FAMILIES
def test_what_came_by_the_backlog_reaches_its_connection(family: int) -> None:
    with house() as made:
        joined = made.join(family)
        made.frames.outbound(packet(joined.frame(payload=noise(1460))))
        assert joined.remote.recv(9999) == noise(1460)
        assert made.tcp.asked
        (answer,) = made.run()
        assert answer.acknowledgement == (joined.sequence + 1460) % (1 << 32)


# --- No connection ----------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("flags", [TCP_ACK, TCP_ACK | TCP_FIN, TCP_SYN | TCP_ACK, 0])
def test_a_segment_of_no_connection_is_reset(family: int, flags: int) -> None:
    with house() as made:
        frame = tcp_frame((OURS[family], THEIRS[family]), (TARGET, 9), (1000, 2000), flags, payload=b"abc")
        found = packet(HOST_MAC + GUEST_MAC + frame)
        with refused(Drop.TCP):
            made.frames.outbound(found)
        (answer,) = made.link.take()
        assert (answer.source, answer.port) == ((THEIRS[family], 9), TARGET)
        if flags & TCP_ACK:
            assert (answer.flags, answer.sequence) == (TCP_RST, 2000)
        else:
            assert (answer.flags, answer.sequence, answer.acknowledgement) == (TCP_RST | TCP_ACK, 0, 1003)


@FAMILIES
@pytest.mark.parametrize("flags", [TCP_RST, TCP_RST | TCP_ACK, TCP_RST | TCP_SYN])
def test_a_reset_is_not_answered(family: int, flags: int) -> None:
    with house() as made:
        frame = tcp_frame((OURS[family], THEIRS[family]), (TARGET, 9), (1000, 2000), flags)
        made.frames.outbound(packet(HOST_MAC + GUEST_MAC + frame))
        assert made.link.frames == []


@FAMILIES
@pytest.mark.parametrize("source", [True, False])
def test_loopback_addresses_are_not_answered(family: int, source: bool) -> None:
    ends = (LOOPBACK[family], THEIRS[family]) if source else (OURS[family], LOOPBACK[family])
    with house() as made:
        with refused(Drop.LOOPBACK_ADDRESS):
            made.frames.outbound(packet(HOST_MAC + GUEST_MAC + tcp_frame(ends, (TARGET, 9), (1, 2), TCP_ACK)))
        assert made.link.frames == []


@FAMILIES
def test_only_segments_of_connections_are_known(family: int) -> None:
    with house() as made:
        joined = made.join(family)
        assert made.frames.knows(joined.frame())
        for size in range(ETHERNET + IP[family] + 4):
            assert not made.frames.knows(joined.frame()[:size]), "cut short"
        made.sockets.end(joined.connection)
        assert not made.frames.knows(joined.frame())


# --- A narrower link of the guest -------------------------------------------------------------------------------------


def report(joined: Joined, mtu: int, ahead: int = 0, port: int = 0) -> Reported:
    """Return the guest's error about a segment that was sent to it."""
    family = joined.family
    return Reported(
        too_big(family, mtu),
        ip(THEIRS[family]),
        ip(OURS[family]),
        port or joined.port,
        TARGET,
        b"",
        6,
        (joined.expected + ahead) % (1 << 32),
    )


@FAMILIES
def test_a_segment_that_did_not_fit_is_sent_again_in_smaller_ones(family: int) -> None:
    data, size = noise(3000), 1300 - IP[family] - 20
    with house() as made:
        joined, other = made.join(family), made.join(family)
        joined.remote.sendall(data)
        made.event((joined, EPOLLIN))
        made.frames.too_big(report(joined, 1300, ahead=1400))
        assert made.tcp.asked
        segments = made.run()
        assert [len(segment.payload) for segment in segments] == [size, size, 3000 - 2 * size]
        assert joined.hear(segments) == data
        assert (joined.connection.sender.mss, other.connection.sender.mss) == (size, LIMITS[family])
        assert made.counters.drops == {}


@FAMILIES
@pytest.mark.parametrize(
    ("mtu", "ahead", "port"),
    [(1300, -1, 0), (1300, 3000, 0), (1300, 1 << 31, 0), (1300, 0, 9), (0, 0, 0), (67, 0, 0)],
    ids=["acknowledged", "not-sent", "far", "other-port", "no-mtu", "impossible"],
)
def test_what_nobody_can_know_changes_nothing(family: int, mtu: int, ahead: int, port: int) -> None:
    with house() as made:
        joined = made.join(family)
        joined.remote.sendall(noise(3000))
        made.event((joined, EPOLLIN))
        with refused(Drop.GUEST_ERROR):
            made.frames.too_big(report(joined, mtu, ahead, port))
        assert made.run() == []
        assert joined.connection.sender.mss == LIMITS[family]


def test_no_link_of_ipv6_is_narrower_than_1280_bytes() -> None:
    with house() as made:
        joined = made.join(6)
        joined.remote.sendall(noise(3000))
        made.event((joined, EPOLLIN))
        with refused(Drop.GUEST_ERROR):
            made.frames.too_big(report(joined, 1279))
        made.frames.too_big(report(joined, 1280))
        assert joined.connection.sender.mss == 1220


def test_segments_do_not_become_tiny() -> None:
    with house() as made:
        joined = made.join()
        joined.remote.sendall(noise(3000))
        made.event((joined, EPOLLIN))
        made.frames.too_big(report(joined, 68))
        assert joined.connection.sender.mss == MSS_MINIMUM
        made.run()
        made.frames.too_big(report(joined, 1000))
        assert joined.connection.sender.mss == MSS_MINIMUM, "an error never says that they may be larger"
        assert made.run() == []


# --- Runs on a stream -------------------------------------------------------------------------------------------------


class Run:
    """A connection, and frames of its guest one behind the other."""

    def __init__(self, made: House, family: int) -> None:
        self.house = made
        self.joined: Joined = made.join(family)
        self.sock: Broken = breaks(self.joined)

    def frames(self, count: int, size: int = 100) -> list[bytearray]:
        """Return the frames of data in order."""
        data = noise(count * size)
        return [
            bytearray(self.joined.frame(payload=data[at : at + size], ahead=at)) for at in range(0, len(data), size)
        ]

    def taken(self, frames: list[bytearray], recorded: bool = False) -> int:
        """Let frames arrive together; return how many the first brought."""
        buffer = bytearray(START)
        for frame in frames:
            buffer += len(frame).to_bytes(LENGTH, "big") + frame
        end = 0 if recorded else len(buffer)
        size = LENGTH + len(frames[0]) + LEAD
        return self.house.frames.frame(buffer, memoryview(buffer), START - LEAD, size, end)


@contextmanager
def stream(family: int = 4) -> Iterator[Run]:
    with house() as made:
        yield Run(made, family)


@FAMILIES
def test_a_run_leaves_in_one_send(family: int) -> None:
    with stream(family) as run:
        assert run.taken(run.frames(20)) == 20
        assert run.sock.sent == [noise(2000)]
        (answer,) = run.house.run() or run.house.wait(1.0)
        assert answer.acknowledgement == (run.joined.sequence + 2000) % (1 << 32)
        assert run.house.counters.tcp.down.datagrams == 20


@pytest.mark.parametrize(
    ("family", "mutation"),
    [
        *((family, put(IP[family] + 7, 1)) for family in (4, 6)),
        *((family, put(IP[family] + 11, 99)) for family in (4, 6)),
        *((family, put(IP[family] + 13, TCP_ACK | TCP_FIN)) for family in (4, 6)),
        *((family, put(IP[family] + 13, TCP_ACK | 32)) for family in (4, 6)),
        *((family, put(IP[family] + 13, TCP_PSH)) for family in (4, 6)),
        *((family, put(IP[family] + 14, 1)) for family in (4, 6)),
        *((family, put(IP[family] + 12, 0x60)) for family in (4, 6)),
        *((family, put(IP[family] + 1, 1)) for family in (4, 6)),
        (4, put(1, 4)),
        (4, put(6, 0x20)),
        (4, put(8, 63)),
        (4, put(15, 1)),
        (6, put(1, 1)),
        (6, put(6, 17)),
        (6, put(7, 63)),
        (6, put(23, 1)),
        *((family, lambda frame: frame.append(0)) for family in (4, 6)),
        *((family, lambda frame: frame.pop()) for family in (4, 6)),
        *((family, put(-3, 1)) for family in (4, 6)),
    ],
)
def test_a_run_ends_before_a_frame_that_differs(family: int, mutation: Mutation) -> None:
    with stream(family) as run:
        frames = run.frames(5)
        mutation(frames[3])
        assert run.taken(frames) == 3
        assert run.sock.sent == [noise(500)[:300]]


@pytest.mark.parametrize("at", [4, 10], ids=["identification", "ip-checksum"])
def test_what_differs_within_a_flow_ends_no_run(at: int) -> None:
    with stream() as run:
        frames = run.frames(5)
        put(at, 1, 2)(frames[3])
        put(IP[4] + 16, 1, 2)(frames[3])
        assert run.taken(frames) == 5


@FAMILIES
@pytest.mark.parametrize("first", ["fin", "padded", "recorded", "gap", "ahead"])
def test_a_first_frame_that_stands_alone(family: int, first: str) -> None:
    with stream(family) as run:
        frames = run.frames(3)
        if first == "fin":
            put(IP[family] + 13, TCP_ACK | TCP_FIN)(frames[0])
        elif first == "padded":
            for frame in frames:
                frame.extend(b"padding")
        elif first == "gap":
            frames = frames[1:]
        elif first == "ahead":
            run.joined.say(payload=noise(300)[100:200], ahead=100)
        assert run.taken(frames, recorded=first == "recorded") == 1


def test_a_run_is_no_longer_than_the_window() -> None:
    with stream() as run:
        assert run.taken(run.frames(50, 1460)) == 65535 // 1460
        (answer,) = run.house.run()
        assert answer.acknowledgement == (run.joined.sequence + 65535 // 1460 * 1460) % (1 << 32)
        assert run.house.counters.drops == {}


def test_a_run_is_no_longer_than_one_call_takes() -> None:
    with stream() as run:
        assert run.taken(run.frames(UIO_MAXIOV + 10, 10)) == UIO_MAXIOV


def test_what_a_socket_does_not_take_of_a_run_is_kept() -> None:
    with stream() as run:
        run.sock.takes = [250]
        assert run.taken(run.frames(5)) == 5
        assert run.sock.sent == [noise(500)[:250]]
        run.sock.takes = [0]
        run.joined.say(payload=noise(600)[500:], ahead=500)
        run.house.run()
        run.house.event((run.joined, EPOLLOUT))
        assert b"".join(run.sock.sent) == noise(600)
