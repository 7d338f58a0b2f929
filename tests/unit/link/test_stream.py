"""Frames on their way into a stream: whole ones or none, in order, whatever the kernel takes and the guest reads."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.host.receive_framed import GAP
from gpasst.link import stream as stream_module
from gpasst.link.stream import Stream
from gpasst.linux import UIO_MAXIOV
from gpasst.udp.header import Header
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.families import FAMILIES, LARGEST
from tests.support.headers import GUEST, SOURCE, header
from tests.support.need import need_module

VIRTIO = 10  # bytes that a stream does not have
MINIMUM_PAYLOAD = 60  # bytes of the shortest Ethernet frame
HEADERS = {4: 42, 6: 62}  # bytes, Ethernet to UDP
SMALL_QUEUE = 5000  # bytes; room for a few frames, where a test wants it full
WHOLE = 1 << 30  # bytes; more than anybody writes


class Kernel:
    """A socket that takes as much of each call as its script says, 0 for none at all."""

    def __init__(self, takes: Iterable[int] = (), otherwise: int = WHOLE) -> None:
        self.takes = list(takes)
        self.otherwise = otherwise
        self.failure = 0
        self.data = b""
        self.calls = 0

    def sendmsg(self, pieces: list[Any], ancillary: Any, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        assert not ancillary
        assert 0 < len(pieces) <= UIO_MAXIOV, "as many as Linux takes"
        if self.failure:
            raise OSError(self.failure, "as the test wants it")
        self.calls += 1
        take = self.takes.pop(0) if self.takes else self.otherwise
        if not take:
            raise BlockingIOError(errno.EAGAIN, "full")
        data = b"".join(pieces)[:take]
        self.data += data
        return len(data)


class Room:
    """Who waits for room, as the proxy's watchers do: begun once, stopped once."""

    def __init__(self) -> None:
        self.awaited: Any = None

    def begin(self, sock: Any, empty: Callable[[], None]) -> None:
        assert empty.__name__ == "empty"
        assert self.awaited is None, "awaited twice"
        assert sock is not None
        self.awaited = sock

    def stop(self) -> None:
        self.awaited = None


class Record:
    """A capture file's stand-in: the frames that were recorded."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.lost: list[bytes] = []

    def write(self, to_guest: bool, *parts: bytes, comment: str = "") -> None:
        assert to_guest
        assert comment in ("", Drop.STREAM_FULL.value)
        data = b"".join(parts)
        assert data[:VIRTIO] == bytes(VIRTIO)
        (self.lost if comment else self.frames).append(data[VIRTIO:])


class Case:
    """A stream with everything around it in sight."""

    def __init__(self, sock: Any = None, record: Record | None = None) -> None:
        self.counters = Counters()
        self.room = Room()
        self.record = record
        self.stream = Stream(self.counters, self.room.begin, self.room.stop)
        self.stream.recorder = cast(Any, record)
        self.headers = {family: header(family) for family in (4, 6)}
        self.written: list[bytes] = []
        if sock is not None:
            self.stream.connect(sock)

    def run(self, family: int, payload: bytes, segment: int) -> None:
        """Write a run of datagrams."""
        self.stream.write_run(self.headers[family], len(payload), segment, [framed(family, payload, segment)])
        self.written += [frame(self.headers[family], datagram) for datagram in cut(payload, segment)]

    def frame(self, data: bytes) -> None:
        """Write a service's frame."""
        self.written.append(data.ljust(MINIMUM_PAYLOAD, b"\0"))
        self.stream.write_frame(data)

    def dropped(self, reason: Drop = Drop.STREAM_FULL) -> int:
        assert set(self.counters.drops) <= {reason}
        return self.counters.drops[reason]

    def check_bounds(self) -> None:
        """What waits is awaited, and no more than may wait."""
        # Nothing public says how much waits, only that it does.
        waiting = sum(map(len, self.stream._queue))  # noqa: SLF001
        assert waiting == self.stream._queued <= stream_module.QUEUE_BYTES  # noqa: SLF001
        assert (self.room.awaited is not None) == bool(waiting)


