"""Hosts of a network reach each other, with real programs and sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

import gpasst
from gpasst.testing import assert_flat
from tests.support.hosts import DEADLINE, FAMILIES, address, carried, connected
from tests.support.need import need


@pytest.fixture(scope="module")
def lan() -> Iterator[gpasst.Network]:
    with gpasst.Network("lan") as network:
        network.hosts("a", "b", "c")
        yield network


def test_hosts_ping_each_other(lan: gpasst.Network, family: int) -> None:
    need("ping")
    for host in (lan["b"], lan["c"]):
        host.run(["ping", "-c1", "-W5", address(lan["a"], family)], check=True, capture_output=True, timeout=DEADLINE)


def test_datagrams_cross_in_both_directions(lan: gpasst.Network, family: int) -> None:
    with lan["a"].socket(FAMILIES[family]) as server, lan["b"].socket(FAMILIES[family]) as client:
        for sock in (server, client):
            sock.settimeout(DEADLINE)
        server.bind((address(lan["a"], family), 0))
        for size in (0, 1, 1400, 9000):
            client.sendto(bytes(size), server.getsockname()[:2])
            data, sender = server.recvfrom(1 << 16)
            assert (len(data), sender[0]) == (size, address(lan["b"], family))
            server.sendto(data, sender)
            assert len(client.recv(1 << 16)) == size


def test_bursts_of_datagrams_arrive_whole_and_in_order(lan: gpasst.Network, family: int) -> None:
    with lan["a"].socket(FAMILIES[family]) as server, lan["b"].socket(FAMILIES[family]) as client:
        server.settimeout(DEADLINE)
        server.bind((address(lan["a"], family), 0))
        client.connect(server.getsockname()[:2])
        # While a kernel looks for its neighbour's address, datagrams that wait for that may be overtaken.
        client.send(b"first")
        assert server.recv(100) == b"first"
        for sizes in ([100], [1400], [1], [100, 100, 100, 60], [7, 1400]):
            # As many as a socket's ordinary buffer holds.
            sent = [bytes([number]) * sizes[number % len(sizes)] for number in range(60)]
            for data in sent:
                client.send(data)
            assert [server.recv(1 << 16) for _ in sent] == sent


def test_a_stream_crosses_whole(lan: gpasst.Network, family: int) -> None:
    sent = bytes(range(256)) * 4096
    with connected(lan["b"], lan["a"], family) as (client, accepted):
        assert carried(sent, client, accepted) == sent


def test_a_group_hears_what_one_host_says(lan: gpasst.Network) -> None:
    group = "239.1.2.3"
    with lan["a"].socket() as a, lan["b"].socket() as b, lan["c"].socket() as c:
        for sock, host in ((b, lan["b"]), (c, lan["c"])):
            member = socket.inet_aton(group) + socket.inet_aton(host.ip4)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            sock.settimeout(DEADLINE)
        b.bind((group, 0))
        port = b.getsockname()[1]
        c.bind((group, port))
        a.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(lan["a"].ip4))
        a.sendto(b"to all", (group, port))
        assert b.recv(100) == c.recv(100) == b"to all"


def test_networks_are_apart() -> None:
    with gpasst.Network("one") as one, gpasst.Network("two") as two:
        a, b = one.host("a"), two.host("b")
        assert one.subnet4 != two.subnet4
        assert one.subnet6 != two.subnet6
        with a.socket() as sock, pytest.raises(OSError, match="unreachable"):
            sock.connect((b.ip4, 1))


def test_what_makes_no_sense_is_refused_in_one_line(lan: gpasst.Network) -> None:
    for make, text in (
        (lambda: gpasst.Network("a/b"), "network a/b"),
        (lambda: gpasst.Network(cast(Any, 5)), "network 5"),
        (lambda: gpasst.Network(mtu=10), "mtu 10"),
        (lambda: gpasst.Network(mtu=cast(Any, "1500")), "mtu '1500'"),
        (lambda: gpasst.Network(subnet4="10.0.0.1/8", subnet6=""), "subnet4 10.0.0.1/8"),
        (lambda: gpasst.Network(seed=True), "seed True"),
        (lambda: gpasst.Network(uplink=cast(Any, "yes")), "uplink 'yes'"),
        (lambda: gpasst.Network(record=cast(Any, 1)), "record 1"),
        (lambda: lan.host("d", forwarding=cast(Any, "yes")), "forwarding 'yes'"),
        (lambda: lan.host("d", configured=cast(Any, None)), "configured None"),
        (lambda: lan.fates(cast(Any, "x")), "last 'x'"),
        (lambda: lan.fates(-1), "last -1"),
        (lambda: gpasst.Router("r", inside=lan, outside=lan, hairpin=cast(Any, "x")), "hairpin 'x'"),
        (lambda: gpasst.Router("r", inside=lan, outside=lan, seed=cast(Any, "x")), "seed 'x'"),
        (lambda: lan.host("a"), "the name a is taken in network lan"),
        (lambda: lan.host("a b"), "host a b"),
        (lambda: lan.host("localhost"), "host localhost"),
        (lambda: lan.host(cast(Any, b"x")), "host b'x'"),
        (lambda: lan.guest("vm", cast(Any, 5)), "path 5"),
        (lambda: lan.join(cast(Any, lan)), "<network lan> is no host"),
        (lambda: lan["a"].move(cast(Any, "lan")), "lan is no network"),
        (lambda: gpasst.Router("r", inside=lan, outside=cast(Any, 5)), "5 is no network"),
        (lambda: gpasst.Router("r", inside=lan, outside=lan, firewall=cast(Any, 5)), "firewall 5"),
        (lambda: lan.trunk(listen="x" * 300 + ":0", secret="x"), "listen x"),
        (lambda: gpasst.Network("x").host("a"), "network x is not open"),
    ):
        with pytest.raises(gpasst.ConfigurationError) as caught:
            make()
        assert caught.value.message.startswith(text)
        assert caught.value.remedy


def test_a_network_has_as_many_hosts_as_addresses() -> None:
    with gpasst.Network(subnet4="10.9.0.0/30", subnet6="") as lan:
        host = lan.host("a")
        assert (host.ip4, host.ip6) == ("10.9.0.2", "")
        with pytest.raises(gpasst.ConfigurationError, match="no address left"):
            lan.host("b")


def test_all_is_returned_at_close() -> None:
    def once() -> None:
        with gpasst.Network() as lan:
            a, b = lan.hosts("a", "b")
            a.popen(["sleep", "100"])
            assert a.ip4 != b.ip4

    assert_flat(once, repeats=10)
