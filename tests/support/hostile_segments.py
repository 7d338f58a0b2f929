"""What a guest that keeps no rule does to a connection, step by step, and what must hold after each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpasst.tcp.receiver import PIECES
from gpasst.tcp.segment import Offer, Segment
from gpasst.tcp.states import State
from gpasst.tcp.window import WINDOW_MAXIMUM
from tests.support.connections import ACK, IRS, OFFER, SYN, Watched

MASK = 0xFFFFFFFF
WHOLE = -1  # the whole window
EXPIRIES = 20  # of a connection whose guest is silent, before it ends


@dataclass(frozen=True)
class Step:
    """What happens next.

    :ivar sequence: how far the segment is from the next number.
    :ivar acknowledgement: how far its acknowledgement is from what is in flight.
    :ivar size: bytes of its data, or `WHOLE`.
    :ivar room: bytes that the socket takes.
    :ivar sends: bytes that the socket has for the guest.
    :ivar seconds: time that passes.
    """

    sequence: int
    acknowledgement: int
    flags: int
    window: int
    size: int
    room: int
    sends: int
    seconds: float


def held(connection: Watched) -> int:
    """Return the bytes that a connection keeps for its socket."""
    return sum(map(len, connection.receiver.waiting(1 << 20)))


def carry(connection: Watched, step: Step, now: float) -> bool:
    """Do what the caller of a connection does; return whether the guest's FIN was passed on to the socket."""
    receiver, sender = connection.receiver, connection.sender
    size = (receiver.window.edge - receiver.next) & MASK if step.size == WHOLE else step.size
    segment = Segment(
        (receiver.next + step.sequence) & MASK,
        (sender.next + step.acknowledgement) & MASK,
        step.flags,
        step.window,
        memoryview(bytes(min(size, 1 << 20))),
    )
    connection.segment(segment, Offer(88, 14), now)
    if connection.fresh:
        connection.wrote(min(step.room, len(connection.fresh)))
    elif kept := held(connection):
        receiver.took(min(step.room, kept))
    finished = receiver.finishing and receiver.next == receiver.acknowledged
    if finished:
        connection.shut()
    assert 0 <= sender.discard <= 1 << 20
    sender.discard = 0
    if connection.established:
        count = min(step.sends, sender.room())
        if count and not sender.ended:
            sender.sent(count, now)
        elif step.sends == 1:
            connection.finished(now)
    if not connection.closed and connection.due() <= now:
        connection.expired(now)
    return finished


def play(state: State, shaken: bool, steps: Iterable[Step]) -> None:
    """Let a connection live through steps, and then alone until it ends.

    :param state: which it begins in.
    :param shaken: whether its handshake is made first.
    """
    connection, now = Watched(state), 0.0
    if state is State.CONNECTING:
        connection.opened(IRS, OFFER, 1000)
        connection.connected()
    if shaken:
        flags = ACK if state is State.CONNECTING else SYN | ACK
        carry(connection, Step(0, 0, flags, 1000, 0, 0, 0, 0.0), now)
        assert connection.established
    edge = connection.receiver.window.edge
    for step in steps:
        now += step.seconds
        finished = carry(connection, step, now)
        if connection.closed:
            break
        if not connection.established:
            continue
        receiver, window = connection.receiver, connection.receiver.window
        _, acknowledged, field = connection.numbers()
        assert (acknowledged + (field << window.scale)) & MASK == window.edge
        if shaken:
            # A FIN needs no room (RFC 9293, section 3.10.7.4), so it may stand behind a window that is full.
            assert (window.edge - edge) & MASK <= WINDOW_MAXIMUM + finished
        edge = window.edge
        assert (edge - receiver.next) & MASK <= WINDOW_MAXIMUM
        assert held(connection) == (receiver.next - acknowledged) & MASK <= WINDOW_MAXIMUM
        assert len(receiver.waiting(1 << 20)) <= PIECES + 1
        assert connection.sender.in_flight <= WINDOW_MAXIMUM + 1
        assert connection.budget.promised == field << window.scale
    ends = 0
    while not connection.closed:
        # Nobody answers any more.
        now = max(now, connection.due())
        connection.expired(now)
        ends += 1
        assert ends < EXPIRIES
    connection.release()
    assert connection.budget.promised == 0
    assert held(connection) == 0
