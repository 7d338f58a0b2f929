"""Sessions: the flows that a router has let through, until they have been idle for too long.

Theory of operation: a session is one inside endpoint, one remote endpoint and their protocol. Its first packet asks the
firewall and the NAT; those behind it find the session. Each packet that refreshes it stores the time, and nothing else
happens until the session's deadline: then it ends, or has another deadline. So each session stands in the heap of
deadlines once, whatever it carries. A session whose time is over counts as ended before the heap says so.

A TCP connection is *established* when segments of both directions were seen, and *transitory* before that, behind a
reset, and when both directions have closed (RFC 5382, section 5). What follows a reset or both FINs belongs to the old
connection, a SYN to a new one.

NOTE: there are at most `LIMIT` sessions. At the limit new ones are refused, as by a connection tracker that is full.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import MutableMapping
from typing import Any, Final

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.router.behaviour import Behaviour
from gpasst.wire import PROTOCOL_TCP, PROTOCOL_UDP, TCP_FIN, TCP_RST, TCP_SYN

LIMIT: Final = 65536
ENDED_AT_ONCE: Final = 256  # sessions that one call of `expire` looks at; half a millisecond

OUT: Final = 1  # segments to the outside were seen; twice that: to the inside
FIN: Final = 4  # likewise, for a FIN
RESET: Final = 16
_BOTH: Final = OUT | OUT << 1
_CLOSED: Final = FIN | FIN << 1
_TICK: Final = 1e-6  # seconds; a session ends when it was idle for longer than its time

Key = tuple[int, bytes, int, bytes, int]
"""Protocol, inside address, inside port, remote address, remote port. The identifier of an echo is the inside port."""


class Session:
    """One flow that a router lets through.

    :param key: its ends.
    :param mapping: its NAT mapping, None for a flow that is not translated.
    :param now: seconds.
    :param timeout: seconds.
    :ivar last: when a packet refreshed it last, in seconds.
    :ivar timeout: seconds without one after which it ends.
    :ivar due: when its deadline is looked at, in seconds.
    :ivar seen: `OUT`, `FIN` and `RESET`, of a TCP connection.
    :ivar ways: keys of the forwarder's table that lead to it.
    """

    __slots__ = ("due", "key", "last", "mapping", "seen", "timeout", "ways")

    def __init__(self, key: Key, mapping: Mapping | None, now: float, timeout: float) -> None:
        self.key = key
        self.mapping = mapping
        self.last = now
        self.timeout = timeout
        self.due = 0.0
        self.seen = 0
        self.ways: set[Any] = set()


class Mapping:
    """An inside endpoint and the outside port that stands for it (`gpasst.router.nat`).

    :param place: its key: as that of a session, with nothing in the place of what it does not depend on.
    :param port: the outside port, or identifier.
    :param now: seconds.
    :ivar last: when a packet refreshed it last, in seconds.
    :ivar remotes: remote addresses, each with the number of its sessions.
    :ivar sessions: its sessions, by key.
    """

    __slots__ = ("last", "place", "port", "remotes", "sessions")

    def __init__(self, place: Key, port: int, now: float) -> None:
        self.place = place
        self.port = port
        self.last = now
        self.remotes: Counter[bytes] = Counter()
        self.sessions: dict[Key, Session] = {}

    @property
    def protocol(self) -> int:
        """The IP protocol number."""
        return self.place[0]

    @property
    def inside(self) -> tuple[bytes, int]:
        """The inside address and port."""
        return self.place[1], self.place[2]


class Sessions:
    """The sessions of one family.

    :param behaviour: timeouts, and what refreshes.
    :param ways: the forwarder's table, from which the ways of sessions go that end.
    :ivar sessions: all of them, by key.
    """

    def __init__(self, behaviour: Behaviour, ways: MutableMapping[Any, Any]) -> None:
        self.behaviour = behaviour
        self.sessions: dict[Key, Session] = {}
        self._ways = ways
        self._deadlines: list[tuple[float, int, Session]] = []
        self._number = 0
        self._timeouts = {PROTOCOL_TCP: behaviour.tcp_transitory, PROTOCOL_UDP: behaviour.timeout}

    def find(self, key: Key, now: float) -> Session | None:
        """Return the session of a key, None if there is none or its time is over."""
        session = self.sessions.get(key)
        if session is not None and now - session.last > session.timeout:
            self.end(session)
            return None
        return session

    def open(self, key: Key, mapping: Mapping | None, now: float) -> Session:
        """Enter a session.

        :param now: when it was refreshed last, in seconds.
        :raises PacketError: `Drop.SESSIONS_FULL`.
        """
        if len(self.sessions) >= LIMIT:
            raise PacketError(Drop.SESSIONS_FULL)
        session = Session(key, mapping, now, self._timeouts.get(key[0], self.behaviour.icmp_timeout))
        self.sessions[key] = session
        self._schedule(session)
        return session

    def refresh(self, session: Session, outward: bool, now: float, flags: int = 0) -> None:
        """Take note of a packet.

        :param outward: whether it goes to the outside.
        :param now: seconds.
        :param flags: TCP flags.
        """
        if outward or self.behaviour.inbound_refresh:
            session.last = now
            if session.mapping is not None:
                session.mapping.last = now
        if session.key[0] == PROTOCOL_TCP:
            self._follow(session, flags, 0 if outward else 1)

    def _follow(self, session: Session, flags: int, shift: int) -> None:
        """Follow the state of a TCP connection."""
        if flags & TCP_SYN and _ended(session.seen):
            session.seen = 0
        session.seen |= OUT << shift | (FIN << shift if flags & TCP_FIN else 0) | (RESET if flags & TCP_RST else 0)
        established = session.seen & _BOTH == _BOTH and not _ended(session.seen)
        session.timeout = self.behaviour.tcp_timeout if established else self.behaviour.tcp_transitory
        if session.last + session.timeout < session.due:
            self._schedule(session)

    def end(self, session: Session) -> None:
        """Forget a session."""
        del self.sessions[session.key]
        for way in session.ways:
            self._ways.pop(way, None)

    @property
    def due(self) -> float | None:
        """When `expire` has something to do, in seconds; None for never."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> None:
        """End the sessions whose time is over, `ENDED_AT_ONCE` at most."""
        deadlines = self._deadlines
        for _ in range(ENDED_AT_ONCE):
            if not deadlines or deadlines[0][0] > now:
                return
            due, _, session = heapq.heappop(deadlines)
            if session.due != due or self.sessions.get(session.key) is not session:
                continue
            if now - session.last > session.timeout:
                self.end(session)
            else:
                self._schedule(session)

    def _schedule(self, session: Session) -> None:
        """Enter the deadline of a session; that which it had is void."""
        self._number += 1
        session.due = session.last + session.timeout + _TICK
        heapq.heappush(self._deadlines, (session.due, self._number, session))


def _ended(seen: int) -> bool:
    """Return whether a TCP connection was reset, or closed in both directions."""
    return bool(seen & RESET) or seen & _CLOSED == _CLOSED
