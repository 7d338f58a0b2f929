"""Receiving batches of datagrams of many senders, each with room for the headers of its frame.

Theory of operation: datagrams that differ in their senders cannot be joined, so each leaves as a frame of its own. Its
slot therefore has *headroom*: as many bytes before the payload as all headers take, from virtio-net on. Once these are
copied there, the frame is one piece of memory. What the kernel wrote about a batch is read as *columns*: all senders
with one unpacking, all lengths with one copy, and the control messages, which mostly are alike, with one comparison.

1. `columns` takes the datagrams of one socket: `recvmmsg`.
2. `one_of_each` takes one datagram of each of several sockets: with a ring in one call, else in one call each.

Each slot takes a datagram of any length, or what the kernel has joined. Slots lie an odd number of cache lines apart,
since those that are a power of two apart would share the same few sets of the processor's caches; pages that no
datagram reaches take no memory.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from gpasst.host.arena import Arena
from gpasst.host.receive import CONTROL_BYTES, DATAGRAM_BYTES, SLOTS, Receiver, Run
from gpasst.host.ring import Ring
from gpasst.host.ring_forms import Receives
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass
from gpasst.wire import UDP4, UDP6

HEADROOM = {V4: UDP4.size, V6: UDP6.size}
"""Bytes of all headers of a frame, virtio-net included, by family."""
SLOT_BYTES = 65536 + 3 * 64  # DATAGRAM_BYTES and headroom, in an odd number of cache lines


@dataclass(slots=True)
class Columns:
    """Datagrams in order of arrival; the entries of the same index in all columns are about one of them.

    :ivar keys: raw sender keys.
    :ivar sizes: payload bytes.
    :ivar segments: payload bytes of each datagram where the kernel has joined several, else 0; None where it has joined
        none.
    :ivar tos_ttls: TOS times 256 plus TTL.
    :ivar slots: indices of their slots.
    """

    keys: list[bytes]
    sizes: list[int]
    segments: list[int] | None
    tos_ttls: list[int]
    slots: Sequence[int]

    def some(self, rows: Sequence[int]) -> Columns:
        """Return the datagrams of these indices."""

        def of(column: list[int]) -> list[int]:
            return [column[i] for i in rows]

        return Columns(
            [self.keys[i] for i in rows],
            of(self.sizes),
            of(self.segments) if self.segments is not None else None,
            of(self.tos_ttls),
            [self.slots[i] for i in rows],
        )


class HeadedReceiver(Receiver):
    """A `Receiver` whose slots have headroom.

    :param family: 4 or 6.
    :param slots: datagrams per system call, at most `SLOTS`.
    :param ring: makes many calls in one, None without one.
    :ivar arena: the memory of the slots.
    :ivar addresses: of the slots.
    :ivar frames: the slots, each from its headroom on.
    :ivar heads: the headroom of each.
    :ivar headroom: bytes before each payload.
    :ivar slots: as above.
    """

    def __init__(self, family: int, slots: int = SLOTS, ring: Ring | None = None) -> None:
        super().__init__(family, slots)
        self.slots = slots
        self.headroom = head = HEADROOM[family]
        self.arena = Arena(SLOT_BYTES * SLOTS)
        view = self.arena.bytes
        self.frames = [view[at : at + SLOT_BYTES] for at in range(0, SLOT_BYTES * SLOTS, SLOT_BYTES)]
        self.heads = [frame[:head] for frame in self.frames]
        self.addresses = self.arena.column(SLOTS, SLOT_BYTES)
        self._place(self.arena.address + head, SLOT_BYTES, DATAGRAM_BYTES, SLOTS)
        layout = f"{self._sender}s{self._name - self._sender}x"
        self._unpack_names = [struct.Struct(layout * count).unpack_from for count in range(SLOTS + 1)]
        self._form: Receives | None = None
        if ring is not None:
            self._form = Receives(ring, family, [self.arena])
            self._form.bases[:] = self.arena.column(SLOTS, SLOT_BYTES, head)
            self._form.sizes[:] = array("Q", [DATAGRAM_BYTES]) * SLOTS

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take the datagrams that a socket has, without waiting; see `Receiver.receive`."""
        columns = self.columns(fd)
        return self.runs(columns), len(columns.keys) == self.slots

    def columns(self, fd: int) -> Columns:
        """Take the datagrams that a socket has, without waiting.

        :param fd: a UDP socket of this receiver's family.
        :return: valid until the next call; as many as there are slots if there may be more.
        :raises OSError: the pending error of the socket, which an earlier datagram caused; nothing was received then.
        """
        count = self._take(fd, self.slots)
        return self._columns(self._lengths[:count].tolist(), self._control_lengths[:count].tolist())

    def one_of_each(self, descriptors: Sequence[int]) -> tuple[Columns, dict[int, int]]:
        """Take one datagram from each of several sockets, without waiting.

        :param descriptors: UDP sockets of this receiver's family, at most `SLOTS`.
        :return: the datagrams, whose slots are the indices of their sockets, valid until the next call; and the errno
            of the others, by index: EAGAIN of those that had none, else the pending error.
        """
        form = self._form
        if form is not None:
            sizes = form.receive(array("i", descriptors))
            count = len(sizes)
            self._names[:] = form.names
            self._controls_view[: CONTROL_BYTES * count] = form.controls[: CONTROL_BYTES * count]
            used = form.control_lengths[:count].tolist()
        else:
            self._control_lengths[:] = self._control_reset
            self._dirty = SLOTS
            sizes = [self._take_one(fd, slot) for slot, fd in enumerate(descriptors)]
            used = self._control_lengths[: len(sizes)].tolist()
        if min(sizes) >= 0:
            return self._columns(sizes, used), {}
        came = [i for i, size in enumerate(sizes) if size >= 0]
        failed = {i: -size for i, size in enumerate(sizes) if size < 0}
        return self._rows(sizes, used, came), failed

    def runs(self, columns: Columns) -> list[Run]:
        """Return datagrams of the latest batch as runs, valid as long as that."""
        head, frames = self.headroom, self.frames
        segments = columns.segments or [0] * len(columns.keys)
        return [
            (key, size, segment or size, [frames[slot][head : head + size]], tos_ttl)
            for key, size, segment, tos_ttl, slot in zip(
                columns.keys, columns.sizes, segments, columns.tos_ttls, columns.slots, strict=True
            )
        ]

    def _columns(self, sizes: list[int], used: list[int]) -> Columns:
        """Return the datagrams in the first slots.

        :param sizes: payload bytes of each.
        :param used: bytes of the control messages of each.
        """
        count = len(sizes)
        if not count:
            return Columns([], [], None, [], ())
        first, controls = used[0], self._controls
        if used.count(first) != count or controls[: CONTROL_BYTES * count] != controls[:CONTROL_BYTES] * count:
            return self._rows(sizes, used, range(count))
        raw = self._controls_view[:first].tobytes()
        local, segment, tos_ttl = self._reported.get(raw) or self._read(raw)
        keys = list(self._unpack_names[count](self._names))
        if local:
            keys = [key + local for key in keys]
        return Columns(keys, sizes, [segment] * count if segment else None, [tos_ttl] * count, range(count))

    def _rows(self, sizes: list[int], used: list[int], slots: Sequence[int]) -> Columns:
        """Return the datagrams in some slots, whose control messages differ; parameters as in `_columns`."""
        rows = [self._describe(i, used[i]) for i in slots]
        self._clear_controls()
        if self._form is not None:
            self._form.controls[:] = bytes(len(self._form.controls))
        segments = [row[1] for row in rows]
        return Columns(
            [row[0] for row in rows],
            [sizes[i] for i in slots],
            segments if any(segments) else None,
            [row[2] for row in rows],
            slots,
        )
