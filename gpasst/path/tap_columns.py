"""From the tap to host sockets, where many flows take turns: frames are read into slots and carried together.

Theory of operation: the slots stand in one block, so fields of all frames are columns (`gpasst.path.columns`). Slots
are as far apart as an odd number of cache lines, since at a power of two all of them would meet in the same few sets of
the cache.

Each frame takes a call, until a step has found as many as it could take, all of them ordinary: there are likely more
then, and the ring reads them many in one call. How many a step takes, `gpasst.path.budget.Depth` decides.
"""

from __future__ import annotations

import os
from errno import EOPNOTSUPP
from itertools import groupby, islice
from typing import Final

from gpasst.counters import Counters
from gpasst.host.arena import Arena, fields
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import Reads
from gpasst.link.tap import FRAME_BYTES
from gpasst.packet.joining import GSO_TYPE, HEADERS
from gpasst.path.budget import Depth
from gpasst.path.columns import HALVED, MOST, Carry, Gather

SLOTS: Final = MOST

_STRIDE: Final = FRAME_BYTES + 64  # bytes of a slot: 1027 cache lines
_HALF: Final = 2  # bytes
# The type of a superframe is the second byte of a frame.
_GSO_TYPES: Final = int.from_bytes(b"\x00\xff" * SLOTS, "big")

Part = tuple[int, list[int]]
"""Frames that were read into slots one behind the other: the first slot, and bytes of each."""


class TapColumns:
    """Reads and carries frames of many flows.

    :param gather: makes what sends datagrams of known peers.
    :param counters: count the frames.
    :param ring: makes many reads in one call; None for none.
    :ivar idle: steps in a row that had little use for columns.
    """

    def __init__(self, gather: Gather, counters: Counters, ring: Ring | None) -> None:
        self._counters = counters
        self._arena = arena = Arena(SLOTS * _STRIDE)
        self._base = arena.address
        self._block = arena.bytes
        self._halves = self._block.cast("H")
        self._vectors = [[self._block[at : at + FRAME_BYTES]] for at in range(0, SLOTS * _STRIDE, _STRIDE)]
        self._places = {family: arena.column(SLOTS, _STRIDE, head).tolist() for family, head in HEADERS.items()}
        self._gathered = gather(arena)
        self._reads: Reads | None = None
        if ring is not None:
            self._reads = Reads(ring, arena.column(SLOTS, _STRIDE), FRAME_BYTES, [arena])
        self._depth = Depth(SLOTS)
        self._found = 0  # frames of the step that were carried as columns
        self._full = False  # whether these were as many as it had read at most
        self._joined = False  # whether some of these were sent together
        self.idle = 0

    def step(self, fd: int, other: Carry, superframe: Carry) -> tuple[int, OSError | None]:
        """Read frames of a tap until there are none or enough, and carry them.

        :param fd: the tap, not blocking.
        :param other: carries a frame that is no datagram of a known peer.
        :param superframe: carries a superframe.
        :return: how many it was, and the error that ended the reading; None where there may be more.
        """
        depth = self._depth.now
        # Reads of a ring that find nothing cost as much as others, so it has to be likely that there are frames.
        read = self._read_by_ring if self._reads is not None and self._full else self._read
        superframes = self._counters.udp.down.superframes
        parts, failure = read(fd, depth)
        count = sum([len(sizes) for _, sizes in parts])
        self._counters.frames_down += count
        self._found = 0
        try:
            for first, sizes in parts:
                self._carry(first, sizes, other, superframe)
        finally:
            self._gathered.send()
        self._joined = self._counters.udp.down.superframes > superframes
        self.idle = 0 if 2 * self._found > count > 1 else self.idle + 1
        return count, failure

    def _read(self, fd: int, depth: int) -> tuple[list[Part], OSError | None]:
        """Read up to `depth` frames with a call each; return them and the error that ended that, None for none."""
        sizes: list[int] = []
        add, readv = sizes.append, os.readv
        try:
            for vector in islice(self._vectors, depth):
                add(readv(fd, vector))
        except OSError as error:
            return [(0, sizes)] if sizes else [], error
        return [(0, sizes)], None

    def _read_by_ring(self, fd: int, depth: int) -> tuple[list[Part], OSError | None]:
        """Read up to `depth` frames with calls of the ring; see `_read`."""
        assert self._reads is not None
        sizes: list[int] = []
        for first in range(0, depth, ENTRIES):
            sizes += self._reads.read(fd, first)
            if min(sizes[first:]) < 0:
                break
        else:
            return [(0, sizes)], None
        number = -next(size for size in sizes if size < 0)
        if number == EOPNOTSUPP:  # before Linux 6.4
            self._reads = None
            return self._read(fd, depth)
        # A frame may come while others are being looked for.
        parts = []
        at = 0
        for read, group in groupby(sizes, (0).__le__):
            part = list(group)
            if read:
                parts.append((at, part))
            at += len(part)
        return parts, OSError(number, os.strerror(number))

    def pace(self, seconds: float) -> None:
        """Choose how many frames the next step reads at most, after one that took so many seconds."""
        self._full = self._found == self._depth.now
        self._depth.step(self._full, self._joined, seconds)

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

        def keys(at: int, size: int) -> list[bytes]:
            return fields(self._block, first * _STRIDE + at, count, size, _STRIDE)

        def places(family: int) -> list[int]:
            return self._places[family][first : first + count]

        if int.from_bytes(column(0), "big") & _GSO_TYPES:
            return False
        return self._gathered.columns(sizes, column, keys, places)
