"""The connections of one guest, by key, and which of them gives way.

Theory of operation: the table is in order of entry, and `gpasst.flow.second_chance` finds the connection that gives
way, so nothing moves while segments are carried.

Connections whose remote end has not answered are kept apart as well, in the order in which they were opened: for a host
that does not exist the kernel tries for two minutes (tcp_syn_retries), in which a guest could open any number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from gpasst.flow.second_chance import LOOKS, longest_idle
from gpasst.tcp.connection import Connection
from gpasst.tcp.states import State

CONNECTING = 1024  # connections that are being opened, beyond which the oldest may give way
CONNECTING_SECONDS = 10.0  # that each of them has at least
CONNECTIONS = 131072  # at most, for both families together


class ConnectionTable:
    """All connections of one guest.

    :param limit: how many there may be.
    :ivar by_key: connections by the guest's address, the remote's as the guest sees it, and both ports, raw.
    """

    def __init__(self, limit: int = CONNECTIONS) -> None:
        self.by_key: OrderedDict[bytes, Connection] = OrderedDict()
        self._limit = limit
        self._connecting: OrderedDict[bytes, Connection] = OrderedDict()

    def __len__(self) -> int:
        return len(self.by_key)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self.by_key.values())

    @property
    def full(self) -> bool:
        """Whether a connection has to go before another one may come."""
        return len(self.by_key) >= self._limit

    def add(self, connection: Connection) -> None:
        """Enter a new connection."""
        self.by_key[connection.key] = connection
        connection.entered = connection.heard
        if connection.state is State.CONNECTING:
            self._connecting[connection.key] = connection

    def remove(self, connection: Connection) -> None:
        """Take a connection out."""
        del self.by_key[connection.key]
        self._connecting.pop(connection.key, None)

    def connected(self, connection: Connection) -> int:
        """Take note that the remote end of a connection has answered; return the work that follows."""
        self._connecting.pop(connection.key, None)
        return connection.connected()

    def unanswered(self, now: float) -> Connection | None:
        """Return the connection whose remote end has not answered for longest; None while it need not give way.

        :param now: monotonic seconds.
        """
        if len(self._connecting) >= CONNECTING:
            connection = next(iter(self._connecting.values()))
            if now - connection.entered >= CONNECTING_SECONDS:
                return connection
        return None

    def ports(self, limit: int) -> list[int]:
        """Return the guest's ports of established connections, at most `limit`, those of the oldest first."""
        found = (connection.ends[2] for connection in islice(self, LOOKS * limit) if connection.established)
        return list(islice(dict.fromkeys(found), limit))

    def longest_idle(self) -> Connection | None:
        """Return the connection that was idle longest, None if there is none."""
        return longest_idle(self.by_key)
