"""How long splice pairs are kept, and what they leave behind."""

from __future__ import annotations

import gc
import socket
import struct
import weakref
from contextlib import ExitStack

import pytest

from gpasst.flow.record import Flow
from gpasst.host.socket_pool import READY
from gpasst.linux import UDP_SEGMENT
from tests.support.families import FAMILY
from tests.support.guests import call, expire, proxy_of, scan
from tests.support.ways import (
    SERVICE,
    TIMEOUT,
    Way,
    clock,
    descriptors,
    drops,
    exchange,
    serve,
    superframes_only,
    to_namespace_only,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")


@superframes_only
def test_flows_and_counters(way: Way) -> None:
    before = way.net.statistics()
    with way.service() as service, way.client() as client:
        sender = exchange(way, client, service, bytes(100))
        (flow,) = way.net.flows()
        asker, asked = (way.address, client.getsockname()[1]), (way.address, way.port)
        if way.outward:
            assert flow == Flow("udp", asker, asked, (way.address, SERVICE), sender[1], flow.idle, spliced=True)
        else:
            assert flow == Flow("udp", (way.seen, SERVICE), sender, asker, way.port, flow.idle, spliced=True)
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))]
        client.sendmsg([bytes(10_500)], control, 0, asked)
        assert sum(len(service.recv(65535)) for _ in range(11)) == 10_500
    now = way.net.statistics()
    assert now.pairs == 1
    assert now.datagrams_spliced - before.datagrams_spliced == 2 + 11
    assert now.bytes_spliced - before.bytes_spliced == 200 + 10_500
    assert now.superframes_spliced - before.superframes_spliced == 1
    for name in ("datagrams_up", "datagrams_down", "mappings", "peers", "socket_errors", "refusals"):
        assert getattr(now, name) == getattr(before, name), name
    assert drops(now) == drops(before)
    expire(way.net)
    now = way.net.statistics()
    assert (now.pairs, now.expired - before.expired) == (0, 1)


@superframes_only
def test_a_pair_ends_and_the_client_goes_on(way: Way) -> None:
    with way.service() as service, way.client() as client, clock(way.net) as advance:
        advance(0)
        before = descriptors()
        for _ in range(2):
            exchange(way, client, service)
            advance(0)
            advance(TIMEOUT)
            assert way.net.statistics().pairs == 1
            advance(1)
            assert way.net.statistics().pairs == 0
            assert descriptors() == before
            assert not way.net.flows()


@superframes_only
@pytest.mark.parametrize("answers", [False, True], ids=["questions", "answers"])
def test_either_direction_keeps_a_pair(way: Way, answers: bool) -> None:
    with way.service() as service, way.client() as client, clock(way.net) as advance:
        shown = exchange(way, client, service)
        (flow,) = way.net.flows()
        for _ in range(4):
            advance(TIMEOUT - 1)
            if answers:
                service.sendto(b"tick", shown)
                assert client.recv(9) == b"tick"
            else:
                client.sendto(b"tick", (way.address, way.port))
                assert service.recv(9) == b"tick"
            advance(0)
        (kept,) = way.net.flows()
        assert (kept.guest, kept.shown, kept.remote) == (flow.guest, flow.shown, flow.remote)


@superframes_only
@to_namespace_only
def test_new_pairs_take_their_sockets_from_the_pool(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it lasts, nobody in the namespace is asked; afterwards it is filled again."""
    pool = proxy_of(way.net)._base.pool  # noqa: SLF001  # a message that is not sent shows nowhere else
    assert pool is not None
    scan(way.net)
    asked = []
    make = pool._make

    def asking(family: int, kind: int, protocol: int, count: int) -> list[int]:
        asked.append((family, kind, protocol, count))
        return make(family, kind, protocol, count)

    monkeypatch.setattr(pool, "_make", asking)
    with monkeypatch.context() as without_refill, way.service() as service, ExitStack() as stack:
        without_refill.setattr(pool, "refill", lambda: None)
        for _ in range(READY):
            exchange(way, stack.enter_context(way.client()), service)
        assert asked == []
    scan(way.net)
    assert asked == [(FAMILY[way.family], socket.SOCK_DGRAM, 0, READY)]


@superframes_only
def test_two_thousand_short_exchanges_leave_nothing_open(way: Way) -> None:
    with way.service() as service:
        expire(way.net)
        before = descriptors()
        for _ in range(20):
            with ExitStack() as stack:
                clients = [stack.enter_context(way.client()) for _ in range(100)]
                for number, client in enumerate(clients):
                    client.sendto(b"%d" % number, (way.address, way.port))
                serve(service, 100)
                assert [client.recv(9) for client in clients] == [b"%d" % number for number in range(100)]
        expire(way.net)
        assert way.net.statistics().pairs == 0
        assert descriptors() == before


@superframes_only
def test_an_ended_pair_leaves_no_memory_behind(way: Way) -> None:
    splice = proxy_of(way.net).splice
    assert splice is not None
    pairs = splice.pairs
    with way.service() as service, ExitStack() as stack:
        for _ in range(20):
            exchange(way, stack.enter_context(way.client()), service)
        kept = [weakref.ref(pair) for pair in pairs]
        assert len(kept) == 20
    expire(way.net)
    call(way.net, gc.collect)
    # The one that was busy last may still be in somebody's hands.
    assert sum(ref() is not None for ref in kept) <= 1
