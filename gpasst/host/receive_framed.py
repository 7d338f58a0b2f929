"""Receiving batches of datagrams with room for the headers of their frames, for a link that is a stream.

Theory of operation: on a stream each datagram follows headers of its own. So a gap as long as those headers precedes
each slot's first buffer, and datagrams that the kernel joined (UDP_GRO) are received into as many buffers as they have
segments. A burst of equal datagrams thus lands as a block of frames that lack only their headers, and leaves in one
call, from one buffer, without its datagrams being touched.

1. The payload of a run is one piece: for each datagram a gap, the datagram, and the bytes that a frame of minimum size
   lacks. `frame_bytes` is the distance from one datagram to the next.
2. A run that begins at the start of the buffer has the *layout* behind its payload: an object that is replaced whenever
   the distances change. As long as it is the same, headers that were written into the gaps are still there.
3. Joined datagrams come one superframe a call. The layout for the next call, for single or for joined datagrams,
   follows from the last one; datagrams that do not fit it are copied once.
"""

from __future__ import annotations

import struct

from gpasst.host.kernel_wire import IOVEC_CODEC, MMSGHDR_CODEC
from gpasst.host.receive import (
    BUFFERS,
    DATAGRAM_BYTES,
    FIRST_STRIDE,
    SLOTS,
    Receiver,
    Run,
    address_of,
)
from gpasst.linux import UDP_MAX_SEGMENTS
from gpasst.packet.address import V4, V6
from gpasst.wire import FRAME_MINIMUM_BYTES, STREAM_LENGTH_BYTES, UDP4, UDP6, VIRTIO_NET_CODEC

_HEADERS_BYTES = {V4: UDP4.size - VIRTIO_NET_CODEC.size, V6: UDP6.size - VIRTIO_NET_CODEC.size}
GAP = {family: STREAM_LENGTH_BYTES + size for family, size in _HEADERS_BYTES.items()}
"""Bytes before each datagram, by family: the stream's length prefix and the headers."""
MINIMUM_PAYLOAD = {family: max(0, FRAME_MINIMUM_BYTES - size) for family, size in _HEADERS_BYTES.items()}
"""Payload bytes of the shortest frame without padding, by family."""
BUFFER_BYTES = 1 << 18

_VECTOR = IOVEC_CODEC.size
_put_vector = IOVEC_CODEC.layout.pack_into
_VECTORS_AT = MMSGHDR_CODEC.offset("vectors")
_put_vectors = struct.Struct("@QQ").pack_into  # address and count of a slot's vectors: MMSGHDR from there on


def frame_bytes(family: int, segment: int) -> int:
    """Return the bytes from one datagram of `segment` bytes to the next, in a run of `family`."""
    return GAP[family] + max(segment, MINIMUM_PAYLOAD[family])


