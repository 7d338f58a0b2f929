"""The connections of one guest, by key, and which of them gives way.

Theory of operation: the table is in order of entry, and `gpasst.flow.second_chance` finds the connection that gives
way, so nothing moves while segments are carried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from gpasst.flow.second_chance import LOOKS, longest_idle
from gpasst.tcp.connection import Connection

CONNECTIONS = 131072  # at most, for both families together


class ConnectionTable:
    """All connections of one guest.

    :param limit: how many there may be.
    :ivar by_key: connections by the guest's address, the remote's as the guest sees it, and both ports, raw.
    """

    def __init__(self, limit: int = CONNECTIONS) -> None:
        self.by_key: OrderedDict[bytes, Connection] = OrderedDict()
        self._limit = limit

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

    def remove(self, connection: Connection) -> None:
        """Take a connection out."""
        del self.by_key[connection.key]

    def ports(self, limit: int) -> list[int]:
        """Return the guest's ports of established connections, at most `limit`, those of the oldest first."""
        found = (connection.ends[2] for connection in islice(self, LOOKS * limit) if connection.established)
        return list(islice(dict.fromkeys(found), limit))

    def longest_idle(self) -> Connection | None:
        """Return the connection that was idle longest, None if there is none."""
        return longest_idle(self.by_key)
