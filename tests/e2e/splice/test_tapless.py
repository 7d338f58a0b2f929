"""Loopback alone, and no way round."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

import gpasst
from tests.support.families import FAMILY
from tests.support.lab import HOST, HOST4, REMOTE, Remote, bound, host_socket
from tests.support.ready import until
from tests.support.ways import exchange, inward, nothing_came, outward

pytestmark = pytest.mark.usefixtures("tun", "remote")


@pytest.fixture(scope="module")
def tapless(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun, remote
    with gpasst.Pasta(splice_only=True, udp_ports="5100:53", udp_ns="5400:53") as net:
        yield net


def test_without_a_tap_loopback_is_all_there_is(tapless: gpasst.Pasta, family: int) -> None:
    assert tapless.interface == ""
    devices = tapless.run(["cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
    for way in (inward(tapless, 5100, family), outward(tapless, 5400, family)):
        with way.service(address=way.address) as service, way.client() as client:
            assert exchange(way, client, service)[0] == way.address


def test_without_a_tap_nothing_but_loopback_leads_in(tapless: gpasst.Pasta, remote: Remote, family: int) -> None:
    for sock, address in ((remote.socket(FAMILY[family]), REMOTE), (host_socket(FAMILY[family]), HOST)):
        with bound(sock, address[family]) as client:
            client.connect((HOST[family], 5100))
            client.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(9)


@pytest.mark.parametrize("address", ["0.0.0.0", HOST4])
def test_without_a_tap_what_arrives_elsewhere_all_the_same_is_dropped(address: str) -> None:
    with gpasst.Pasta(splice_only=True, udp_ports=f"{address}/5000:53") as net:
        with inward(net, 5000).service() as service, bound(host_socket(socket.AF_INET), HOST4) as client:
            client.sendto(b"?", (HOST4, 5000))
            until(lambda: net.statistics().drops == {gpasst.Drop.NO_TAP.value: 1}, "dropped")
            assert nothing_came(service)


def test_what_leads_both_ways_is_no_circle(family: int) -> None:
    reason = gpasst.Drop.HAIRPIN.value
    with gpasst.Pasta(udp_ports="5000", udp_ns="5000", host_lo_to_ns_lo=True) as net:
        for turn, way in enumerate((inward(net, 5000, family), outward(net, 5000, family)), 1):
            with way.client() as client:
                client.sendto(b"round and round", (way.address, 5000))
                until(lambda count=turn: net.statistics().drops.get(reason) == count, "dropped")
        now = net.statistics()
        assert now.pairs == 2
        assert now.datagrams_spliced == 2
