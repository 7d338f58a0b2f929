"""How the listeners of each protocol are made: what `gpasst.proxy.forwarder` leaves to the protocol.

Theory of operation: the forwarder decides which listeners there are, and binds them. Before that the protocol's opener
makes an unbound socket; afterwards it takes the bound one over, and returns what ends all that it has begun with it.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from gpasst.flow.listeners import BindAddress, ListenerSpec, target_bytes
from gpasst.host.socket_pool import Kind, SocketPool, datagrams, streams
from gpasst.host.sockets import family_constant, new_udp_socket, prepare, stand_in
from gpasst.host.tcp import prepare_listener
from gpasst.linux import SOCK_STREAM
from gpasst.path.tcp_splice import TcpSplice
from gpasst.path.udp_splice import UdpSplice
from gpasst.tcp.listener import TcpListener
from gpasst.udp.mapping import Listener
from gpasst.udp.nat import UdpNat

Release = Callable[[], Iterator[None]]
"""Ends whatever passes a listener, in pieces of bounded work, and watches it no more; the socket is left to be closed.
Where that is broken off, it can be begun again."""


class ListenerOpener(Protocol):
    """Makes the listeners of one protocol."""

    @property
    def protocol(self) -> str:
        """The protocol's name in lower case."""

    @property
    def keeps_loopback(self) -> bool:
        """Whether the host's loopback leads to the namespace's, so that services there can be followed."""

    @property
    def kind(self) -> Callable[[int], Kind]:
        """Return the kind of its sockets, for a family of 4 or 6."""

    def socket(self, bind: BindAddress) -> RawSocket:
        """Return an unbound, prepared socket of the side and family of a listener.

        :raises OSError: if the kernel refuses the socket or an option.
        :raises GpasstError: if the namespace makes no more sockets.
        """

    def opened(self, spec: ListenerSpec, port: int, sock: RawSocket) -> Release:
        """Begin to watch a listener that has been bound; return what ends that.

        :param spec: what asked for it.
        :param port: the port that it is bound to.
        :param sock: its socket, which stays the caller's to close, also on failure.
        :raises GpasstError: if the namespace makes no sockets for what is to pass it.
        """


class UdpListenerOpener:
    """Makes the listeners of UDP.

    :param nat: the NAT that listeners on the host lead to.
    :param splice: what moves loopback traffic, None where nothing does.
    :param pool: the sockets of the namespace, None where there is none: then no rule may listen there.
    :param watch: begins to call back when a listener is readable.
    :param unwatch: stops that.
    :param gro: let the kernel join datagrams of one sender.
    :param keeps_loopback: whether the host's loopback leads to the namespace's.
    :param inward: whether what comes to the host's loopback is spliced, too, and not only the namespace's.
    """

    protocol = "udp"
    kind = staticmethod(datagrams)

    def __init__(
        self,
        nat: UdpNat,
        splice: UdpSplice | None,
        pool: SocketPool | None,
        watch: Callable[[Listener], None],
        unwatch: Callable[[Listener], None],
        gro: bool,
        keeps_loopback: bool,
        inward: bool = True,
    ) -> None:
        self._nat = nat
        self._splice = splice
        self._pool = pool
        self._watch = watch
        self._unwatch = unwatch
        self._gro = gro
        self.keeps_loopback = keeps_loopback
        self._inward = inward

    def socket(self, bind: BindAddress) -> RawSocket:
        """Return an unbound socket; see `ListenerOpener`."""
        if not bind.inside:
            sock = new_udp_socket(bind.family, self._gro, packet_info=True)
            stand_in(sock, bind.family)
            return sock
        assert self._pool is not None
        return prepare(self._pool.take(datagrams(bind.family)), bind.family, self._gro, packet_info=True)

    def opened(self, spec: ListenerSpec, port: int, sock: RawSocket) -> Release:
        """Begin to watch a listener; see `ListenerOpener`."""
        bind = spec.bind
        listener = Listener(
            bind.family,
            port,
            sock,
            target=spec.target,
            target_address=target_bytes(spec.rule, bind.family),
            general=bind.everywhere,
            inside=bind.inside,
            splices=self._splice is not None and (bind.inside or (bind.loopback and self._inward)),
        )
        if self._splice is not None and listener.splices:
            self._splice.listen(bind.inside, bind.family)
        if not bind.inside:
            self._nat.listen(listener)
        self._watch(listener)
        return partial(self._release, listener)

    def _release(self, listener: Listener) -> Iterator[None]:
        self._unwatch(listener)
        if self._splice is not None:
            yield from self._splice.retire(listener)
        if not listener.inside:
            yield from self._nat.retire(listener)
        listener.socket = None


class TcpListeners(Protocol):
    """Accepts the clients of listeners."""

    def watch(self, listener: TcpListener) -> None:
        """Accept the clients of a listener from now on, those too that wait already."""

    def unwatch(self, listener: TcpListener) -> None:
        """Accept no more; connections that were accepted go on. More calls do nothing."""


class TcpListenerOpener:
    """Makes the listeners of TCP.

    :param listeners: accepts their clients.
    :param splice: what moves loopback traffic, None where that crosses the link.
    :param pool: the sockets of the namespace, None where there is none: then no rule may listen there.
    :param keeps_loopback: whether the host's loopback leads to the namespace's.
    """

    protocol = "tcp"
    kind = staticmethod(streams)

    def __init__(
        self, listeners: TcpListeners, splice: TcpSplice | None, pool: SocketPool | None, keeps_loopback: bool
    ) -> None:
        self._listeners = listeners
        self._splice = splice
        self._pool = pool
        self.keeps_loopback = keeps_loopback and splice is not None

    def socket(self, bind: BindAddress) -> RawSocket:
        """Return an unbound socket; see `ListenerOpener`."""
        if not bind.inside:
            return prepare_listener(RawSocket(family_constant(bind.family), SOCK_STREAM, 0), bind.family)
        assert self._pool is not None
        return prepare_listener(self._pool.take(streams(bind.family)), bind.family)

    def opened(self, spec: ListenerSpec, port: int, sock: RawSocket) -> Release:
        """Begin to accept clients; see `ListenerOpener`."""
        bind = spec.bind
        if self._splice is not None and (bind.inside or (bind.loopback and self._splice.inward)):
            self._splice.listen(bind.inside, bind.family)
        listener = TcpListener(bind.family, port, spec.target, target_bytes(spec.rule, bind.family), bind.inside, sock)
        self._listeners.watch(listener)
        return partial(self._release, listener)

    def _release(self, listener: TcpListener) -> Iterator[None]:
        self._listeners.unwatch(listener)
        yield from ()
