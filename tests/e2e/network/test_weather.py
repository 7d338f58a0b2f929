"""Weather between the hosts of a network, with real sockets: links, pairs, partitions, replay. Takes 4 s."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import gpasst
from gpasst.weather import CLEAR, MOBILE_3G, PARTITION
from tests.support.hosts import DEADLINE, await_loss, carried, connected
from tests.support.weather import await_hits

pytestmark = pytest.mark.usefixtures("tun", "remote")

DELAY = 0.03
COUNT = 40  # datagrams that meet chance


@pytest.fixture(scope="module")
def lan() -> Iterator[gpasst.Network]:
    with gpasst.Network("lan", seed=7) as network:
        network.hosts("a", "b", "c")
        yield network


class Ends:
    """Sockets of two hosts that know each other."""

    def __init__(self, lan: gpasst.Network, one: str, other: str) -> None:
        self.one, self.other = lan[one].socket(), lan[other].socket()
        self.one.bind((lan[one].ip4, 0))
        self.other.bind((lan[other].ip4, 0))
        for sock, peer in ((self.one, self.other), (self.other, self.one)):
            sock.settimeout(DEADLINE)
            sock.connect(peer.getsockname())
        assert self.seconds() >= 0

    def seconds(self) -> float:
        """Return how long a datagram takes to the other and back."""
        start = time.monotonic()
        self.one.send(b"there")
        assert self.other.recv(100) == b"there"
        self.other.send(b"back")
        assert self.one.recv(100) == b"back"
        return time.monotonic() - start


@contextmanager
def ends(lan: gpasst.Network, one: str, other: str) -> Iterator[Ends]:
    made = Ends(lan, one, other)
    with made.one, made.other:
        yield made


def test_what_is_between_two_hosts_delays_them_alone(lan: gpasst.Network) -> None:
    with ends(lan, "a", "b") as pair, ends(lan, "a", "c") as others:
        with lan.between(lan["a"], lan["b"]).impair(protocol="udp", delay=DELAY) as rule:
            assert pair.seconds() >= 2 * DELAY
            before = rule.hits
            others.seconds()
            assert rule.hits == before == 2
        with lan.between("a", "b").impair(protocol="udp", delay=DELAY, one_way=True) as rule:
            assert pair.seconds() >= DELAY
            assert rule.hits == 1
        assert lan.fates(1)[0].startswith("udp: delay 30ms seed 7 [from a to b on lan]: 1 delay 30ms: udp 10.")


def test_a_link_delays_all_that_crosses_it(lan: gpasst.Network) -> None:
    with ends(lan, "a", "b") as one, ends(lan, "c", "a") as two, ends(lan, "b", "c") as others:
        with lan.link("a").impair("udp: delay 30ms") as rule:
            assert one.seconds() >= 2 * DELAY
            assert two.seconds() >= 2 * DELAY
            others.seconds()
            assert rule.hits == 4
        with lan.link(lan["a"]).impair("to guest udp: delay 30ms") as rule:
            assert one.seconds() >= DELAY
            assert rule.hits == 1


def test_a_partition_cuts_off_groups_until_it_ends(lan: gpasst.Network) -> None:
    a, b, c = lan["a"], lan["b"], lan["c"]
    with ends(lan, "a", "b") as cut, ends(lan, "b", "c") as others, lan.capture(filter="udp") as capture:
        with lan.partition([a], [b, c]):
            cut.one.send(b"lost")
            others.seconds()
            await_loss(capture, b"lost")
        cut.seconds()
        with lan.partition(c) as partition:
            cut.seconds()
            others.one.send(b"lost as well")
            await_loss(capture, b"lost as well")
        assert repr(partition) == "<partition c>"
        partition.remove()
        others.seconds()
    assert lan.statistics().drops["lost in a partition"] >= 2


def test_a_stream_survives_loss_and_reordering(lan: gpasst.Network) -> None:
    """Superframes of TCP are cut where the fates of their segments differ."""
    sent = bytes(range(256)) * 2048
    with lan.between("a", "b").impair("tcp: loss 1% delay 1ms±1ms duplicate 1%") as rule:
        with connected(lan["b"], lan["a"]) as (client, accepted):
            assert carried(sent, client, accepted) == sent
        assert rule.hits > len(sent) / 1500


def test_a_reset_reaches_both_ends_and_a_refusal_the_sender(lan: gpasst.Network) -> None:
    with lan["a"].socket(type=socket.SOCK_STREAM) as listener, lan["b"].socket(type=socket.SOCK_STREAM) as client:
        listener.bind((lan["a"].ip4, 0))
        listener.listen()
        client.settimeout(DEADLINE)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted, lan.between("b", "a").impair("tcp: reset"):
            accepted.settimeout(DEADLINE)
            client.send(b"late")
            for sock in (client, accepted):
                with pytest.raises(ConnectionResetError):
                    sock.recv(100)
    with ends(lan, "a", "b") as pair, lan.link("b").impair("to guest udp: unreachable port"):
        pair.one.send(b"refused")
        with pytest.raises(ConnectionRefusedError):
            pair.one.recv(100)


def test_a_narrow_link_lowers_the_path_mtu(lan: gpasst.Network, family: int) -> None:
    """ICMP reports it to the sender, whose kernel cuts its datagrams or segments from then on."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    address = {name: lan[name].ip4 if family == 4 else lan[name].ip6 for name in "ab"}
    with lan["a"].socket(kind, socket.SOCK_STREAM) as listener, lan["b"].socket(kind, socket.SOCK_STREAM) as client:
        listener.bind((address["a"], 0))
        listener.listen()
        client.settimeout(DEADLINE)
        client.connect(listener.getsockname()[:2])
        accepted, _ = listener.accept()
        with accepted, lan.between("a", "b").impair(protocol="tcp", mtu=1300, icmp=True) as rule:
            accepted.settimeout(DEADLINE)
            client.sendall(bytes(20000))
            got = 0
            while got < 20000:
                got += len(accepted.recv(1 << 16))
            assert "lost: mtu 1300" in str(rule.log)


