"""Many datagrams per system call, landing where their frames will stand.

Theory of operation: on a stream each datagram leaves behind headers of its own. So the slots of `batch` are laid out
with a gap before each, as long as those headers, and what the kernel joined (UDP_GRO) is received into as many slots
as it has segments. A burst of equal datagrams thus lands as a block of frames that lack only their headers, and leaves
in one call, from one buffer, without its datagrams being touched.

1. A run's payload is one piece: for each datagram a gap, then the datagram, then as many bytes as a frame of the least
   size lacks. `frame_bytes` gives the distance from one to the next.
2. The payload of a run that begins at the start of the buffer has the *layout* behind it, an object that is another one
   whenever the distances change. As long as it is the same, what was written into the gaps is still there.
3. Joined datagrams come one superframe a call. Which layout is ready, for single or for joined ones, follows from what
   came last; what does not fit it is copied once.
"""

from __future__ import annotations

import struct
from array import array

from gpasst.formats import FRAME_MINIMUM_BYTES, STREAM_LENGTH_BYTES, UDP4, UDP6, VIRTIO_NET_CODEC
from gpasst.host.receive import _CONTROL, DATAGRAM_BYTES, SLOTS, Receiver, Run, _address_of
from gpasst.linux import UDP_MAX_SEGMENTS

_HEADERS = {4: UDP4.size - VIRTIO_NET_CODEC.size, 6: UDP6.size - VIRTIO_NET_CODEC.size}
GAP = {family: STREAM_LENGTH_BYTES + size for family, size in _HEADERS.items()}
MINIMUM_PAYLOAD = {
    family: max(0, FRAME_MINIMUM_BYTES - size) for family, size in _HEADERS.items()
}  # payload bytes of an unpadded frame
BUFFER_BYTES = 1 << 18

_put_vectors = struct.Struct("@QQ").pack_into
_VECTORS_AT, _VECTORS_COUNT = 16, 24  # msg_iov and msg_iovlen in struct mmsghdr


def frame_bytes(family: int, segment: int) -> int:
    """Give the distance between the frames of datagrams of `segment` bytes."""
    return GAP[family] + max(segment, MINIMUM_PAYLOAD[family])


class FramedReceiver(Receiver):
    """A `Receiver` whose runs have room for the headers of their frames.

    :param family: 4 or 6.
    :param slots: datagrams per system call.
    """

    def __init__(self, family: int, slots: int = SLOTS) -> None:
        self._gap = GAP[family]
        self._minimum = MINIMUM_PAYLOAD[family]
        self._step = 0
        # Segment size that the layout for joined datagrams is made for, and whether it is the one in use.
        self._segment = 0
        self._joins = False
        self._room = 0
        super().__init__(family, slots)
        self._segments = bytearray(16 * (UDP_MAX_SEGMENTS + 1))
        self._segments_at = _address_of(self._segments)
        self._single_at = _address_of(self._vectors)

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take what a socket has, without waiting; see `Receiver.receive` and this module's theory of operation."""
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
        """Lay the slots out for datagrams of `stride` bytes."""
        if stride == self._stride or not stride:
            return
        if not self._stride:
            self._data = bytearray(BUFFER_BYTES)
            self._view = memoryview(self._data)
            self._data_at = _address_of(self._data)
        self._stride = stride
        self._layout = memoryview(bytearray())
        self._step = step = frame_bytes(self.family, stride)
        self._slots = slots = min(self._most, BUFFER_BYTES // step)
        first = self._data_at + self._gap
        self._iovecs[0 : 4 * slots : 4] = memoryview(array("Q", range(first, first + step * slots, step)))
        self._iovecs[1 : 4 * slots : 4] = memoryview(array("Q", [stride]) * slots)

    def _use(self, joins: bool, segment: int = 0) -> None:
        """Get ready for joined datagrams of `segment` bytes, or for single ones."""
        if joins and segment != self._segment:
            self._segment = segment
            step = frame_bytes(self.family, segment)
            self._room = min(UDP_MAX_SEGMENTS, BUFFER_BYTES // step)
            at = self._data_at + self._gap
            for i in range(self._room):
                _put_vectors(self._segments, 16 * i, at + i * step, segment)
            _put_vectors(self._segments, 16 * self._room, self._overflow_at, DATAGRAM_BYTES)
        if joins or self._joins:
            vectors = (self._segments_at, self._room + 1) if joins else (self._single_at, 2)
            _put_vectors(self._headers, _VECTORS_AT, *vectors)
            self._layout = memoryview(bytearray())
        self._joins = joins

    def _joined(self) -> Run:
        """Give the one run that came into the layout for joined datagrams."""
        key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
        length, written = self._lengths[0], self._segment
        if segment == written and length <= written * self._room:
            return key, length, segment, [self._frames(0, length, segment), self._layout], tos_ttl
        step = frame_bytes(self.family, written)
        starts = range(self._gap, self._gap + step * min(self._room, -(-length // written)), step)
        pieces = [self._view[at : at + written] for at in starts]
        whole = b"".join([*pieces, self._overflow_view[: max(0, length - written * self._room)]])[:length]
        if segment:
            self._use(True, segment)
        else:
            self._use(False)
            self._set_stride(length)
        return key, length, segment or length, [self._copied(whole, segment or length)], tos_ttl

    def _runs(self, lengths: list[int]) -> list[Run]:
        """Cut a batch in the layout for single datagrams into runs."""
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
                runs.append((key, length, segment or length, [self._copied(whole, segment or length)], tos_ttl))
        if open_key is not None:
            runs.append((open_key, total, stride, [self._frames(start, total, stride)], open_tos_ttl))
        if joined:
            self._use(True, joined)
        elif len(lengths) == 1:
            if lengths[0] > stride or self._slots == 1:
                self._set_stride(lengths[0])
        elif len(lengths) == self._slots or lengths[-1] == lengths[-2]:
            self._set_stride(lengths[-1])
        if len(lengths) > 1:
            # What is left behind control messages would make equal batches look mixed.
            self._controls[: _CONTROL * SLOTS] = bytes(_CONTROL * SLOTS)
        return runs

    def _frames(self, start: int, total: int, segment: int) -> memoryview:
        """Give the place of a run's frames in the buffer, gaps and padding included."""
        before = (-(-total // segment) - 1) * frame_bytes(self.family, segment) if total else 0
        last = total - (-(-total // segment) - 1) * segment if total else 0
        return self._view[start : start + before + self._gap + max(last, self._minimum)]

    def _copied(self, whole: bytes, segment: int) -> memoryview:
        """Give a copy of datagrams that lie one behind the other, with room for the headers of their frames."""
        if not whole:
            return memoryview(bytearray(self._gap + self._minimum))
        step, count = frame_bytes(self.family, segment), -(-len(whole) // segment)
        frames = bytearray((count - 1) * step + self._gap + max(len(whole) - (count - 1) * segment, self._minimum))
        for i in range(count):
            piece = whole[i * segment : (i + 1) * segment]
            at = i * step + self._gap
            frames[at : at + len(piece)] = piece
        return memoryview(frames)
