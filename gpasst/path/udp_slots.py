"""Frames to the guest, written from the slots that their datagrams were received into.

Theory of operation: a slot has headroom before the payload (`gpasst.host.receive_headed`). The headers of the peer are
copied there, and the frame is one piece of memory.

* A tap takes one frame in one write; with a ring, a batch of them in one call. What a ring failed, other than because
  the tap's queue is full, is written once more without it.
* A stream takes a batch in one send. Its frames have no virtio-net header: in the place of the last bytes of that
  stands the frame's length. What is behind the payload of a short frame is its padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from errno import EAGAIN

from gpasst.host.receive import Run
from gpasst.host.receive_framed import MINIMUM_PAYLOAD, with_gaps
from gpasst.host.receive_headed import Columns, HeadedReceiver
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import Writes
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.udp.header import VIRTIO_SIZE, Header
from gpasst.udp.mapping import Peer
from gpasst.udp.nat import UdpNat
from gpasst.wire import STREAM_LENGTH_BYTES

PROTOCOL = Header.protocol
STREAM_AT = VIRTIO_SIZE - STREAM_LENGTH_BYTES  # where a frame of a stream begins in a slot


class Slots(ABC):
    """The slots of a family, and the link that frames are written to from there.

    :ivar receiver: fills them.
    """

    __slots__ = ("receiver",)

    receiver: HeadedReceiver

    @abstractmethod
    def carry(self, nat: UdpNat, columns: Columns, peers: list[Peer]) -> None:
        """Write a frame for each datagram.

        :param nat: the rules and tables.
        :param columns: the datagrams, at least one.
        :param peers: those of their senders.
        """

    @abstractmethod
    def runs(self, columns: Columns) -> list[Run]:
        """Return datagrams as runs for `gpasst.link.port.Link.write_run`, valid until the next batch."""


class TapSlots(Slots):
    """Slots of frames for a tap.

    :param receiver: fills them.
    :param tap: the guest's end.
    :param ring: makes many calls in one, None without one.
    """

    __slots__ = ("_form", "_tap")

    def __init__(self, receiver: HeadedReceiver, tap: Tap, ring: Ring | None) -> None:
        self.receiver = receiver
        self._tap = tap
        self._form: Writes | None = None
        if ring is not None:
            form = Writes(ring, [receiver.arena])
            if form.accepted(tap.fd):
                form.descriptors[:] = array("i", [tap.fd]) * ENTRIES
                self._form = form

    def carry(self, nat: UdpNat, columns: Columns, peers: list[Peer]) -> None:
        """Write a frame for each datagram."""
        receiver, sizes, slots = self.receiver, columns.sizes, columns.slots
        guest, heads = nat.guest, receiver.heads
        activity, stamp = nat.tables[receiver.family].activity, guest.stamp
        for peer, size, tos_ttl, slot in zip(peers, sizes, columns.tos_ttls, slots, strict=True):
            header = peer.header
            activity[peer.byte] |= peer.bit
            if tos_ttl != header.tos_ttl:
                header = nat.header(peer, tos_ttl)
            if header.stamp is not stamp:
                guest.readdress(header, peer.mapping.guest)
            heads[slot][:] = header.buffer if header.total == size == header.segment else header.fill(size, size)
        head, form, count = receiver.headroom, self._form, len(sizes)
        if form is None or count == 1:
            frames = receiver.frames
            failures = self._tap.write_each([frames[i] for i in slots], [head + size for size in sizes])
        else:
            addresses = receiver.addresses
            whole = isinstance(slots, range)
            form.addresses[:count] = addresses[:count] if whole else array("Q", [addresses[i] for i in slots])
            form.lengths[:count] = array("I", [head + size for size in sizes])
            failures = self._repeated(columns, form.failures(count))
        self._tap.count_each(PROTOCOL, sizes, failures)

    def runs(self, columns: Columns) -> list[Run]:
        """Return datagrams as runs."""
        return self.receiver.runs(columns)

    def _repeated(self, columns: Columns, failures: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Write frames again that a ring may have failed rather than the tap; return the failures that are left."""
        again = [i for i, number in failures if number != EAGAIN]
        if not again:
            return failures
        head, frames = self.receiver.headroom, self.receiver.frames
        left = self._tap.write_each([frames[columns.slots[i]] for i in again], [head + columns.sizes[i] for i in again])
        full = [(i, number) for i, number in failures if number == EAGAIN]
        return full + [(again[i], number) for i, number in left]


class StreamSlots(Slots):
    """Slots of frames for a stream.

    :param receiver: fills them.
    :param stream: the guest's end.
    """

    __slots__ = ("_heads", "_minimum", "_stream")

    def __init__(self, receiver: HeadedReceiver, stream: Stream) -> None:
        self.receiver = receiver
        self._stream = stream
        self._heads = [head[STREAM_AT:] for head in receiver.heads]
        self._minimum = MINIMUM_PAYLOAD[receiver.family]

    def carry(self, nat: UdpNat, columns: Columns, peers: list[Peer]) -> None:
        """Write a frame for each datagram."""
        receiver, minimum = self.receiver, self._minimum
        guest, heads, frames, end = nat.guest, self._heads, receiver.frames, receiver.headroom
        activity, stamp = nat.tables[receiver.family].activity, guest.stamp
        pieces: list[memoryview] = []
        for peer, size, tos_ttl, slot in zip(peers, columns.sizes, columns.tos_ttls, columns.slots, strict=True):
            header, frame = peer.header, frames[slot]
            activity[peer.byte] |= peer.bit
            if tos_ttl != header.tos_ttl:
                header = nat.header(peer, tos_ttl)
            if header.stamp is not stamp:
                guest.readdress(header, peer.mapping.guest)
            if header.repeats and header.framing[0] == size:
                head, pad = header.framing[1]
            else:
                head, pad = header.framed(size, frame[end : end + size])
            heads[slot][:] = head
            if pad:
                frame[end + size : end + minimum] = pad
                pieces.append(frame[STREAM_AT : end + minimum])
            else:
                pieces.append(frame[STREAM_AT : end + size])
        self._stream.write_each(PROTOCOL, pieces, columns.sizes)

    def runs(self, columns: Columns) -> list[Run]:
        """Return datagrams as runs with room for the headers of their frames (`gpasst.host.receive_framed`)."""
        runs: list[Run] = []
        family, end = self.receiver.family, self.receiver.headroom
        for (key, total, segment, payload, tos_ttl), slot in zip(
            self.receiver.runs(columns), columns.slots, strict=True
        ):
            if segment < total:
                frames = with_gaps(family, bytes(payload[0]), segment)
            else:
                frames = self.receiver.frames[slot][STREAM_AT : end + max(total, self._minimum)]
            runs.append((key, total, segment, [frames], tos_ttl))
        return runs
