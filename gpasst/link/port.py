"""What a link offers to the path, and what it asks of the headers that it writes.

Theory of operation: a link carries *runs*: segments of one flow and one size, of which only the last may be shorter. It
knows no protocol. The headers of a run's frames come from the protocol's room as a `RunHeader`. A link that offloads
fills it once for the run, another link once for each segment.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol

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
    def buffer(self) -> bytearray:
        """The headers as they were filled last; addresses, ports and flags are right at any time."""

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


class Writer(Protocol):
    """What takes the place of a link's writes: see `divert`."""

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Write one run; see `Link.write_run`."""

    def write_bare(self, header: RunHeader) -> None:
        """Write one frame without payload."""

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""


def divert(link: Link, writer: Writer | None) -> None:
    """Let a writer take what is written to a link from now on; None ends that.

    The link's own attributes stand before the methods of its class, so a link that is not diverted pays nothing.
    """
    for name in ("write_run", "write_bare", "write_frame"):
        if writer is not None:
            setattr(link, name, getattr(writer, name))
        elif name in vars(link):
            delattr(link, name)


FREE: Final = 0
"""No rule is about the flow of the frame."""
PASSED: Final = 1
"""The frame goes on as it is, but those behind it have to be asked for."""
TAKEN: Final = 2
"""The frame is carried later, or has been, or is lost."""


class Gate(Protocol):
    """Stands between a reader of the link and everything else."""

    def take(self, buffer: memoryview, at: int, end: int) -> int:
        """Return what becomes of a frame of the guest: `FREE`, `PASSED` or `TAKEN`.

        :param buffer: where it lies; valid during the call.
        :param at: where its virtio-net header begins, or would.
        :param end: where it ends.
        """


class ImpairableLink(Link, Protocol):
    """A link that weather can stand before.

    :ivar gate: asked for each frame of the guest, None while no rule of weather is in force for these.
    """

    gate: Gate | None

    def superframe(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> bytes:
        """Return a run as it would cross a link that offloads: its headers and segments; see `write_run`."""

    def write_held(self, data: bytes, count: int, head: int, family: int, protocol: str) -> None:
        """Write a frame or superframe that was held; what cannot be written is counted.

        :param data: its virtio-net header and the frame.
        :param count: how many frames it is.
        :param head: bytes before its payload.
        :param family: 4 or 6.
        :param protocol: what it counts for, such as ``"udp"``; empty for the frame of a service.
        """
