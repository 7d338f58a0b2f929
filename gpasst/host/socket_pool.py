"""Sockets of the namespace: those of splice pairs and forwards kept ready by kind, and others made one at a time.

Theory of operation: a socket of the namespace comes from the helper process, for a message there and back. One message
brings up to 64 of them (6 to 9 us a socket, where one alone takes 17 to 26 us), so sockets come in batches: as many
as `expect` has announced or `keep` demands, else one. `refill`, called once a second, restores what `keep` demands, so
that a new splice pair waits for no message.

A process that does not answer stops everything once, for `PAUSE_SECONDS`. What it owes is taken when it is there
(`gpasst.helper.kept`), and until then only sockets that are ready are handed out.
"""

from __future__ import annotations

import errno
import logging
import os
from _socket import socket as RawSocket  # a class
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from gpasst.errors import GpasstError
from gpasst.flow.sender import SocketAddress
from gpasst.helper.kept import SOCKETS_PER_MESSAGE, LateError
from gpasst.host.sockets import family_constant
from gpasst.linux import SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM

READY = 64  # sockets of a kind kept for splice pairs; one message of the helper brings that many
READY_SHARE = 16  # of a low limit of open files, the part that they may take
PAUSE_SECONDS = 0.05  # for one answer; on a busy machine it takes some milliseconds

# Makes sockets in the namespace: (family constant, type, protocol, count) to descriptors.
MakeSockets = Callable[[int, int, int, int], list[int]]
# Binds a socket of the namespace, by its descriptor, where this process may not.
BindSocket = Callable[[int, SocketAddress], object]

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What a socket is made as.

    :ivar family: 4 or 6.
    :ivar type: the kernel's number of the type (SOCK_*), with its flags.
    """

    family: int
    type: int


def datagrams(family: int) -> Kind:
    """Return the kind of UDP sockets of `family`, 4 or 6."""
    return Kind(family, SOCK_DGRAM)


def streams(family: int) -> Kind:
    """Return the kind of TCP sockets of `family`, 4 or 6, which never wait."""
    return Kind(family, SOCK_STREAM | SOCK_NONBLOCK)


def kept_ready(line: int) -> int:
    """Return how many sockets of a kind are kept for splice pairs.

    :param line: how many files may be open before idle sockets give way.
    """
    return min(READY, line // READY_SHARE + 1)


class SocketPool:
    """The sockets of one namespace that have not been handed out yet.

    :param make: makes sockets in the namespace, without switching to another greenlet.
    :param bind: likewise binds one; None if nobody does.
    """

    def __init__(self, make: MakeSockets, bind: BindSocket | None = None) -> None:
        self._make = make
        self._bind = bind
        self._ready: defaultdict[Kind, list[RawSocket]] = defaultdict(list)
        self._expected: Counter[Kind] = Counter()
        self._kept: Counter[Kind] = Counter()
        self._late = self._warned = False

    def expect(self, kind: Kind, count: int) -> None:
        """Announce that `count` sockets of a kind will be taken one after the other."""
        self._expected[kind] = count

    def keep(self, kind: Kind, count: int) -> None:
        """Keep `count` sockets of a kind ready from now on.

        :raises GpasstError: if the namespace makes no more sockets.
        """
        self._kept[kind] = count
        self._fetch(kind, count)

    def refill(self) -> None:
        """Restore the sockets that are kept ready; what is in the way is logged once.

        That an answer is late is so only if it was late at the last call: a busy machine may delay one.
        """
        try:
            for kind, count in self._kept.items():
                self._fetch(kind, count)
        except GpasstError as error:
            before, self._late = self._late, isinstance(error, LateError)
            if not self._warned and (before or not self._late):
                self._warned = True
                log.warning("no more sockets of the namespace, new flows past the tap are dropped: %s", error)
        else:
            if self._warned:
                log.warning("there are sockets of the namespace again")
            self._late = self._warned = False

    def take(self, kind: Kind) -> RawSocket:
        """Return a socket of a kind without any option set; the caller owns it.

        :raises OSError: if this process may open no more descriptors.
        :raises GpasstError: if the namespace makes no more sockets.
        """
        ready = self._ready[kind]
        if not ready:
            self._fetch(kind, min(max(self._expected[kind], self._kept[kind], 1), SOCKETS_PER_MESSAGE))
        self._expected[kind] -= 1
        return ready.pop()

    def make(self, family: int, kind: int, protocol: int) -> RawSocket:
        """Make one socket of any kind; the caller owns it.

        :param family: the kernel's number of the family (AF_*).
        :param kind: the kernel's number of the type (SOCK_*).
        :raises GpasstError: if the namespace does not make it.
        """
        (descriptor,) = self._make(family, kind, protocol, 1)
        return RawSocket(fileno=descriptor)

    def bind(self, sock: RawSocket, address: SocketAddress) -> None:
        """Bind a socket of the namespace, also to a port that this process has no right to, in a sandbox.

        :raises OSError: if the kernel refuses.
        """
        try:
            sock.bind(address)
        except PermissionError:
            if self._bind is None:
                raise
            try:
                self._bind(sock.fileno(), address)
            except GpasstError as error:
                log.debug("%s", error)
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    def _fetch(self, kind: Kind, count: int) -> None:
        """Have at least `count` sockets ready."""
        ready = self._ready[kind]
        if len(ready) < count:
            family = family_constant(kind.family)
            made = self._make(family, kind.type, 0, count - len(ready))
            # With family and type given, the class does not ask the kernel for them.
            ready += [RawSocket(family, kind.type, 0, descriptor) for descriptor in made]

    def close(self) -> None:
        """Close the sockets that nobody took; more calls do nothing."""
        for ready in self._ready.values():
            for sock in ready:
                sock.close()
            ready.clear()
