"""TCP between the loopback addresses of host and namespace."""

from __future__ import annotations

import socket

import pytest

from tests.support.stream_ways import StreamWay
from tests.support.streams import MEBI, accepted, carried, noise, received

pytestmark = pytest.mark.usefixtures("tun", "remote")


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
