"""Which listeners splice, and guests with loopback alone."""

from __future__ import annotations

import socket

import pytest

import gpasst
from gpasst.flow.record import Forward
from tests.support.families import ANY
from tests.support.lab import HOST4, bound, host_socket
from tests.support.ways import exchange, inward, outward, superframes_only

pytestmark = pytest.mark.usefixtures("tun", "remote")


def test_an_address_of_the_host_opens_no_loopback_listener() -> None:
    with gpasst.Pasta(udp_ports=f"{HOST4}/5000", config_net=True) as net:
        with bound(host_socket(socket.AF_INET), "127.0.0.1", 5000), bound(host_socket(socket.AF_INET6), "::", 5000):
            with bound(net.socket(), ANY[4], 5000) as guest, bound(host_socket(socket.AF_INET), HOST4) as client:
                client.sendto(b"?", (HOST4, 5000))
                assert guest.recvfrom(9)[1][0] == net.gateway4
                assert [flow.spliced for flow in net.flows()] == [False]


def test_a_sender_that_is_not_on_loopback_crosses_the_tap() -> None:
    """The host lets others send to its loopback, too, where net.ipv4.conf.*.route_localnet is set."""
    with gpasst.Pasta(udp_ports="5000", config_net=True, host_lo_to_ns_lo=True) as net:
        with bound(net.socket(), ANY[4], 5000) as guest, bound(host_socket(socket.AF_INET), HOST4) as client:
            client.sendto(b"?", ("127.0.0.1", 5000))
            sender = guest.recvfrom(9)[1]
            assert sender[0] == net.gateway4
            guest.sendto(b"!", sender)
            assert client.recvfrom(9) == (b"!", ("127.0.0.1", 5000))
            assert [flow.spliced for flow in net.flows()] == [False]


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.53", "%lo", "0.0.0.0", "*%lo"])
def test_a_loopback_listener_splices(place: str) -> None:
    with gpasst.Pasta(udp_ports=f"{place}/5000:53", config_net=True) as net:
        way = inward(net, 5000)
        with way.service() as service, way.client() as client:
            exchange(way, client, service, address=place if place[0] == "1" else "127.0.0.1")
            assert [flow.spliced for flow in net.flows()] == [True]


def test_without_splicing_loopback_goes_through_the_tap() -> None:
    with gpasst.Pasta(udp_ports="5000:53", config_net=True, no_splice=True) as net:
        way = inward(net, 5000)
        with way.service() as service, way.client() as client:
            assert exchange(way, client, service)[0] == net.gateway4
            assert [flow.spliced for flow in net.flows()] == [False]


def test_what_the_namespace_asks_is_spliced_still() -> None:
    with gpasst.Pasta(config_net=True, no_splice=True, udp_ports="5000:53", udp_ns="5300:53") as net:
        for way, spliced in ((inward(net, 5000), False), (outward(net, 5300), True)):
            with way.service() as service, way.client() as client:
                assert (exchange(way, client, service)[0] == "127.0.0.1") == spliced
            assert [flow.spliced for flow in net.flows() if flow.spliced == spliced]


def test_one_listener_in_one_place() -> None:
    """Neither side has a second one."""
    with gpasst.Pasta(udp_ports="5001:53", udp_ns="5002:53") as net:
        command = ["cat", "/proc/net/udp", "/proc/net/udp6"]
        tables = net.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        ports = [int(line.split()[1].rpartition(":")[2], 16) for line in tables if "local_address" not in line]
        assert sorted(ports) == [5002, 5002], "one a family"
        assert len(net.forwards) == 4


@superframes_only
def test_forwards_are_listed(net: gpasst.Pasta) -> None:
    listed = net.forwards
    assert len(listed) == len(set(listed)) == 2 * 4
    assert Forward("udp", "0.0.0.0", 8053, None, 53, None, inside=False, automatic=False) in listed
    assert Forward("udp", "::", 8054, None, 54, None, inside=False, automatic=False) in listed
    assert Forward("udp", "0.0.0.0", 5300, "lo", 53, None, inside=True, automatic=False) in listed
    assert Forward("udp", "::", 5301, "lo", 54, None, inside=True, automatic=False) in listed
