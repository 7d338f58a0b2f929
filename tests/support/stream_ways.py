"""Both ways of TCP between the loopback addresses of host and namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import gpasst
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.guests import call, proxy_of
from tests.support.lab import HOST, host_socket
from tests.support.streams import accepted, listening, patient, received

SERVICE = 80
INWARD, OUTWARD = 8080, 8081  # ports that lead to the service of the other side


@dataclass(frozen=True)
class StreamWay:
    """One direction: clients on one side, services on the other.

    :ivar outward: from the namespace to the host.
    :ivar port: where the clients' side leads to port 80 of the other.
    """

    net: gpasst.Pasta
    family: int
    outward: bool
    port: int

    def client(self, address: str = "", window: int = 0) -> socket.socket:
        """A socket on the clients' side, connected to the service.

        :param window: bytes of its receive buffer, 0 for the kernel's choice.
        """
        sock = patient(self._socket(self.outward))
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            sock.connect((address or LOOPBACK[self.family], self.port))
        except OSError:
            sock.close()
            raise
        return sock

    def is_reset(self) -> bool:
        """Connect a client, and return whether it is reset, which it may be before it knows that it has connected."""
        try:
            with self.client() as client:
                assert received(client) == b""
                return False
        except ConnectionResetError:
            return True

    def service(self, address: str = "") -> AbstractContextManager[Any]:
        """A listening socket on the other side, and its address."""
        return listening(self._socket(not self.outward), address or ANY[self.family], SERVICE)

    @contextmanager
    def connected(self, window: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A client and the service's socket for it; `window` is the size of both receive buffers."""
        with self.service() as (server, _):
            if window:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            with self.client(window=window) as client, accepted(server) as service:
                yield client, service

    @property
    def seen(self) -> str:
        """Where the services see clients at."""
        return (LOOPBACK if self.outward else HOST)[self.family]

    def _socket(self, inside: bool) -> socket.socket:
        make: Any = self.net.socket if inside else host_socket
        sock: socket.socket = make(FAMILY[self.family], socket.SOCK_STREAM)
        return sock


def pairs(net: gpasst.Pasta) -> list[Any]:
    """Return the splice pairs of TCP that a namespace has at present."""
    found: list[Any] = []
    splice = proxy_of(net).tcp_splice
    assert splice is not None
    call(net, lambda: found.extend(splice.pairs))
    return found
