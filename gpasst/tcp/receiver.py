"""The downward half of a connection: the guest's data, on its way into the host's socket.

Theory of operation:

1. Data in order goes to the socket at once, from where it lies. What the socket does not take is copied and *kept*, and
   everything after it, too. A window that was advertised is a promise, so nothing within it is dropped; that bounds
   what is kept.
2. The guest is acknowledged what the socket took. While anything is kept, the right edge of the window stays.
3. Segments ahead of a gap are kept as pieces until the gap is filled, within the window and within `PIECES`.
4. A FIN counts when everything before it is in the socket: only then is the socket shut for writing, and the FIN
   acknowledged.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence

from gpasst.counters import Drop
from gpasst.tcp.segment import SEQUENCE_HALF, SEQUENCE_MASK
from gpasst.tcp.window import ReceiveWindow

PIECES = 64  # ahead of a gap, at most
ANSWERS = 8  # a second, to segments without data that cannot be taken
PIECE_BYTES = 16 << 10  # of kept data, in which smaller segments are joined: each object costs some 50 bytes
_NOTHING = memoryview(b"")


class Receiver:
    """The downward half of one connection.

    :param window: the window that the guest is promised.
    :param drop: called with the reason of each segment that is dropped.
    :ivar next: the next sequence number in order; everything before it is in the socket, or kept.
    :ivar acknowledged: everything before it is in the socket.
    :ivar window: the window that the guest is promised.
    :ivar finishing: whether the guest's FIN has come in order, and was not acknowledged yet.
    """

    __slots__ = ("_ahead", "_answered", "_counted", "_drop", "_kept", "acknowledged", "finishing", "next", "window")

    def __init__(self, window: ReceiveWindow, drop: Callable[[Drop], None]) -> None:
        self.next = self.acknowledged = 0
        self.window = window
        self.finishing = False
        self._drop = drop
        self._counted, self._answered = 0.0, 0
        self._kept: deque[bytes | bytearray | memoryview] | None = None
        self._ahead: list[tuple[int, int, bytes, bool]] | None = None  # distance from `next` when it came, as order

    def start(self, sequence: int, scale: int) -> None:
        """Begin with the first sequence number of the guest's data; `scale` is the shift of the window."""
        self.next = self.acknowledged = sequence
        self.window.start(sequence, scale)

    @property
    def waits(self) -> bool:
        """Whether the socket has to take something before the guest can be acknowledged all it sent."""
        return self.next != self.acknowledged or self.finishing

    @property
    def owes(self) -> bool:
        """Whether the guest has not been acknowledged all that the socket took."""
        return self.acknowledged != self.window.acknowledged

    def acceptable(self, sequence: int, length: int) -> bool:
        """Return whether a segment has any part in the window (RFC 9293, section 3.10.7.4).

        :param length: sequence numbers that it takes.
        """
        ahead = (sequence - self.next) & SEQUENCE_MASK
        if ahead <= (self.window.edge - self.next) & SEQUENCE_MASK:
            return True
        return SEQUENCE_MASK + 1 - ahead < length

    def ends_at(self, sequence: int) -> bool:
        """Return whether a RST with a sequence number ends the connection.

        A guest that has the connection sends it behind all its data, and one that has not takes the number from the
        last acknowledgement (RFC 9293, sections 3.10.5 and 3.10.7.1). The two differ while data is kept.
        """
        return sequence in {self.acknowledged, self.next, (self.next + self.finishing) & SEQUENCE_MASK}

    def answers(self, size: int, now: float) -> bool:
        """Return whether a segment that cannot be taken is answered; without data only `ANSWERS` in a second are.

        The answer may be one that the guest cannot take either, as after it was restored from a snapshot, and its
        answer then comes back (RFC 5961, section 7).

        :param size: bytes of its data.
        :param now: monotonic seconds.
        """
        if size:
            return True
        if now >= self._counted + 1:
            self._counted, self._answered = now, 0
        self._answered += 1
        return self._answered <= ANSWERS

    def admit(self, sequence: int, payload: memoryview, fin: bool) -> memoryview:
        """Take a segment that is acceptable.

        :param payload: its data; valid during the call.
        :param fin: whether it has a FIN behind that.
        :return: data that the caller offers to the socket at once, and reports with `wrote`; empty if there is none,
            or if it has to wait for data that is kept.
        """
        ahead = (sequence - self.next) & SEQUENCE_MASK
        if self.finishing:
            if len(payload) > -ahead & SEQUENCE_MASK or 0 < ahead < SEQUENCE_HALF:
                self._drop(Drop.TCP_CLOSED)
            return _NOTHING
        if ahead:
            if ahead < SEQUENCE_HALF:
                self._keep_ahead(ahead, sequence, payload, fin)
                return _NOTHING
            payload = payload[SEQUENCE_MASK + 1 - ahead :]
        room = (self.window.edge - self.next) & SEQUENCE_MASK
        if len(payload) > room:
            payload, fin = self._cut(payload, room), False
        ready = _NOTHING
        if payload:
            waits = self.next != self.acknowledged
            self.next = (self.next + len(payload)) & SEQUENCE_MASK
            if waits:
                self._keep(payload)
            else:
                ready = payload
        self.finishing = fin
        if self._ahead:
            # What was offered must be written before what followed it is kept.
            if ready:
                self._keep(ready)
                ready = _NOTHING
            self._close_gap()
        return ready

    def extend(self, count: int) -> bool:
        """Take `count` more bytes that follow what `admit` returned; return whether the window has room for them."""
        if self._ahead or self.finishing or count > (self.window.edge - self.next) & SEQUENCE_MASK:
            return False
        self.next = (self.next + count) & SEQUENCE_MASK
        return True

    def wrote(self, payload: memoryview, taken: int, more: Sequence[memoryview] = ()) -> None:
        """Take note that the socket took `taken` bytes of what `admit` returned; the rest is kept.

        :param more: what followed that, if the receiver was extended.
        """
        acknowledged = (self.acknowledged + taken) & SEQUENCE_MASK
        if self.next == acknowledged:
            self.acknowledged = self.next  # one number, so that an idle connection takes less memory
            return
        self.acknowledged = acknowledged
        for piece in (payload, *more):
            if taken < len(piece):
                self._keep(piece[taken:])
            taken = max(0, taken - len(piece))

    def waiting(self, count: int) -> list[bytes | bytearray | memoryview]:
        """Return the first pieces that are kept, at most `count`; the caller offers them to the socket."""
        kept = self._kept
        return [kept[i] for i in range(min(count, len(kept)))] if kept else []

    def took(self, taken: int) -> None:
        """Take note that the socket took `taken` bytes of what is kept."""
        kept = self._kept
        assert kept is not None
        self.acknowledged = (self.acknowledged + taken) & SEQUENCE_MASK
        while taken:
            first = kept[0]
            if taken < len(first):
                kept[0] = memoryview(first)[taken:]
                break
            taken -= len(first)
            kept.popleft()
        if not kept:
            self._kept = None

    def finish(self) -> None:
        """Acknowledge the FIN: everything before it is in the socket, which was shut for writing."""
        self.finishing = False
        end = (self.next + 1) & SEQUENCE_MASK
        if self.window.edge == self.next:
            # A FIN needs no room (RFC 9293, section 3.10.7.4, seventh step).
            self.window.edge = end
        self.next = self.acknowledged = end

    def release(self) -> None:
        """Forget everything: the connection has ended."""
        self._kept = self._ahead = None
        self.window.release()

    def _cut(self, payload: memoryview, room: int) -> memoryview:
        """Return what of a segment's data is within the window."""
        # One byte behind the window is a probe (RFC 9293, section 3.8.6.1).
        if len(payload) - room > 1:
            self._drop(Drop.TCP_UNACCEPTABLE)
        return payload[:room]

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep a copy of data, joined with what was kept last if both are small."""
        kept = self._kept
        if kept is None:
            kept = self._kept = deque()
        last = kept[-1] if kept else None
        if isinstance(last, bytearray) and len(last) + len(data) <= PIECE_BYTES:
            last += data
        else:
            kept.append(bytearray(data))

    def _keep_ahead(self, ahead: int, sequence: int, payload: memoryview, fin: bool) -> None:
        """Keep a segment that stands behind a gap."""
        pieces = self._ahead
        if pieces is None:
            pieces = self._ahead = []
        window = (self.window.edge - self.next) & SEQUENCE_MASK
        if len(payload) > window - ahead:
            payload, fin = self._cut(payload, window - ahead), False
        if not payload and not fin:
            return
        held = 0
        for _, start, data, end in pieces:
            if start == sequence and len(data) >= len(payload) and end >= fin:
                # It was sent twice.
                return
            held += len(data)
        if len(pieces) >= PIECES or held + len(payload) > window:
            # The guest sends it again.
            self._drop(Drop.TCP_BUDGET)
            return
        insort(pieces, (ahead, sequence, bytes(payload), fin))

    def _close_gap(self) -> None:
        """Keep what follows in order now, of the pieces that stood behind a gap."""
        pieces = self._ahead
        assert pieces is not None
        left = []
        for _, sequence, data, fin in pieces:
            ahead = (sequence - self.next) & SEQUENCE_MASK
            if ahead and ahead < SEQUENCE_HALF:
                left.append((ahead, sequence, data, fin))
                continue
            old = -ahead & SEQUENCE_MASK
            if old > len(data) or self.finishing:
                continue
            if old < len(data):
                self._keep(data[old:])
                self.next = (self.next + len(data) - old) & SEQUENCE_MASK
            self.finishing = fin
        self._ahead = left or None