def framed(family: int, payload: bytes, segment: int) -> memoryview:
    """Lay datagrams out as they are received, with room for headers; what stands there before is no matter."""
    data = bytearray()
    for datagram in cut(payload, segment):
        data += b"?" * GAP[family] + datagram.ljust(MINIMUM_PAYLOAD - HEADERS[family], b"?")
    return memoryview(data)


def cut(payload: bytes, segment: int) -> list[bytes]:
    return [payload[at : at + segment] for at in range(0, len(payload), segment)] if payload else [b""]


def frame(head: Header, payload: bytes) -> bytes:
    """The frame of one datagram as `tests.test_headers` proves it, up to the least size."""
    copy = Header(head.family, GUEST_MAC, HOST_MAC, SOURCE[head.family], GUEST[head.family], 40000, 5000)
    return (bytes(copy.fill_complete(payload))[VIRTIO:] + payload).ljust(MINIMUM_PAYLOAD, b"\0")


def frames(data: bytes) -> list[bytes]:
    """Take a stream apart; nothing may be left over."""
    found = []
    while data:
        length = int.from_bytes(data[:4], "big")
        assert len(data) >= 4 + length, "a frame that is not whole"
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def numbered(number: int, size: int) -> bytes:
    """A payload that differs from every other."""
    return number.to_bytes(4, "big") + bytes((number * 31 + at) & 0xFF for at in range(size - 4))


@contextmanager
def small_queue() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "QUEUE_BYTES", SMALL_QUEUE)
        yield


@contextmanager
def pair(send_bytes: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A stream's two ends, neither of which waits; the first with a small buffer if asked."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        if send_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        yield ours, theirs


def drain(sock: socket.socket, size: int = 1 << 20, calls: int = 1 << 20) -> bytes:
    """Read what is there, in pieces of `size`, up to the end or so many of them."""
    data = b""
    for _ in range(calls):
        try:
            data += sock.recv(size)
        except BlockingIOError:
            break
    return data


RUNS = st.tuples(
    st.just("run"),
    st.sampled_from([4, 6]),
    st.sampled_from([4, 5, 17, 18, 19, 100, 1472]) | st.integers(4, 2000),
    st.integers(1, 12),
    st.integers(0, 3),
)
FRAMES = st.tuples(st.just("frame"), st.integers(14, 200))
ROOM = st.tuples(st.just("room"))
# Cuts within the length, the headers, and anywhere else.
TAKES = st.lists(st.sampled_from([0, 1, 3, 4, 5, 60, 64]) | st.integers(0, 9000), max_size=12)


@settings(deadline=None)
@given(steps=st.lists(RUNS | FRAMES | ROOM, max_size=25), takes=TAKES, records=st.booleans())
def test_whatever_the_kernel_takes_whole_frames_come_out_in_order(
    steps: list[Any], takes: list[int], records: bool
) -> None:
    kernel = Kernel(takes, otherwise=0)
    with small_queue():
        case = Case(kernel, Record() if records else None)
        number = 0
        for step in steps:
            if step[0] == "run":
                _, family, size, count, short = step
                payload = b"".join(numbered(number + i, size) for i in range(count))
                last = len(payload) - (short if size > 4 + short else 0)
                number += count
                case.run(family, payload[:last], size)
                case.stream.flush()
            elif step[0] == "frame":
                case.frame(numbered(number, step[1]))
                number += 1
            elif case.room.awaited:
                case.stream.empty()
            case.check_bounds()
        kernel.takes, kernel.otherwise = [], WHOLE
        if case.room.awaited:
            case.stream.empty()
        assert case.room.awaited is None
        case.check_bounds()
    sent = frames(kernel.data)
    rest = iter(case.written)
    assert all(any(other == one for other in rest) for one in sent), "in order, nothing twice, nothing made up"
    assert len(sent) + case.dropped() == len(case.written), "what is missing is counted"
    up = case.counters.udp.up
    assert up.datagrams + case.counters.frames_up == len(sent)
    if case.record:
        assert case.record.frames == sent
        assert len(case.record.lost) == case.dropped()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EINTR])