def with_gaps(family: int, whole: bytes, segment: int) -> memoryview:
    """Return a copy of datagrams of a family, with room for the headers of their frames.

    :param whole: their payload, one behind the other.
    :param segment: payload bytes of each but perhaps the last.
    """
    gap, minimum = GAP[family], MINIMUM_PAYLOAD[family]
    if not whole:
        return memoryview(bytearray(gap + minimum))
    step, count = frame_bytes(family, segment), -(-len(whole) // segment)
    frames = bytearray((count - 1) * step + gap + max(len(whole) - (count - 1) * segment, minimum))
    for i in range(count):
        piece = whole[i * segment : (i + 1) * segment]
        at = i * step + gap
        frames[at : at + len(piece)] = piece
    return memoryview(frames)


class FramedReceiver(Receiver):
    """A `Receiver` whose runs have room for the headers of their frames.

    :param family: 4 or 6.
    :param slots: datagrams per system call, at most `SLOTS`.
    """

    def __init__(self, family: int, slots: int = SLOTS) -> None:
        super().__init__(family, slots)
        self._gap = GAP[family]
        self._minimum = MINIMUM_PAYLOAD[family]
        self._data = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._data)
        self._data_at = address_of(self._data)
        self._layout = memoryview(b"")  # see 2. above
        self._stride = 0
        self._step = 0
        self._slots = slots
        # Whether the layout for joined datagrams is in use, and the segment size and the segments that it is made for.
        self._joins = False
        self._segment = 0
        self._room = 0
        self._segments = bytearray(_VECTOR * (UDP_MAX_SEGMENTS + 1))
        self._segments_at = address_of(self._segments)
        self._set_stride(FIRST_STRIDE)

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take the datagrams that a socket has, without waiting; see `Receiver.receive`.

        :raises OSError: as there.
        """
        wanted = 1 if self._joins else self._slots
        count = self._take(fd, wanted)
        if not count:
            return [], False
        more = count == wanted
        if self._joins:
            return [self._joined()], more
        lengths = self._lengths[:count].tolist()
        stride = self._stride
        if count > 1 and lengths.count(stride) == count:
            key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
            if not segment and self._uniform(count):
                frames = self._view[: count * self._step]
                return [(key, count * stride, stride, [frames, self._layout], tos_ttl)], more
        return self._runs(lengths), more

    def _set_stride(self, stride: int) -> None:
        """Lay the slots out for datagrams of `stride` bytes; 0 changes nothing."""
        if stride == self._stride or not stride:
            return
        self._stride = stride
        self._layout = memoryview(b"")
        self._step = step = frame_bytes(self.family, stride)
        self._slots = slots = min(self._most, BUFFER_BYTES // step)
        self._place(self._data_at + self._gap, step, stride, slots)

    def _use(self, joins: bool, segment: int = 0) -> None:
        """Lay the first slot out for joined datagrams of `segment` bytes, or for a single one."""
        if joins and segment != self._segment:
            self._segment = segment
            step = frame_bytes(self.family, segment)
            self._room = min(UDP_MAX_SEGMENTS, BUFFER_BYTES // step)
            at = self._data_at + self._gap
            for i in range(self._room):
                _put_vector(self._segments, _VECTOR * i, at + i * step, segment)
            _put_vector(self._segments, _VECTOR * self._room, self._overflow_at, DATAGRAM_BYTES)
        if joins or self._joins:
            vectors = (self._segments_at, self._room + 1) if joins else (self._vectors_at, BUFFERS)
            _put_vectors(self._headers, _VECTORS_AT, *vectors)
            self._layout = memoryview(b"")
        self._joins = joins

    def _joined(self) -> Run:
        """Return the run that was received into the layout for joined datagrams."""
        key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
        length, expected = self._lengths[0], self._segment
        if segment == expected and length <= expected * self._room:
            return key, length, segment, [self._frames(0, length, segment), self._layout], tos_ttl
        step = frame_bytes(self.family, expected)
        starts = range(self._gap, self._gap + step * min(self._room, -(-length // expected)), step)
        pieces = [self._view[at : at + expected] for at in starts]
        whole = b"".join([*pieces, self._overflow_view[: max(0, length - expected * self._room)]])[:length]
        if segment:
            self._use(True, segment)
        else:
            self._use(False)
            self._set_stride(length)
        return key, length, segment or length, [with_gaps(self.family, whole, segment or length)], tos_ttl

    def _runs(self, lengths: list[int]) -> list[Run]:
        """Split a batch in the layout for single datagrams, of these lengths in bytes, into runs."""
        runs: list[Run] = []
        stride, step = self._stride, self._step
        used = self._control_lengths[: len(lengths)].tolist()
        open_key: bytes | None = None
        start = total = joined = open_tos_ttl = 0
        for i, length in enumerate(lengths):
            key, segment, tos_ttl = self._describe(i, used[i])
            if open_key is not None:
                if key == open_key and tos_ttl == open_tos_ttl and not segment and 0 < length <= stride:
                    total += length
                    if length < stride:
                        runs.append((key, total, stride, [self._frames(start, total, stride)], open_tos_ttl))
                        open_key = None
                    continue
                runs.append((open_key, total, stride, [self._frames(start, total, stride)], open_tos_ttl))
                open_key = None
            if length == stride and not segment:
                open_key, open_tos_ttl, start, total = key, tos_ttl, i * step, length
            elif length <= stride and segment in (0, length):
                runs.append((key, length, length, [self._frames(i * step, length, length)], tos_ttl))
            else:
                joined = segment if segment < length else 0
                whole = bytes(self._view[i * step + self._gap : i * step + self._gap + min(length, stride)])
                over = i * DATAGRAM_BYTES
                whole += self._overflow_view[over : over + max(0, length - stride)]
                runs.append(
                    (key, length, segment or length, [with_gaps(self.family, whole, segment or length)], tos_ttl)
                )
        if open_key is not None:
            runs.append((open_key, total, stride, [self._frames(start, total, stride)], open_tos_ttl))
        self._prepare(lengths, joined)
        return runs

    def _prepare(self, lengths: list[int], joined: int) -> None:
        """Lay the slots out for the next batch, which is expected to be like the last one.

        :param lengths: bytes of each datagram.
        :param joined: segment size of the last of them that the kernel had joined, 0 without one.
        """
        if joined:
            self._use(True, joined)
        elif len(lengths) == 1:
            if lengths[0] > self._stride or self._slots == 1:
                self._set_stride(lengths[0])
        elif len(lengths) == self._slots or lengths[-1] == lengths[-2]:
            self._set_stride(lengths[-1])
        if len(lengths) > 1:
            self._clear_controls()

    def _frames(self, start: int, total: int, segment: int) -> memoryview:
        """Return the part of the buffer that holds a run's frames, gaps and padding included.

        :param start: offset of the first gap.
        :param total: payload bytes of all datagrams.
        :param segment: payload bytes of each datagram but perhaps the last.
        """
        count = -(-total // segment) if total else 1
        before, last = (count - 1) * frame_bytes(self.family, segment), total - (count - 1) * segment
        return self._view[start : start + before + self._gap + max(last, self._minimum)]
