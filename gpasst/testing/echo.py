"""Servers that send back what they receive, in a namespace or on the host.

Theory of operation: one thread serves all sockets of an `Echo`, which block nobody. A datagram is answered from the
address that it was sent to; the kernel names that in a control message, and takes the same message as the source of
the answer (ip(7), IP_PKTINFO; ipv6(7), IPV6_PKTINFO). Of a connection no more is received while its client takes
nothing, so a client that only sends meets a full window, as with any server of echo (RFC 862).
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from gpasst.api.handle import Handle
from gpasst.linux import IP_PKTINFO, IPV6_RECVPKTINFO
from gpasst.packet.address import ANY

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
# Options of UDP: each datagram is received with the address that it was sent to.
NAMES_TARGET = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO),
}
CHOICES = 16  # ports that the kernel chooses, until one is free for both protocols and families
DATAGRAM_BYTES = 65535
PIECE_BYTES = 65536  # of one receive from a connection
CONTROL_BYTES = 128
BACKLOG = 128


class Place(Protocol):
    """Where sockets can be made: a `gpasst.Pasta`, a host of a `gpasst.Network`, or a remote machine.

    The latter is that of `gpasst.testing.hosts`.
    """

    def socket(self, family: int, type: int) -> socket.socket:
        """Make a socket there."""


class Echo(Handle):
    """A server of UDP and one of TCP on one port, which send back what they receive.

    ::

        with Echo(net, 7) as echo, socket.create_connection(("127.0.0.1", net.port("tcp", 7))) as client:
            client.sendall(b"data")

    :param place: the namespace that it serves in, None for the host.
    :param port: its port, 0 for one of the kernel's choice.
    :param address: its address; every one of a namespace, and the loopback addresses of the host, unless one is given.
    :ivar port: its port, the same for both protocols and families.
    :raises OSError: if the port is taken or the address does not exist.
    """

    def __init__(self, place: Place | None = None, port: int = 0, address: str = "") -> None:
        self._place = place
        self._closing = ExitStack()
        self._selector = self._closing.enter_context(selectors.DefaultSelector())
        self._waiting: dict[socket.socket, bytes] = {}
        wanted = [address] if address else list((ANY if place else LOOPBACK).values())
        try:
            self.port = self._bind(wanted, port)
            self._wake, woken = socket.socketpair()
            self._closing.enter_context(self._wake)
            self._watch(self._closing.enter_context(woken), self._stop)
        except BaseException:
            self._closing.close()
            raise
        self._running = True
        self._thread = threading.Thread(target=self._run, name="gpasst-echo", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more. More calls do nothing."""
        if self._thread.is_alive():
            self._wake.send(b".")
            self._thread.join()
        for client in list(self._waiting):
            self._end(client)
        self._closing.close()

    def _bind(self, addresses: list[str], port: int) -> int:
        """Bind the servers; return their port."""
        for choice in range(CHOICES):
            number = port
            with ExitStack() as trial:
                made: list[socket.socket] = []
                try:
                    for address in addresses:
                        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                            made.append(trial.enter_context(self._server(address, number, kind)))
                            number = number or int(made[0].getsockname()[1])
                except OSError:
                    # A port that the kernel chose for one of them may be taken for another.
                    if port or choice == CHOICES - 1:
                        raise
                    continue
                for server in made:
                    self._watch(server, self._accept if server.type == socket.SOCK_STREAM else self._datagram)
                self._closing.enter_context(trial.pop_all())
                return number
        raise AssertionError  # for type checkers: the last choice returns or raises

    def _server(self, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = (self._place.socket if self._place else socket.socket)(family, kind)
        try:
            server.setblocking(False)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                server.setsockopt(*NAMES_TARGET[family], 1)
            server.bind((address, port))
            if kind == socket.SOCK_STREAM:
                server.listen(BACKLOG)
        except BaseException:
            server.close()
            raise
        return server

    def _watch(self, sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, serve)

    def _run(self) -> None:
        while self._running:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _stop(self, woken: socket.socket) -> None:
        self._running = False

    def _datagram(self, server: socket.socket) -> None:
        try:
            data, control, _, client = server.recvmsg(DATAGRAM_BYTES, CONTROL_BYTES)
            server.sendmsg([data], control, 0, client)
        except OSError:
            # An error of an earlier datagram, or a full queue: datagrams may be lost.
            return

    def _accept(self, server: socket.socket) -> None:
        try:
            client, _ = server.accept()
        except OSError:
            return  # it has gone again
        client.setblocking(False)
        self._waiting[client] = b""
        self._watch(client, self._receive)

    def _receive(self, client: socket.socket) -> None:
        try:
            data = client.recv(PIECE_BYTES)
        except OSError:
            data = b""
        if data:
            self._send(client, data)
        else:
            self._end(client)

    def _send_rest(self, client: socket.socket) -> None:
        self._send(client, self._waiting[client])

    def _send(self, client: socket.socket, data: bytes) -> None:
        """Send data, and watch for room for the rest, or for more."""
        try:
            sent = client.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(client)
            return
        rest = self._waiting[client] = data[sent:]
        if rest:
            self._selector.modify(client, selectors.EVENT_WRITE, self._send_rest)
        else:
            self._selector.modify(client, selectors.EVENT_READ, self._receive)

    def _end(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._waiting[client]
        client.close()
