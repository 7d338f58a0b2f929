"""How spliced connections end: in order, half by half, by reset, or because nobody listens."""

from __future__ import annotations

import socket

import pytest

from tests.support.ready import until
from tests.support.stream_ways import StreamWay, pairs
from tests.support.streams import (
    MEBI,
    accepted,
    carried,
    is_reset,
    noise,
    received,
    reset,
    sent_until_stopped,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")

SIZES = [0, 1, 100, 16383, 16384, 16385, 65536, 131073, 300_000]
WINDOW = 1 << 16
by_either = pytest.mark.parametrize("by", ["client", "service"])


def sides(by: str, client: socket.socket, service: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return the end that acts, and the other one."""
    return (client, service) if by == "client" else (service, client)


@by_either
def test_the_last_data_come_with_the_end(stream_way: StreamWay, by: str) -> None:
    """As from a program that sends and closes at once."""
    with stream_way.service() as (server, _):
        for size in SIZES * 5:
            with stream_way.client() as client, accepted(server) as service:
                one, other = sides(by, client, service)
                one.sendall(noise(size))
                one.close()
                assert received(other) == noise(size)
    until(lambda: not pairs(stream_way.net), "no pair left")


@by_either
def test_half_a_connection_goes_on(stream_way: StreamWay, by: str) -> None:
    with stream_way.connected() as (client, service):
        one, other = sides(by, client, service)
        one.sendall(b"question")
        one.shutdown(socket.SHUT_WR)
        assert received(other) == b"question"
        assert carried(other, one, noise(MEBI))
        other.close()
        assert received(one) == b""


@by_either
@pytest.mark.parametrize("size", [0, 1, 5000, 50_000])
def test_a_reset_is_a_reset_behind_what_was_sent(stream_way: StreamWay, by: str, size: int) -> None:
    with stream_way.connected() as (client, service):
        one, other = sides(by, client, service)
        one.sendall(noise(size))
        # So that nothing of it is in the sender's own socket any more, where it would be lost.
        assert received(other, size) == noise(size)
        reset(one)
        assert is_reset(other)
    until(lambda: not pairs(stream_way.net), "no pair left")


def test_a_client_is_reset_where_nobody_listens(stream_way: StreamWay) -> None:
    before = stream_way.net.statistics()
    assert stream_way.is_reset()
    after = stream_way.net.statistics()
    assert after.refusals == before.refusals + 1
    assert after.drops == before.drops
    assert not pairs(stream_way.net)


@by_either
def test_a_slow_reader_stops_its_sender(stream_way: StreamWay, by: str) -> None:
    data = noise(64 * MEBI)
    with stream_way.connected(WINDOW) as (client, service):
        one, other = sides(by, client, service)
        sent = sent_until_stopped(one, data)
        assert sent < len(data)
        assert carried(other, one, b"the other way goes on")
        assert received(other, sent) == data[:sent]
        until(lambda: all(way.pipe is None for pair in pairs(stream_way.net) for way in pair.ways), "no pipe lent")
        assert carried(one, other, b"and it goes on")


@by_either
def test_urgent_data_stays_in_line(stream_way: StreamWay, by: str) -> None:
    with stream_way.connected() as (client, service):
        one, other = sides(by, client, service)
        for size in (1, 5000, 200_000):
            one.sendall(noise(size))
            one.send(b"!", socket.MSG_OOB)
            one.sendall(noise(size, 1))
            assert received(other, 2 * size + 1) == noise(size) + b"!" + noise(size, 1)
        one.send(b"!", socket.MSG_OOB)
        one.close()
        assert received(other) == b"!"


def test_pairs_are_shown(stream_way: StreamWay) -> None:
    net = stream_way.net
    before = net.statistics()
    with stream_way.connected() as (client, service):
        assert carried(client, service, noise(5000)) and carried(service, client, noise(3000))
        (flow,) = (flow for flow in net.flows() if flow.protocol == "tcp")
        guest, host = (client, service) if stream_way.outward else (service, client)
        assert (flow.state, flow.spliced, flow.idle) == ("ESTABLISHED", True, 0)
        assert (flow.guest, flow.remote) == (
            guest.getsockname()[:2],
            (host.getsockname() if not stream_way.outward else service.getsockname())[:2],
        )
        assert flow.shown == guest.getpeername()[:2]
        assert flow.port == host.getpeername()[1]
        now = net.statistics()
        assert now.tcp_bytes_spliced - before.tcp_bytes_spliced == 8000
        assert (now.pairs - before.pairs, now.connections) == (1, before.connections)
        guest.shutdown(socket.SHUT_WR)
        assert received(host) == b""
        assert [flow.state for flow in net.flows()] == ["CLOSE-WAIT"]
    until(lambda: net.flows() == (), "none left")
    with stream_way.connected() as (client, service):
        guest, host = (client, service) if stream_way.outward else (service, client)
        host.shutdown(socket.SHUT_WR)
        assert received(guest) == b""
        assert [flow.state for flow in net.flows()] == ["FIN-WAIT-2"]
