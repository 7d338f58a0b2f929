"""The recorder: what crosses the guest's interface, handed to everybody who records it.

Theory of operation: `link.recorder` is None while nobody records, which is all that the data path asks. The first sink
that is added puts the recorder there, and the last one that is removed takes it away, also while traffic passes.

1. A frame to the guest is recorded when the link has taken it, one from the guest when it has been read, before
   anything else is done with it. A frame that is lost between the two ends is recorded with its fate as comment.
2. A superframe is recorded whole; a sink cuts it (`Record.frames`) when it needs single frames.
3. Frames that are recorded are read one by one, so the readers join none while `link.recorder` is not None.
4. Records are handed over together, in the loop's next turn. So the data path waits for no sink, and a frame that is
   dropped in the step that read it gets the reason as comment (`Recorder.note`).

NOTE: only the hub's thread may add and remove sinks; `write` does not switch greenlets, and neither may a sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gpasst.capture.record import Record
from gpasst.counters import Drop
from gpasst.wire import VIRTIO_NET_CODEC

BATCH_RECORDS = 256  # records that wait at most
BATCH_BYTES = 1 << 20  # their data; about what a step of the tap may read

_VIRTIO = VIRTIO_NET_CODEC.size


class Sink(Protocol):
    """A receiver of records."""

    def take(self, records: Sequence[Record]) -> None:
        """Take what crossed since the last call, in order, without switching greenlets."""

    def close(self) -> None:
        """Release what the sink holds; called once, when the recorder is closed."""


class Recorded(Protocol):
    """What is recorded: a link.

    :ivar recorder: None while nobody records.
    """

    recorder: Recorder | None


class _Unrecorded:
    recorder: Recorder | None = None


UNRECORDED: Recorded = _Unrecorded()
"""What nobody records."""


class Recorder:
    """Hands what crosses a link, or the links of a switch, to any number of sinks.

    :param link: the link, or the switch.
    :param name: its name.
    :param clock: returns wall clock time in nanoseconds.
    :param soon: asks for a call of `flush` in the loop's next turn; more calls before it do nothing.
    :ivar name: as above.
    """

    def __init__(self, link: Recorded, name: str, clock: Callable[[], int], soon: Callable[[], object]) -> None:
        self._link = link
        self.name = name
        self._clock = clock
        self._soon = soon
        self._sinks: tuple[Sink, ...] = ()
        self._fresh: list[Record] = []
        self._bytes = 0

    def add(self, sink: Sink) -> None:
        """Begin to hand records to a sink, of what crosses from now on."""
        self.flush()
        self._sinks = (*self._sinks, sink)
        self._link.recorder = self

    def remove(self, sink: Sink) -> None:
        """Stop handing records to a sink, which stays open; it has all that crossed by now."""
        self.flush()
        self._sinks = tuple(other for other in self._sinks if other is not sink)
        if not self._sinks:
            self._link.recorder = None

    def write(
        self, to_guest: bool, *parts: bytes | bytearray | memoryview, comment: str = "", link: str = ""
    ) -> Record:
        """Record a frame or superframe; the comment of what is returned may be changed in the same step.

        :param to_guest: whether it was on the way to the guest.
        :param parts: its virtio-net header and the frame, in consecutive parts.
        :param comment: its fate or the reason of its drop; empty if it was carried.
        :param link: name of the link, of those of a switch.
        """
        fresh = self._fresh
        if not fresh:
            self._soon()
        elif len(fresh) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES:
            self.flush()
            fresh = self._fresh
        data = b"".join(parts)
        self._bytes += len(data)
        record = Record(self._clock(), to_guest, data, comment, link)
        fresh.append(record)
        return record

    def note(self, frame: bytes | bytearray | memoryview, reason: Drop) -> None:
        """Comment the latest record of a frame of the guest with why it was dropped, unless it has been handed over.

        :param frame: from the destination MAC address on.
        """
        size = len(frame) + _VIRTIO
        for record in reversed(self._fresh):
            if not (record.to_guest or record.comment) and len(record.data) == size and record.data[_VIRTIO:] == frame:
                record.comment = reason.value
                return

    def flush(self) -> None:
        """Hand over what has been recorded."""
        fresh, self._fresh, self._bytes = self._fresh, [], 0
        if fresh:
            for sink in self._sinks:
                sink.take(fresh)

    def close(self) -> None:
        """Stop recording, and close every sink."""
        self._link.recorder = None
        self.flush()
        sinks, self._sinks = self._sinks, ()
        for sink in sinks:
            sink.close()
