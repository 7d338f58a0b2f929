"""The latest frames: how many are kept, in how many bytes, and taken up where a reader left off."""

from __future__ import annotations

from gpasst.capture.history import BYTES_LIMIT, FRAMES_LIMIT, ITEM_BYTES, History, Latest
from gpasst.capture.record import Record
from tests.support.frames import recorded
from tests.support.headers import header


def superframe(segments: int) -> Record:
    payload = bytes(100 * segments)
    return Record(0, True, bytes(header(4).fill(len(payload), 100)) + payload, "")


def test_records_are_taken_up_where_a_reader_left_off() -> None:
    history = History()
    one, other = recorded(b"one"), recorded(b"other")
    history.take([one])
    assert (history.since(), history.number) == ([one], 1)
    history.take([other])
    assert history.since(1) == [other]
    assert history.since(history.number) == []
    history.close()
    assert history.since() == [one, other]


def test_the_oldest_frames_go_first() -> None:
    history = History()
    records = [recorded(bytes(10)) for _ in range(FRAMES_LIMIT + 5)]
    history.take(records[:3])
    history.take(records[3:])
    assert (history.frames, history.forgotten) == (FRAMES_LIMIT, 5)
    assert history.since() == records[5:]
    assert history.since(2) == records[5:], "what is gone is left out"
    assert history.since(7) == records[7:]
    assert history.number == len(records)


def test_a_superframe_counts_as_the_frames_that_it_stands_for() -> None:
    history = History()
    history.take([superframe(40)] * (FRAMES_LIMIT // 40 + 1))
    assert (history.frames, history.forgotten) == (FRAMES_LIMIT, 40)


def test_bytes_are_bounded_too() -> None:
    history = History()
    size = 60_000
    history.take([recorded(bytes(size - 10)) for _ in range(300)])
    assert history.frames == BYTES_LIMIT // (size + ITEM_BYTES)
    assert history.frames + history.forgotten == 300


def test_the_latest_is_kept_however_large() -> None:
    kept: Latest[str] = Latest()
    kept.add("small", 1, 1)
    kept.add("large", 1, BYTES_LIMIT + 1)
    assert (kept.since(), kept.forgotten) == (["large"], 1)
    kept.add("many", FRAMES_LIMIT + 1, 1)
    assert (kept.since(), kept.frames) == (["many"], FRAMES_LIMIT + 1)
