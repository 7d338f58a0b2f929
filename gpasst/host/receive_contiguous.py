"""Receiving batches of datagrams into one block, for a link that carries superframes.

Theory of operation: the slots' first buffers lie one behind the other, each as long as the datagram received last. So a
burst of equal datagrams lands as one contiguous block: a superframe, which leaves in one call without its datagrams
being touched. A datagram that is longer than the stride is in two parts, its slot and its overflow.
"""

from __future__ import annotations

from gpasst.host.receive import DATAGRAM_BYTES, FIRST_STRIDE, RUN_BYTES, SLOTS, Receiver, Run, address_of


class ContiguousReceiver(Receiver):
    """A `Receiver` whose runs are contiguous.

    :param family: 4 or 6.
    :param slots: datagrams per system call, at most `SLOTS`.
    """

    def __init__(self, family: int, slots: int = SLOTS) -> None:
        super().__init__(family, slots)
        self._limit = RUN_BYTES[family]
        self._data = bytearray(2 * DATAGRAM_BYTES)
        self._view = memoryview(self._data)
        self._data_at = address_of(self._data)
        self._stride = 0
        self._slots = slots
        self._set_stride(FIRST_STRIDE)

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take the datagrams that a socket has, without waiting; see `Receiver.receive`."""
        count = self._take(fd, self._slots)
        if not count:
            return [], False
        more = count == self._slots
        if count == 1:
            return [self._single()], more
        stride = self._stride
        lengths = self._lengths[:count].tolist()
        if lengths.count(stride) == count:
            key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
            if not segment and self._uniform(count):
                total = count * stride
                return [(key, total, stride, [self._view[:total]], tos_ttl)], more
        return self._runs(lengths), more

    def _set_stride(self, stride: int) -> None:
        """Lay the slots out for datagrams of `stride` bytes; 0 changes nothing."""
        if stride == self._stride or not stride:
            return
        self._stride = stride
        self._slots = min(self._most, max(1, self._limit // stride))
        self._place(self._data_at, stride, stride, self._slots)

    def _single(self) -> Run:
        """Return the run of the only datagram received."""
        key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
        length = self._lengths[0]
        parts = self._parts(0, length)
        if length > self._stride or self._slots == 1:
            self._set_stride(length)
        return key, length, segment or length, parts, tos_ttl

    def _parts(self, i: int, length: int) -> list[memoryview]:
        """Return the payload of the datagram in slot `i`: `length` bytes of its first buffer and its overflow."""
        at, over = i * self._stride, i * DATAGRAM_BYTES
        if length <= self._stride:
            return [self._view[at : at + length]]
        beyond = length - self._stride
        return [self._view[at : at + self._stride], self._overflow_view[over : over + beyond]]

    def _runs(self, lengths: list[int]) -> list[Run]:
        """Split a mixed batch of at least two datagrams, of these lengths in bytes, into runs."""
        runs: list[Run] = []
        stride, view = self._stride, self._view
        used = self._control_lengths[: len(lengths)].tolist()
        open_key: bytes | None = None
        start = total = open_tos_ttl = 0
        for i, length in enumerate(lengths):
            key, segment, tos_ttl = self._describe(i, used[i])
            if open_key is not None:
                if key == open_key and tos_ttl == open_tos_ttl and not segment and 0 < length <= stride:
                    total += length
                    if length == stride:
                        continue
                    runs.append((key, total, stride, [view[start : start + total]], open_tos_ttl))
                    open_key = None
                    continue
                runs.append((open_key, total, stride, [view[start : start + total]], open_tos_ttl))
                open_key = None
            if length == stride and not segment:
                open_key, open_tos_ttl, start, total = key, tos_ttl, i * stride, length
            else:
                runs.append((key, length, segment or length, self._parts(i, length), tos_ttl))
        if open_key is not None:
            runs.append((open_key, total, stride, [view[start : start + total]], open_tos_ttl))
        # Any layout takes any size; laying the slots out anew pays when more of one size follow.
        if len(lengths) == self._slots or lengths[-1] == lengths[-2]:
            self._set_stride(lengths[-1])
        self._clear_controls()
        return runs
