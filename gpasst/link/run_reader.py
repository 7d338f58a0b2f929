"""Reading frames that repeat the one before, so that their payloads stand one behind the other.

Theory of operation: each is read with its headers apart and its payload behind those that were read before. So a run
costs one read for each frame, and no copy. A frame that does not repeat the first ends the run.
"""

from __future__ import annotations

import os

from gpasst.packet.joining import HEADERS, repeating

DRAINED = -1
"""The size of no frame: none is left to read."""

_REPEATING = {family: repeating(family, 0) for family in HEADERS}


class RunReader:
    """Reads runs from a tap.

    :param buffer: where they go, behind a first frame that was read to its start; with room for a run and one more
        frame.
    :param view: a view of it.
    :ivar end: bytes in the buffer up to the end of the latest run.
    """

    __slots__ = ("_buffer", "_heads", "_view", "end")

    def __init__(self, buffer: bytearray, view: memoryview) -> None:
        self._buffer = buffer
        self._view = view
        self._heads = {family: memoryview(bytearray(size)) for family, size in HEADERS.items()}
        self.end = 0

    def gather(self, fd: int, family: int, size: int, most: int) -> tuple[int, int]:
        """Read frames behind the first as long as they repeat it.

        :param fd: the tap, not blocking.
        :param family: of the first frame, 4 or 6.
        :param size: its bytes, with its virtio-net header.
        :param most: how many may be joined to it.
        :return: the size of a frame that was read but does not repeat it, 0 for none and `DRAINED` if none is left to
            read; and how many were joined. `restore` is to be called before the buffer is used again.
        """
        buffer, view, readv = self._buffer, self._view, os.readv
        head = self._heads[family]
        start, repeats = len(head), _REPEATING[family]
        segment = size - start
        pattern = repeats(buffer, 0)
        end = size
        vector = [head, view[end:]]
        joined = left = 0
        while joined < most:
            try:
                left = readv(fd, vector)
            except OSError:
                # Nothing to read; any other error will be the next step's as well.
                left = DRAINED
                break
            if left != size or repeats(head, 0) != pattern:
                break
            joined += 1
            end += segment
            left = 0
            vector[1] = view[end:]
        self.end = end
        return left, joined

    def restore(self, family: int, left: int) -> None:
        """Put the frame that ended a run at the start of the buffer.

        :param family: of the run.
        :param left: what `gather` returned first.
        """
        if left > 0:
            head, view, end = self._heads[family], self._view, self.end
            start = min(len(head), left)
            view[:start] = head[:start]
            view[start:left] = view[end : end + left - start]
