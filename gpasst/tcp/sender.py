"""The upward half of a connection: the socket's data, on its way to the guest.

Theory of operation: data stays in the socket's receive queue until the guest has acknowledged it. It is *peeked*, sent,
and discarded from the queue when it is acknowledged. Sending again means to peek from the first unacknowledged byte on
(a *rewind*); so nothing is kept here but numbers.

1. In flight is at most the guest's window, and at most `FLIGHT_MAXIMUM`: more would only queue frames before those of
   other flows, since the link's round trip takes microseconds.
2. Without acknowledgement the flight is sent again after a second, then after twice the time, and so on
   (RFC 6298, section 5). There is neither congestion window nor pacing: the link is local, and what is lost on it was
   lost for lack of memory in the guest.
3. The second duplicate acknowledgement sends the flight again at once; further ones of the same flight do not.
4. A window of zero while data is in flight means that the guest dropped it (Linux since 6.6 does so when it is out of
   memory), so that is sent again when the window opens. A zero window is probed with one byte
   (RFC 9293, section 3.8.6.1).
5. The FIN follows when the socket has ended and nothing is in flight.
"""

from __future__ import annotations

from gpasst.tcp.segment import SEQUENCE_HALF, SEQUENCE_MASK

FLIGHT_MAXIMUM = 512 << 10  # bytes
DUPLICATES = 2  # acknowledgements in a row that say the same, after which a segment counts as lost
NO_FIN = -1


