"""TCP between the loopback addresses of host and namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

import gpasst
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.lab import HOST, Remote, host_socket
from tests.support.streams import MEBI, accepted, carried, listening, noise, patient, received

pytestmark = pytest.mark.usefixtures("tun", "remote")

SERVICE = 80


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

    def client(self) -> socket.socket:
        """A socket on the clients' side, connected to the service."""
        sock = patient(self._socket(self.outward))
        sock.connect((LOOPBACK[self.family], self.port))
        return sock

    def service(self, address: str = "") -> AbstractContextManager[Any]:
        """A listening socket on the other side, and its address."""
        return listening(self._socket(not self.outward), address or ANY[self.family], SERVICE)

    @property
    def seen(self) -> str:
        """Where the services see clients at."""
        return (LOOPBACK if self.outward else HOST)[self.family]

    def _socket(self, inside: bool) -> socket.socket:
        make: Any = self.net.socket if inside else host_socket
        sock: socket.socket = make(FAMILY[self.family], socket.SOCK_STREAM)
        return sock


@pytest.fixture(scope="module")
def net(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A namespace and its host, which lead to each other's port 80."""
    del tun, remote
    with gpasst.Pasta(config_net=True, tcp_ports="8080:80", tcp_ns="8081:80") as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["to-namespace", "to-host"])
def stream_way(request: pytest.FixtureRequest, net: gpasst.Pasta, family: int) -> StreamWay:
    return StreamWay(net, family, request.param, 8081 if request.param else 8080)


def test_an_exchange(stream_way: StreamWay) -> None:
    with stream_way.service() as (server, _), stream_way.client() as client, accepted(server) as service:
        assert service.getpeername()[0] == stream_way.seen
        assert carried(client, service, b"question")
        assert carried(service, client, b"answer")
        client.shutdown(socket.SHUT_WR)
        assert received(service) == b""
        assert carried(service, client, b"after the end of the other half")
        service.shutdown(socket.SHUT_WR)
        assert received(client) == b""


def test_much_both_ways(stream_way: StreamWay) -> None:
    with stream_way.service() as (server, _), stream_way.client() as client, accepted(server) as service:
        assert carried(client, service, noise(16 * MEBI))
        assert carried(service, client, noise(16 * MEBI, 1))
