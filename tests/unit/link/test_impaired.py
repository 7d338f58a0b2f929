"""Weather before a link whose two ends a test holds: what is written, what is carried, and when (under 2 s)."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.capture.record import Record
from gpasst.counters import Counters, Drop
from gpasst.formats import VIRTIO_NET_CODEC
from gpasst.impair.action import Answer
from gpasst.impair.facts import Flow
from gpasst.impair.grammar import parse
from gpasst.impair.rule import CERTAIN, Rule
from gpasst.link.impaired import Impaired
from gpasst.link.port import FREE, PASSED, TAKEN
from gpasst.link.recorder import Recorder
from gpasst.link.tap import Tap
from gpasst.packet.segmentation import split
from tests.support.families import FAMILIES
from tests.support.headers import header
from tests.support.superframes import tcp_superframe, udp_superframe
from tests.support.times import Times

BOTH = frozenset((4, 6))
PAYLOAD = (bytes(range(251)) * 20)[:5000]
SEGMENT = 1000
COUNT = 5
VIRTIO = 10
HALF = CERTAIN // 2
ARP = bytes(12) + b"\x08\x06" + bytes(46)


class Sink:
    """Notes what is recorded."""

    def __init__(self) -> None:
        self.records: list[tuple[bool, list[bytes], str]] = []

    def take(self, records: Sequence[Record]) -> None:
        self.records += [(record.to_guest, list(record.frames()), record.comment) for record in records]

    def close(self) -> None:
        pass


class Case:
    """A tap with weather, a reader that carries nothing, and answers that are only noted."""

    def __init__(self, superframes: frozenset[int] = BOTH) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.counters, self.times = Counters(), Times()
        self.link = Tap(self.ours.fileno(), self.counters, {"udp": superframes, "tcp": superframes})
        self.injected: list[bytes] = []
        self.behind = False
        self.settled = 0
        self.answers: list[Any] = []
        self.errors: list[Exception] = []
        self.weather = Impaired(
            self.link,
            self,
            self,
            self.times.at,
            True,
            self.counters,
            lambda: self.times.now,
            self.errors.append,
            lambda: 0.0,
        )

    def caught_up(self) -> bool:
        return not self.behind

    def inject(self, data: bytes) -> None:
        self.injected.append(data)

    def settle(self) -> None:
        self.settled += 1

    def answer(self, kind: Answer, flow: Flow, to_guest: bool, frame: bytes, mtu: int) -> None:
        self.answers.append((kind, to_guest, frame, mtu))

    def rebind(self, flow: Flow, to_guest: bool) -> None:
        self.answers.append(("rebind", to_guest))

    def written(self) -> list[bytes]:
        """Return what was written, with virtio-net headers."""
        found = []
        while True:
            try:
                found.append(self.theirs.recv(1 << 17))
            except BlockingIOError:
                return found

    def write(self, family: int = 4, payload: bytes = PAYLOAD) -> list[bytes]:
        """Write a run of datagrams to the link; return its frames."""
        made = header(family)
        frames = list(split(bytes(made.fill(len(payload), SEGMENT)) + payload))
        cast(Any, self.link).write_run(made, len(payload), SEGMENT, [memoryview(payload)])
        return frames

    def take(self, data: bytes) -> int:
        """Show a frame of the guest to the gate."""
        gate = self.link.gate
        assert gate is not None
        buffer = bytearray(b"....." + data)
        fate = gate.take(memoryview(buffer), 5, len(buffer))
        buffer[:] = bytes(len(buffer))  # it may be used again
        return fate

    def recorded(self) -> tuple[Sink, Recorder]:
        """Record what crosses from now on."""
        sink = Sink()
        recorder = Recorder(self.link, "", lambda: 0, lambda: None)
        recorder.add(sink)
        return sink, recorder

    def close(self) -> None:
        self.weather.close()
        self.ours.close()
        self.theirs.close()
        assert self.errors == []


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def frames_of(pieces: list[bytes]) -> list[bytes]:
    return [frame for piece in pieces for frame in split(piece)]


def test_without_rules_nothing_stands_before_the_link(case: Case) -> None:
    own = dict(vars(case.link))
    assert not {"write_run", "write_bare", "write_frame"} & set(own)
    added = case.weather.add(Rule(delay=10), 1)
    assert case.link.gate is case.weather
    case.weather.remove(added)
    assert vars(case.link) == own


def test_a_rule_of_one_direction_leaves_the_other_alone(case: Case) -> None:
    case.weather.add(Rule(to="guest", delay=10), 1)
    assert case.link.gate is None
    case.weather.add(Rule(to="host", delay=10), 1)
    assert case.link.gate is case.weather


@FAMILIES
def test_a_run_is_held_whole(case: Case, family: int) -> None:
    case.weather.add(Rule(to="guest", delay=20000), 1)
    frames = case.write(family)
    case.times.pass_to(100.019)
    assert case.written() == []
    assert case.counters.udp.up.datagrams == 0
    case.times.pass_to(100.0201)
    (whole,) = case.written()
    assert list(split(whole)) == frames
    tally = case.counters.udp.up
    assert (tally.datagrams, tally.bytes, tally.superframes) == (COUNT, len(PAYLOAD), 1)


@FAMILIES
def test_a_link_without_superframes_gets_the_frames_of_a_held_run(family: int) -> None:
    case = Case(frozenset())
    case.weather.add(Rule(to="guest", delay=20000), 1)
    frames = case.write(family)
    case.times.pass_to(101)
    assert [piece[VIRTIO:] for piece in case.written()] == frames
    assert (case.counters.udp.up.datagrams, case.counters.udp.up.bytes) == (COUNT, len(PAYLOAD))
    case.close()


@FAMILIES
def test_what_is_left_of_a_run_crosses_in_as_few_pieces(case: Case, family: int) -> None:
    (rule,) = case.weather.add(Rule(to="guest", loss=HALF), 3)
    frames = case.write(family)
    pieces = case.written()
    left = frames_of(pieces)
    lost = case.counters.drops[Drop.IMPAIRED]
    assert 0 < lost < COUNT
    assert rule.hits == COUNT
    assert left == [frame for frame in frames if frame in left]
    assert len(left) == COUNT - lost
    assert len(pieces) <= lost + 1


@FAMILIES
def test_a_flow_of_no_rule_is_written_as_ever(case: Case, family: int) -> None:
    case.weather.add(Rule(to="guest", dport=((4999, 4999),), loss=CERTAIN), 1)
    (whole,) = (case.write(family), case.written())[1]
    assert whole[1], "a superframe"


def test_a_service_is_held_where_its_protocol_is_named(case: Case) -> None:
    write = cast(Any, case.link).write_frame
    case.weather.add(Rule(to="guest", loss=CERTAIN), 1)
    cast(Any, case.link).write_frame(ARP)
    assert [piece[VIRTIO:] for piece in case.written()] == [ARP]
    case.weather.add(Rule(to="guest", protocols=("arp",), delay=1000), 1)
    cast(Any, case.link).write_frame(ARP)
    assert case.written() == []
    case.times.pass_to(101)
    assert [piece[VIRTIO:] for piece in case.written()] == [ARP]
    assert case.counters.frames_up == 2
    assert write is not None


def test_what_a_rule_holds_leaves_in_order_when_it_ends(case: Case) -> None:
    added = case.weather.add(Rule(to="guest", delay=1_000_000), 1)
    frames = [frame for size in (1, 2, 3) for frame in case.write(payload=PAYLOAD[:size])]
    assert case.written() == []
    case.weather.remove(added)
    assert frames_of(case.written()) == frames
    assert "write_run" not in vars(case.link)
    case.weather.remove(added)


def test_a_frame_of_the_guest_that_no_rule_is_about_stays_where_it_lies(case: Case) -> None:
    case.weather.add(Rule(to="host", dport=((1, 1),), loss=CERTAIN), 1)
    assert case.take(udp_superframe(4, PAYLOAD, SEGMENT)) == FREE
    assert case.injected == []


def test_a_frame_of_the_guest_that_passes_unchanged_stays_where_it_lies(case: Case) -> None:
    (rule,) = case.weather.add(Rule(to="host"), 1)
    assert case.take(udp_superframe(4, PAYLOAD, SEGMENT)) == PASSED
    assert case.injected == []
    assert rule.hits == COUNT


@FAMILIES
def test_frames_of_the_guest_are_carried_when_they_are_due(case: Case, family: int) -> None:
    case.weather.add(Rule(to="host", delay=5000), 1)
    data = [make(family, PAYLOAD, SEGMENT) for make in (udp_superframe, tcp_superframe)]
    assert [case.take(one) for one in data] == [TAKEN, TAKEN]
    case.times.pass_to(100.0049)
    assert case.injected == []
    case.times.pass_to(100.0051)
    assert case.injected == data
    assert case.settled


def test_frames_of_the_guest_wait_for_those_before_them(case: Case) -> None:
    added = case.weather.add(Rule(to="host", delay=5000), 1)
    case.take(udp_superframe(4, PAYLOAD, SEGMENT))
    case.behind = True
    case.weather.remove(added)
    assert case.injected == []
    assert case.link.gate is case.weather
    case.behind = False
    case.times.pass_to(100.001)
    assert len(case.injected) == 1
    assert case.link.gate is None


@FAMILIES
def test_parts_of_a_superframe_of_the_guest_are_lost(case: Case, family: int) -> None:
    case.weather.add(Rule(to="host", loss=HALF), 3)
    data = tcp_superframe(family, PAYLOAD, SEGMENT)
    assert case.take(data) == TAKEN
    left = frames_of(case.injected)
    frames = list(split(data))
    assert left == [frame for frame in frames if frame in left]
    assert len(left) + case.counters.drops[Drop.IMPAIRED] == COUNT


def test_lost_frames_are_recorded_with_their_fate(case: Case) -> None:
    sink, recorder = case.recorded()
    case.weather.add(Rule(loss=HALF), 3)
    data = udp_superframe(4, PAYLOAD, SEGMENT)
    case.take(data)
    case.write()
    recorder.flush()
    for to_guest in (False, True):
        records = [(frames, comment) for way, frames, comment in sink.records if way is to_guest]
        assert sum(len(frames) for frames, _ in records) == COUNT
        assert sum(len(frames) for frames, comment in records if comment) in range(1, COUNT)
    down = [frame for way, frames, _ in sink.records if not way for frame in frames]
    assert down == list(split(data)), "in the order in which they came"


def test_a_held_frame_of_the_guest_is_recorded_when_it_comes(case: Case) -> None:
    sink, recorder = case.recorded()
    case.weather.add(Rule(to="host", delay=5000), 3)
    data = udp_superframe(4, PAYLOAD, SEGMENT)
    case.take(data)
    recorder.flush()
    assert sink.records == [(False, list(split(data)), "")]
    case.times.pass_to(101)
    recorder.flush()
    assert len(sink.records) == 1


def test_closing_forgets_what_is_held(case: Case) -> None:
    case.weather.add(Rule(delay=5000), 3)
    case.take(udp_superframe(4, PAYLOAD, SEGMENT))
    case.write()
    case.weather.close()
    case.times.pass_to(101)
    assert case.written() == []
    assert case.injected == []
    assert case.link.gate is None
    assert "write_run" not in vars(case.link)


HOSTILE = [
    "corrupt 100%",
    "corrupt payload",
    "ecn mark",
    "mtu 100 icmp",
    "unreachable host",
    "tcp: reset",
    "duplicate 100%",
    "loss 50%",
    "reorder 50% gap 2",
    "rate 1mbit queue 3 frames head",
    "partition",
]
VIRTIO_HEADERS = st.builds(
    lambda flags, kind, size, start, offset: VIRTIO_NET_CODEC.pack(
        flags=flags, gso_type=kind, gso_size=size, checksum_start=start, checksum_offset=offset
    ),
    st.sampled_from([0, 1, 1, 3]),
    st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x85]),
    st.sampled_from([0, 1, 100, 1400]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 14, 33, 34, 54]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 6, 16]) | st.integers(0, 0xFFFF),
)
FRAMES = st.binary(max_size=150) | st.builds(
    lambda make, family, size, cut, virtio: make(family, bytes(size), 100)[virtio : virtio + cut],
    st.sampled_from([udp_superframe, tcp_superframe]),
    st.sampled_from([4, 6]),
    st.integers(0, 3000),
    st.sampled_from([13, 33, 50, 70, 90, 1 << 17]),
    st.just(VIRTIO),
)


@given(st.lists(st.tuples(VIRTIO_HEADERS, FRAMES), min_size=1, max_size=6), st.sampled_from(HOSTILE))
@settings(deadline=None)
def test_whatever_a_guest_sends_meets_no_error(frames: list[tuple[bytes, bytes]], text: str) -> None:
    case = Case()
    try:
        added = case.weather.add(parse(text), 7)
        for virtio, frame in frames:
            case.take(virtio + frame)
        case.times.pass_to(100.1)
        case.weather.remove(added)
        case.times.pass_to(101)
        for data in case.injected:
            assert list(split(data)) is not None
    finally:
        case.close()
