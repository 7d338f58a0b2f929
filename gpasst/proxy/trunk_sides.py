"""The two sides of a trunk: one listens for other switches, the other connects, again and again.

Theory of operation: a listener takes any number of switches, each as a port of its own; so one switch may be the middle
of a star. Connections that have not finished their greeting are limited. A connector that loses its connection, or gets
none, tries again after a time that doubles up to `RETRY_LONGEST`, and is shortened by chance, so that two ends that are
in each other's way do not stay so.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
from _socket import socket as RawSocket  # a class
from typing import Any, Final, Protocol

from gevent.event import Event

from gpasst.link.listener import OWNER, PathListener, PortListener, peer_user
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_TCP,
    SO_ERROR,
    SO_KEEPALIVE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
)
from gpasst.proxy.timers import Deadline
from gpasst.proxy.trunk_end import TrunkEnd, Trunks
from gpasst.proxy.workers import WRITE
from gpasst.records import dataclass
from gpasst.switch.handshake import Refusal

RETRY_FIRST: Final = 0.1  # seconds
RETRY_LONGEST: Final = 5.0  # seconds
RETRY_SHARE: Final = 0.5  # of that time, which chance leaves at least
CONNECT_SECONDS: Final = 5.0  # for a connection to be made
PAUSE_SECONDS: Final = 1.0  # for which a listener that lacks descriptors accepts nothing
GREETING_LIMIT: Final = 64  # connections of a listener that have not finished their greeting
CLOSED: Final = "it is closed"
STRANGER: Final = "another user listens there, and there is no secret"
ROOT: Final = 0  # user ID
BACKLOG: Final = 64  # connections that wait to be accepted
_DOUBLINGS = 10  # of the time between attempts, after which it is the longest anyway
_IDLE_SECONDS, _PROBE_SECONDS = 5, 2  # after which TCP looks whether the other end is there, and again
_SILENCE_MS = 10_000  # after which TCP gives up

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trunk listens, or connects to.

    :ivar addresses: pairs of a family (AF_UNIX, AF_INET or AF_INET6) and an address in it: a path, or numeric host and
        port, as of `socket.socket.connect`. The side that listens takes the first; the other one tries all in turn,
        since a name may stand for several.
    :ivar text: it, as users write it.
    """

    addresses: tuple[tuple[int, Any], ...]
    text: str

    @property
    def local(self) -> bool:
        """Whether it is a path."""
        return self.addresses[0][0] == AF_UNIX


class Side(Protocol):
    """A side of a trunk.

    :ivar name: of its port, or before the number of each of its ports.
    :ivar failure: why there was no connection, or none any more; empty as long as nothing has failed.
    :ivar refusal: likewise, if one side has refused the other.
    :ivar closed: whether it has been closed.
    :ivar joined: set while there is a connection that carries frames.
    :ivar changed: set when any of these has been set.
    """

    name: str
    failure: str
    refusal: Refusal | None
    closed: bool
    joined: Event
    changed: Event

    @property
    def peers(self) -> int:
        """The connections that carry frames."""

    @property
    def text(self) -> str:
        """Where this side listens, or connects to, as users write it."""

    def close(self) -> None:
        """End all connections, and make no more; more calls do nothing."""


