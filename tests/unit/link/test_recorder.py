"""The recorder: who gets what crosses a link, and that the link knows whether anybody does."""

from __future__ import annotations

from gpasst.link.recorder import Record, Recorder
from gpasst.wire import VIRTIO_NET_BLANK
from tests.support.headers import header

FRAME = bytes(range(60))


class Link:
    """A link of which only this is seen."""

    recorder: Recorder | None = None


class Kept:
    """A sink that keeps its records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = 0

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def test_the_link_has_a_recorder_only_while_there_are_sinks() -> None:
    link, one, other = Link(), Kept(), Kept()
    recorder = Recorder(link, lambda: 0)
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


def test_each_sink_gets_what_crosses_while_it_is_there() -> None:
    link, one, other = Link(), Kept(), Kept()
    times = iter((10, 20, 30))
    recorder = Recorder(link, lambda: next(times))
    recorder.add(one)
    recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    recorder.add(other)
    recorder.write(False, VIRTIO_NET_BLANK + FRAME[:20], memoryview(FRAME)[20:], comment="lost")
    recorder.remove(one)
    recorder.write(True, VIRTIO_NET_BLANK, FRAME)
    assert [(item.time, item.to_guest, item.comment) for item in one.records] == [(10, True, ""), (20, False, "lost")]
    assert [item.time for item in other.records] == [20, 30]
    assert all(item.data == VIRTIO_NET_BLANK + FRAME for item in one.records + other.records)
    assert list(one.records[0].frames()) == [FRAME]


def test_a_record_is_as_many_frames_as_its_superframe() -> None:
    payload = bytes(2500)
    record = Record(0, True, bytes(header(4).fill(len(payload), 1000)) + payload, "")
    assert len(list(record.frames())) == 3


def test_what_is_written_is_a_copy() -> None:
    link, sink = Link(), Kept()
    recorder = Recorder(link, lambda: 0)
    recorder.add(sink)
    buffer = bytearray(VIRTIO_NET_BLANK + FRAME)
    recorder.write(False, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert sink.records[0].data == VIRTIO_NET_BLANK + FRAME


def test_the_end_closes_every_sink_once() -> None:
    link, one, other = Link(), Kept(), Kept()
    recorder = Recorder(link, lambda: 0)
    recorder.add(one)
    recorder.add(other)
    recorder.remove(other)
    recorder.close()
    recorder.close()
    assert link.recorder is None
    assert (one.closed, other.closed) == (1, 0), "a sink that was removed is its owner's"
