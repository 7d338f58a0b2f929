"""What a link offers to the path, and what it asks of the headers that it writes.

Theory of operation: a link carries *runs*: segments of one flow and one size, of which only the last may be shorter. It
knows no protocol. The headers of a run's frames come from the protocol's room as a `RunHeader`. A link that offloads
fills it once for the run, another link once for each segment.
"""

from __future__ import annotations

import errno
from typing import Protocol

from gpasst.link.recorder import Recorder

TRANSIENT = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM))
"""Errors of one call that say nothing about the link: the next call may succeed."""


class LinkGone(ConnectionError):
    """The guest's end of the link is gone; no error of any other call is taken for that."""


class RunHeader(Protocol):
    """Everything before the payload of one flow's frames, from the virtio-net header on.

    `offset` is the payload bytes of the run before the segment at hand: the distance of its sequence number from the
    run's, where the protocol has such.
    """

    @property
    def protocol(self) -> str:
        """The protocol that the traffic counts for, such as ``"udp"``."""

    @property
    def family(self) -> int:
        """4 or 6."""

    @property
    def size(self) -> int:
        """Bytes from the Ethernet header to the payload."""

    @property
    def repeats(self) -> bool:
        """Whether segments of one size have equal headers where nothing is offloaded."""

    def fill(self, total: int, segment: int) -> bytearray:
        """Return the header of a superframe for a link that offloads.

        :param total: payload bytes of the run.
        :param segment: payload bytes of each segment but perhaps the last.
        """

    def fill_complete(self, payload: bytes | bytearray | memoryview, offset: int = 0) -> bytearray:
        """Return the header of one segment with final checksums.

        :param payload: the segment.
        """

    def framed(self, length: int, payload: bytes | memoryview | None = None, offset: int = 0) -> tuple[bytes, bytes]:
        """Return the bytes before and behind one segment on a stream: frame length and headers; padding.

        :param length: payload bytes.
        :param payload: the segment; None only where `repeats` holds.
        """


class Link(Protocol):
    """The guest's end of the proxy.

    :ivar recorder: records what crosses, None while nobody wants that.
    """

    recorder: Recorder | None

    @property
    def ready(self) -> bool:
        """Whether a guest is there."""

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Write one run; what cannot be written is counted.

        :param header: the flow's headers.
        :param total: payload bytes in all.
        :param segment: payload bytes of each segment but perhaps the last.
        :param payload: the segments, laid out as the link's receiver lays them out; valid until `flush`.
        """

    @property
    def full(self) -> bool:
        """Whether what is written now has to wait for the guest to read."""

    def write_bare(self, header: RunHeader) -> None:
        """Write one frame without payload."""

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""

    def flush(self) -> None:
        """Send what was gathered; called before the buffers of `write_run` are used again."""
