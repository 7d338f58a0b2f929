"""The listeners of forwarded TCP ports: their clients become splice pairs, or connections to the guest.

Theory of operation: each listener has a watcher and a greenlet of its own. An event accepts at most `CLIENTS_AT_ONCE`
clients, and the level-triggered watcher calls again for the rest. A listener whose client cannot be accepted for lack
of descriptors or memory stays readable, so it is not watched for `PAUSE_SECONDS` then.

A client on a loopback address, connected to one, gets a splice pair where there are any; every other one crosses the
link. A client without a guest, or with an address that the guest cannot be shown, gets a RST.
"""

from __future__ import annotations

import errno
import logging
from _socket import socket as RawSocket  # a class
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.host.descriptors import Descriptors, exhausted
from gpasst.host.tcp import accept, close_with_reset, end_of
from gpasst.link.port import Link
from gpasst.packet.address import UNSPECIFIED, is_loopback, is_multicast
from gpasst.path.tcp_deadlines import Deadline
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_splice import TcpSplice
from gpasst.tcp.listener import TcpListener

CLIENTS_AT_ONCE = 16
PAUSE_SECONDS = 0.1
# Errors of a client that has gone while it waited (accept(2)).
_GONE = frozenset((errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.EPROTO))

log = logging.getLogger(__name__)


class TcpListeners:
    """Accepts the clients of listeners.

    :param link: the guest's end, None without one.
    :param opener: opens connections to the guest, None without a link.
    :param splice: sets up splice pairs, None where loopback traffic crosses the link.
    :param descriptors: closes idle sockets near the limit of open files.
    :param counters: where drops are counted.
    :param watch: begins to call a function with a listener when it is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param later: calls a function once after so many seconds; the function gets the present time.
    """

    def __init__(
        self,
        link: Link | None,
        opener: TcpOpener | None,
        splice: TcpSplice | None,
        descriptors: Descriptors,
        counters: Counters,
        watch: Callable[[TcpListener, Callable[[TcpListener], int]], None],
        unwatch: Callable[[TcpListener], None],
        later: Callable[[float, Callable[[float], None]], Deadline],
    ) -> None:
        self._link = link
        self._opener = opener
        self._splice = splice
        self._descriptors = descriptors
        self._counters = counters
        self._watch = watch
        self._unwatch = unwatch
        self._later = later
        self._paused: dict[TcpListener, Deadline] = {}
        self._warned = False

    def watch(self, listener: TcpListener) -> None:
        """Accept the clients of a listener from now on, those too that wait already."""
        self._watch(listener, self._step)

    def unwatch(self, listener: TcpListener) -> None:
        """Accept no more; connections that were accepted go on. More calls do nothing."""
        pause = self._paused.pop(listener, None)
        if pause is not None:
            pause.cancel()
        else:
            self._unwatch(listener)

    def close(self) -> None:
        """Accept nothing any more; more calls do nothing."""
        for pause in self._paused.values():
            pause.cancel()
        self._paused.clear()

    def _step(self, listener: TcpListener) -> int:
        """Accept clients; return how many."""
        for count in range(CLIENTS_AT_ONCE):
            try:
                sock, address, port, scope = accept(listener.socket)
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in _GONE or (exhausted(error) and self._descriptors.let_go()):
                    continue
                self._pause(listener, error)
                return count
            try:
                self._open(listener, sock, address, port, scope)
            except PacketError as error:
                self._counters.drop(error.reason)
        return CLIENTS_AT_ONCE

    def _open(self, listener: TcpListener, sock: RawSocket, address: bytes, port: int, scope: int) -> None:
        """Open a connection, or set up a splice pair, for a client.

        :raises PacketError: if neither must be; its socket is closed then.
        """
        sock = self._descriptors.settle(sock)
        if self._splice and (listener.inside or (self._splice.inward and is_loopback(address))):
            try:
                addressed = end_of(sock.getsockname())
            except OSError as error:
                close_with_reset(sock)
                raise PacketError(Drop.NO_SOCKET, f"no client: {error.strerror}") from error
            if listener.inside or is_loopback(addressed[0]):
                self._splice.open(listener, sock, (address, port), addressed)
                return
        reason = None
        if self._opener is None:
            reason = Drop.NO_TAP
        elif self._link and not self._link.ready:
            reason = Drop.NO_GUEST
        elif not port or address == UNSPECIFIED[listener.family] or is_multicast(address):
            reason = Drop.NOT_UNICAST
        else:
            self._opener.inbound(sock, listener.family, address, port, scope, listener.target, listener.target_address)
        if reason is not None:
            close_with_reset(sock)
            raise PacketError(reason)

    def _pause(self, listener: TcpListener, error: OSError) -> None:
        """Look at a listener no more for a while."""
        if not self._warned:
            self._warned = True
            log.warning("clients of port %d have to wait: %s", listener.port, error.strerror)
        self._unwatch(listener)
        self._paused[listener] = self._later(PAUSE_SECONDS, lambda now: self._go_on(listener))

    def _go_on(self, listener: TcpListener) -> None:
        if self._paused.pop(listener, None) is not None:
            self.watch(listener)