def test_the_same_seed_has_the_same_fates_again(lan: gpasst.Network) -> None:
    """Between two other hosts they are others, as on a network of another name."""

    def fates(network: gpasst.Network, one: str = "a", other: str = "b") -> list[tuple[int, str]]:
        with ends(network, one, other) as pair:
            with network.between(one, other).impair("udp: loss 40%", one_way=True) as rule:
                for number in range(COUNT):
                    pair.one.send(bytes([number]))
                await_hits(rule, COUNT)
            passed = [n for n, fate in rule.log.fates if fate == "pass"]
            assert [pair.other.recv(100)[0] + 1 for _ in passed] == passed
        assert rule.seed == 7
        return rule.log.fates

    first = fates(lan)
    assert 5 < sum(fate == "lost" for _, fate in first) < COUNT - 5
    assert fates(lan) == first
    assert fates(lan, "a", "c") != first
    with gpasst.Network("lan", seed=7) as again:
        again.hosts("a", "b")
        assert fates(again) == first
    with gpasst.Network("wan", seed=7) as other:
        other.hosts("a", "b")
        assert fates(other) != first


def test_a_schedule_changes_the_weather(lan: gpasst.Network) -> None:
    with ends(lan, "a", "b") as pair:
        with lan.between("a", "b").weather([(0, PARTITION), (0.2, CLEAR), (60, "loss 5%")]) as weather:
            pair.one.send(b"lost")
            until = time.monotonic() + DEADLINE
            pair.other.settimeout(0.02)
            while True:
                assert time.monotonic() < until
                pair.one.send(b"again")
                try:
                    assert pair.other.recv(100) == b"again"
                    break
                except TimeoutError:
                    pass
            assert weather.hits >= 2
    with ends(lan, "a", "b") as pair, lan.link("b").weather([(0, MOBILE_3G)]) as weather:
        assert pair.seconds() >= 0.3
        assert len(weather.rules) == 2


def test_a_host_in_two_networks_has_a_link_in_each(lan: gpasst.Network) -> None:
    with gpasst.Network("other") as other:
        far = other.host("far")
        there = other.join(lan["a"])
        with ends(lan, "a", "b") as here, far.socket() as client, lan["a"].socket() as server:
            server.bind((there.ip4, 0))
            server.settimeout(DEADLINE)
            with other.link(there).impair("udp: delay 30ms") as rule:
                start = time.monotonic()
                client.sendto(b"late", server.getsockname())
                assert server.recv(100) == b"late"
                assert time.monotonic() - start >= DELAY
                here.seconds()
                assert rule.hits == 1
            with other.partition(there, far), other.capture(filter="udp") as capture:
                here.seconds()
                client.sendto(b"lost", server.getsockname())
                await_loss(capture, b"lost")


