"""The window that the guest is promised, and the budget of all promises.

Theory of operation: a window that was advertised is a promise. What arrives in it and does not fit into the host's
socket is kept (`gpasst.tcp.receiver`), so promises are memory that may have to be had:

1. The right edge never moves back (RFC 9293, section 3.8.6). The field of a header counts units of the scale, so a
   window that shrinks as it fills is rounded up.
2. While anything is kept, the edge stays.
3. A connection begins with a small window, which doubles while the guest fills it, up to `WINDOW_MAXIMUM`. That is
   enough, since the link's round trip takes microseconds; a larger one would only queue frames before those of other
   flows.
4. The promises of all connections have one budget, that of a SYN included. What is beyond it is not promised, but for
   `WINDOW_MINIMUM`, so that every connection goes on.
"""

from __future__ import annotations

from gpasst.tcp.segment import SEQUENCE_MASK

WINDOW_FIRST = 0xFFFF  # bytes; the window of a SYN is not scaled (RFC 7323, section 2.2)
WINDOW_MAXIMUM = 512 << 10  # bytes
WINDOW_MINIMUM = 4096  # bytes
BUDGET = 256 << 20  # bytes, over all connections of a guest
SCALE = 8  # what gpasst offers
FIELD_MAXIMUM = 0xFFFF
_GROWTH_SHARE = 4  # of a window; as soon as the guest has filled this part of it, the window doubles


class Budget:
    """The promises of all connections.

    :param limit: bytes.
    :ivar promised: bytes that guests may send before they hear more.
    """

    __slots__ = ("limit", "promised")

    def __init__(self, limit: int = BUDGET) -> None:
        self.limit = limit
        self.promised = 0


class ReceiveWindow:
    """The window of one connection.

    :param budget: of all connections.
    :ivar acknowledged: the last number that was acknowledged.
    :ivar promise: bytes that the guest may send behind it.
    :ivar edge: the right edge: the first sequence number that was not promised.
    :ivar scale: shift of the field in a header.
    """

    __slots__ = ("_budget", "_field", "_size", "acknowledged", "edge", "promise", "scale")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.acknowledged = 0
        self._size = WINDOW_FIRST
        self.promise = WINDOW_FIRST if budget.promised + WINDOW_FIRST <= budget.limit else WINDOW_MINIMUM
        budget.promised += self.promise
        self._field = 0  # the last one, as long as it may be repeated
        self.edge = 0
        self.scale = 0

    def start(self, sequence: int, scale: int) -> None:
        """Begin with the window of the SYN.

        :param sequence: the first sequence number of the guest's data.
        :param scale: shift of the fields of all later headers.
        """
        self.acknowledged = sequence
        self.edge = (sequence + self.promise) & SEQUENCE_MASK
        self.scale = scale

    def advertise(self, acknowledged: int, full: bool) -> int:
        """Return the field of a header, and promise what it says.

        :param acknowledged: the header's acknowledgement number.
        :param full: whether data is kept, so that no more may be promised.
        """
        if self._field:
            if acknowledged == self.acknowledged:
                return self._field
            size = self._size
            advance = (acknowledged - self.acknowledged) & SEQUENCE_MASK
            fills = advance >= size // _GROWTH_SHARE
            if not (full or fills) and self.promise >= size and self._budget.promised <= self._budget.limit:
                # The window is as large as it is to be, so the field stays, and so does the budget.
                self.acknowledged = acknowledged
                self.edge = (acknowledged + self.promise) & SEQUENCE_MASK
                return self._field
        outstanding = (self.edge - acknowledged) & SEQUENCE_MASK
        target = outstanding
        if not full:
            size = self._size
            if (acknowledged - self.acknowledged) & SEQUENCE_MASK >= size // _GROWTH_SHARE and size < WINDOW_MAXIMUM:
                size = self._size = min(2 * size, WINDOW_MAXIMUM)
            budget = self._budget
            spare = budget.limit - budget.promised + self.promise
            if size > spare:
                size = max(spare, WINDOW_MINIMUM)
            target = max(outstanding, size)
        self.acknowledged = acknowledged
        scale = self.scale
        # More than the maximum only without scaling, and then it was never promised either.
        field = min((target + (1 << scale) - 1) >> scale, FIELD_MAXIMUM)
        promise = field << scale
        self._budget.promised += promise - self.promise
        self.promise = promise
        self.edge = (acknowledged + promise) & SEQUENCE_MASK
        self._field = field if not full else 0
        return field

    def release(self) -> None:
        """Give the promise back to the budget: the connection has ended."""
        self._budget.promised -= self.promise
        self.promise = 0
