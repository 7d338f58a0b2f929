"""The downward half: what goes to the socket, what is kept, and what is acknowledged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.tcp.receiver import PIECE_BYTES, PIECES, Receiver
from gpasst.tcp.window import SCALE, Budget, ReceiveWindow

FIRST = 0xFFFFFF00  # the numbers wrap around after 256 bytes
MASK = 0xFFFFFFFF
WINDOW = 65535
STREAM = random.Random(5).randbytes(WINDOW + 1000)


class Socket:
    """A receiver with a socket that takes so many bytes at a time.

    :ivar data: what the socket took.
    :ivar drops: reasons of the segments that were dropped.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.data = b""
        self.drops: list[Drop] = []
        self.receiver = Receiver(ReceiveWindow(Budget()), self.drops.append)
        self.receiver.start(FIRST, SCALE)

    def segment(self, start: int, end: int, fin: bool = False) -> None:
        """Take a segment with a part of the stream."""
        payload = memoryview(STREAM)[start:end]
        assert self.receiver.acceptable((FIRST + start) & MASK, len(payload) + fin)
        fresh = self.receiver.admit((FIRST + start) & MASK, payload, fin)
        if fresh:
            taken = min(len(fresh), self.room)
            self.data += fresh[:taken]
            self.room -= taken
            self.receiver.wrote(fresh, taken)

    def writable(self, room: int = 1 << 30, count: int = 3) -> None:
        """Take what is kept, in calls of at most `count` pieces."""
        self.room = room
        while pieces := self.receiver.waiting(count):
            data = b"".join(pieces)[: self.room]
            self.data += data
            self.room -= len(data)
            self.receiver.took(len(data))
            if not self.room:
                break

    @property
    def at(self) -> tuple[int, int]:
        """How far data was acknowledged, and how far it came in order."""
        receiver = self.receiver
        return (receiver.acknowledged - FIRST) & MASK, (receiver.next - FIRST) & MASK

    def holds(self, end: int) -> bool:
        """Return whether the socket has exactly the stream up to a byte."""
        return self.data == STREAM[:end]


def test_data_in_order_goes_to_the_socket() -> None:
    socket = Socket()
    socket.segment(0, 100)
    socket.segment(100, 300)
    assert socket.holds(300)
    assert socket.at == (300, 300)
    assert not socket.receiver.waits


def test_what_the_socket_does_not_take_is_kept() -> None:
    socket = Socket(room=150)
    socket.segment(0, 100)
    socket.segment(100, 300)
    socket.segment(300, 400)
    assert socket.holds(150)
    assert socket.at == (150, 400)
    assert socket.receiver.waits
    socket.writable(room=100)
    assert socket.at == (250, 400)
    socket.writable()
    assert socket.holds(400)
    assert socket.at == (400, 400)
    assert socket.receiver.waiting(3) == []
    assert not socket.receiver.waits


@pytest.mark.parametrize("room", [1, 7, 33, 64, 1000])
def test_what_is_kept_may_be_taken_in_parts(room: int) -> None:
    socket = Socket(room=0)
    for start in range(0, 40000, 5000):
        socket.segment(start, start + 5000)
    for _ in range(100):
        socket.writable(room=room, count=2)
        assert socket.holds(socket.at[0])
    socket.segment(40000, 41000)
    socket.writable()
    assert socket.holds(41000)


def test_small_segments_that_are_kept_cost_no_object_each() -> None:
    socket = Socket(room=0)
    for at in range(PIECE_BYTES + 10):
        socket.segment(at, at + 1)
    assert [len(piece) for piece in socket.receiver.waiting(1000)] == [PIECE_BYTES, 10]
    socket.writable(room=5)
    socket.segment(PIECE_BYTES + 10, PIECE_BYTES + 20)
    socket.writable()
    assert socket.holds(PIECE_BYTES + 20)