class TrunkListener:
    """The side that listens; see `Side`.

    :param trunks: the trunks of this switch.
    :param name: its ports have this name and a number each.
    :param place: where.
    :param secret: what both sides share; may be empty.
    :raises ConfigurationError: if there cannot be a socket.
    :raises PlatformError: if there cannot be one now.
    """

    def __init__(self, trunks: Trunks, name: str, place: Place, secret: bytes) -> None:
        self.name = name
        self.failure = ""
        self.refusal: Refusal | None = None
        self.joined, self.changed = Event(), Event()
        self._trunks = trunks
        self._secret = secret
        self._ends: set[TrunkEnd] = set()
        self._listener: PathListener | PortListener
        self._pause: Deadline | None = None
        self.closed = False
        self._number = 0
        family, address = place.addresses[0]
        if place.local:
            self._listener = PathListener(address, "listen", OWNER, BACKLOG)
        else:
            self._listener = PortListener(family, address, "listen", BACKLOG)
        self._place = place
        self._watch(0.0)

    @property
    def peers(self) -> int:
        """The connections that carry frames."""
        return sum(end.up for end in self._ends)

    @property
    def text(self) -> str:
        """Where it listens."""
        if self._place.local or self.closed:
            return self._place.text
        host, port = self._listener.socket.getsockname()[:2]
        return written(host, port)

    def close(self) -> None:
        """End all connections, and listen no more; more calls do nothing."""
        if self.closed:
            return
        self._place = Place(self._place.addresses, self.text)
        self.closed = True
        self.failure = CLOSED
        if self._pause is not None:
            self._pause.cancel()
        self._trunks.lan.watchers.unwatch(self)
        self._listener.close()
        for end in list(self._ends):
            end.close()
        self.changed.set()

    def _watch(self, now: float) -> None:
        """Begin to accept, after a pause too."""
        self._pause = None
        self._trunks.lan.watchers.watch_guarded(self, self._listener.socket.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept a connection."""
        lan = self._trunks.lan
        try:
            sock = self._listener.accept()
        except OSError as error:
            log.warning("%s: a trunk has to wait: %s", lan.name, error.strerror)
            lan.watchers.unwatch(self)
            self._pause = lan.timers.at(lan.clock.precise() + PAUSE_SECONDS, self._watch)
            return
        if sock is None:
            return
        if len(self._ends) - self.peers >= GREETING_LIMIT:
            sock.close()
            return
        prepare(sock)
        self._number += 1
        self._ends.add(
            TrunkEnd(self._trunks, f"{self.name}-{self._number}", sock, False, self._secret, self._end_changed)
        )

    def _end_changed(self, end: TrunkEnd) -> None:
        """Take note that a connection carries frames, or has ended."""
        if end.closed:
            self._ends.discard(end)
            if end.refusal is not None:
                log.warning("%s: a trunk was refused: %s", self._trunks.lan.name, end.refusal)
        if self.peers:
            self.joined.set()
            self.changed.set()
        else:
            self.joined.clear()


class TrunkConnector:
    """The side that connects; see `Side`.

    :param trunks: the trunks of this switch.
    :param name: of its port.
    :param place: where to.
    :param secret: what both sides share; may be empty.
    """

    def __init__(self, trunks: Trunks, name: str, place: Place, secret: bytes) -> None:
        self.name = name
        self.text = place.text
        self.failure = ""
        self.refusal: Refusal | None = None
        self.joined, self.changed = Event(), Event()
        self._trunks = trunks
        self._addresses = itertools.cycle(place.addresses)
        self._secret = secret
        self._local = place.local
        self._socket: RawSocket | None = None  # that is not connected yet
        self._end: TrunkEnd | None = None
        self._deadline: Deadline | None = None
        self._failures = 0  # since there was a connection
        self.closed = False
        self._connect(0.0)

    @property
    def peers(self) -> int:
        """The connections that carry frames."""
        return int(self._end is not None and self._end.up)

    def close(self) -> None:
        """End the connection, and make no more; more calls do nothing."""
        self.closed = True
        self.failure = CLOSED
        self._stop()
        if self._end is not None:
            self._end.close()
        self.changed.set()

    def _connect(self, now: float) -> None:
        """Begin to connect."""
        lan = self._trunks.lan
        try:
            family, address = next(self._addresses)
            self._socket = sock = RawSocket(family, SOCK_STREAM, 0)
            sock.setblocking(False)
            failure = sock.connect_ex(address)
        except OSError as error:
            self._retry(str(error.strerror))
            return
        if failure == errno.EINPROGRESS:
            lan.watchers.watch_guarded(self, sock.fileno(), self._connected, events=WRITE)
            self._deadline = lan.timers.at(lan.clock.precise() + CONNECT_SECONDS, self._expired)
        elif failure:
            self._retry(os.strerror(failure))
        else:
            self._connected()

    def _expired(self, now: float) -> None:
        self._retry("no answer")

    def _connected(self) -> None:
        """Greet the other side, or try again."""
        assert self._socket is not None
        failure = self._socket.getsockopt(SOL_SOCKET, SO_ERROR)
        if failure:
            self._retry(os.strerror(failure))
            return
        if self._local and not self._secret and peer_user(self._socket) not in (os.geteuid(), ROOT):
            # Whoever was first to make the file could take this side of the network.
            self._retry(STRANGER)
            return
        sock, self._socket = self._socket, None
        self._stop()
        prepare(sock)
        self._end = TrunkEnd(self._trunks, self.name, sock, True, self._secret, self._end_changed)

    def _end_changed(self, end: TrunkEnd) -> None:
        """Take note that the connection carries frames, or has ended."""
        if end.up:
            self._failures, self.failure, self.refusal = 0, "", None
            self.joined.set()
            self.changed.set()
            return
        self._end = None
        self.joined.clear()
        self.refusal = end.refusal.reason if end.refusal is not None else None
        self._retry(str(end.refusal or "the other end has closed the connection"))
        if self.refusal:
            self.changed.set()

    def _retry(self, failure: str) -> None:
        """Try again later.

        :param failure: why there is no connection.
        """
        self._stop()
        if self.closed:
            return
        lan = self._trunks.lan
        if failure != self.failure:
            log.info("%s: no trunk to %s: %s", lan.name, self.text, failure)
            self.failure = failure
        pause = min(RETRY_FIRST * 2**self._failures, RETRY_LONGEST)
        self._failures = min(self._failures + 1, _DOUBLINGS)
        pause *= RETRY_SHARE + (1 - RETRY_SHARE) * random.random()  # spreads attempts, no secret
        self._deadline = lan.timers.at(lan.clock.precise() + pause, self._connect)

    def _stop(self) -> None:
        """Give up what has been begun."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._trunks.lan.watchers.unwatch(self)
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def prepare(sock: RawSocket) -> None:
    """Make a connection not blocking, send at once, and find out when the other end is gone."""
    sock.setblocking(False)
    if sock.family not in (AF_INET, AF_INET6):
        return
    sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
    for option, value in (
        (TCP_NODELAY, 1),
        (TCP_KEEPIDLE, _IDLE_SECONDS),
        (TCP_KEEPINTVL, _PROBE_SECONDS),
        (TCP_USER_TIMEOUT, _SILENCE_MS),
    ):
        sock.setsockopt(IPPROTO_TCP, option, value)


def written(host: str, port: int) -> str:
    """Return host and port as users write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
