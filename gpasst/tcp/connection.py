"""One connection: events of the guest, the socket and the clock in; work for the caller out.

Theory of operation: a connection has a state (`gpasst.tcp.states`) and two independent halves: `Sender` for data of the
socket, `Receiver` for data of the guest. It makes no call and writes no frame. Each event returns *work*, a set of
flags (`gpasst.tcp.work`), and the caller does it.

* Data that a segment brought is `fresh`: the caller offers it to the socket at once, from where it lies.
* All else may wait until a batch of segments has been read, so that one acknowledgement, one discard and one look at
  the socket serve the whole batch. Work of several events is the union of their flags.

Checks follow RFC 9293, section 3.10.7, and RFC 5961: a RST counts only where the guest's data ends or the last
acknowledgement stands, a RST or SYN elsewhere in the window is answered with an acknowledgement, and so is an
acknowledgement of what was never sent, or long ago acknowledged. What breaks the rules is reported as a drop, and so is
data ahead of a gap that cannot be kept. Repeated data, keep-alives and probes of the window are no drops.

Time is the caller's. `due` says when `expired` has to be called next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpasst.counters import Drop
from gpasst.flow import key as flow_key
from gpasst.flow.sender import StreamSocket
from gpasst.tcp.header import Header
from gpasst.tcp.receiver import Receiver
from gpasst.tcp.segment import MSS_MINIMUM, SEQUENCE_HALF, SEQUENCE_MASK, Offer, Segment
from gpasst.tcp.sender import NO_FIN, Sender
from gpasst.tcp.states import OPENING, RECEIVING, Event, State, after
from gpasst.tcp.timers import RETRIES, SILENCE_SECONDS, SYN_SECONDS, probe_seconds, retransmit_seconds
from gpasst.tcp.window import SCALE, Budget, ReceiveWindow
from gpasst.tcp.work import (
    ABORT,
    ACKNOWLEDGE,
    CLOSE,
    CONFIRM,
    DISCARD,
    KEEP_ALIVE,
    LATER,
    LOOK,
    PROBE,
    REFUSE,
    RESET,
    REWIND,
    SEND,
    SYNCHRONISE,
    WRITE,
)
from gpasst.wire import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

_NOTHING = memoryview(b"")
_KEEP_ALIVE_BYTES = 1  # of data that a keep-alive may have (RFC 9293, section 3.8.4)


class Connection:
    """One connection between the guest and a remote end.

    :param key: the guest's address, the remote's as the guest sees it, and both ports, raw.
    :param state: `State.CONNECTING` for one that the guest opened, `State.SYN_SENT` for one of a forward.
    :param header: the headers of its upward segments; None while there are none, since they can be made anew.
    :param start: the initial sequence number towards the guest.
    :param budget: of the windows of all connections.
    :param limit: payload bytes of the largest segment that the link carries towards the guest.
    :param remote: the remote end as the host sees it: address, port, interface index of a link-local address.
    :param now: monotonic seconds.
    :param drop: called with the reason of each segment that is dropped.
    :ivar socket: the host's socket; None once closed.
    :ivar delayed: whether an acknowledgement is to be sent later.
    :ivar established: whether the handshake is over.
    :ivar work: what is still to be done at the end of a batch.
    :ivar fresh: data of the segment at hand, for the socket; empty if there is none.
    :ivar refused: sequence number of the RST for `REFUSE` and `RESET`.
    :ivar heard: when the guest last sent something; monotonic seconds.
    :ivar entered: when the table last ordered it by `heard`.
    :ivar armed: the entry of the wheel that counts for it (`gpasst.tcp.timers`).
    """

    __slots__ = (
        "_drop",
        "_idle_probes",
        "_limit",
        "_remote",
        "armed",
        "delayed",
        "entered",
        "established",
        "fresh",
        "header",
        "heard",
        "key",
        "receiver",
        "refused",
        "sender",
        "socket",
        "state",
        "work",
    )

    def __init__(
        self,
        key: bytes,
        state: State,
        header: Header | None,
        start: int,
        budget: Budget,
        limit: int,
        remote: tuple[bytes, int, int],
        now: float,
        drop: Callable[[Drop], None],
    ) -> None:
        self.key = key
        self.state = state
        self.header = header
        # Most remote ends are what the guest sees, and the key has that.
        self._remote = None if remote == flow_key.shown(key) else remote
        self.socket: StreamSocket | None = None
        self.established = self.delayed = False
        self.work = 0
        self.fresh = _NOTHING
        self.refused = 0
        self.heard = now
        self.entered = now
        self.armed = 0
        self.sender = Sender((start + 1) & SEQUENCE_MASK, limit)
        self.receiver = Receiver(ReceiveWindow(budget), drop)
        self._drop = drop
        self._limit = limit
        self._idle_probes = 0

    # --- The handshake ----------------------------------------------------------------------------------------------

    def opened(self, sequence: int, offer: Offer, window: int) -> None:
        """Take the guest's SYN; the caller connects the socket.

        :param sequence: its sequence number.
        :param offer: its options.
        :param window: its window field.
        """
        self._agree(sequence, offer)
        self.sender.window = window

    def connected(self) -> int:
        """Take note that the socket is connected."""
        if self.state is not State.CONNECTING:
            return 0
        self.state = after(self.state, Event.CONNECTED)
        return SYNCHRONISE

    def greeted(self) -> int:
        """Take note that a client of a forward was accepted, who sees the guest's answer to the SYN."""
        return SYNCHRONISE

    @property
    def ends(self) -> tuple[bytes, bytes, int, int]:
        """The guest's address, the remote end's as the guest sees it, and the port of each."""
        return flow_key.split(self.key)

    @property
    def family(self) -> int:
        """4 or 6."""
        return flow_key.family(self.key)

    @property
    def remote(self) -> tuple[bytes, int, int]:
        """The remote end as the host sees it: address, port, interface index of a link-local address."""
        return self._remote or flow_key.shown(self.key)

    def synchronise(self, now: float) -> bytes:
        """Return the frame of the SYN, or SYN and acknowledgement, which is sent at `now`.

        One that is sent again has the same sequence number.
        """
        self.sender.progress = now
        flags, acknowledged, scale = TCP_SYN, 0, SCALE
        if self.state is State.SYN_RECEIVED:
            flags, acknowledged, scale = TCP_SYN | TCP_ACK, self.receiver.acknowledged, self.receiver.window.scale
        offer = Offer(self._limit, scale or None)
        assert self.header is not None
        start = (self.sender.unacknowledged - 1) & SEQUENCE_MASK
        return self.header.synchronise(flags, start, acknowledged, self.receiver.window.promise, offer)

    def _agree(self, sequence: int, offer: Offer) -> None:
        """Take the guest's initial sequence number and options."""
        self.receiver.start((sequence + 1) & SEQUENCE_MASK, 0 if offer.scale is None else SCALE)
        self.sender.mss = min(self._limit, offer.mss)
        self.sender.scale = offer.scale or 0

    # --- Segments of the guest --------------------------------------------------------------------------------------

    def segment(self, segment: Segment, offer: Offer, now: float) -> int:
        """Take any segment of the guest.

        :param offer: its options.
        """
        if self.state in OPENING:
            self.heard = now
            return self._opening(segment, offer, now)
        return self.take(segment.sequence, segment.acknowledgement, segment.flags, segment.window, segment.payload, now)

    def _opening(self, segment: Segment, offer: Offer, now: float) -> int:
        """Take a segment before the handshake is over."""
        flags, state = segment.flags, self.state
        expected = self.sender.unacknowledged
        if state is State.SYN_SENT:
            if flags & TCP_ACK and segment.acknowledgement != expected:
                return self._refuse(segment.acknowledgement, flags)
            if flags & TCP_RST:
                # It counts only as the answer to the SYN (RFC 9293, section 3.10.7.3).
                return self.abort(RESET) if flags & TCP_ACK else 0
            if flags & (TCP_SYN | TCP_ACK) != TCP_SYN | TCP_ACK:
                return 0
            self._agree(segment.sequence, offer)
            self._establish(segment.sequence, expected, segment.window)
            return CONFIRM | SEND
        if flags & TCP_RST:
            return self.abort(RESET) if segment.sequence == self.receiver.next else 0
        if flags & TCP_SYN:
            # The SYN+ACK was lost, or the socket is still being connected. A guest that has begun anew under the same
            # port resets the connection as soon as it sees the SYN+ACK.
            return SYNCHRONISE if state is State.SYN_RECEIVED else 0
        if not flags & TCP_ACK or state is State.CONNECTING:
            self._drop(Drop.TCP_UNACCEPTABLE)
            return 0
        if segment.acknowledgement != expected:
            return self._refuse(segment.acknowledgement, flags)
        self._establish(segment.sequence, expected, segment.window << self.sender.scale)
        return SEND | self.take(segment.sequence, segment.acknowledgement, flags, segment.window, segment.payload, now)

    def _establish(self, sequence: int, expected: int, window: int) -> None:
        self.state = after(self.state, Event.ACKNOWLEDGED)
        self.established = True
        self.sender.offered(sequence, expected, window)

    def _refuse(self, acknowledgement: int, flags: int) -> int:
        """Answer an acknowledgement of nothing that was sent (RFC 9293, section 3.10.7.3)."""
        if flags & TCP_RST:
            return 0
        self._drop(Drop.TCP_UNACCEPTABLE)
        self.refused = acknowledgement
        return REFUSE

    def take(
        self, sequence: int, acknowledgement: int, flags: int, window: int, payload: memoryview, now: float
    ) -> int:
        """Take a segment of the guest behind the handshake.

        :param sequence: its sequence number.
        :param acknowledgement: its acknowledgement number.
        :param window: its window field.
        :param payload: its data; valid during the call, and in `fresh` until the caller has offered that.
        """
        self.heard = now
        receiver, sender = self.receiver, self.sender
        size = len(payload)
        if sequence != receiver.next or flags & (TCP_SYN | TCP_RST):
            if flags & TCP_RST and receiver.ends_at(sequence):
                return self.abort(RESET)
            if not receiver.acceptable(sequence, size + (flags & TCP_FIN)):
                return self._unacceptable(sequence, flags, size, now)
            if flags & (TCP_RST | TCP_SYN):
                return ACKNOWLEDGE if receiver.answers(size, now) else 0
        if not flags & TCP_ACK:
            self._drop(Drop.TCP_UNACCEPTABLE)
            return 0
        if acknowledgement not in (sender.unacknowledged, sender.highest) and sender.is_foreign(acknowledgement):
            self._drop(Drop.TCP_UNACCEPTABLE)
            return ACKNOWLEDGE if receiver.answers(size, now) else 0
        bare = not size and not flags & TCP_FIN
        work = REWIND | SEND if sender.acknowledge(sequence, acknowledgement, window, bare, now) else 0
        if sender.discard:
            work |= DISCARD
        if sender.fin != NO_FIN and sender.fin_acknowledged:
            work |= self._moved(Event.FIN_ACKNOWLEDGED)
        if sender.blocked or (sender.ended and sender.fin == NO_FIN):
            work |= SEND
        if not bare:
            if self.state not in RECEIVING:
                if size:
                    self._drop(Drop.TCP_CLOSED)
                return work | ACKNOWLEDGE
            self._idle_probes = 0
            # A guest with a small window sends half of it in a segment, and waits for the acknowledgement.
            short = min(sender.mss, receiver.window.promise >> 2)
            late = 0 < size < short and sequence == receiver.next and not receiver.owes
            self.fresh = receiver.admit(sequence, payload, flags & TCP_FIN != 0)
            if self.fresh:
                # The answer may be there as soon as the socket has taken it, and then carries the acknowledgement.
                work |= (LATER if late else ACKNOWLEDGE) | (LOOK if sender.fin == NO_FIN else 0)
            else:
                work |= ACKNOWLEDGE
                if receiver.waits:
                    work |= WRITE
        return work

    def _unacceptable(self, sequence: int, flags: int, size: int, now: float) -> int:
        """Answer a segment outside of the window (RFC 9293, section 3.10.7.4)."""
        old = (self.receiver.next - sequence) & SEQUENCE_MASK
        if old >= SEQUENCE_HALF:
            self._drop(Drop.TCP_UNACCEPTABLE)
        if flags & TCP_RST or not self.receiver.answers(size, now):
            return 0
        alive = old == 1 and size <= _KEEP_ALIVE_BYTES and not flags & (TCP_SYN | TCP_FIN)
        return ACKNOWLEDGE | (KEEP_ALIVE if alive else 0)

    # --- The socket -------------------------------------------------------------------------------------------------

    def wrote(self, taken: int, more: Sequence[memoryview] = ()) -> int:
        """Take note that the socket took `taken` bytes of `fresh`, and of `more` with which `receiver` was extended."""
        self.receiver.wrote(self.fresh, taken, more)
        self.fresh = _NOTHING
        return WRITE if self.receiver.finishing else 0

    def shut(self) -> int:
        """Take note that the socket is shut for writing, behind all data of the guest."""
        self.receiver.finish()
        return ACKNOWLEDGE | self._moved(Event.GUEST_FIN)

    def finished(self, now: float) -> bool:
        """Take note that the socket has ended; return whether a FIN is to be sent now.

        :param now: monotonic seconds.
        """
        sender = self.sender
        sender.ended = True
        if sender.next != sender.unacknowledged or sender.fin_acknowledged:
            return False
        sender.sent_fin(now)
        self.state = after(self.state, Event.FIN)
        return True

    def numbers(self) -> tuple[int, int, int]:
        """Return sequence number, acknowledgement number and window field of a segment that follows all others."""
        receiver = self.receiver
        acknowledged = receiver.acknowledged
        return self.sender.next, acknowledged, receiver.window.advertise(acknowledged, receiver.next != acknowledged)

    def reset(self) -> tuple[int, int]:
        """Return sequence and acknowledgement number of a RST."""
        return self.refused, self.receiver.acknowledged

    def abort(self, without: int = 0) -> int:
        """End the connection; return the work but `without`: RESET if the guest, ABORT if the socket has reset it."""
        # A SYN that is refused got no number of ours (RFC 9293, section 3.10.7.1).
        self.refused = 0 if self.state is State.CONNECTING else self.sender.highest
        self.state = after(self.state, Event.ABORT)
        self.fresh = _NOTHING
        return (RESET | ABORT | CLOSE) & ~without

    def _moved(self, event: Event) -> int:
        self.state = after(self.state, event)
        return CLOSE if self.state is State.CLOSED else 0

    # --- Time -------------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """Return when `expired` has to be called, in monotonic seconds."""
        sender, state = self.sender, self.state
        if state is State.CONNECTING:
            # The host's kernel gives up by itself.
            return self.heard + SILENCE_SECONDS
        if state in OPENING:
            return sender.progress + SYN_SECONDS[sender.retries]
        if sender.next != sender.unacknowledged or sender.stalled:
            return sender.progress + retransmit_seconds(sender.retries)
        return max(self.heard, sender.progress) + probe_seconds(self._idle_probes)

    def expired(self, now: float) -> int:
        """Take note that `due` has passed at `now`."""
        sender, state = self.sender, self.state
        if state is State.CONNECTING:
            return self.abort()
        if state in OPENING:
            sender.retries += 1
            sender.progress = now
            return SYNCHRONISE if sender.retries < len(SYN_SECONDS) else self.abort()
        if sender.next != sender.unacknowledged or sender.stalled:
            if sender.retries == RETRIES:
                if sender.window or self.heard < sender.progress:
                    return self.abort()
                # A guest that answers may keep its window closed for as long as it likes.
                sender.retries -= 1
            sender.again(now)
            return REWIND | SEND
        if now - self.heard >= SILENCE_SECONDS:
            return self.abort()
        sender.progress = now
        self._idle_probes += 1
        return PROBE

    def narrow(self, mss: int) -> int:
        """Take note that segments of more than `mss` bytes do not reach the guest."""
        return REWIND | SEND if self.sender.narrow(max(mss, MSS_MINIMUM)) and self.state not in OPENING else 0

    def release(self) -> None:
        """Forget what the connection holds, its socket too, which is closed."""
        self.socket = None
        self.receiver.release()
        self.fresh = _NOTHING
