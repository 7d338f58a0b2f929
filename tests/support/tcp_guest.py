"""A guest's TCP as RFC 9293 describes one, small and slow: the other end for tests of connections.

It shares nothing with the code that it tests, has 16-bit windows with a scale, sends again from the oldest byte, and
probes a closed window as Linux does or as Windows does.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from gpasst.formats import TCP_CODEC

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MASK = 0xFFFFFFFF
HALF = 1 << 31
STARVED = 8
DELAY = 0.04  # seconds before an acknowledgement is sent by itself
FIRST_TIMEOUT, LAST_TIMEOUT = 0.3, 8.0  # seconds


class Clock:
    """Time, and what happens in it.

    :ivar now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Event]] = []

    def at(self, when: float, call: Callable[[float], None]) -> Event:
        """Call a function once at a time."""
        event = Event(max(when, self.now), call)
        heapq.heappush(self._events, (event.when, next(self._order), event))
        return event

    def after(self, seconds: float, call: Callable[[], None]) -> Event:
        """Call a function once after some time."""
        return self.at(self.now + seconds, lambda now: call())

    def run(self, until: Callable[[], bool], steps: int) -> bool:
        """Let time pass until something holds; return whether it did within so many events."""
        for _ in range(steps):
            if until():
                return True
            if not self._events:
                return False
            when, _, event = heapq.heappop(self._events)
            self.now = when
            if not event.cancelled:
                event.call(when)
        return False

    def pass_to(self, end: float, then: Callable[[], None]) -> None:
        """Let time pass to `end`, and call `then` after all that happens on the way."""
        while self._events and self._events[0][0] <= end:
            when, _, event = heapq.heappop(self._events)
            self.now = when
            if not event.cancelled:
                event.call(when)
                then()
        self.now = max(self.now, end)