class Sender:
    """The upward half of one connection.

    :param start: the first sequence number of data.
    :param mss: payload bytes of the largest segment.
    :ivar unacknowledged: the oldest sequence number that the guest has not acknowledged.
    :ivar next: the next sequence number to send.
    :ivar window: the guest's window, in bytes.
    :ivar scale: shift of the guest's window fields.
    :ivar mss: payload bytes of the largest segment.
    :ivar discard: bytes that were acknowledged, and are still to be discarded from the socket's queue.
    :ivar blocked: whether data may wait in the socket for room in the window.
    :ivar ended: whether the socket's data has an end, so that a FIN follows it.
    :ivar highest: the sequence number behind everything that was ever sent.
    :ivar fin: sequence number of the FIN once it was sent, else `NO_FIN`.
    :ivar progress: when the flight began, or was last acknowledged in part; monotonic seconds.
    :ivar retries: how often the flight was sent again without any progress.
    """

    __slots__ = (
        "_duplicates",
        "_probing",
        "_recover",
        "_update",
        "blocked",
        "discard",
        "ended",
        "fin",
        "highest",
        "mss",
        "next",
        "progress",
        "retries",
        "scale",
        "unacknowledged",
        "window",
    )

    def __init__(self, start: int, mss: int) -> None:
        self.unacknowledged = self.next = self.highest = self._recover = start
        self.window = self.scale = 0
        self.mss = mss
        self.discard = 0
        self.blocked = self.ended = False
        self.fin = NO_FIN
        self.progress = 0.0
        self.retries = 0
        self._duplicates = 0
        self._probing = False
        self._update: int | None = None  # sequence number of the segment that brought the last window

    @property
    def in_flight(self) -> int:
        """Sequence numbers that were sent and not acknowledged."""
        return (self.next - self.unacknowledged) & SEQUENCE_MASK

    def room(self) -> int:
        """Return how many bytes may be sent now."""
        flight = (self.next - self.unacknowledged) & SEQUENCE_MASK
        window = self.window
        room = (window if window < FLIGHT_MAXIMUM else FLIGHT_MAXIMUM) - flight
        # A segment that the window cuts short would keep it small for ever (RFC 9293, section 3.8.6.2.1).
        if room <= 0 or (flight and room < self.mss and room < window >> 1):
            return int(self._probing)
        return room

    @property
    def stalled(self) -> bool:
        """Whether data may wait for a window that is closed."""
        return self.blocked and not self.window

    def sent(self, count: int, now: float) -> None:
        """Take note that `count` bytes were sent at `now`."""
        if self.next == self.unacknowledged:
            self.progress = now
        self._probing = False
        self.next = (self.next + count) & SEQUENCE_MASK
        if (self.next - self.highest) & SEQUENCE_MASK < SEQUENCE_HALF:
            self.highest = self.next

    def sent_fin(self, now: float) -> None:
        """Take note that a FIN was sent behind all data."""
        self.fin = self.next
        self.sent(1, now)

    def offered(self, sequence: int, acknowledgement: int, window: int) -> None:
        """Take the numbers of the segment that ends the handshake; the window is in bytes."""
        self.unacknowledged = self.next = self.highest = self._recover = acknowledgement
        self.window = window
        self._update = sequence
        self.retries = 0

    def acknowledge(self, sequence: int, acknowledgement: int, field: int, bare: bool, now: float) -> bool:
        """Take acknowledgement and window of a segment of the guest.

        :param sequence: the segment's sequence number.
        :param field: its window field.
        :param bare: whether it has neither data nor FIN.
        :param now: monotonic seconds.
        :return: whether the flight has to be sent again.
        """
        advance = (acknowledgement - self.unacknowledged) & SEQUENCE_MASK
        window = field << self.scale
        if advance:
            if advance > (self.highest - self.unacknowledged) & SEQUENCE_MASK:
                return False
            self.unacknowledged = acknowledgement
            if acknowledgement == self.highest:
                # One number for all, so that an idle connection takes less memory.
                self.next = self.highest = self._recover = acknowledgement
            elif (self.next - acknowledgement) & SEQUENCE_MASK >= SEQUENCE_HALF:
                self.next = acknowledgement
            self.discard += advance - (self.fin != NO_FIN and (self.fin + 1) & SEQUENCE_MASK == acknowledgement)
            self.progress = now
            self.retries = self._duplicates = 0
        elif bare and window == self.window and self.next != acknowledgement:
            self._duplicates += 1
            # What stands before the recovery point was sent again already. A point outside of the flight is old.
            again = (self._recover - acknowledgement) & SEQUENCE_MASK
            recovering = 0 < again <= (self.highest - acknowledgement) & SEQUENCE_MASK
            if self._duplicates == DUPLICATES and not recovering:
                self.rewind()
                return True
            return False
        elif self._update is not None and (sequence - self._update) & SEQUENCE_MASK >= SEQUENCE_HALF:
            # An older segment that came late says nothing about the window (RFC 9293, section 3.10.7.4).
            return False
        self._update = sequence
        if window != self.window:
            opens, self.window = not self.window, window
            if self.next != self.unacknowledged and (opens or not window):
                # What is in flight when the window opens is a probe, and the guest has not taken it.
                self.rewind()
                if not window:
                    self.blocked = True
                    self.progress = now
                return True
        return False

    def is_foreign(self, acknowledgement: int) -> bool:
        """Return whether a segment acknowledges what was never sent, or is further behind than any flight.

        Such a number is guessed, and the segment's data with it (RFC 5961, section 5).
        """
        advance = (acknowledgement - self.unacknowledged) & SEQUENCE_MASK
        flight = (self.highest - self.unacknowledged) & SEQUENCE_MASK
        return flight < advance < SEQUENCE_MASK + 1 - FLIGHT_MAXIMUM

    def flies(self, sequence: int) -> bool:
        """Return whether a sequence number was sent and not acknowledged."""
        flight = (self.highest - self.unacknowledged) & SEQUENCE_MASK
        return (sequence - self.unacknowledged) & SEQUENCE_MASK < flight

    @property
    def fin_acknowledged(self) -> bool:
        """Whether the guest has acknowledged the FIN."""
        return self.fin != NO_FIN and self.unacknowledged == (self.fin + 1) & SEQUENCE_MASK

    def again(self, now: float) -> None:
        """Send the flight again, since nothing was acknowledged for too long; into a closed window one byte of it."""
        self.retries += 1
        self.progress = now
        self._probing = not self.window
        self.rewind()

    def narrow(self, mss: int) -> bool:
        """Send no larger segments than `mss` from now on; return whether the flight has to be sent again."""
        if mss >= self.mss:
            return False
        self.mss = mss
        self.rewind()
        return True

    def rewind(self) -> None:
        """Send from the oldest unacknowledged byte on again; the caller peeks from there."""
        self.next = self.unacknowledged
        self._recover = self.highest
        self._duplicates = 0
