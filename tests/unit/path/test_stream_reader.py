"""Frames on their way out of a stream: however it is cut, the same datagrams leave, in order and joined in runs."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.features import ALL, Feature
from gpasst.formats import ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, PROTOCOL_UDP, VIRTIO_NET_BLANK
from gpasst.link.port import FREE, PASSED, TAKEN
from gpasst.linux import SOL_UDP, UDP_SEGMENT
from gpasst.path.backlog import CROWDED_LIMIT, Backlog
from gpasst.path.budget import CROWDED_SECONDS, RECEIVES_PER_STEP, STEP_SECONDS
from gpasst.path.dispatch import Dispatch, Handler
from gpasst.path.fastpath import FastPath
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.service_handlers import ServiceHandlers
from gpasst.path.stream_reader import BUFFER_BYTES, RUNS_PER_LOOK, WINDOW_LEAST, StreamReader
from gpasst.path.udp_sockets import UdpSockets
from gpasst.udp.mapping import UdpSocket
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.nat import Host
from tests.support.tcp import TcpBench

GUEST = {4: ip(GUEST4), 6: ip(GUEST6)}
SERVER = {4: ip(SERVER4), 6: ip(SERVER6)}
SERVER_TEXT = {4: SERVER4, 6: SERVER6}
PORT, OTHER_PORT, SERVER_PORT = 5000, 5001, 53
ARP = b"\xff" * 6 + GUEST_MAC + bytes.fromhex("0806 0001 0800 06 04 0001") + GUEST_MAC + GUEST[4] + bytes(6) + SERVER[4]
BAD = b"bad"  # mark of the frames that meet a defect
LARGEST = {4: 65535 - 14 - 28, 6: 65535 - 14 - 48}  # payload bytes of one frame
# What no frame of a stream may have for its length: shorter than an Ethernet header, longer than 65535 bytes.
ILLEGAL = (0, 1, 13, 65536, 70000, 2**32 - 1)


class Guest:
    """The stream as the guest filled it: so many bytes a receive, and perhaps an end."""

    def __init__(self, *pieces: bytes, ends: bool = False) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.ends = ends

    def recv_into(self, buffer: memoryview, room: int, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        assert 0 < room == len(buffer)
        if not self.pieces:
            if self.ends:
                return 0
            raise BlockingIOError
        piece = self.pieces.pop(0)
        if len(piece) > room:
            self.pieces.insert(0, piece[room:])
        size = min(room, len(piece))
        buffer[:size] = piece[:size]
        return size


class HostSocket:
    """A host's socket: what was sent, and in which calls."""

    def __init__(self, port: int, sent: list[tuple[int, Any, bytes]], calls: list[int]) -> None:
        self.port = port
        self.sent = sent
        self.calls = calls

    def sendto(self, payload: memoryview, address: Any) -> int:
        self.sent.append((self.port, address, bytes(payload)))
        self.calls.append(1)
        return len(payload)

    def fileno(self) -> int:
        raise AssertionError("nothing is received")

    def close(self) -> None:
        raise AssertionError("nothing expires")

    def recvmsg(self, *_: int) -> Any:
        raise BlockingIOError

    def sendmsg(self, pieces: Iterable[Any], control: Any = (), flags: int = 0, address: Any = None) -> int:
        del flags
        pieces = list(pieces)
        data = b"".join(pieces)
        segments = [value for level, kind, value in control if (level, kind) == (SOL_UDP, UDP_SEGMENT)]
        if not segments:
            # One datagram, with a TOS and TTL that are not the default.
            return self.sendto(memoryview(data), address)
        (segment,) = struct.unpack("@H", segments[0])
        assert 1 < len(pieces) <= 64
        assert len(data) <= 65487
        self.sent += [(self.port, address, data[at : at + segment]) for at in range(0, len(data), segment)]
        self.calls.append(len(pieces))
        return len(data)


class Sockets(Host):
    """Host sockets that keep what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any, bytes]] = []
        self.calls: list[int] = []
        self.socket_class: type[HostSocket] = HostSocket
        super().__init__()

    def open_socket(self, family: int, port: int) -> UdpSocket:
        udp_socket = super().open_socket(family, port)
        udp_socket.socket = self.socket_class(udp_socket.port, self.sent, self.calls)
        return udp_socket


class Answers:
    """The guest's end as services see it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)


