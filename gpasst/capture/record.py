"""A record: a frame or superframe that crossed the guest's interface, or was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from gpasst.packet.segmentation import split
from gpasst.packet.superframe import shape
from gpasst.records import dataclass
from gpasst.wire import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC

if TYPE_CHECKING:
    # Needed where frames are looked at, which no start does.
    from gpasst.packet.frame import Frame

SNAP_LENGTH: Final = 262144
"""Bytes of a frame that a capture file may hold: what libpcap writes by default, more than the largest frame has."""

_VIRTIO = len(VIRTIO_NET_BLANK)
_GSO_TYPE = VIRTIO_NET_CODEC.offset("gso_type")


@dataclass(slots=True, eq=False)
class Record:
    """A frame or superframe that crossed the guest's interface, or was lost on the way.

    :ivar time_ns: nanoseconds since 1970.
    :ivar to_guest: whether it was on the way to the guest.
    :ivar data: its virtio-net header and the frame.
    :ivar comment: its fate or the reason of its drop; empty if it was carried.
    :ivar link: name of the link, where a recorder has several; else empty.
    """

    time_ns: int
    to_guest: bool
    data: bytes
    comment: str
    link: str = ""

    @property
    def crossed(self) -> bool:
        """Whether it crossed the guest's interface; what is lost on the way from the guest had done so."""
        return not (self.to_guest and self.comment)

    @property
    def count(self) -> int:
        """How many frames it stands for."""
        data = self.data
        return shape(data).count if len(data) >= _VIRTIO and data[_GSO_TYPE] else 1

    def single(self, frame: bytes) -> Record:
        """Return the record of one of its frames."""
        return Record(self.time_ns, self.to_guest, VIRTIO_NET_BLANK + frame, self.comment, self.link)

    def frames(self) -> Iterator[bytes]:
        """Yield the Ethernet frames that it stands for, with complete checksums."""
        if self.data.startswith(VIRTIO_NET_BLANK):
            yield self.data[_VIRTIO:]
        else:
            yield from split(self.data)

    def parsed(self) -> Iterator[Frame]:
        """Yield the frames that it stands for, parsed."""
        from gpasst.packet.frame import Frame

        for frame in self.frames():
            yield Frame(frame, self.to_guest, self.time_ns, self.comment, self.link)


class Encoder(Protocol):
    """A format of capture files."""

    def head(self) -> bytes:
        """Return what stands at the start of a file."""

    def interface(self, name: str) -> bytes:
        """Return what stands before the first frame of one more interface; they are counted from 0."""

    def blocks(self, record: Record, interface: int) -> list[bytes]:
        """Return what stands for each frame of a record of an interface."""