@pytest.mark.parametrize(
    "segments",
    [
        [(100, 200), (0, 100)],
        [(200, 300), (100, 200), (0, 100)],
        [(100, 300), (200, 400), (0, 150)],
        [(200, 300), (0, 400)],
        [(0, 200), (100, 400)],
        [(100, 200), (100, 200), (150, 180), (0, 100)],
        [(50, 60), (0, 10), (10, 50), (60, 70)],
        [(100, 200), (300, 400), (0, 100), (200, 300)],
    ],
    ids=[
        "a gap that is filled",
        "two gaps, filled from behind",
        "pieces that overlap",
        "a segment over the gap and the piece behind it",
        "data that was sent again with more",
        "pieces that came twice",
        "a gap that is filled in parts",
        "a piece that still waits for another gap",
    ],
)
@pytest.mark.parametrize("room", [1 << 30, 50, 0])
def test_segments_out_of_order(segments: list[tuple[int, int]], room: int) -> None:
    socket = Socket(room)
    for start, end in segments:
        socket.segment(start, end)
    end = max(end for _, end in segments)
    assert socket.at[1] == end
    socket.writable()
    assert socket.holds(end)
    assert not socket.drops


def test_a_gap_keeps_few_pieces() -> None:
    socket = Socket()
    for index in range(PIECES + 3):
        socket.segment(2 * index + 1, 2 * index + 2)
    assert socket.drops == [Drop.TCP_BUDGET] * 3
    for index in range(PIECES + 3):
        socket.segment(2 * index, 2 * index + 1)
    socket.writable()
    assert socket.holds(2 * PIECES + 1)


def test_pieces_behind_a_gap_are_no_more_than_the_window() -> None:
    socket = Socket()
    for start in (1, 2, 3):
        socket.segment(start, start + 30000)
    assert socket.drops == [Drop.TCP_BUDGET]


def test_a_piece_that_came_twice_is_kept_once() -> None:
    socket = Socket()
    for _ in range(PIECES + 3):
        socket.segment(100, 200)
    socket.segment(300, 400)
    assert not socket.drops


def test_data_beyond_the_window_is_cut_off() -> None:
    socket = Socket(room=0)
    socket.segment(0, WINDOW - 100)
    socket.segment(WINDOW - 50, WINDOW + 2, fin=True)
    socket.segment(WINDOW - 100, WINDOW + 2, fin=True)
    assert socket.drops == [Drop.TCP_UNACCEPTABLE] * 2
    assert socket.at == (0, WINDOW)
    assert not socket.receiver.finishing
    socket.writable()
    assert socket.holds(WINDOW)


def test_a_probe_of_a_full_window_is_no_drop() -> None:
    socket = Socket(room=0)
    socket.segment(0, WINDOW)
    socket.segment(WINDOW, WINDOW + 1)
    assert socket.at == (0, WINDOW)
    assert not socket.drops


def test_a_fin_behind_all_data() -> None:
    socket = Socket()
    socket.segment(0, 100, fin=True)
    assert socket.at == (100, 100)
    assert socket.receiver.finishing
    assert socket.receiver.waits
    socket.receiver.finish()
    assert socket.at == (101, 101)
    assert not socket.receiver.waits


def test_a_fin_behind_a_gap_waits_for_it() -> None:
    socket = Socket()
    socket.segment(100, 200, fin=True)
    assert not socket.receiver.finishing
    socket.segment(0, 100)
    socket.writable()
    assert socket.receiver.finishing
    assert socket.holds(200)


def test_a_fin_before_a_gap_ends_the_stream() -> None:
    socket = Socket()
    socket.segment(200, 300)
    socket.segment(0, 100, fin=True)
    assert socket.receiver.finishing
    assert socket.at[1] == 100
    socket.segment(100, 200)
    assert socket.drops == [Drop.TCP_CLOSED]
    socket.writable()
    assert socket.holds(100)


def test_a_bare_fin_behind_a_gap() -> None:
    socket = Socket()
    socket.segment(100, 100, fin=True)
    socket.segment(50, 100)
    socket.segment(0, 50)
    socket.writable()
    assert socket.receiver.finishing
    assert socket.holds(100)