def test_an_error_of_one_send_is_no_guest_that_is_gone(number: int) -> None:
    kernel = Kernel([], otherwise=WHOLE)
    case = Case(kernel)
    for payload in (b"first", b"second"):
        kernel.failure = number
        case.run(4, payload, 100)
        case.stream.flush()
        case.stream.empty()
        assert kernel.data == b""
        assert case.room.awaited, "it waits for the next try"
    kernel.failure = 0
    case.stream.empty()
    assert frames(kernel.data) == case.written
    assert case.counters.drops == {}


@pytest.mark.parametrize("reads", [1, 7, 1000, 100_000])
def test_a_real_socket_with_a_small_buffer(reads: int) -> None:
    with pair(send_bytes=1) as (ours, theirs), small_queue():
        case = Case(ours)
        received = b""
        for number in range(300):
            case.run(4 if number % 3 else 6, numbered(number, 4 + number * 37 % 1500), 1 << 16)
            case.stream.flush()
            case.check_bounds()
            if number % 5 == 0:
                received += drain(theirs, reads, calls=2)
            if case.room.awaited:
                case.stream.empty()
        while case.room.awaited:
            received += drain(theirs, reads)
            case.stream.empty()
        received += drain(theirs)
    sent = frames(received)
    assert case.dropped() == 300 - len(sent) > 0
    rest = iter(case.written)
    assert all(any(other == one for other in rest) for one in sent)


def test_what_waits_goes_out_as_the_guest_reads_and_what_comes_then_goes_out_behind_it() -> None:
    kernel = Kernel([100], otherwise=0)
    case = Case(kernel)
    for number in range(3):
        case.run(4, numbered(number, 80), 80)
    case.stream.flush()
    assert kernel.data == (len(case.written[0]).to_bytes(4, "big") + case.written[0])[:100]
    case.run(4, numbered(3, 80), 80)
    kernel.otherwise = 50
    case.stream.flush()
    assert len(kernel.data) == 100, "nothing overtakes what waits"
    case.stream.empty()
    assert case.room.awaited is None
    assert frames(kernel.data) == case.written
    case.run(4, b"direct", 6)
    kernel.otherwise = WHOLE
    case.stream.flush()
    assert frames(kernel.data) == case.written
    assert case.dropped() == 0


def test_the_queue_is_bounded_and_smaller_frames_still_fit() -> None:
    with small_queue():
        kernel = Kernel(otherwise=0)
        case = Case(kernel)
        for number in range(4):
            case.run(4, numbered(number, 1500), 1500)
        case.run(4, numbered(4, 100), 100)
        case.stream.flush()
        assert case.dropped() == 1
        case.check_bounds()
        kernel.otherwise = WHOLE
        case.stream.empty()
    assert frames(kernel.data) == [*case.written[:3], case.written[4]]
    assert (case.counters.udp.up.datagrams, case.counters.udp.up.bytes) == (4, 4600)


