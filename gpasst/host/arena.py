"""Memory whose address the kernel is given: it neither moves nor goes while somebody may pass that address on.

Theory of operation: an arena is an anonymous mapping, so its address is fixed for its whole life, and pages that were
never touched cost nothing. Whoever keeps addresses of it *holds* it; it cannot be closed while it is held. An arena
that is dropped without `close` goes when the last reference to it or to its bytes has gone, and a holder has one.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from functools import lru_cache
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, mmap

_UNPACKED = 64  # fields that are read in one call
_READERS = 256  # numbers, sizes and distances of fields whose readers are kept


class Arena:
    """Bytes at a fixed address, zeros at first.

    :param size: bytes.
    :raises OSError: if there is no memory for them.
    :ivar address: where they are.
    :ivar bytes: the bytes.
    """

    __slots__ = ("_holders", "_map", "address", "bytes")

    def __init__(self, size: int) -> None:
        self._map = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.bytes = memoryview(self._map)
        self._holders = 0

    def __len__(self) -> int:
        return len(self._map)

    def column(self, count: int, stride: int, offset: int = 0) -> array[int]:
        """Return the addresses of `count` places.

        :param count: how many.
        :param stride: bytes from one to the next.
        :param offset: bytes from the start of the arena to the first one.
        :return: as an array of type "Q".
        :raises ValueError: if a place does not begin within the arena.
        """
        offsets = range(offset, offset + count * stride, stride)
        if count and not 0 <= min(offsets[0], offsets[-1]) <= max(offsets[0], offsets[-1]) < len(self._map):
            raise ValueError(f"places at {offsets[0]} to {offsets[-1]} of {len(self._map)} bytes")
        return array("Q", range(self.address + offset, self.address + offset + count * stride, stride))

    def hold(self) -> None:
        """Keep the arena from being closed until as many calls of `let_go`."""
        self._holders += 1

    def let_go(self) -> None:
        """Take back a `hold`."""
        self._holders -= 1

    def give_back(self) -> None:
        """Let the kernel have the pages; the bytes are zeros then, at the same address."""
        self._map.madvise(MADV_DONTNEED)

    def close(self) -> None:
        """Give the memory back. More calls do nothing.

        :raises BufferError: while it is held, or a view of a part of its bytes is in use.
        """
        if self._holders:
            raise BufferError("the kernel may be given this memory's address")
        self.bytes.release()
        try:
            self._map.close()
        except BufferError:
            self.bytes = memoryview(self._map)
            raise


def fields(block: bytes | bytearray | memoryview, first: int, count: int, size: int, stride: int) -> list[bytes]:
    """Return some bytes of each of several structures that are equally far apart.

    :param block: where these lie.
    :param first: where the bytes of the first one begin.
    :param count: how many.
    :param size: bytes of each.
    :param stride: bytes from one to the next.
    """
    found: list[bytes] = []
    for at in range(0, count, _UNPACKED):
        found += _reader(min(_UNPACKED, count - at), size, stride).unpack_from(block, first + at * stride)
    return found


@lru_cache(_READERS)
def _reader(count: int, size: int, stride: int) -> struct.Struct:
    """Return what reads some bytes of each of so many structures; parameters as of `fields`."""
    return struct.Struct(f"{size}s" + f"{stride - size}x{size}s" * (count - 1))