@dataclass(eq=False)
class Event:
    """Something that happens at a time."""

    when: float
    call: Callable[[float], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(frozen=True)
class Guest:
    """What a guest does.

    :ivar data: what it sends.
    :ivar capacity: bytes of its receive buffer.
    :ivar reads: bytes that its program reads every 20 ms.
    :ivar mss: bytes of its segments, and of those it asks for.
    :ivar scale: shift of its windows; None if it scales none.
    :ivar start: its initial sequence number.
    :ivar waits: whether it ends only after the other side.
    :ivar probes_with_data: whether it probes a closed window with a byte.
    :ivar delays: whether it acknowledges every second segment only, or after a while (RFC 9293, section 3.8.6.3).
    :ivar starves: after how many segments with data it is out of memory, up to `STARVED` times; 0 for never. It drops
        the next one, and closes its window for a while, as Linux does since 6.6.
    """

    data: bytes = b""
    capacity: int = 20000
    reads: int = 5000
    mss: int = 1000
    scale: int | None = 3
    start: int = 0xFFFFF000
    waits: bool = False
    probes_with_data: bool = False
    starves: int = 0
    delays: bool = False


@dataclass
class GuestTcp:
    """One connection of a guest.

    :ivar received: what its program has read.
    :ivar was_reset: whether a RST ended it.
    """

    guest: Guest
    clock: Clock
    send: Callable[[bytes], None]
    received: bytearray = field(default_factory=bytearray)
    was_reset: bool = False

    def __post_init__(self) -> None:
        self._una = self._next = self._most = self.guest.start
        self._wanted: int | None = None  # the next number of the other side
        self._edge = 0  # right edge of the other side's window
        self._their_scale = 0
        self._scale = 0
        self._mss = self.guest.mss
        self._unread = bytearray()
        self._ahead: dict[int, tuple[bytes, bool]] = {}
        self._ended = self._synchronised = False
        self._timeout = FIRST_TIMEOUT
        self._duplicates = 0
        self._timer: Event | None = None
        self._reading: Event | None = None
        self._owed: Event | None = None
        self._came = 0
        self._starving = False

    @property
    def finished(self) -> bool:
        """Whether both sides have ended, and all that this one sent is acknowledged."""
        return self._ended and not self._unread and self._una == self._end

    @property
    def arrived(self) -> bytes:
        """What came in order."""
        return bytes(self.received + self._unread)

    @property
    def _end(self) -> int:
        """The number behind everything, the FIN included."""
        return (self.guest.start + len(self.guest.data) + 2) & MASK

    @property
    def _window(self) -> int:
        if self._starving:
            return 0
        free = self.guest.capacity - len(self._unread) - sum(len(data) for data, _ in self._ahead.values())
        return min(max(free, 0) >> self._scale, 0xFFFF)

    def open(self) -> None:
        """Send a SYN."""
        self._synchronise()

    def take(self, fields: dict[str, int], options: bytes, payload: bytes) -> None:
        """Take a segment of the other side."""
        flags = fields["flags"]
        if self._wanted is None or not self._synchronised:
            self._opening(fields, options, payload)
            return
        sequence = fields["sequence"]
        if flags & RST:
            if sequence == self._wanted:
                self.was_reset = True
                self._stop()
            return
        if flags & SYN:
            self._acknowledge()
            return
        self._acknowledged(fields, bool(payload) or bool(flags & FIN))
        if payload or flags & FIN:
            in_order = sequence == self._wanted and not self._ahead
            self._data(sequence, payload, bool(flags & FIN))
            if self.guest.delays and in_order and self._owed is None:
                self._owed = self.clock.after(DELAY, self._acknowledge)
            else:
                self._acknowledge()
        elif (sequence - self._wanted) & MASK >= HALF:
            self._acknowledge()
        self._go_on()

    def _opening(self, fields: dict[str, int], options: bytes, payload: bytes) -> None:
        if fields["flags"] & RST:
            self.was_reset = True
            self._stop()
            return
        if fields["flags"] & SYN:
            self._wanted = (fields["sequence"] + 1) & MASK
            scaled = self.guest.scale is not None and b"\x03\x03" in options
            self._their_scale, self._scale = (options[7], self.guest.scale or 0) if scaled else (0, 0)
            self._mss = min(self.guest.mss, int.from_bytes(options[2:4], "big"))
            self._edge = (fields["acknowledgement"] + fields["window"]) & MASK
        if not fields["flags"] & ACK or fields["acknowledgement"] != (self.guest.start + 1) & MASK:
            self._synchronise()
            return
        self._synchronised = True
        self._una = self._next = self._most = (self.guest.start + 1) & MASK
        self._timeout = FIRST_TIMEOUT
        if fields["flags"] & SYN:
            self._acknowledge()
            self._go_on()
        else:
            self._edge = (self._una + (fields["window"] << self._their_scale)) & MASK
            self.take(fields, options, payload)

    def _synchronise(self) -> None:
        options = b"\x02\x04" + self.guest.mss.to_bytes(2, "big")
        if self.guest.scale is not None:
            options += bytes((1, 3, 3, self.guest.scale))
        window = min(self.guest.capacity, 0xFFFF)
        self._emit(self.guest.start, SYN if self._wanted is None else SYN | ACK, b"", window, options)
        self._set_timer()

    def _acknowledged(self, fields: dict[str, int], occupied: bool) -> None:
        acknowledged = fields["acknowledgement"]
        assert (acknowledged - self._una) & MASK <= (self._most - self._una) & MASK or (
            (self._una - acknowledged) & MASK < HALF
        ), "acknowledged what was never sent"
        advance = (acknowledged - self._una) & MASK
        edge = acknowledged + (fields["window"] << self._their_scale)
        if 0 < advance < HALF:
            self._una = acknowledged
            if (self._next - acknowledged) & MASK >= HALF:
                self._next = acknowledged
            self._timeout, self._duplicates = FIRST_TIMEOUT, 0
            self._set_timer()
        elif advance == 0 and not occupied and edge == self._edge and self._next != self._una:
            self._duplicates += 1
            if self._duplicates == 3:
                self._next = self._una
        if advance < HALF and (edge - self._edge) & MASK < HALF:
            self._edge = edge & MASK

    def _data(self, sequence: int, payload: bytes, fin: bool) -> None:
        assert self._wanted is not None
        if self._starving:
            return
        self._came += 1
        if self.guest.starves and self._came % self.guest.starves == 0 and self._came <= STARVED * self.guest.starves:
            self._starving = True
            self.clock.after(0.05, self._fed)
            return
        old = (self._wanted - sequence) & MASK
        if old >= HALF:
            room = self.guest.capacity - len(self._unread) - ((sequence - self._wanted) & MASK)
            if len(payload) <= room and not self._ended:
                self._ahead.setdefault(sequence, (payload, fin))
            return
        if old > len(payload) or self._ended:
            return
        room = max(0, self.guest.capacity - len(self._unread))
        fresh = payload[old:]
        if len(fresh) > room:
            fresh, fin = fresh[:room], False
        self._unread += fresh
        self._wanted = (self._wanted + len(fresh) + fin) & MASK
        self._ended = fin
        if self._reading is None and self.guest.reads:
            self._reading = self.clock.after(0.02, self._read)
        for start in sorted(self._ahead, key=lambda start: (start - sequence) & MASK):
            if (self._wanted - start) & MASK < HALF:
                self._data(start, *self._ahead.pop(start))
                return

    def _fed(self) -> None:
        self._starving = False
        self._acknowledge()

    def _read(self) -> None:
        self._reading = None
        before = self._window
        self.received += self._unread[: self.guest.reads]
        del self._unread[: self.guest.reads]
        if self._unread:
            self._reading = self.clock.after(0.02, self._read)
        if self._window << self._scale >= self.guest.mss > before << self._scale or not self._unread:
            self._acknowledge()
        self._go_on()

    def _go_on(self) -> None:
        """Send what the window of the other side has room for."""
        if not self._synchronised or self.was_reset:
            return
        first = (self.guest.start + 1) & MASK
        while (self._next - first) & MASK <= len(self.guest.data):
            at = (self._next - first) & MASK
            room = (self._edge - self._next) & MASK
            room = 0 if room >= HALF else room
            payload = self.guest.data[at : at + min(room, self._mss)]
            fin = at + len(payload) == len(self.guest.data) and (self._ended or not self.guest.waits)
            if not payload and not fin:
                break
            self._segment(payload, fin)
            if fin:
                break
        if self._una != self._next or (self._una - first) & MASK < len(self.guest.data):
            self._set_timer(keep=True)

    def _segment(self, payload: bytes, fin: bool) -> None:
        sequence = self._next
        self._next = (self._next + len(payload) + fin) & MASK
        if (self._next - self._most) & MASK < HALF:
            self._most = self._next
        self._emit(sequence, ACK | (FIN if fin else 0), payload)

    def _acknowledge(self) -> None:
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None
        self._emit(self._most, ACK if self._synchronised else SYN | ACK)

    def _expired(self) -> None:
        self._timer = None
        if self.was_reset or self.finished:
            return
        self._timeout = min(2 * self._timeout, LAST_TIMEOUT)
        if not self._synchronised:
            self._synchronise()
            return
        self._next = self._una
        first = (self.guest.start + 1) & MASK
        at = (self._una - first) & MASK
        if at < len(self.guest.data) and not 0 < (self._edge - self._una) & MASK < HALF:
            if self.guest.probes_with_data:
                self._segment(self.guest.data[at : at + 1], fin=False)
            else:
                self._emit((self._una - 1) & MASK, ACK)
        self._go_on()
        if self._una != self._end:
            self._set_timer()

    def _set_timer(self, keep: bool = False) -> None:
        if keep and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.clock.after(self._timeout, self._expired)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _emit(
        self, sequence: int, flags: int, payload: bytes = b"", window: int | None = None, options: bytes = b""
    ) -> None:
        header = TCP_CODEC.pack(
            source=40000,
            destination=80,
            sequence=sequence,
            acknowledgement=self._wanted or 0,
            data_offset=5 + len(options) // 4,
            flags=flags,
            window=self._window if window is None else window,
        )
        self.send(header + options + payload)