class Record:
    """A capture file's stand-in."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write(self, to_guest: bool, *parts: bytes) -> None:
        assert not to_guest
        self.frames.append(b"".join(parts)[10:])


class Link:
    """What `StreamReader` sees of a stream."""

    def __init__(self, recorder: Record | None) -> None:
        self.socket: Guest | None = None
        self.recorder = recorder
        self.gate: Any = None


class Case:
    """A path from a stream to sockets, with everything around it in sight."""

    def __init__(self, features: frozenset[Feature] = ALL, record: Record | None = None) -> None:
        self.host = Sockets()
        self.counters = Counters()
        self.link = Link(record)
        self.answers = Answers()
        host, counters, answers = self.host, self.counters, cast(Any, self.answers)
        icmp = IcmpToGuest(answers, host.guest, counters)
        self.udp = UdpSockets(host.path, answers, icmp, None, {}, {}, counters, features)
        services = ServiceHandlers(answers, host.guest)
        tcp = TcpBench(answers, host.guest, counters)
        handlers: dict[tuple[int, int], Handler] = {
            (4, PROTOCOL_UDP): self.udp.outbound,
            (6, PROTOCOL_UDP): self.udp.outbound,
            (4, PROTOCOL_TCP): tcp.frames.outbound,
        }
        dispatch = Dispatch(host.guest, services.arp, handlers, counters, lambda: 1000)
        fastpath = FastPath(self.udp.nat.tables)
        self.time = self.tick = 0.0
        self.asked = 0
        self.backlog = Backlog(dispatch.frame, fastpath.knows, self.again, counters, self.clock)
        self.reader = StreamReader(
            cast(Any, self.link), fastpath, icmp, self.backlog, self.again, counters, features, self.clock
        )

    def clock(self) -> float:
        """Return the time, which passes by a tick with each look."""
        self.time += self.tick
        return self.time

    def again(self) -> None:
        self.asked += 1

    def move(self, *pieces: bytes, ends: bool = False) -> int:
        """Let the guest send, and move it all."""
        guest = self.link.socket = Guest(*pieces, ends=ends)
        moved = 0
        while guest.pieces:
            moved += self.reader.step()
        if ends:
            with pytest.raises(ConnectionError):
                self.reader.step()
        return moved

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, _, payload in self.host.sent]

    def by_flow(self) -> dict[Any, list[bytes]]:
        """The datagrams that were sent, in their order within each flow."""
        flows: dict[Any, list[bytes]] = {}
        for port, address, payload in self.host.sent:
            flows.setdefault((port, *address), []).append(payload)
        return flows

    def outcome(self) -> Any:
        """Everything that must not depend on how a stream is cut."""
        counters = self.counters
        return (
            self.by_flow(),
            self.answers.frames,
            counters.drops,
            counters.frames_down,
            (counters.udp.down.datagrams, counters.udp.down.bytes),
        )


def udp(
    payload: bytes,
    family: int = 4,
    port: int = PORT,
    server_port: int = SERVER_PORT,
    identification: int = 0,
    fragment: int = 0,
    ttl: int = 64,
    version: int = 0x45,
) -> bytes:
    """A guest's frame, written down by hand; checksums are not looked at."""
    head = HOST_MAC + GUEST_MAC
    segment = struct.pack(">HHHH", port, server_port, len(payload) + 8, identification ^ 0xFFFF) + payload
    if family == 4:
        head += struct.pack(
            ">HBBHHHBBH",
            ETHERTYPE_IPV4,
            version,
            0,
            len(segment) + 20,
            identification,
            fragment,
            ttl,
            PROTOCOL_UDP,
            identification,
        )
    else:
        head += struct.pack(">HIHBB", ETHERTYPE_IPV6, 0x60000000, len(segment), PROTOCOL_UDP, ttl)
    return head + GUEST[family] + SERVER[family] + segment


