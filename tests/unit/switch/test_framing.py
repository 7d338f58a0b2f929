"""Streams cut into frames and messages, however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.switch.framing import FRAME_MAXIMUM, FRAME_MINIMUM, MESSAGE_MAXIMUM, Cutter, framed_message

BLANK = bytes(10)  # a virtio-net header
MESSAGE = 1 << 31  # in a length

ITEMS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.binary(min_size=FRAME_MINIMUM, max_size=200)),
        st.tuples(st.just("message"), st.binary(min_size=1, max_size=50)),
        st.tuples(st.just("illegal"), st.binary(max_size=FRAME_MINIMUM - 1)),
    )
)


class Case:
    """A cutter, and what it has found."""

    def __init__(self, messages: bool = True) -> None:
        self.found: list[tuple[str, bytes]] = []
        self.illegal = 0
        self.cutter = Cutter(self._message if messages else None, self._count)

    def arrive(self, data: bytes) -> None:
        """Put data in, as much at once as there is room, and take out what is whole."""
        while data:
            room = self.cutter.room()
            size = min(len(room), len(data))
            assert size
            room[:size] = data[:size]
            data = data[size:]
            self.cutter.add(size)
            while (frame := self.cutter.cut()) is not None:
                if not frame:
                    continue
                assert frame[:10] == BLANK
                self.found.append(("frame", bytes(frame[10:])))

    def _message(self, message: bytes) -> None:
        self.found.append(("message", message))

    def _count(self) -> None:
        self.illegal += 1


def framed(kind: str, data: bytes) -> bytes:
    return framed_message(data) if kind == "message" else len(data).to_bytes(4, "big") + data


@given(ITEMS, st.lists(st.integers(1, 300), min_size=1))
def test_what_arrives_in_pieces_comes_out_whole_and_in_order(items: list[tuple[str, bytes]], sizes: list[int]) -> None:
    case = Case()
    data = b"".join(framed(*item) for item in items)
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        case.arrive(data[:size])
        data, turn = data[size:], turn + 1
    assert case.found == [item for item in items if item[0] != "illegal"]
    assert case.illegal == sum(kind == "illegal" for kind, _ in items)


def test_the_longest_frames_and_messages_fit() -> None:
    case = Case()
    items = [("frame", bytes(FRAME_MAXIMUM)), ("message", bytes(MESSAGE_MAXIMUM)), ("frame", bytes(FRAME_MINIMUM))] * 9
    case.arrive(b"".join(framed(*item) for item in items))
    assert case.found == items


@pytest.mark.parametrize("length", [0, FRAME_MINIMUM - 1, FRAME_MAXIMUM + 1, 1 << 20])
def test_a_frame_of_illegal_length_is_skipped(length: int) -> None:
    case = Case()
    case.arrive(length.to_bytes(4, "big") + bytes(length) + framed("frame", b"behind the other"))
    assert case.found == [("frame", b"behind the other")]
    assert case.illegal == 1


@pytest.mark.parametrize("length", [MESSAGE, MESSAGE + MESSAGE_MAXIMUM + 1, (1 << 32) - 1])
def test_a_message_of_illegal_length_is_none(length: int) -> None:
    case = Case()
    case.arrive(length.to_bytes(4, "big") + bytes(1000))
    assert case.found == []
    assert case.illegal == 1


def test_a_stream_without_messages_has_none() -> None:
    case = Case(messages=False)
    case.arrive(framed_message(b"hello"))
    assert case.found == []
    assert case.illegal == 1


def test_another_stream_begins_with_a_frame() -> None:
    case = Case()
    case.arrive(framed("frame", bytes(100))[:50])
    case.cutter.clear()
    case.arrive(framed("frame", b"of the second stream"))
    assert case.found == [("frame", b"of the second stream")]


def test_a_message_that_raises_is_not_seen_again() -> None:
    def refuse(message: bytes) -> None:
        raise ValueError(message)

    cutter = Cutter(refuse, lambda: None)
    data = framed_message(b"no") + framed("frame", b"behind a message")
    cutter.room()[: len(data)] = data
    cutter.add(len(data))
    with pytest.raises(ValueError, match="no"):
        cutter.cut()
    frame = cutter.cut()
    assert frame is not None
    assert bytes(frame[10:]) == b"behind a message"


def test_messages_and_what_is_illegal_are_looked_at_one_at_a_time() -> None:
    found: list[bytes] = []
    cutter = Cutter(found.append, lambda: found.append(b"illegal"))
    data = framed_message(b"one") + framed("illegal", b"") + framed_message(b"two")
    cutter.room()[: len(data)] = data
    cutter.add(len(data))
    for number in range(1, 4):
        nothing = cutter.cut()
        assert nothing is not None
        assert (len(nothing), len(found)) == (0, number)
    assert cutter.cut() is None
    assert found == [b"one", b"illegal", b"two"]
