"""The recorder: what crosses the guest's interface, handed to everybody who records it.

Theory of operation: `link.recorder` is None while nobody records, which is all that the data path asks. The first sink
that is added puts the recorder there, and the last one that is removed takes it away, also while traffic passes.

1. A frame to the guest is recorded when the link has taken it, one from the guest when it has been read, before
   anything else is done with it. A frame that is lost between the two ends is recorded with its fate as comment.
2. A superframe is recorded whole; a sink cuts it (`Record.frames`) when it needs single frames.
3. Frames that are recorded are read one by one, so the readers join none while `link.recorder` is not None.

NOTE: only the hub's thread may add and remove sinks; `write` does not switch greenlets, and neither may a sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from gpasst.packet.segmentation import split
from gpasst.records import dataclass


@dataclass(slots=True, eq=False)
class Record:
    """A frame or superframe that crossed the guest's interface, or was lost on the way.

    :ivar time: nanoseconds since 1970.
    :ivar to_guest: whether it was on the way to the guest.
    :ivar data: its virtio-net header and the frame.
    :ivar comment: its fate or the reason of its drop; empty if it was carried.
    """

    time: int
    to_guest: bool
    data: bytes
    comment: str

    def frames(self) -> Iterator[bytes]:
        """Yield the Ethernet frames that it stands for, with complete checksums."""
        return split(self.data)


class Sink(Protocol):
    """A receiver of records."""

    def write(self, record: Record) -> None:
        """Take a record, without switching greenlets."""

    def close(self) -> None:
        """Release what the sink holds; called once, when the recorder is closed."""


class Recorded(Protocol):
    """What is recorded: a link.

    :ivar recorder: None while nobody records.
    """

    recorder: Recorder | None


class Recorder:
    """Hands what crosses a link to any number of sinks.

    :param link: the link.
    :param clock: returns wall clock time in nanoseconds.
    """

    def __init__(self, link: Recorded, clock: Callable[[], int]) -> None:
        self._link = link
        self._clock = clock
        self._sinks: tuple[Sink, ...] = ()

    def add(self, sink: Sink) -> None:
        """Begin to hand records to a sink."""
        self._sinks = (*self._sinks, sink)
        self._link.recorder = self

    def remove(self, sink: Sink) -> None:
        """Stop handing records to a sink, which stays open; one that is not there is ignored."""
        self._sinks = tuple(other for other in self._sinks if other is not sink)
        if not self._sinks:
            self._link.recorder = None

    def write(self, to_guest: bool, *parts: bytes | bytearray | memoryview, comment: str = "") -> None:
        """Record a frame or superframe.

        :param to_guest: whether it was on the way to the guest.
        :param parts: its virtio-net header and the frame, in consecutive parts.
        :param comment: its fate or the reason of its drop; empty if it was carried.
        """
        record = Record(self._clock(), to_guest, b"".join(parts), comment)
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Stop recording, and close every sink."""
        self._link.recorder = None
        sinks, self._sinks = self._sinks, ()
        for sink in sinks:
            sink.close()
