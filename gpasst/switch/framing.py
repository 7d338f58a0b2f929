"""Frames on a byte stream, each behind its length: the framing of qemu's ``-netdev stream``, and what trunks add to it.

Theory of operation: before each frame stand 4 bytes, its length in network byte order. `Cutter` keeps what has arrived
and cuts whole frames from it where they lie. The switch takes frames behind a virtio-net header, which a stream does
not have; the bytes in front of a frame have been read by then, so a blank header is written over them, and nothing is
copied. The rest of a frame that has not arrived whole moves to the front of the buffer.

On a trunk, the highest bit of the length marks a *message* for the other switch, which no host ever sees. No frame is
as long as that, so a message is never taken for a frame, nor the other way round, whatever hosts send.

A frame of illegal length is skipped, as many bytes as its length says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from gpasst.wire import ETHERNET_CODEC, STREAM_LEAD_BYTES, STREAM_LENGTH_BYTES, VIRTIO_NET_BLANK

FRAME_MINIMUM = ETHERNET_CODEC.size
"""Bytes of the shortest legal frame: an Ethernet header."""
FRAME_MAXIMUM = 65535
"""Bytes of the longest legal frame."""
MESSAGE_MAXIMUM = 1 << 16
"""Bytes of the longest legal message."""

_MESSAGE = 1 << 31  # the bit of the length that marks a message
_START = 16  # of the first frame in the buffer, so that there is room for a virtio-net header
_BUFFER_BYTES = 1 << 18  # more than three of the largest frames
_NOTHING = memoryview(b"")
_length = struct.Struct(">I")


def framed_message(message: bytes) -> bytes:
    """Return a message as it crosses a trunk, behind its length.

    :param message: 1 to `MESSAGE_MAXIMUM` bytes.
    """
    assert 0 < len(message) <= MESSAGE_MAXIMUM
    return _length.pack(_MESSAGE | len(message)) + message


class Cutter:
    """Cuts a stream into frames and messages.

    :param message: called with each message, in its place among the frames; None on a stream that has none.
    :param illegal: called for each frame and message of illegal length.
    """

    def __init__(self, message: Callable[[bytes], None] | None, illegal: Callable[[], None]) -> None:
        self._message = message
        self._illegal = illegal
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self.clear()

    def clear(self) -> None:
        """Begin with the first frame of another stream."""
        self._at = self._end = _START
        self._skip = 0

    def room(self) -> memoryview:
        """Return where to put what arrives next; 1 byte at least, once `cut` has returned None."""
        return self._view[self._end :]

    def add(self, size: int) -> None:
        """Take note that `size` bytes have been put into `room`."""
        self._end += size

    def cut(self) -> memoryview | None:
        """Return the next frame behind a blank virtio-net header, valid until the next call; None if there is none.

        What is returned is empty if a message has been passed on instead, or what has an illegal length skipped: either
        may be followed by many more, which the caller looks at in steps.
        """
        at, left = self._at, self._end - self._at
        if self._skip:
            skipped = min(self._skip, left)
            self._skip -= skipped
            at = self._at = at + skipped
            left -= skipped
        if left < STREAM_LENGTH_BYTES:
            self._move(left)
            return None
        (length,) = _length.unpack_from(self._buffer, at)
        if FRAME_MINIMUM <= length <= FRAME_MAXIMUM:
            if left < STREAM_LENGTH_BYTES + length:
                self._move(left)
                return None
            start = at - STREAM_LEAD_BYTES
            self._at = at + STREAM_LENGTH_BYTES + length
            self._buffer[start : start + len(VIRTIO_NET_BLANK)] = VIRTIO_NET_BLANK
            return self._view[start : self._at]
        size = length - _MESSAGE
        if self._message is not None and 0 < size <= MESSAGE_MAXIMUM:
            if left < STREAM_LENGTH_BYTES + size:
                self._move(left)
                return None
            self._at = at + STREAM_LENGTH_BYTES + size
            self._message(bytes(self._view[at + STREAM_LENGTH_BYTES : self._at]))
        else:
            self._at = at + STREAM_LENGTH_BYTES
            self._skip = length
            self._illegal()
        return _NOTHING

    def _move(self, left: int) -> None:
        """Move the last `left` bytes, of a frame that is not whole, to the front of the buffer."""
        at, end = self._end - left, _START + left
        if at > _START:
            self._buffer[_START:end] = self._buffer[at : self._end]
        self._at, self._end = _START, end
