"""From the stream to host sockets, where many flows take turns: frames are carried together, from where they lie.

Theory of operation: frames stand one behind the other, each behind its length, so fields of frames of one length are
columns (`gpasst.path.columns`). Frames that differ in length are looked at one by one, but their datagrams leave
together all the same.
"""

from __future__ import annotations

import struct

from gpasst.host.arena import Arena, fields
from gpasst.packet.joining import HEADERS
from gpasst.path.budget import SHALLOW
from gpasst.path.columns import MOST, Carry, Gather
from gpasst.switch.framing import FRAME_MAXIMUM, FRAME_MINIMUM
from gpasst.wire import STREAM_LEAD_BYTES, STREAM_LENGTH_BYTES

_ALIKE = 64  # frames whose lengths are looked at together
_FEW = 4  # frames that are not worth columns
_length = struct.Struct(">I").unpack_from


class StreamColumns:
    """Carries frames of many flows.

    :param gather: makes what sends datagrams of known peers.
    :param arena: where the frames lie.
    :ivar idle: batches in a row that had little use for this.
    :ivar most: frames that are carried together at most: few, unless those before were all alike.
    """

    def __init__(self, gather: Gather, arena: Arena) -> None:
        self._base = arena.address
        self._block = arena.bytes
        self._gathered = gather(arena)
        self.most = SHALLOW
        self.idle = 0

    def sizes(self, at: int, end: int) -> list[int]:
        """Return the bytes of frames that may be carried together, each with its length.

        One that is not whole, or has an illegal length, ends them.

        :param at: where the first one's length begins.
        :param end: where the last one ends that has arrived.
        """
        block = self._block
        sizes: list[int] = []
        before = expected = 0
        while len(sizes) < self.most and end - at >= STREAM_LENGTH_BYTES:
            (length,) = _length(block, at)
            size = STREAM_LENGTH_BYTES + length
            if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM or end - at < size:
                break
            # More and more frames are expected to be as long as the one before, as long as they are.
            expected = min(2 * expected, _ALIKE) if size == before else 1
            before = size
            count = min(expected, (end - at) // size, self.most - len(sizes))
            if count > 1:
                lengths = fields(block, at, count, STREAM_LENGTH_BYTES, size)
                if lengths.count(lengths[0]) < count:
                    count = next(i for i, other in enumerate(lengths) if other != lengths[0])
            sizes += [size] * count
            at += size * count
        return sizes

    def carry(self, at: int, sizes: list[int], other: Carry) -> int:
        """Carry frames, and return how many it was: only some if they have to be looked at one by one.

        :param at: where the first one's length begins.
        :param sizes: bytes of each with its length, as from `sizes`.
        :param other: carries a frame that is no datagram of a known peer.
        """
        known = 0
        try:
            if len(sizes) >= _FEW and sizes.count(sizes[0]) == len(sizes) and self._columns(at, sizes):
                known = len(sizes)
                self.most = MOST
            else:
                self.most = SHALLOW
                sizes = sizes[:SHALLOW]
                known = self._rows(at, sizes, other)
        finally:
            self._gathered.send()
        count = len(sizes)
        self.idle = 0 if 2 * known > count > 1 else self.idle + 1
        return count

    def _rows(self, at: int, sizes: list[int], other: Carry) -> int:
        """Look at frames one by one, and return how many were datagrams of known peers; see `carry`."""
        known = 0
        block, base, row = self._block, self._base, self._gathered.row
        for size in sizes:
            if row(block, at - STREAM_LEAD_BYTES, size + STREAM_LEAD_BYTES, base):
                known += 1
            else:
                other(block, at, size)
            at += size
        return known

    def _columns(self, at: int, sizes: list[int]) -> bool:
        """Gather frames of one size that are all ordinary, alike and of known peers; return whether they were."""
        count, size, block = len(sizes), sizes[0], self._block
        start = at - STREAM_LEAD_BYTES
        words = bytearray(2 * count)

        def column(offset: int) -> bytes:
            first = start + offset
            stop = first + count * size
            words[::2] = block[first:stop:size]
            words[1::2] = block[first + 1 : stop + 1 : size]
            return bytes(words)

        def keys(offset: int, length: int) -> list[bytes]:
            return fields(block, start + offset, count, length, size)

        def places(family: int) -> list[int]:
            first = self._base + start + HEADERS[family]
            return list(range(first, first + count * size, size))

        return self._gathered.columns([size + STREAM_LEAD_BYTES] * count, column, keys, places)
