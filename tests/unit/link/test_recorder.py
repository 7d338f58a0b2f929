"""The recorder: who gets what crosses a link, and that the link knows whether anybody does."""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.link.recorder import BATCH_BYTES, BATCH_RECORDS, UNRECORDED, Recorder
from gpasst.wire import VIRTIO_NET_BLANK
from tests.support.records import Kept

FRAME = bytes(range(60))


def nothing() -> None:
    """Nobody asks for a flush but the test."""


class Link:
    """A link of which only this is seen."""

    recorder: Recorder | None = None


def test_the_link_has_a_recorder_only_while_there_are_sinks() -> None:
    link, one, other = Link(), Kept(), Kept()
    recorder = Recorder(link, "eth0", lambda: 0, nothing)
    assert link.recorder is None
    recorder.add(one)
    recorder.add(other)
    assert link.recorder is recorder
    recorder.remove(one)
    recorder.remove(one)
    assert link.recorder is recorder
    recorder.remove(other)
    assert link.recorder is None
    assert (one.closed, other.closed) == (0, 0)


def test_links_of_a_switch_have_names_in_its_recorder() -> None:
    link, sink = Link(), Kept()
    recorder = Recorder(link, "lan", lambda: 0, nothing)
    recorder.add(sink)
    recorder.write(True, VIRTIO_NET_BLANK, FRAME, link="a")
    recorder.write(False, VIRTIO_NET_BLANK, FRAME, link="c").comment = "lost"
    recorder.flush()
    assert [(record.link, record.comment) for record in sink.records] == [("a", ""), ("c", "lost")]
    assert [frame.link for record in sink.records for frame in record.parsed()] == ["a", "c"]


def test_each_sink_gets_what_crosses_while_it_is_there() -> None:
    link, one, other = Link(), Kept(), Kept()
    times = iter((10, 20, 30))
    recorder = Recorder(link, "eth0", lambda: next(times), nothing)
    recorder.add(one)
    recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    recorder.add(other)
    recorder.write(False, VIRTIO_NET_BLANK + FRAME[:20], memoryview(FRAME)[20:], comment="lost")
    recorder.remove(one)
    recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    recorder.flush()
    found = [(item.time_ns, item.to_guest, item.comment) for item in one.records]
    assert found == [(10, True, ""), (20, False, "lost")]
    assert [item.time_ns for item in other.records] == [20, 30]
    assert all(item.data == VIRTIO_NET_BLANK + FRAME for item in one.records + other.records)
    assert list(one.records[0].frames()) == [FRAME]


def test_what_is_written_is_a_copy() -> None:
    link, sink = Link(), Kept()
    recorder = Recorder(link, "eth0", lambda: 0, nothing)
    recorder.add(sink)
    buffer = bytearray(VIRTIO_NET_BLANK + FRAME)
    recorder.write(False, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    recorder.flush()
    assert sink.records[0].data == VIRTIO_NET_BLANK + FRAME


def test_the_end_closes_every_sink_once() -> None:
    link, one, other = Link(), Kept(), Kept()
    recorder = Recorder(link, "eth0", lambda: 0, nothing)
    recorder.add(one)
    recorder.add(other)
    recorder.remove(other)
    recorder.close()
    recorder.close()
    assert link.recorder is None
    assert (one.closed, other.closed) == (1, 0), "a sink that was removed is its owner's"


def test_records_are_handed_over_together_when_asked() -> None:
    link, sink = Link(), Kept()
    asked: list[int] = []
    recorder = Recorder(link, "eth0", lambda: 0, lambda: asked.append(1))
    recorder.add(sink)
    for _ in range(3):
        recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    assert (sink.batches, len(asked)) == ([], 1)
    recorder.flush()
    recorder.flush()
    assert sink.batches == [3]
    recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    assert (sink.batches, len(asked)) == ([3], 2)
    recorder.close()
    assert sink.batches == [3, 1]


def test_what_waits_is_bounded() -> None:
    link, sink = Link(), Kept()
    recorder = Recorder(link, "eth0", lambda: 0, nothing)
    recorder.add(sink)
    for _ in range(BATCH_RECORDS + 1):
        recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    assert sink.batches == [BATCH_RECORDS]
    recorder.flush()
    for _ in range(17):
        recorder.write(True, bytes(BATCH_BYTES // 16))
    assert sink.batches == [BATCH_RECORDS, 1, 16]


def test_the_reason_of_a_drop_is_noted_with_the_latest_of_equal_frames() -> None:
    link, sink = Link(), Kept()
    recorder = Recorder(link, "eth0", lambda: 0, nothing)
    recorder.add(sink)
    for to_guest, frame, comment in [
        (False, FRAME, ""),
        (False, FRAME, ""),
        (True, FRAME, ""),
        (False, FRAME[:-1], ""),
        (False, FRAME[::-1], "lost"),
    ]:
        recorder.write(to_guest, VIRTIO_NET_BLANK, frame, comment=comment)
    recorder.note(memoryview(FRAME), Drop.RATE)
    recorder.note(memoryview(FRAME), Drop.BACKLOG)
    recorder.note(memoryview(FRAME), Drop.BACKLOG)
    recorder.note(FRAME[::-1], Drop.RATE)
    recorder.note(b"unknown", Drop.RATE)
    recorder.flush()
    recorder.note(FRAME[:-1], Drop.RATE)
    assert [item.comment for item in sink.records] == [Drop.BACKLOG.value, Drop.RATE.value, "", "", "lost"]
    assert UNRECORDED.recorder is None
