"""The tap, whose other end is a socket: superframes where the device takes them, else segments, and what is lost."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.formats import UDP4, UDP6, VIRTIO_NET_BLANK
from gpasst.link.tap import Tap
from tests.support.families import FAMILIES
from tests.support.headers import header

HEADERS = {4: UDP4.size, 6: UDP6.size}
PAYLOAD = bytes(at * 7 & 0xFF for at in range(2500))


class Record:
    """A capture file's stand-in."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.lost: list[tuple[bytes, str]] = []

    def write(self, to_guest: bool, *parts: bytes, comment: str = "") -> None:
        assert to_guest
        if comment:
            self.lost.append((b"".join(parts), comment))
        else:
            self.frames.append(b"".join(parts))


class Case:
    """A tap, and what its reader has read."""

    def __init__(self, superframes: frozenset[int] = frozenset((4, 6)), record: Record | None = None) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.counters = Counters()
        self.tap = Tap(self.ours.fileno(), self.counters, {"udp": superframes})
        self.tap.recorder = cast(Any, record)

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.theirs.recv(1 << 17))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


@FAMILIES
def test_a_run_is_one_frame_where_the_device_takes_superframes(case: Case, family: int) -> None:
    case.tap.write_run(header(family), 2500, 1000, [memoryview(PAYLOAD[:700]), memoryview(PAYLOAD[700:])])
    assert case.frames() == [bytes(header(family).fill(2500, 1000)) + PAYLOAD]
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes) == (3, 2500, 1)


@FAMILIES
@pytest.mark.parametrize("superframes", [frozenset[int](), frozenset((4, 6))])
def test_a_single_datagram(family: int, superframes: frozenset[int]) -> None:
    case = Case(superframes)
    case.tap.write_run(header(family), 300, 300, [memoryview(PAYLOAD[:300])])
    case.tap.write_run(header(family), 0, 0, [memoryview(b"")])
    assert case.frames() == [bytes(header(family).fill(300, 300)) + PAYLOAD[:300], bytes(header(family).fill(0, 0))]
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes) == (2, 300, 0)
    case.close()


@FAMILIES
def test_else_each_segment_is_a_frame_of_its_own(family: int) -> None:
    case = Case(frozenset({10 - family}))
    case.tap.write_run(header(family), 2500, 1000, [memoryview(PAYLOAD)])
    pieces = [PAYLOAD[:1000], PAYLOAD[1000:2000], PAYLOAD[2000:]]
    assert case.frames() == [bytes(header(family).fill_complete(piece)) + piece for piece in pieces]
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes) == (3, 2500, 0)
    case.close()


@FAMILIES
def test_a_superframe_that_the_device_refuses_is_repeated_segment_by_segment(
    case: Case, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.writev

    def refuse(fd: int, parts: list[bytes]) -> int:
        if sum(map(len, parts)) > 1500:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, parts)

    monkeypatch.setattr(os, "writev", refuse)
    case.tap.write_run(header(family), 2500, 1000, [memoryview(PAYLOAD)])
    assert b"".join(frame[HEADERS[family] :] for frame in case.frames()) == PAYLOAD
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes) == (3, 2500, 0)
    assert case.counters.drops == {}


@FAMILIES
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EAGAIN, Drop.TAP_FULL), (errno.EIO, Drop.TAP_FAILED), (errno.EBADFD, Drop.TAP_FAILED)]
)
def test_what_cannot_be_written_is_counted_by_the_datagram(
    case: Case, family: int, number: int, reason: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fail(fd: int, parts: list[bytes]) -> int:
        tried.append(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", fail)
    case.tap.write_run(header(family), 2500, 1000, [memoryview(PAYLOAD)])
    assert case.counters.drops == {reason: 3}
    assert len(tried) == 1, "what met this error as one would meet it in parts"
    case.tap.write_run(header(family), 10, 10, [memoryview(PAYLOAD[:10])])
    case.tap.write_frame(bytes(60))
    assert case.counters.drops == {reason: 5}
    up = case.counters.udp.up
    assert (up.datagrams, up.bytes, up.superframes, case.counters.frames_up) == (0, 0, 0, 0)


def test_a_full_queue_drops_what_follows(case: Case) -> None:
    case.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while not case.counters.drops:
        case.tap.write_run(header(4), 1000, 1000, [memoryview(PAYLOAD[:1000])])
    written = case.counters.udp.up.datagrams
    assert case.counters.drops == {Drop.TAP_FULL: 1}
    assert len(case.frames()) == written > 0


def test_a_complete_frame(case: Case) -> None:
    case.tap.write_frame(bytes(range(60)))
    assert case.frames() == [VIRTIO_NET_BLANK + bytes(range(60))]
    assert case.counters.frames_up == 1


@FAMILIES
def test_what_was_written_is_recorded_and_what_was_lost_with_the_reason(family: int) -> None:
    record = Record()
    case = Case(record=record)
    case.tap.write_frame(bytes(60))
    case.tap.write_run(header(family), 2500, 1000, [memoryview(PAYLOAD)])
    assert record.frames == case.frames()
    case.ours.close()
    case.tap.write_frame(bytes(60))
    assert len(record.frames) == 2
    assert record.lost == [(VIRTIO_NET_BLANK + bytes(60), Drop.TAP_FAILED.value)]
    case.close()


def test_it_is_always_ready_and_gathers_nothing(case: Case) -> None:
    case.tap.write_frame(bytes(60))
    before = len(case.frames())
    case.tap.flush()
    assert (before, case.frames(), case.tap.ready) == (1, [], True)