def fragment(payload: bytes, identification: int, place: int) -> bytes:
    """A guest's fragment; `place` is the field of flags and offset."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, len(payload) + 20, identification, place, 64, PROTOCOL_UDP, 0)
    return HOST_MAC + GUEST_MAC + b"\x08\0" + head + GUEST[4] + SERVER[4] + payload


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def joined(*frames: bytes) -> bytes:
    return b"".join(map(framed, frames))


def illegal(length: int) -> bytes:
    """A frame of a length that is none, and that many bytes, which would be frames if they were looked at."""
    bait = joined(udp(b"not to be seen"))
    return length.to_bytes(4, "big") + (bait * (length // len(bait) + 1))[:length]


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({at % (len(data) + 1) for at in cuts})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


RUN = st.builds(
    lambda family, port, size, count, padding, first: [
        framed(udp(bytes((first + i & 0xFF,)) * size, family, port, identification=i) + bytes(padding))
        for i in range(count)
    ],
    st.sampled_from([4, 6]),
    st.sampled_from([PORT, OTHER_PORT]),
    st.sampled_from([0, 1, 10, 18, 1400, 1472]) | st.integers(0, 3000),
    st.integers(1, 6),
    st.sampled_from([0, 0, 0, 5]),
    st.integers(0, 255),
)
OTHERS = st.sampled_from(
    [
        framed(ARP),
        framed(ARP.ljust(60, b"\0")),
        framed(bytes(14)),
        framed(udp(b"not IPv4 at all", version=0x65)),
        framed(udp(b"with options, as it says", version=0x4F)),
        framed(udp(b"to port 0", server_port=0)),
        framed(udp(b"another server", server_port=54)),
        framed(udp(bytes(1000), fragment=0x2000)),
        framed(udp(b"cut in the middle")[:50]),
        framed(udp(b"cut in the middle", 6)[:40]),
        illegal(0),
        illegal(13),
        illegal(65536),
    ]
).map(lambda frame: [frame])
STREAMS = st.lists(RUN | OTHERS, max_size=8).map(lambda parts: [frame for part in parts for frame in part])
CUTS = st.lists(st.integers(0, 1 << 20), max_size=30)


@settings(deadline=None)
@given(frames=STREAMS, cuts=CUTS)
@example(frames=[illegal(65536), framed(udp(b"behind"))], cuts=[2, 4, 5, 65539, 65540, 65541])
@example(frames=[framed(udp(b"1" * 100))] * 6, cuts=range(1, 900))
def test_however_a_stream_is_cut_the_same_leaves(frames: list[bytes], cuts: Sequence[int]) -> None:
    one_by_one, any_cut, at_once = Case(features=frozenset()), Case(), Case()
    for frame in frames:
        one_by_one.move(frame)
    any_cut.move(*cut(b"".join(frames), cuts))
    at_once.move(b"".join(frames))
    assert any_cut.outcome() == at_once.outcome() == one_by_one.outcome()
    assert Drop.INTERNAL not in any_cut.counters.drops


@settings(deadline=None)
@given(frames=st.lists(RUN, min_size=1, max_size=5), cuts=CUTS)
def test_what_the_guest_sends_is_what_leaves(frames: list[list[bytes]], cuts: Sequence[int]) -> None:
    record = Record()
    plain, recorded = Case(), Case(record=record)
    data = b"".join(frame for run in frames for frame in run)
    plain.move(*cut(data, cuts))
    recorded.move(*cut(data, cuts))
    assert plain.outcome() == recorded.outcome()
    assert joined(*record.frames) == data
    assert set(recorded.host.calls) == {1}
    expected: dict[Any, list[bytes]] = {}
    for frame in record.frames:
        family, start = (4, 14 + 20) if frame[12:14] == b"\x08\x00" else (6, 14 + 40)
        port, length = (int.from_bytes(frame[start + at : start + at + 2], "big") for at in (0, 4))
        address = (SERVER_TEXT[family], SERVER_PORT) + ((0, 0) if family == 6 else ())
        expected.setdefault((port, *address), []).append(frame[start + 8 : start + length])
    assert plain.by_flow() == expected
    assert plain.counters.udp.down.datagrams == plain.counters.frames_down == len(record.frames)


@settings(deadline=None)
@given(pieces=st.lists(st.binary(max_size=300), max_size=10), known=st.booleans())
def test_hostile_bytes_raise_nothing(pieces: list[bytes], known: bool) -> None:
    case = Case()
    if known:
        case.move(joined(udp(b"4"), udp(b"6", 6)))
    case.move(*pieces)
    assert Drop.INTERNAL not in case.counters.drops


@settings(deadline=None)
@given(family=st.sampled_from([4, 6]), at=st.integers(0, 80), bits=st.integers(1, 255), size=st.integers(14, 120))
def test_hostile_frames_of_a_known_peer_raise_nothing(family: int, at: int, bits: int, size: int) -> None:
    case = Case()
    good = udp(b"x" * 40, family)
    case.move(framed(good))
    bad = bytearray(good.ljust(120, b"\0")[:size])
    bad[at % size] ^= bits
    case.move(joined(bytes(bad), good, bytes(bad), bytes(bad), good))
    assert case.payloads.count(b"x" * 40) >= 3
    assert case.counters.frames_down == 6
    assert Drop.INTERNAL not in case.counters.drops


class FailingRecord(Record):
    """A capture that a defect makes raise at frames with a mark."""

    def write(self, to_guest: bool, *parts: bytes) -> None:
        if BAD in b"".join(parts):
            raise RuntimeError("a defect")


class FailingSocket(HostSocket):
    """A host socket that a defect makes raise at datagrams with a mark."""

    def sendto(self, payload: memoryview, address: Any) -> int:
        if BAD in bytes(payload):
            raise RuntimeError("a defect")
        return super().sendto(payload, address)


@settings(deadline=None)
@given(
    bad=st.lists(st.booleans(), min_size=1, max_size=12),
    cuts=CUTS,
    where=st.sampled_from(["capture", "known", "backlog", "at once"]),
)
@example(bad=[True], cuts=[2, 4, 30], where="known")
@example(bad=[True, True, False], cuts=[], where="at once")
def test_an_internal_error_costs_its_frame_and_not_the_place_in_the_stream(
    bad: list[bool], cuts: Sequence[int], where: str
) -> None:
    case = Case(features=frozenset(), record=FailingRecord() if where == "capture" else None)
    # Of a known flow, of new ones, and fragments, which never wait.
    ports = {"backlog": range(6000, 6100), "at once": [6000] * 100}.get(where, [PORT] * 100)
    case.move(framed(udp(b"first")))
    if where != "capture":
        for udp_socket in case.host.open:
            udp_socket.socket = FailingSocket(PORT, case.host.sent, case.host.calls)
        for peer in case.udp.nat.tables[4]:
            peer.sender = None
        case.host.socket_class = FailingSocket
    payloads = [b"%d" % i + (BAD if is_bad else b"fine") for i, is_bad in enumerate(bad)]
    frames = []
    for i, payload in enumerate(payloads):
        if where == "at once":
            datagram = struct.pack(">HHHH", ports[i], SERVER_PORT, 16 + 8, 0) + payload.ljust(16, b".")
            frames += [fragment(datagram[:16], i, 0x2000), fragment(datagram[16:], i, 2)]
        else:
            frames.append(udp(payload, port=ports[i], identification=i))
    guest = case.link.socket = Guest(*cut(joined(*frames), cuts))
    errors, case.asked = 0, 0
    while guest.pieces or case.asked:
        case.asked = 0
        try:
            case.reader.step()
        except RuntimeError:
            errors += 1
    assert errors == sum(bad)
    assert [payload.rstrip(b".") for payload in case.payloads] == [b"first"] + [
        payload for payload in payloads if BAD not in payload
    ]
    assert case.counters.frames_down == 1 + len(frames)
    assert not case.counters.drops


@pytest.mark.parametrize("length", ILLEGAL)
@pytest.mark.parametrize("piece", [5, 4096, 1 << 20])
def test_a_frame_of_illegal_length_is_skipped_by_as_much_as_it_says(length: int, piece: int) -> None:
    case = Case()
    behind = framed(udp(b"behind"))
    if length > 1 << 20:
        case.move(framed(udp(b"before")), length.to_bytes(4, "big"), *[behind * 1000] * 100)
        assert case.payloads == [b"before"]
        case.reader.connect()
        case.move(behind)
    else:
        data = framed(udp(b"before")) + illegal(length) + behind
        case.move(*(data[at : at + piece] for at in range(0, len(data), piece)))
    assert case.payloads == [b"before", b"behind"]
    assert case.counters.drops == {Drop.FRAME_LENGTH: 1}
    assert case.counters.frames_down == 2, "it was no frame"


@FAMILIES
def test_the_least_and_the_largest_frame(family: int) -> None:
    case = Case()
    payload = bytes(range(256)) * 256
    largest = udp(payload[: LARGEST[family]], family)
    assert len(largest) == 65535
    case.move(framed(bytes(14)), *[framed(largest)] * 3)
    assert case.counters.drops == {Drop.ETHERTYPE: 1}
    assert case.payloads == [payload[: LARGEST[family]]] * 3
    assert case.host.calls == [1, 1, 1]


@FAMILIES
def test_frames_that_repeat_the_headers_leave_in_one_call(family: int) -> None:
    case = Case()
    payloads = [bytes((i,)) * 1000 for i in range(200)]
    frames = [udp(payload, family, identification=i) for i, payload in enumerate(payloads)]
    case.move(framed(frames[0]))
    case.move(joined(*frames[1:]))
    assert case.payloads == payloads
    assert case.host.calls == [1, 64, 64, 64, 7]
    down = case.counters.udp.down
    assert (down.datagrams, down.bytes, down.superframes) == (200, 200_000, 4)
    assert case.counters.frames_down == 200


@FAMILIES
def test_a_run_is_no_larger_than_a_superframe(family: int) -> None:
    case = Case()
    frame = udp(bytes(9000), family)
    case.move(framed(frame))
    case.move(joined(*[frame] * 20))
    assert case.host.calls == [1, 7, 7, 6]
    assert case.counters.udp.down.bytes == 21 * 9000


@FAMILIES
def test_a_run_ends_where_the_headers_change(family: int) -> None:
    case = Case()
    changes = [
        {},
        {},
        {"port": OTHER_PORT},
        {"port": OTHER_PORT},
        {"server_port": 54},
        {"server_port": 54},
        {"ttl": 1},
        {"ttl": 1},
        {},
        {},
    ]
    for change in changes[::2]:
        case.move(framed(udp(b"to be known", family, **change)))
    del case.host.calls[:], case.host.sent[:]
    case.move(joined(*(udp(bytes((i,)) * 100, family, **change) for i, change in enumerate(changes))))
    assert case.payloads == [bytes((i,)) * 100 for i in range(10)]
    assert case.host.calls == [2, 2, 2, 2, 2]
    addresses = [address[:2] for _, address, _ in case.host.sent]
    assert addresses[4:6] == [(SERVER_TEXT[family], 54)] * 2
    assert set(addresses[:4] + addresses[6:]) == {(SERVER_TEXT[family], SERVER_PORT)}


@FAMILIES
def test_a_run_ends_where_the_size_changes(family: int) -> None:
    case = Case()
    case.move(framed(udp(b"to be known", family)))
    sizes = (100, 100, 100, 99, 99, 0, 0, 1, 100)
    case.move(joined(*(udp(bytes(size), family) for size in sizes)))
    assert [len(payload) for payload in case.payloads[1:]] == list(sizes)
    assert case.host.calls[1:4] == [3, 2, 1]


def test_one_datagram_padded_in_two_ways_is_two_runs_of_the_same() -> None:
    case = Case()
    case.move(framed(udp(b"x")))
    short, padded = udp(b"x"), udp(b"x").ljust(60, b"\0")
    case.move(joined(short, short, padded, padded))
    assert case.payloads == [b"x"] * 5
    assert case.host.calls == [1, 2, 2]


def test_a_fragment_among_equals_is_put_together() -> None:
    case = Case()
    whole = udp(bytes(range(200)))
    case.move(framed(whole))
    first = bytearray(udp(bytes(range(200)), fragment=0x2000)[:-104])
    first[16:18] = (len(first) - 14).to_bytes(2, "big")
    rest = bytearray(whole[:34] + whole[-104:])
    rest[16:18] = (len(rest) - 14).to_bytes(2, "big")
    rest[20:22] = (104 // 8).to_bytes(2, "big")
    case.move(joined(whole, bytes(first), bytes(rest), whole))
    assert case.payloads == [bytes(range(200))] * 4
    assert not case.counters.drops


@pytest.mark.parametrize("features", [ALL - {Feature.JOIN}, ALL - {Feature.GSO}, frozenset[Feature]()])
def test_without_joining_each_leaves_on_its_own(features: frozenset[Feature]) -> None:
    case = Case(features)
    case.move(joined(*[udp(bytes(100))] * 10))
    assert case.host.calls == [1] * 10


def test_services_answer_between_datagrams() -> None:
    case = Case()
    case.move(joined(udp(b"1"), ARP, udp(b"2"), ARP.ljust(60, b"\0")))
    assert case.payloads == [b"1", b"2"]
    assert len(case.answers.frames) == 2
    assert case.counters.frames_down == 4


def test_what_came_before_the_end_is_moved_first() -> None:
    case = Case()
    frame = udp(b"last words")
    case.link.socket = Guest(joined(frame, frame) + framed(frame)[:30], ends=True)
    assert case.reader.step() == 2
    with pytest.raises(ConnectionError, match="end of stream"):
        case.reader.step()
    assert case.payloads == [b"last words"] * 2


def test_what_fills_the_buffer_before_the_end_is_moved_first() -> None:
    case = Case()
    frame = framed(udp(bytes(1000)))
    count = (BUFFER_BYTES - 16) // len(frame)
    room = BUFFER_BYTES - 16
    case.link.socket = Guest((frame * (count + 1))[:room], ends=True)
    with pytest.raises(ConnectionError):
        case.reader.step()
    assert len(case.payloads) == count


def test_the_next_guest_begins_anew() -> None:
    case = Case()
    frame = framed(udp(b"whole"))
    for rest in (frame[:20], (1000000).to_bytes(4, "big"), b"\0\0"):
        case.move(rest, ends=True)
        case.reader.connect()
        case.move(frame)
    assert case.payloads == [b"whole"] * 3


def test_an_error_of_the_socket_is_the_guests_end() -> None:
    class Broken(Guest):
        def recv_into(self, buffer: memoryview, room: int, flags: int) -> int:
            raise ConnectionResetError(104, "Connection reset by peer")

    case = Case()
    case.link.socket = Broken()
    with pytest.raises(ConnectionError, match="reset"):
        case.reader.step()


def test_a_step_moves_a_bounded_amount() -> None:
    case = Case()
    frame = framed(udp(bytes(1000)))
    case.link.socket = guest = Guest(frame * 5000)
    assert case.reader.step() <= RECEIVES_PER_STEP * BUFFER_BYTES // len(frame)
    assert guest.pieces, "the rest has to wait for its turn"


def test_without_a_guest_nothing_moves() -> None:
    assert Case().reader.step() == 0


def test_a_known_peer_is_marked_active() -> None:
    case = Case()
    case.move(framed(udp(b"x")))
    table = case.udp.nat.tables[4]
    (peer,) = table
    table.activity[peer.byte] = 0
    case.move(joined(udp(b"x"), udp(b"x")))
    assert table.activity[peer.byte] & peer.bit


def test_what_a_gone_guest_left_is_moved_in_steps_that_end() -> None:
    case = Case()
    count = 40
    frames = [udp(b"%d" % port, port=6000 + port) for port in range(count)]
    guest = case.link.socket = Guest(joined(*frames), ends=True)

    case.tick = STEP_SECONDS / 4
    steps = 0
    with pytest.raises(ConnectionError, match="end of stream"):
        while True:
            before = len(case.payloads)
            case.reader.step()
            steps += 1
            assert len(case.payloads) - before <= 4
    assert not guest.pieces
    assert steps >= count // 4
    assert case.payloads == [b"%d" % port for port in range(count)]
    case.reader.connect()
    case.move(framed(frames[0]))
    assert case.payloads[-1] == b"0"


def test_nothing_is_read_while_frames_wait_whose_flow_is_known_by_now() -> None:
    """Those behind them would overtake them."""
    case = Case()
    for payload in (b"1", b"2", b"3"):
        case.backlog.add(memoryview(udp(payload)), 0)
    case.backlog.drain(0.0)
    assert case.backlog.behind
    case.link.socket = Guest(framed(udp(b"4")))
    assert case.reader.step() == 0
    assert not case.backlog.frames
    assert case.reader.step() == 1
    assert case.payloads == [b"1", b"2", b"3", b"4"]


def test_a_flood_of_illegal_lengths_ends_with_the_step() -> None:
    case = Case()
    case.move(framed(udp(b"before")))
    case.tick = STEP_SECONDS / 4
    count = BUFFER_BYTES // 8
    guest = case.link.socket = Guest(bytes(4 * count) + framed(udp(b"behind")))
    dropped = steps = 0
    while guest.pieces or case.asked:
        case.asked = 0
        case.reader.step()
        now = case.counters.drops[Drop.FRAME_LENGTH]
        assert now - dropped <= 5 * RUNS_PER_LOOK
        dropped, steps = now, steps + 1
    assert dropped == count
    assert steps >= count // (5 * RUNS_PER_LOOK)
    assert case.payloads == [b"before", b"behind"]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EINTR])
def test_an_error_of_one_receive_is_no_guest_that_is_gone(number: int) -> None:
    class Failing(Guest):
        def recv_into(self, buffer: memoryview, room: int, flags: int) -> int:
            raise OSError(number, os.strerror(number))

    case = Case()
    case.link.socket = Failing()
    assert case.reader.step() == 0
    assert case.move(framed(ARP)) == 1
    assert case.counters.drops == {}


class Gate:
    """Takes every frame, or lets it pass, or says that no rule is about it."""

    def __init__(self, fate: int) -> None:
        self.fate = fate
        self.frames: list[bytes] = []

    def take(self, buffer: memoryview, at: int, end: int) -> int:
        # Where there is no virtio-net header its last bytes are the frame's length.
        self.frames.append(VIRTIO_NET_BLANK + bytes(buffer[at + len(VIRTIO_NET_BLANK) : end]))
        return self.fate


@pytest.mark.parametrize("fate", [FREE, PASSED])
def test_only_frames_that_no_rule_is_about_leave_together(fate: int) -> None:
    case = Case()
    case.move(framed(udp(bytes(100))))
    case.link.gate = gate = Gate(fate)
    assert case.move(framed(udp(bytes(100))) * 5) == 5
    assert case.payloads == [bytes(100)] * 6
    assert case.host.calls == ([1, 5] if fate == FREE else [1] * 6)
    assert len(gate.frames) == (1 if fate == FREE else 5)


@FAMILIES
def test_frames_that_weather_took_come_back_later(family: int) -> None:
    case = Case()
    case.link.gate = gate = Gate(TAKEN)
    frames = [udp(bytes((number,)) * 100, family) for number in range(5)]
    assert case.move(b"".join(map(framed, frames))) == 5
    assert case.payloads == []
    for _ in range(2):
        for frame in gate.frames:
            case.reader.inject(frame)
        case.reader.settle()
    assert case.payloads == [bytes((number,)) * 100 for number in range(5)] * 2
    assert case.reader.caught_up()


def test_in_a_crowd_known_flows_are_carried_and_the_rest_is_dropped_unread() -> None:
    case = Case()
    case.move(framed(udp(b"known")))
    for time in (1.0, 1.0 + CROWDED_SECONDS):
        case.backlog.crowd.left(time)
    for port in range(CROWDED_LIMIT + 1):
        case.backlog.add(memoryview(udp(b"new", port=6000 + port)), 0)
    assert case.backlog.full
    before, dropped = case.counters.frames_down, case.counters.drops[Drop.BACKLOG]
    flood = [udp(bytes(port), port=5900 + port) for port in range(90)]
    sent = [*flood[:60], udp(b"1"), ARP, flood[60], udp(b"2"), *flood[61:]]
    case.asked = 0
    assert case.move(joined(*sent)) == len(sent)
    assert case.payloads == [b"known", b"1", b"2"]
    assert case.counters.frames_down - before == len(sent)
    assert case.counters.drops[Drop.BACKLOG] - dropped == len(sent) - 3
    assert case.asked, "the backlog has steps of its own"
    assert not case.answers.frames
    while case.backlog.frames:
        case.backlog.step()
    assert len(case.answers.frames) == 1, "ARP was kept"
    case.move(framed(udp(b"later", port=5999)))
    assert case.payloads[-1] == b"later"


def test_less_is_received_where_a_step_has_no_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    case.move(framed(udp(b"known")))
    case.tick = STEP_SECONDS / 4
    guest = case.link.socket = Guest(joined(*[udp(bytes(i % 5)) for i in range(3000)]), ends=True)
    rooms: list[int] = []
    receive = guest.recv_into

    def recv_into(buffer: memoryview, room: int, flags: int) -> int:
        rooms.append(room)
        return receive(buffer, room, flags)

    monkeypatch.setattr(guest, "recv_into", recv_into)
    with pytest.raises(ConnectionError):
        while True:
            case.reader.step()
    assert rooms[1] < rooms[0]
    assert min(rooms) >= WINDOW_LEAST
    assert case.payloads == [b"known", *(bytes(i % 5) for i in range(3000))]
