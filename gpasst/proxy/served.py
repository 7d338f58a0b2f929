"""Services of the program in a proxy: callables that answer for addresses which exist nowhere.

Theory of operation: a datagram of the guest to a served address goes to its callable by `gpasst.path.udp_service`, and
meets no socket. A connection to one is made on a loopback of its own: `gpasst.path.tcp_opener` connects its socket to
the service's listener, and both are in a namespace that nobody else is in. So the connection is one like every other,
with the kernel's flow control, half-closed streams and resets, and the host's network has no socket of it.

Callables run in greenlets (`gpasst.proxy.handlers`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent

from gpasst.counters import Counters
from gpasst.errors import ConfigurationError
from gpasst.helper.client import Namespace
from gpasst.host.socket_pool import PAUSE_SECONDS, SocketPool, streams
from gpasst.host.sockets import BACKLOG, text
from gpasst.host.tcp import close_with_reset, prepare_stream
from gpasst.link.port import Link
from gpasst.packet.address import V4, family_of
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.udp_service import Answers, End, serving
from gpasst.proxy.handlers import ERRORS_KEPT, Handlers
from gpasst.proxy.patience import patiently
from gpasst.udp.nat import UdpNat

if TYPE_CHECKING:
    import socket
    from _socket import socket as RawSocket

LOOPBACK4 = "127.0.0.1"
PAYLOAD_MOST = {4: 65507, 6: 65527}  # bytes of a datagram: 65535 without the headers that its length counts
ACCEPT_SECONDS = 0.1  # between two tries where no descriptor is left

PeerName = tuple[str, int]
"""Address and port of the guest, as handlers get it."""

DatagramHandler = Callable[[bytes, PeerName], "bytes | None"]
StreamHandler = Callable[["socket.socket", PeerName], object]

log = logging.getLogger(__name__)


class DatagramService:
    """One served address and port of UDP.

    :param nat: the rules and tables.
    :param link: the guest's end.
    :param counters: where drops are counted.
    :param address: 4 or 16 bytes.
    :param port: the port.
    :param handler: called with each datagram and its sender, returns the answer or None.
    :param handlers: its greenlets.
    :ivar handlers: likewise.
    """

    def __init__(
        self,
        nat: UdpNat,
        link: Link,
        counters: Counters,
        address: bytes,
        port: int,
        handler: DatagramHandler,
        handlers: Handlers,
    ) -> None:
        self.handlers = handlers
        self._nat = nat
        self._place = address, port
        self._handler = handler
        self._most = PAYLOAD_MOST[family_of(address)]
        self._answers = Answers(nat, link, counters, address, port)
        nat.served[self._place] = serving(self._take, port)
        self._end_flows()

    def close(self) -> None:
        """Answer no more; what the guest sends from now on goes to the host's network."""
        self._nat.served.pop(self._place, None)
        self.handlers.close()
        self._end_flows()
        # Its owner may refer back to this one, and both would have to wait for the garbage collector.
        self._handler = _nothing

    def _take(self, data: bytes, guest: End) -> bool:
        return self.handlers.add(partial(self._call, data, guest))

    def _call(self, data: bytes, guest: End) -> None:
        answer = self._handler(data, (text(guest[0]), guest[1]))
        if answer is None:
            return
        if not isinstance(answer, (bytes, bytearray, memoryview)):
            raise TypeError(f"the handler returned {type(answer).__name__}; return bytes, or None for no answer")
        if len(answer) > self._most:
            raise ValueError(f"the handler returned {len(answer)} bytes; a datagram has {self._most} at most")
        self._answers.send(guest, bytes(answer))

    def _end_flows(self) -> None:
        """End the flows to the address, which were set up for what answered there before."""
        for _ in self._nat.end_flows(family_of(self._place[0]), lambda peer: peer.shown == self._place):
            gevent.sleep(0)


