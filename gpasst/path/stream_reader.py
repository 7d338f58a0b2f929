"""The data path from a guest's stream to host sockets.

Theory of operation: one receive brings as many frames as have arrived. They are taken apart where they lie: an ordinary
UDP frame of a known peer costs one look at its headers and one look-up by their raw bytes. As long as the frames behind
it repeat its headers and size they belong to the same run, which leaves in one send of slices. Everything else goes to
`dispatch`. What is left of a frame that has not arrived whole is moved to the front of the buffer.

A frame of illegal length is skipped, as many bytes as it says it has (context 1.1.5).
"""

from __future__ import annotations

import struct
from _socket import MSG_DONTWAIT

from gpasst.counters import Counters, Drop
from gpasst.features import ALL, Feature
from gpasst.formats import STREAM_LEAD_BYTES, STREAM_LENGTH_BYTES, VIRTIO_NET_BLANK
from gpasst.host.receive import RUN_BYTES
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_slices, sender_to
from gpasst.link.stream import FRAME_MAXIMUM, FRAME_MINIMUM, Stream
from gpasst.path.dispatch import Dispatch
from gpasst.path.fastpath import repeating
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.udp.nat import UdpNat

BUFFER_BYTES = 1 << 19  # about what a stream's socket holds, and more than eight of the largest frames
RECEIVES_PER_STEP = 2

_START = 16  # of the first frame in the buffer, so that there is room for that header
_REPEATING = {family: repeating(family, STREAM_LEAD_BYTES) for family in (4, 6)}
_length = struct.Struct(">I").unpack_from


class StreamReader:
    """From a guest's stream to host sockets.

    :param stream: the stream.
    :param path: the guest path.
    :param dispatch: what becomes of frames that are not UDP of a known peer.
    :param counters: where traffic and drops are counted.
    :param features: what may move more than one datagram at once.
    """

    def __init__(
        self,
        stream: Stream,
        path: UdpNat,
        dispatch: Dispatch,
        counters: Counters,
        features: frozenset[Feature] = ALL,
    ) -> None:
        self._stream = stream
        self._path = path
        self._dispatch = dispatch
        self._notices = IcmpToGuest(stream, path, counters)
        self._counters = counters
        self._most = SEGMENTS_PER_SEND if features >= {Feature.JOIN, Feature.GSO} else 1
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._known = dispatch.known
        self._end = _START
        self._skip = 0

    def connect(self) -> None:
        """Begin with the first frame of a new guest."""
        self._end, self._skip = _START, 0

    def step(self) -> int:
        """Move what has arrived; give how many frames it was.

        :raises ConnectionError: if the guest has gone. What it sent before has been moved.
        """
        moved = 0
        for _ in range(RECEIVES_PER_STEP):
            sock = self._stream.socket
            if sock is None:
                break
            room = BUFFER_BYTES - self._end
            try:
                size = sock.recv_into(self._view[self._end :], room, MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise ConnectionError(error.strerror) from error
            if not size:
                raise ConnectionError("end of stream")
            moved += self._frames(self._end + size)
            if size < room:
                break
        return moved

    def _frames(self, end: int) -> int:
        """Move the frames in the buffer up to `end`, and keep the beginning of the last one; give how many it was."""
        buffer, view, counters, capture = self._buffer, self._view, self._counters, self._stream.capture
        at, moved = _START, 0
        while True:
            if self._skip:
                skipped = min(self._skip, end - at)
                at += skipped
                self._skip -= skipped
            if end - at < STREAM_LENGTH_BYTES:
                break
            (length,) = _length(buffer, at)
            if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM:
                counters.drop(Drop.FRAME_LENGTH)
                self._skip = length
                at += STREAM_LENGTH_BYTES
                continue
            size = STREAM_LENGTH_BYTES + length
            if end - at < size:
                break
            if capture is not None:
                capture.write(VIRTIO_NET_BLANK, view[at + STREAM_LENGTH_BYTES : at + size])
            frames = self._frame(at, size, end)
            moved += frames
            at += frames * size
        left = end - at
        if at > _START and left:
            view[_START : _START + left] = bytes(view[at:end])
        self._end = _START + left
        counters.frames_down += moved
        return moved

    def _frame(self, at: int, size: int, end: int) -> int:
        """Carry the frame of `size` bytes at `at`, and those behind it that repeat it; give how many it was."""
        found = self._known.lookup(self._buffer, at - STREAM_LEAD_BYTES, size + STREAM_LEAD_BYTES)
        if found is None:
            for peer, payload in self._dispatch.frame(self._view[at + STREAM_LENGTH_BYTES : at + size]):
                self._path.tables[peer.udp_socket.family].activity[peer.byte] |= peer.bit
                failure = send_one(peer.send or sender_to(peer), payload, self._counters.down, self._counters)
                if failure:
                    self._notices.refused(peer, failure, payload)
            return 1
        peer, headers, length = found
        buffer, view, counters = self._buffer, self._view, self._counters
        sender = peer.send or sender_to(peer)
        # Where frames are recorded, each is taken by itself.
        most = min(self._most, (end - at) // size, RUN_BYTES[6] // length if length else 1)
        taken = 1
        if most > 1 and self._stream.capture is None:
            repeats = _REPEATING[peer.udp_socket.family]
            pattern = repeats(buffer, at)
            behind = at + size
            while taken < most and repeats(buffer, behind) == pattern:
                taken += 1
                behind += size
        first = at - STREAM_LEAD_BYTES + headers
        payload = view[first : first + length]
        if taken == 1:
            failure = send_one(sender, payload, counters.down, counters)
        else:
            slices = [view[i : i + length] for i in range(first, first + taken * size, size)]
            failure = send_slices(sender, slices, length, counters.down, counters)
        if failure:
            self._notices.refused(peer, failure, payload)
        return taken