def test_a_router_has_a_link_in_both_its_networks() -> None:
    with gpasst.Network("inner", seed=7) as inner, gpasst.Network("outer", seed=7) as outer:
        router = gpasst.Router("home", inside=inner, outside=outer)
        laptop, server = inner.host("laptop"), outer.host("server")
        with laptop.socket() as near, server.socket() as far, outer.capture(filter="udp") as capture:
            far.bind((server.ip4, 0))
            for sock in (near, far):
                sock.settimeout(DEADLINE)

            def seconds() -> float:
                start = time.monotonic()
                near.sendto(b"there", far.getsockname())
                data, sender = far.recvfrom(100)
                far.sendto(data, sender)
                assert near.recv(100) == b"there"
                return time.monotonic() - start

            seconds()
            for impair in (
                inner.link(router).impair,
                inner.between(laptop, router).impair,
                outer.link(router).impair,
                outer.between("home", "server").impair,
            ):
                with impair("udp: delay 30ms") as rule:
                    assert seconds() >= 2 * DELAY
                    assert rule.hits == 2
            with inner.partition(router), inner.capture(filter="udp") as inside:
                near.sendto(b"lost", far.getsockname())
                await_loss(inside, b"lost")
            with outer.partition(router):
                near.sendto(b"lost outside", far.getsockname())
                await_loss(capture, b"lost outside")
            with inner.link(laptop).impair("to guest udp: unreachable port"):
                near.sendto(b"there", far.getsockname())
                _, sender = far.recvfrom(100)
                far.connect(sender)
                far.send(b"refused")
                with pytest.raises(ConnectionRefusedError):
                    far.recv(100)
        links = [frame.link for frame in capture.udp]
        assert links[:4] == ["home", "server", "server", "home"]


def test_the_way_to_the_outside_has_weather_as_well() -> None:
    """The gateway's address leads to this machine's loopback."""
    with gpasst.Network("out", uplink=True, seed=7) as lan:
        a, b = lan.hosts("a", "b")
        with a.socket() as near, b.socket() as far, socket.socket(type=socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            for sock in (near, far, server):
                sock.settimeout(DEADLINE)

            def seconds(client: socket.socket) -> float:
                start = time.monotonic()
                client.sendto(b"there", (lan.gateway4, server.getsockname()[1]))
                data, sender = server.recvfrom(100)
                server.sendto(data, sender)
                assert client.recv(100) == b"there"
                return time.monotonic() - start

            seconds(near)
            seconds(far)
            with lan.between(a, lan.uplink).impair("udp: delay 30ms") as rule:
                assert seconds(near) >= 2 * DELAY
                seconds(far)
                assert rule.hits == 2
            with lan.link("gateway").impair("udp: delay 30ms") as rule:
                assert seconds(far) >= 2 * DELAY
                assert rule.hits == 2
            with lan.partition(a), lan.capture(filter="udp") as capture:
                near.sendto(b"lost", (lan.gateway4, server.getsockname()[1]))
                seconds(far)
                await_loss(capture, b"lost")
            seconds(near)
        lan.assert_no_drops()


def test_weather_and_partitions_end_with_their_network() -> None:
    with gpasst.Network("short") as lan:
        lan.hosts("a", "b")
        rule = lan.between("a", "b").impair("delay 5s")
        partition = lan.partition(["a"])
        with lan["a"].socket() as sock:
            sock.sendto(b"held", (lan["b"].ip4, 9))
    rule.remove()
    partition.remove()
    assert rule.log.fates == []


def test_what_makes_no_sense_is_refused_in_one_line(lan: gpasst.Network) -> None:
    a, b = lan["a"], lan["b"]
    for make, text in (
        (lambda: lan.link("x"), "x is not connected with network lan"),
        (lambda: lan.between(a, "a"), "between a and itself there is nothing"),
        (lambda: lan.partition(), "a partition has a group without hosts"),
        (lambda: lan.partition([a], []), "a partition has a group without hosts"),
        (lambda: lan.partition([a], ["d"]), "d is not connected with network lan"),
        (lambda: gpasst.Network(seed=-1), "seed -1"),
        (lambda: lan.link(a).impair("rebind"), "rebind: a network translates no addresses"),
        (lambda: lan.link(a).impair("dst 127.0.0.1: loss 1%"), "dst 127.0.0.1: no loopback address crosses a link"),
        (lambda: lan.between(a, b).impair("to guest: loss 1%", one_way=True), "to guest: one_way has one direction"),
        (lambda: lan.between(a, b).impair("loss 130%"), "loss 130%"),
        (lambda: lan.between(a, b).weather([(0, CLEAR), (0, CLEAR)]), "weather at 0 s stands behind that at 0 s"),
    ):
        with pytest.raises(gpasst.ConfigurationError) as caught:
            make()
        assert caught.value.message.startswith(text)
        assert caught.value.remedy
    assert lan.call(lambda parts: parts.switch.between) is None
