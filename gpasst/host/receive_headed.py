"""Receiving batches of datagrams of many senders, each with room for the headers of its frame.

Theory of operation: datagrams that differ in their senders cannot be joined, so each leaves as a frame of its own. Its
slot therefore has *headroom*: as many bytes before the payload as all headers take, from virtio-net on. Once these are
copied there, the frame is one piece of memory. What the kernel wrote about a batch is read as *columns*: all senders
with one unpacking, all lengths with one copy, and the control messages, which mostly are alike, with one comparison.

Each slot takes a datagram of any length, or what the kernel has joined. Slots lie an odd number of cache lines apart,
since those that are a power of two apart would share the same few sets of the processor's caches; pages that no
datagram reaches take no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from gpasst.host.receive import CONTROL_BYTES, DATAGRAM_BYTES, SLOTS, Receiver, Run, address_of
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass
from gpasst.wire import UDP4, UDP6

HEADROOM = {V4: UDP4.size, V6: UDP6.size}
"""Bytes of all headers of a frame, virtio-net included, by family."""
SLOT_BYTES = 65536 + 3 * 64  # DATAGRAM_BYTES and headroom, in an odd number of cache lines


@dataclass(frozen=True, slots=True)
class Columns:
    """The datagrams of one batch, in order of arrival; each entry of a column is about the slot of the same index.

    :ivar keys: raw sender keys.
    :ivar sizes: payload bytes.
    :ivar segments: payload bytes of each datagram where the kernel has joined several, else 0; None where it has joined
        none.
    :ivar tos_ttls: TOS times 256 plus TTL.
    """

    keys: list[bytes]
    sizes: list[int]
    segments: list[int] | None
    tos_ttls: list[int]


class HeadedReceiver(Receiver):
    """A `Receiver` whose slots have headroom.

    :param family: 4 or 6.
    :param slots: datagrams per system call, at most `SLOTS`.
    :ivar frames: the slots, each from its headroom on.
    :ivar headroom: bytes before each payload.
    :ivar slots: as above.
    """

    def __init__(self, family: int, slots: int = SLOTS) -> None:
        super().__init__(family, slots)
        self.slots = slots
        self.headroom = HEADROOM[family]
        self._data = mmap(-1, SLOT_BYTES * SLOTS, MAP_PRIVATE | MAP_ANONYMOUS)
        view = memoryview(self._data)
        self.frames = [view[at : at + SLOT_BYTES] for at in range(0, SLOT_BYTES * SLOTS, SLOT_BYTES)]
        self._place(address_of(self._data) + self.headroom, SLOT_BYTES, DATAGRAM_BYTES, SLOTS)
        layout = f"{self._sender}s{self._name - self._sender}x"
        self._unpack_names = [struct.Struct(layout * count).unpack_from for count in range(slots + 1)]

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take the datagrams that a socket has, without waiting; see `Receiver.receive`."""
        columns = self.columns(fd)
        count = len(columns.keys)
        return self.runs(columns, range(count)), count == self.slots

    def columns(self, fd: int) -> Columns:
        """Take the datagrams that a socket has, without waiting.

        :param fd: a UDP socket of this receiver's family.
        :return: one entry for each slot that was filled; as many as there are slots if there may be more.
        :raises OSError: the pending error of the socket, which an earlier datagram caused; nothing was received then.
        """
        count = self._take(fd, self.slots)
        if not count:
            return Columns([], [], None, [])
        sizes = self._lengths[:count].tolist()
        used = self._control_lengths[:count].tolist()
        first, controls = used[0], self._controls
        if used.count(first) == count and controls[: CONTROL_BYTES * count] == controls[:CONTROL_BYTES] * count:
            raw = self._controls_view[:first].tobytes()
            local, segment, tos_ttl = self._reported.get(raw) or self._read(raw)
            keys = list(self._unpack_names[count](self._names))
            if local:
                keys = [key + local for key in keys]
            return Columns(keys, sizes, [segment] * count if segment else None, [tos_ttl] * count)
        rows = [self._describe(i, size) for i, size in enumerate(used)]
        self._clear_controls()
        segments = [row[1] for row in rows]
        return Columns([row[0] for row in rows], sizes, segments if any(segments) else None, [row[2] for row in rows])

    def runs(self, columns: Columns, rows: Iterable[int]) -> list[Run]:
        """Return some datagrams of a batch as runs, valid until the next batch.

        :param columns: the latest batch.
        :param rows: their indices.
        """
        head, frames, segments = self.headroom, self.frames, columns.segments
        runs: list[Run] = []
        for i in rows:
            size = columns.sizes[i]
            segment = segments[i] if segments else 0
            payload = [frames[i][head : head + size]]
            runs.append((columns.keys[i], size, segment or size, payload, columns.tos_ttls[i]))
        return runs
