"""From the tap to host sockets, where many flows take turns: frames are read into slots and carried together.

Theory of operation: the slots stand in one block, so fields of all frames are columns (`gpasst.path.columns`). Slots
are as far apart as an odd number of cache lines, since at a power of two all of them would meet in the same few sets of
the cache.
"""

from __future__ import annotations

import os
from typing import Final

from gpasst.counters import Counters
from gpasst.host.arena import Arena
from gpasst.link.tap import FRAME_BYTES
from gpasst.packet.joining import GSO_TYPE, HEADERS
from gpasst.path.columns import HALVED, MOST, Carry, Gather, key_reader

SLOTS: Final = MOST

_STRIDE: Final = FRAME_BYTES + 64  # bytes of a slot: 1027 cache lines
_HALF: Final = 2  # bytes
# The type of a superframe is the second byte of a frame.
_GSO_TYPES: Final = int.from_bytes(b"\x00\xff" * SLOTS, "big")


class TapColumns:
    """Reads and carries frames of many flows.

    :param gather: makes what sends datagrams of known peers.
    :param counters: count the frames.
    :ivar idle: steps in a row that had little use for columns.
    """

    def __init__(self, gather: Gather, counters: Counters) -> None:
        self._counters = counters
        self._arena = arena = Arena(SLOTS * _STRIDE)
        self._base = arena.address
        self._block = arena.bytes
        self._halves = self._block.cast("H")
        self._vectors = [[self._block[at : at + FRAME_BYTES]] for at in range(0, SLOTS * _STRIDE, _STRIDE)]
        self._places = {family: arena.column(SLOTS, _STRIDE, head).tolist() for family, head in HEADERS.items()}
        self._gathered = gather(arena)
        self._found = 0  # frames of the step that were carried as columns
        self.idle = 0

    def step(self, fd: int, other: Carry, superframe: Carry) -> tuple[int, OSError | None]:
        """Read frames of a tap until there are none or all slots are full, and carry them.

        :param fd: the tap, not blocking.
        :param other: carries a frame that is no datagram of a known peer.
        :param superframe: carries a superframe.
        :return: how many it was, and the error that ended the reading; None where slots are full.
        """
        sizes: list[int] = []
        add, readv = sizes.append, os.readv
        failure = None
        try:
            for vector in self._vectors:
                add(readv(fd, vector))
        except OSError as error:
            failure = error
        count = len(sizes)
        self._counters.frames_down += count
        self._found = 0
        if count:
            try:
                self._carry(0, sizes, other, superframe)
            finally:
                self._gathered.send()
        self.idle = 0 if 2 * self._found > count > 1 else self.idle + 1
        return count, failure

    def give_back(self) -> None:
        """Give back the memory of large frames; not to be called within a step."""
        self._arena.give_back()

    def _carry(self, first: int, sizes: list[int], other: Carry, superframe: Carry) -> None:
        """Carry frames, or gather them; see `step`.

        :param first: the slot of the first one.
        :param sizes: bytes of each.
        """
        count = len(sizes)
        if count > 1 and self._columns(first, sizes):
            self._found += count
            return
        if count > HALVED:
            self._carry(first, sizes[: count // 2], other, superframe)
            self._carry(first + count // 2, sizes[count // 2 :], other, superframe)
            return
        block, gathered = self._block, self._gathered
        for at, size in zip(range(first * _STRIDE, (first + count) * _STRIDE, _STRIDE), sizes, strict=True):
            if block[at + GSO_TYPE]:
                # Its flow may have datagrams before it.
                gathered.send()
                superframe(block, at, size)
            elif not gathered.row(block, at, size, self._base):
                other(block, at, size)

    def _columns(self, first: int, sizes: list[int]) -> bool:
        """Gather frames that are all ordinary, alike and of known peers; return whether they were. See `_carry`."""
        count = len(sizes)
        halves, step = self._halves, _STRIDE // _HALF
        start, end = first * step, (first + count) * step

        def column(at: int) -> bytes:
            return halves[start + at // _HALF : end : step].tobytes()

        def keys(at: int, size: int) -> tuple[bytes, ...]:
            return key_reader(count, size, _STRIDE).unpack_from(self._block, first * _STRIDE + at)

        if int.from_bytes(column(0), "big") & _GSO_TYPES:
            return False
        places = self._places
        if count < SLOTS:
            places = {family: own[first : first + count] for family, own in places.items()}
        return self._gathered.columns(sizes, column, keys, places)