def test_a_frame_that_was_begun_is_completed_however_long_the_queue() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "QUEUE_BYTES", 10)
        kernel = Kernel([1], otherwise=0)
        case = Case(kernel)
        case.run(4, numbered(0, 100), 100)
        case.run(4, numbered(1, 100), 100)
        case.stream.flush()
        kernel.otherwise = WHOLE
        case.stream.empty()
    assert frames(kernel.data) == case.written[:1]
    assert case.dropped() == 1


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 17, 18, 19, 1472, 1473, 9000])
def test_every_frame_is_what_scapy_would_build(family: int, size: int) -> None:
    layers = need_module("scapy.layers.all")
    kernel = Kernel()
    case = Case(kernel)
    payload = bytes(at * 7 & 0xFF for at in range(size))
    case.run(family, payload, size)
    case.stream.flush()
    (sent,) = frames(kernel.data)
    assert len(sent) == max(MINIMUM_PAYLOAD, HEADERS[family] + size)
    packet = layers.Ether(sent)
    ip = packet[layers.IP if family == 4 else layers.IPv6]
    assert (ip.len if family == 4 else ip.plen) == size + (28 if family == 4 else 8), "padding is none of its bytes"
    assert (packet.src, packet.dst) == (HOST_MAC.hex(":"), GUEST_MAC.hex(":"))
    udp = packet[layers.UDP]
    assert (udp.sport, udp.dport, udp.len) == (40000, 5000, size + 8)
    assert sent[HEADERS[family] : HEADERS[family] + size] == payload
    assert not any(sent[HEADERS[family] + size :])
    if family == 4:
        assert udp.chksum == 0, "left out, as RFC 768 allows"
        header_sum, ip.chksum = ip.chksum, None
        assert layers.IP(bytes(ip)).chksum == header_sum
    else:
        udp_sum, udp.chksum = udp.chksum, None
        assert layers.IPv6(bytes(ip))[layers.UDP].chksum == udp_sum