class StreamService:
    """One served address and port of TCP (`gpasst.path.tcp_opener.ServedStreams`).

    :param opener: opens the guest's connections.
    :param pool: sockets of the namespace that nobody else is in.
    :param address: 4 or 16 bytes.
    :param port: the port.
    :param handler: called with each stream and its client; the stream is closed when it returns.
    :param handlers: its greenlets.
    :raises GpasstError: if there is no socket to listen on.
    :ivar handlers: likewise.
    :ivar address: of the listener.
    """

    def __init__(
        self,
        opener: TcpOpener,
        pool: SocketPool,
        address: bytes,
        port: int,
        handler: StreamHandler,
        handlers: Handlers,
    ) -> None:
        from gevent.socket import socket as Cooperative

        self.handlers = handlers
        self._opener = opener
        self._pool = pool
        self._place = address, port
        self._handler = handler
        self._guests: dict[int, End] = {}
        raw = pool.take(streams(V4))
        self._listener = Cooperative(raw.family, raw.type, raw.proto, raw.detach())
        self._listener.bind((LOOPBACK4, 0))
        self._listener.listen(BACKLOG)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._accepting: Any = gevent.spawn(self._accept)
        opener.served[self._place] = self

    def socket(self) -> RawSocket:
        """Return a socket that can be connected to the listener; see `ServedStreams.socket`."""
        sock = self._pool.take(streams(V4))
        prepare_stream(sock)
        return sock

    def expect(self, port: int, guest: End) -> None:
        """Take note whom a client stands for; see `ServedStreams.expect`."""
        # Kept until the port is used again: a client that was reset may be accepted behind its successor.
        self._guests[port] = guest

    def close(self) -> None:
        """Accept no more, and reset the streams whose handlers run."""
        self._opener.served.pop(self._place, None)
        # What ends a greenlet is kept as its value, with the frames that it passed.
        accepting, self._accepting = self._accepting, None
        accepting.kill()
        self._listener.close()
        self.handlers.close()
        self._handler = _nothing

    def _accept(self) -> None:
        while True:
            try:
                stream, (_, port) = self._listener.accept()
            except OSError as error:
                log.warning("a service accepts no connection: %s", error.strerror)
                gevent.sleep(ACCEPT_SECONDS)
                continue
            if not self.handlers.add(partial(self._call, stream, self._guests[port])):
                close_with_reset(stream)

    def _call(self, stream: Any, guest: End) -> None:
        done = False
        try:
            self._handler(stream, (text(guest[0]), guest[1]))
            done = True
        finally:
            if done:
                stream.close()
            else:
                # As the kernel does for a program that crashed with data unread.
                close_with_reset(stream)


class Served:
    """All services of one proxy.

    :param nat: the rules and tables of UDP.
    :param opener: opens the guest's TCP connections, None where these are not carried.
    :param link: the guest's end.
    :param counters: where drops are counted.
    :ivar errors: text of the newest errors of handlers, with their tracebacks, oldest first.
    """

    def __init__(self, nat: UdpNat, opener: TcpOpener | None, link: Link, counters: Counters) -> None:
        self._nat = nat
        self._opener = opener
        self._link = link
        self._counters = counters
        self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)
        self._services: list[DatagramService | StreamService] = []
        self._namespace: Namespace | None = None
        self._pool: SocketPool | None = None

    def udp(self, address: bytes, port: int, handler: DatagramHandler, name: str) -> DatagramService:
        """Answer the guest's datagrams to an address and port; the parameters are those of `DatagramService`.

        :param name: the service, in messages.
        :raises ConfigurationError: if it is served already.
        """
        _check_free(self._nat.served, address, port, name)
        handlers = Handlers(name, self.errors.append)
        service = DatagramService(self._nat, self._link, self._counters, address, port, handler, handlers)
        self._services.append(service)
        return service

    def tcp(
        self, address: bytes, port: int, handler: StreamHandler, name: str, opened: Callable[[], Namespace]
    ) -> StreamService:
        """Accept the guest's connections to an address and port; the parameters are those of `StreamService`.

        :param name: the service, in messages.
        :param opened: makes a namespace with a loopback interface.
        :raises ConfigurationError: if it is served already.
        :raises PlatformError: if there is no such namespace.
        """
        assert self._opener is not None
        if self._pool is None:
            namespace = opened()
            if self._pool is None:
                self._namespace, self._pool = namespace, SocketPool(namespace.sockets)
                # From here on others wait for it.
                namespace.patience = PAUSE_SECONDS
            else:
                # Another greenlet was faster.
                namespace.close()
        opener, pool = self._opener, self._pool

        def serve() -> StreamService:
            _check_free(opener.served, address, port, name)
            return StreamService(opener, pool, address, port, handler, Handlers(name, self.errors.append))

        assert self._namespace is not None
        service = patiently(self._namespace, serve)
        self._services.append(service)
        return service

    def end(self, service: DatagramService | StreamService) -> None:
        """End a service; more calls do nothing."""
        if service in self._services:
            self._services.remove(service)
            service.close()

    def close(self) -> None:
        """End every service; more calls do nothing."""
        for service in list(self._services):
            self.end(service)
        if self._pool is not None:
            self._pool.close()
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None


def _nothing(*_: object) -> None:
    """Do nothing: the handler of a closed service."""


def _check_free(served: Collection[tuple[bytes, int]], address: bytes, port: int, name: str) -> None:
    if (address, port) in served:
        raise ConfigurationError(f"{name} is served already", "close the other service first")
