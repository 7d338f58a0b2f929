"""Connections of TCP as the guest's segments find them: plain numbers, no sockets and no frames."""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Drop
from gpasst.tcp.connection import Connection
from gpasst.tcp.header import Header
from gpasst.tcp.segment import Offer, Segment
from gpasst.tcp.states import State
from gpasst.tcp.window import BUDGET, Budget
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
IRS, ISS = 0x10000000, 0x20000000  # initial sequence numbers: the guest's, and ours
FIRST, OUR_FIRST = IRS + 1, ISS + 1  # bytes
EDGE = FIRST + 65535  # of the window that the SYN promises
LIMIT = {4: 1460, 6: 1440}
KEY = {
    4: ip(GUEST4) + ip(SERVER4) + (40000).to_bytes(2, "big") + (80).to_bytes(2, "big"),
    6: ip(GUEST6) + ip(SERVER6) + (40000).to_bytes(2, "big") + (80).to_bytes(2, "big"),
}
OFFER = Offer(1460, 7)
NO_OFFER = Offer()
Event = Callable[[Connection], int]
"""What happens to a connection; it returns the work that follows."""


class Watched(Connection):
    """A connection of its own budget.

    :ivar budget: the budget.
    :ivar drops: reasons of the segments that were dropped.
    """

    def __init__(self, state: State = State.CONNECTING, family: int = 4, limit: int = BUDGET) -> None:
        self.budget = Budget(limit)
        self.drops: list[Drop] = []
        header = Header(GUEST_MAC, HOST_MAC, KEY[family])
        remote = (ip(SERVER4 if family == 4 else SERVER6), 80, 0)
        super().__init__(KEY[family], state, header, ISS, self.budget, LIMIT[family], remote, 0.0, self.drops.append)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.state is State.CLOSED


def segment(
    flags: int = ACK,
    sequence: int = FIRST,
    acknowledgement: int = OUR_FIRST,
    data: bytes = b"",
    window: int = 1000,
    offer: Offer = NO_OFFER,
    now: float = 0.5,
) -> Event:
    """Return the event of a segment of the guest; after the handshake a unit of its window is 128 bytes."""
    whole = Segment(sequence, acknowledgement, flags, window, memoryview(data))
    return lambda connection: connection.segment(whole, offer, now)


def timer(now: float) -> Event:
    """Return the event of a deadline that has passed."""
    return lambda connection: connection.expired(now)


def sent(connection: Watched, count: int, now: float = 0.0) -> Watched:
    """Let data of the socket be sent to the guest."""
    connection.sender.sent(count, now)
    return connection


def wrote(count: int) -> Event:
    """Return the event of a socket that takes some of what is fresh."""
    return lambda connection: connection.wrote(count)


def took(count: int) -> Event:
    """Return the event of a socket that takes some of what is kept, and is shut once it has all before a FIN."""

    def event(connection: Connection) -> int:
        receiver = connection.receiver
        receiver.took(count)
        return connection.shut() if receiver.finishing and receiver.next == receiver.acknowledged else 0

    return event
