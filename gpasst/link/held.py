"""What an engine of weather is offered, and may hold: a frame or superframe, copied only if it has to be kept."""

from __future__ import annotations

from collections.abc import Callable

from gpasst.impair.facts import Flow, Run
from gpasst.packet.frame import Frame
from gpasst.packet.superframe import VIRTIO, Shape, complete, cut, shape


class Item:
    """A frame or superframe, which an engine may hold.

    :param make: returns it, with its virtio-net header; called before the buffer that it lies in is used again.
    :param to_guest: whether it is on the way to the guest.
    :param head: bytes before its payload; 0 for all.
    :param protocol: what it counts for where it is written; empty for the frame of a service.
    """

    __slots__ = ("_make", "_shape", "data", "head", "protocol", "to_guest")

    def __init__(self, make: Callable[[], bytes], to_guest: bool, head: int = 0, protocol: str = "") -> None:
        self._make: Callable[[], bytes] | None = make
        self._shape: Shape | None = None
        self.data = b""
        self.to_guest = to_guest
        self.head = head
        self.protocol = protocol

    def keep(self) -> None:
        """Copy it from where it lies."""
        if self._make is not None:
            self.data = self._make()
            self._make = None

    @property
    def shape(self) -> Shape:
        """Its shape."""
        if self._shape is None:
            self._shape = shape(self.data)
        return self._shape

    def part(self, first: int, stop: int, count: int) -> bytes:
        """Return the frames from index `first` to before `stop` of the `count` that it has, as it has them."""
        return self.data if stop - first == count else bytes(cut(self.data, self.shape, first, stop))

    def frame(self, index: int) -> bytes:
        """Return one frame, from the destination MAC address on, with complete checksums."""
        self.keep()
        whole = self.shape
        return complete(cut(self.data, whole, index, index + 1), whole)

    def parsed(self, index: int) -> Frame:
        """Return one frame, parsed."""
        return Frame(self.frame(index), self.to_guest)


def run_of(flow: Flow, flags: int, item: Item, length: int, joined: bool) -> Run:
    """Return the run of a frame or superframe, as an engine is offered it.

    :param flow: its flow.
    :param flags: its TCP flags.
    :param item: the frame or superframe.
    :param length: its bytes, from the Ethernet header on.
    :param joined: whether it is a superframe.
    """
    if not joined:
        return Run(flow, item, length, flags=flags, parsed=item.parsed)
    item.keep()
    whole = item.shape
    last = length - (whole.count - 1) * whole.size
    most = whole.payload - VIRTIO + whole.size if whole.count > 1 else last
    return Run(flow, item, most, last, whole.count, flags, item.parsed)
