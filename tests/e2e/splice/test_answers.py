"""Splice pairs end to end: loopback traffic between host and namespace, and who gets which answer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

import gpasst
from tests.support.engines import receive_all
from tests.support.lab import HOST
from tests.support.ready import until
from tests.support.ways import (
    LOOPBACKS,
    OTHER_SERVICE,
    Way,
    exchange,
    inward,
    ipv4_only,
    nothing_came,
    outward,
    serve,
    superframes_only,
    to_host_only,
    to_namespace_only,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")


def test_a_hundred_clients_at_once(way: Way) -> None:
    """Connected and not, from and to many addresses: each hears its own answer, from where it had asked."""
    loopbacks = LOOPBACKS[way.family]
    with way.service() as service, ExitStack() as stack:
        clients = [stack.enter_context(way.client(loopbacks[i % len(loopbacks)])) for i in range(100)]
        asked = [(loopbacks[i // 7 % len(loopbacks)], way.port) for i in range(100)]
        for i, client in enumerate(clients):
            if i % 2:
                client.connect(asked[i])
                client.send(str(i).encode())
            else:
                client.sendto(str(i).encode(), asked[i])
        served = serve(service, 100)
        assert len({sender for _, sender in served}) == 100
        answers = [client.recvfrom(99) for client in clients]
        assert [data for data, _ in answers] == [str(i).encode() for i in range(100)]
        assert [sender[:2] for _, sender in answers] == asked
        assert way.net.statistics().pairs == 100


@superframes_only
def test_one_client_port_for_two_services(way: Way) -> None:
    """What was asked of one is not answered by the other."""
    with way.service() as one, way.service(OTHER_SERVICE) as other, way.client() as client:
        for port in (way.port, way.other_port):
            client.sendto(str(port).encode(), (way.address, port))
        assert [data for data, _ in serve(one) + serve(other)] == [b"%d" % way.port, b"%d" % way.other_port]
        answers = {data: sender[:2] for data, sender in (client.recvfrom(99) for _ in range(2))}
        assert answers == {str(port).encode(): (way.address, port) for port in (way.port, way.other_port)}


@superframes_only
@ipv4_only
def test_one_port_on_two_loopback_addresses_is_two_clients(way: Way) -> None:
    with way.service() as service, way.client("127.0.0.1") as one:
        with way.client("127.0.0.5", one.getsockname()[1]) as other:
            one.sendto(b"one", (way.address, way.port))
            other.sendto(b"other", (way.address, way.port))
            served = dict(serve(service, 2))
            assert len(set(served.values())) == 2
            assert (one.recv(9), other.recv(9)) == (b"one", b"other")


def test_senders_mixed_in_one_burst_are_told_apart(way: Way) -> None:
    """And what each of them sends stays in order."""
    with way.service() as service, ExitStack() as stack:
        clients = [stack.enter_context(way.client()) for _ in range(20)]
        for turn in range(10):
            for number, client in enumerate(clients):
                client.sendto(b"%d %d" % (number, turn), (way.address, way.port))
        got = receive_all(service, 200)
        expected = [[b"%d %d" % (number, turn) for turn in range(10)] for number in range(20)]
        assert sorted(got.values()) == sorted(expected)
        for sender, data in got.items():
            service.sendto(data[0], sender)
        assert [client.recv(99) for client in clients] == [data[0] for data in expected]


@superframes_only
def test_the_clients_port_is_kept_where_it_is_free(way: Way) -> None:
    port = way.free_port()
    with way.service() as service, way.client(port=port) as client:
        assert exchange(way, client, service) == (way.seen, port)


@superframes_only
def test_a_client_port_that_is_taken_is_changed(way: Way) -> None:
    port = way.free_port()
    with way.service() as service, way.service(port) as taken, way.client(port=port) as client:
        address, shown = exchange(way, client, service)
        assert address == way.seen
        assert shown != port
        assert nothing_came(taken)


@superframes_only
@ipv4_only
@to_host_only
def test_loopback_addresses_are_kept_from_the_namespace(way: Way) -> None:
    """A resolver on 127.0.0.53 is reached there, and hears where the client is."""
    with way.service(address="127.0.0.53") as resolver, way.service(address="127.0.0.1") as other:
        with way.client("127.0.0.7") as client:
            assert exchange(way, client, resolver, address="127.0.0.53")[0] == "127.0.0.7"
            assert exchange(way, client, other, b"other", address="127.0.0.1")[0] == "127.0.0.7"


@superframes_only
@ipv4_only
@to_host_only
def test_a_client_in_the_namespace_need_not_be_on_loopback(way: Way) -> None:
    with way.service() as service, way.client(HOST[way.family]) as client:
        assert exchange(way, client, service)[0] == way.address


@superframes_only
@to_namespace_only
def test_services_on_the_namespaces_loopback_are_not_exposed(way: Way) -> None:
    with way.client() as client:
        before = way.net.statistics().socket_errors
        with way.service(address=way.address) as hidden:
            client.sendto(b"?", (way.address, way.port))
            until(lambda: way.net.statistics().socket_errors > before, "refused")
            assert nothing_came(hidden)
        with way.service() as service:
            assert exchange(way, client, service)[0] == HOST[way.family]


def test_the_hosts_loopback_may_lead_to_the_namespaces(family: int) -> None:
    with gpasst.Pasta(udp_ports="5000:53", host_lo_to_ns_lo=True) as net:
        way = inward(net, 5000, family)
        for address in LOOPBACKS[family][-1:] + LOOPBACKS[family][:1]:
            with way.service(address=address) as service, way.client() as client:
                assert exchange(way, client, service, address=address)[0] == way.address


def test_a_rules_own_target_address(family: int) -> None:
    """As such it reaches even what is meant for the other side alone."""
    loopback = {4: "127.0.0.3", 6: "[::1]"}[family]
    with gpasst.Pasta(udp_ports=f"5000:{loopback}/53", udp_ns=f"5000:{loopback}/53", config_net=True) as net:
        for way in (inward(net, 5000, family), outward(net, 5000, family)):
            with way.service(address=loopback.strip("[]")) as service, way.client() as client:
                assert exchange(way, client, service)[0] == way.address


@pytest.mark.parametrize("specific", [False, True])
def test_a_forwarded_port_sends_and_gets_its_answers(specific: bool) -> None:
    """Whatever number it is shown under on the other side, answers reach the port that asked.

    It is shown under the forward's number, unless the forward's own listener has that on every address.
    """
    place = "127.0.0.9/" if specific else ""
    ports: dict[str, Any] = {"udp_ports": ("5000:53", f"{place}8080:80"), "udp_ns": ("5000:53", f"{place}5380:80")}
    with gpasst.Pasta(host_lo_to_ns_lo=True, **ports) as net:
        for way, number in ((inward(net, 5000), 5380), (outward(net, 5000), 8080)):
            with way.service() as service, way.client(port=80) as client:
                _, shown = exchange(way, client, service)
                assert (shown == number) == specific