def test_what_comes_again_before_a_fin_is_no_drop() -> None:
    socket = Socket(room=0)
    socket.segment(0, 100, fin=True)
    socket.segment(0, 100, fin=True)
    socket.segment(50, 100, fin=True)
    socket.segment(100, 100, fin=True)
    assert not socket.drops
    socket.segment(50, 101)
    assert socket.drops == [Drop.TCP_CLOSED]


def test_a_fin_behind_a_full_window_moves_the_edge_by_itself() -> None:
    socket = Socket(room=0)
    socket.segment(0, WINDOW, fin=True)
    socket.writable()
    socket.receiver.finish()
    receiver = socket.receiver
    assert socket.at == (WINDOW + 1, WINDOW + 1)
    assert receiver.window.edge == receiver.next
    assert receiver.window.advertise(receiver.acknowledged, full=False) << SCALE <= 4 * WINDOW


@pytest.mark.parametrize(
    ("start", "length", "acceptable"),
    [
        (100, 0, True),
        (100, 1, True),
        (99, 0, False),
        (99, 1, False),
        (99, 2, True),
        (0, 100, False),
        (0, 101, True),
        (WINDOW, 0, True),
        (WINDOW, 10, True),
        (WINDOW + 1, 10, False),
        (1 << 31, 10, False),
    ],
)
def test_what_has_a_part_in_the_window(start: int, length: int, acceptable: bool) -> None:
    socket = Socket()
    socket.segment(0, 100)
    assert socket.receiver.acceptable((FIRST + start) & MASK, length) is acceptable


@pytest.mark.parametrize("taken", [0, 50, 100, 130, 200, 250, 300])
def test_segments_that_follow_are_offered_together(taken: int) -> None:
    receiver = Socket().receiver
    fresh = receiver.admit(FIRST, memoryview(STREAM)[:100], False)
    assert receiver.extend(200)
    receiver.wrote(fresh, taken, [memoryview(STREAM)[100:200], memoryview(STREAM)[200:300]])
    assert (receiver.acknowledged, receiver.next) == ((FIRST + taken) & MASK, (FIRST + 300) & MASK)
    assert b"".join(receiver.waiting(5)) == STREAM[taken:300]


def test_what_follows_is_taken_by_itself_at_an_edge() -> None:
    socket = Socket()
    socket.segment(500, 600)
    socket.receiver.admit(FIRST, memoryview(STREAM)[:100], False)
    assert not socket.receiver.extend(100), "a piece ahead may overlap"
    socket = Socket()
    socket.receiver.admit(FIRST, memoryview(STREAM)[:100], False)
    assert not socket.receiver.extend(WINDOW - 99), "beyond the window"
    assert socket.receiver.extend(WINDOW - 100)
    socket = Socket()
    socket.receiver.admit(FIRST, memoryview(STREAM)[:100], True)
    assert not socket.receiver.extend(1), "behind the end"


def test_a_released_receiver_holds_nothing() -> None:
    budget = Budget()
    receiver = Receiver(ReceiveWindow(budget), lambda reason: None)
    receiver.start(FIRST, SCALE)
    receiver.wrote(receiver.admit(FIRST, memoryview(b"data"), False), 0)
    receiver.admit(FIRST + 10, memoryview(b"data"), False)
    receiver.release()
    assert receiver.waiting(5) == []
    assert budget.promised == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900), st.integers(0, 200)), max_size=60),
    st.integers(1, 64),
)
def test_whatever_comes_is_the_stream_in_order(steps: list[tuple[int, int, int]], count: int) -> None:
    socket = Socket(room=100)
    for start, length, room in steps:
        if socket.receiver.acceptable((FIRST + start) & MASK, length):
            socket.segment(start, start + length)
        if room < 50:
            socket.writable(room, count)
        acknowledged, following = socket.at
        assert acknowledged <= following
        assert socket.holds(acknowledged)
    end = socket.at[1]
    for start in range(0, 4000, 500):
        if socket.receiver.acceptable((FIRST + start) & MASK, 500):
            socket.segment(start, start + 500)
    socket.writable()
    assert socket.holds(max(end, 4000))