@FAMILIES
@pytest.mark.parametrize(("total", "segment"), [(10, 1), (5, 2), (36, 18), (4000, 1000), (4001, 1000), (65507, 1472)])
def test_a_run_becomes_the_frames_of_its_datagrams(family: int, total: int, segment: int) -> None:
    kernel = Kernel()
    case = Case(kernel)
    payload = bytes(at * 11 & 0xFF for at in range(total))
    case.run(family, payload, segment)
    case.stream.flush()
    assert frames(kernel.data) == case.written
    assert kernel.calls == 1
    assert (case.counters.udp.up.datagrams, case.counters.udp.up.bytes) == (-(-total // segment), total)


@FAMILIES
def test_runs_of_different_sizes_keep_their_headers_apart(family: int) -> None:
    kernel = Kernel()
    case = Case(kernel)
    for size in (1000, 10, 1000, 0, 10, 999, 0):
        case.run(family, bytes(range(250)) * 4 if size == 1000 else bytes(size), 500 if size == 1000 else size)
    case.stream.flush()
    assert frames(kernel.data) == case.written
    assert kernel.calls == 1


@FAMILIES
def test_the_largest_datagram(family: int) -> None:
    kernel = Kernel()
    case = Case(kernel)
    case.run(family, bytes(LARGEST[family]), LARGEST[family])
    case.stream.flush()
    assert frames(kernel.data) == case.written


@FAMILIES
@pytest.mark.parametrize("size", [1, 100])
def test_more_pieces_than_one_call_takes(family: int, size: int) -> None:
    kernel = Kernel()
    case = Case(kernel)
    for number in range(40):
        case.run(family, bytes((number,)) * 64 * size, size)
    case.run(family, bytes(2000 * size), size)
    case.stream.flush()
    assert frames(kernel.data) == case.written
    assert case.dropped() == 0
    assert case.counters.udp.up.datagrams == 40 * 64 + 2000


def test_frames_of_services_are_padded_and_sent_at_once() -> None:
    kernel = Kernel()
    case = Case(kernel)
    case.frame(b"\xff" * 42)
    assert frames(kernel.data) == [b"\xff" * 42 + bytes(18)]
    case.frame(b"\xee" * 61)
    assert frames(kernel.data) == case.written
    assert case.counters.frames_up == 2
    assert case.counters.udp.up.datagrams == 0


def test_a_services_frame_leaves_behind_what_was_gathered_before() -> None:
    kernel = Kernel()
    case = Case(kernel)
    case.run(4, b"first", 5)
    case.frame(b"\xee" * 61)
    assert frames(kernel.data) == case.written


def test_a_services_frame_behind_as_many_pieces_as_one_call_takes() -> None:
    kernel = Kernel()
    case = Case(kernel)
    case.run(4, bytes(100 * UIO_MAXIOV // 2), 100)
    case.frame(b"\xee" * 61)
    assert frames(kernel.data) == case.written


def test_frames_of_services_in_a_step_leave_in_one_call() -> None:
    kernel = Kernel()
    case = Case(kernel)

    def step(number: int) -> int:
        for _ in range(number):
            case.frame(b"\xee" * 61)
        assert kernel.calls == 0
        return number

    assert case.stream.gathering(step)(3) == 3
    assert kernel.calls == 1
    assert frames(kernel.data) == case.written
    case.frame(b"\xdd" * 61)
    assert kernel.calls == 2, "outside such a step it leaves at once"


def test_a_step_that_fails_sends_what_it_has_written() -> None:
    kernel = Kernel()
    case = Case(kernel)

    def step() -> None:
        case.frame(b"\xee" * 61)
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError):
        case.stream.gathering(step)()
    assert frames(kernel.data) == case.written


def test_nothing_is_sent_where_nothing_was_written() -> None:
    kernel = Kernel()
    case = Case(kernel)
    case.stream.flush()
    assert kernel.calls == 0


@pytest.mark.parametrize("records", [False, True])
def test_counters(records: bool) -> None:
    kernel = Kernel()
    case = Case(kernel, Record() if records else None)
    case.run(4, bytes(1000), 100)
    case.run(4, bytes(250), 100)
    case.run(6, bytes(30), 30)
    case.run(4, b"", 0)
    case.frame(bytes(42))
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes) == (10 + 3 + 1 + 1, 1280, 2)
    assert case.counters.frames_up == 1


def test_without_a_guest_frames_are_dropped_and_counted() -> None:
    case = Case(record=Record())
    case.run(4, bytes(250), 100)
    case.stream.flush()
    case.frame(bytes(42))
    assert case.dropped(Drop.NO_GUEST) == 4
    assert (case.counters.udp.up.datagrams, case.counters.frames_up) == (0, 0)
    assert case.record is not None and not case.record.frames


@pytest.mark.parametrize("failure", [errno.EPIPE, errno.ECONNRESET])
def test_a_guest_that_has_gone_gets_nothing_and_is_left_to_the_reader(failure: int) -> None:
    kernel = Kernel()
    kernel.failure = failure
    case = Case(kernel, Record())
    case.run(4, bytes(250), 100)
    case.stream.flush()
    assert case.dropped(Drop.NO_GUEST) == 3
    assert case.record is not None and not case.record.frames
    assert case.room.awaited is None
    assert case.stream.socket is not None


def test_a_guest_that_goes_while_frames_wait() -> None:
    kernel = Kernel(otherwise=0)
    case = Case(kernel)
    case.run(4, bytes(250), 100)
    case.stream.flush()
    kernel.failure = errno.EPIPE
    case.stream.empty()
    assert case.dropped(Drop.NO_GUEST) == 3
    case.check_bounds()


def test_the_next_guest_begins_with_a_whole_frame() -> None:
    first, second = Kernel([150], otherwise=0), Kernel()
    case = Case(first)
    case.run(4, bytes(250), 100)
    case.stream.flush()
    case.check_bounds()
    case.stream.disconnect()
    case.check_bounds()
    assert case.stream.socket is None
    assert case.dropped(Drop.NO_GUEST) == 2, "the one that was cut, and the last"
    case.stream.connect(second)  # type: ignore[arg-type]
    case.written.clear()
    case.run(4, b"for the second", 14)
    case.stream.flush()
    assert frames(second.data) == case.written


def test_what_is_recorded_is_what_was_sent_or_waits() -> None:
    with small_queue():
        record = Record()
        kernel = Kernel([2000], otherwise=0)
        case = Case(kernel, record)
        for number in range(8):
            case.run(4 if number % 2 else 6, numbered(number, 1000), 1000)
        case.stream.flush()
        assert case.dropped() > 0
        kernel.otherwise = WHOLE
        case.stream.empty()
        case.run(4, bytes(2500), 1000)
        case.stream.flush()
    assert record.frames == frames(kernel.data)
    assert len(record.frames) + len(record.lost) == len(case.written)
    assert len(record.lost) == case.dropped()
