"""Splice pairs end to end: loopback traffic between host and namespace, socket to socket."""

from __future__ import annotations

import gc
import os
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpasst
from gpasst.flow.record import Flow, Forward
from gpasst.linux import IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, IPV6_RECVPKTINFO, UDP_SEGMENT
from gpasst.path import udp_splice
from gpasst.path.udp_splice import POOL
from tests.support.engines import ENGINES, datagrams, receive_all, send_all
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.guests import call, expire, proxy_of, scan
from tests.support.lab import HOST, HOST4, PATIENCE, REMOTE, Remote, bound, host_socket
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

LOOPBACKS = {4: [f"127.0.0.{last}" for last in range(1, 10)], 6: ["::1"]}
SERVICE, OTHER_SERVICE = 53, 54
TIMEOUT = 180
PRIVILEGED = os.geteuid() == 0  # else the host's senders are not told of refusals
# Level, kind and layout of what tells where a datagram was addressed, and makes it leave from there.
PACKET_INFO = {
    4: (IPPROTO_IP, IP_PKTINFO, struct.Struct("@4x4s4x")),
    6: (IPPROTO_IPV6, IPV6_PKTINFO, struct.Struct("@16s4x")),
}


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A namespace and its host, which lead to each other's ports 53 and 54."""
    del tun, remote
    ports: dict[str, Any] = {"udp_ports": "8053-8054:53-54", "udp_ns": "5300-5301:53-54"}
    with gpasst.Pasta(config_net=True, **ports, **ENGINES[request.param]) as opened:
        yield opened


@dataclass(frozen=True)
class Way:
    """One direction: clients on one side, services on the other.

    :ivar outward: from the namespace to the host.
    :ivar port: where the clients' side leads to port 53 of the other.
    :ivar other_port: where it leads to port 54.
    """

    net: gpasst.Pasta
    family: int
    outward: bool
    port: int
    other_port: int

    def client(self, address: str = "", port: int = 0) -> AbstractContextManager[socket.socket]:
        """A socket on the clients' side."""
        return bound(self._socket(self.outward), address or LOOPBACK[self.family], port)

    def service(self, port: int = SERVICE, address: str = "") -> AbstractContextManager[socket.socket]:
        """A socket on the other side, which tells where it was addressed."""
        sock = self._socket(not self.outward)
        sock.setsockopt(PACKET_INFO[self.family][0], IP_PKTINFO if self.family == 4 else IPV6_RECVPKTINFO, 1)
        return bound(sock, address or ANY[self.family], port)

    def free_port(self) -> int:
        """A port that nobody has on either side."""
        while True:
            with bound(self._socket(self.outward), ANY[self.family]) as one:
                port = int(one.getsockname()[1])
                try:
                    with bound(self._socket(not self.outward), ANY[self.family], port):
                        return port
                except OSError:
                    continue

    @property
    def address(self) -> str:
        """The loopback address of the family."""
        return LOOPBACK[self.family]

    @property
    def seen(self) -> str:
        """Where the services see clients at."""
        return (LOOPBACK if self.outward else HOST)[self.family]

    def _socket(self, inside: bool) -> socket.socket:
        return self.net.socket(FAMILY[self.family]) if inside else host_socket(FAMILY[self.family])


@pytest.fixture(params=[False, True], ids=["to-namespace", "to-host"])
def way(request: pytest.FixtureRequest, net: gpasst.Pasta, family: int) -> Way:
    ports = (5300, 5301) if request.param else (8053, 8054)
    return Way(net, family, request.param, *ports)


superframes_only = pytest.mark.parametrize("net", ["superframes"], indirect=True)
ipv4_only = pytest.mark.parametrize("family", [4])
to_host_only = pytest.mark.parametrize("way", [True], indirect=True, ids=["to-host"])
to_namespace_only = pytest.mark.parametrize("way", [False], indirect=True, ids=["to-namespace"])


def inward(net: gpasst.Pasta, port: int, family: int = 4) -> Way:
    return Way(net, family, False, port, 0)


def outward(net: gpasst.Pasta, port: int, family: int = 4) -> Way:
    return Way(net, family, True, port, 0)


@contextmanager
def clock(net: gpasst.Pasta) -> Iterator[Callable[[int], None]]:
    """Let time pass only when told so, by seconds; each time is followed by a scan."""
    proxy = proxy_of(net)
    original, now = proxy.clock.source, proxy.clock.now()
    proxy.clock.source = lambda: now

    def advance(seconds: int) -> None:
        nonlocal now
        now += seconds
        scan(net)

    try:
        yield advance
        advance(TIMEOUT)
        advance(TIMEOUT + 1)
    finally:
        proxy.clock.source = original


def drops(statistics: gpasst.Statistics) -> dict[str, int]:
    """Give what was dropped but for what the namespace's kernel says by itself."""
    unasked = {gpasst.Drop.ICMP_TYPE.value, gpasst.Drop.PROTOCOL.value}
    return {reason: count for reason, count in statistics.drops.items() if reason not in unasked}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def serve(service: socket.socket, count: int = 1) -> list[tuple[bytes, Any]]:
    """Answer datagrams with what they say, from where they were addressed; give them with their senders."""
    level, kind, layout = PACKET_INFO[4 if service.family == socket.AF_INET else 6]
    served = []
    for _ in range(count):
        data, control, _, sender = service.recvmsg(65535, 64)
        addressed = next(layout.unpack(value)[0] for at, what, value in control if (at, what) == (level, kind))
        service.sendmsg([data], [(level, kind, layout.pack(addressed))], 0, sender)
        served.append((data, sender[:2]))
    return served


def exchange(way: Way, client: socket.socket, service: socket.socket, data: bytes = b"?", address: str = "") -> Any:
    """Ask and answer once; give whom the service took the client for."""
    target = address or way.address, way.port
    client.sendto(data, target)
    ((heard, sender),) = serve(service)
    assert heard == data
    answer, answerer = client.recvfrom(65535)
    assert (answer, answerer[:2]) == (data, target)
    return sender


def nothing_came(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(9)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(PATIENCE)
    return False


# --- Who gets which answer -----------------------------------------------------------------------------------------


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


# --- What is carried -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 1472, 1473, 8000, 65479, 65480, 65487, 65507, 65527])
def test_sizes(way: Way, size: int) -> None:
    if size > 65507 and way.family == 4:
        size = 65507
    payload = bytes(i * 7 & 0xFF for i in range(size))
    with way.service() as service, way.client() as client:
        exchange(way, client, service, payload)


@pytest.mark.parametrize("segment", [1, 500, 1000, 1472, 8000])
def test_superframes_of_applications_both_ways(way: Way, segment: int) -> None:
    payload = bytes(i * 11 & 0xFF for i in range(min(64 * segment - 1, 60_000)))
    expected = datagrams(payload, segment)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))]
    with way.service() as service, way.client() as client:
        client.sendmsg([payload], control, 0, (way.address, way.port))
        got = [service.recvfrom(65535) for _ in expected]
        assert [data for data, _ in got] == expected
        service.sendmsg([payload], control, 0, got[0][1])
        assert [client.recv(65535) for _ in expected] == expected


@st.composite
def bursts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Sends as (sender, payload bytes, segment bytes) that fit the receive buffer of an ordinary user."""
    burst: list[tuple[int, int, int]] = []
    room = 90_000
    for _ in range(draw(st.integers(1, 10))):
        sender = draw(st.integers(0, 2))
        size = draw(st.sampled_from([0, 1, 64, 1400, 1472, 1473, 8000]) | st.integers(0, 3000))
        kind = draw(st.sampled_from(["train", "single", "superframe"]))
        if kind == "train":
            sends = [(sender, size, size)] * draw(st.integers(2, 8))
        elif kind == "single" or not size:
            sends = [(sender, size, size)]
        else:
            segment = min(size, 1400)
            sends = [(sender, draw(st.integers(segment, segment * 12)), segment)]
        room -= sum(payload for _, payload, _ in sends)
        if room < 0:
            break
        burst += sends
    return burst


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(burst=bursts())
def test_random_bursts(way: Way, burst: list[tuple[int, int, int]]) -> None:
    """Nothing is lost, changed or reordered within a flow, in either direction."""
    with way.service() as service, ExitStack() as stack:
        clients = [stack.enter_context(way.client()) for _ in range(3)]
        shown = [exchange(way, client, service) for client in clients]
        sent = send_all(clients, burst, (way.address, way.port))
        got = receive_all(service, sum(map(len, sent)))
        assert got == {sender: data for sender, data in zip(shown, sent, strict=True) if data}
        for number, size, segment in burst:
            payload = bytes((number * 37 + i) & 0xFF for i in range(size))
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))] if segment < size else []
            service.sendmsg([payload], control, 0, shown[number])
            expected = datagrams(payload, segment)
            assert [clients[number].recv(65535) for _ in expected] == expected


@superframes_only
@pytest.mark.parametrize("strays", [3, 100])
def test_what_strangers_send_before_a_pair_is_connected_is_dropped(
    way: Way, strays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches nobody, and harms nothing of the burst that the pair was made for."""
    bind = udp_splice._bind  # noqa: SLF001  # nothing public happens between bind and connect

    def bind_slowly(sock: Any, family: int, route: Any) -> None:
        bind(sock, family, route)
        for _ in range(strays):
            stranger.sendto(b"stray" * 280, (way.address, sock.getsockname()[1]))

    port, reason = way.free_port(), gpasst.Drop.SPLICE_STRAY.value
    monkeypatch.setattr(udp_splice, "_bind", bind_slowly)
    before = way.net.statistics().drops.get(reason, 0)
    expected = [b"%d" % number * 1400 for number in range(5)]
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1400))]
    with way.service() as service, way.service(port=0) as stranger, way.client(port=port) as client:
        client.sendmsg([b"".join(expected)], control, 0, (way.address, way.port))
        got = [service.recvfrom(65535) for _ in expected]
        assert [data for data, _ in got] == expected
        service.sendto(b"answer", got[0][1])
        assert client.recv(9) == b"answer"
    assert way.net.statistics().drops[reason] == before + strays


# --- Closed ports --------------------------------------------------------------------------------------------------


def test_a_closed_port_is_reported_and_opens_later(way: Way) -> None:
    """The error ends with the service's start, and takes nothing with it."""
    with way.client() as client:
        client.connect((way.address, way.port))
        before = way.net.statistics()
        for turn in range(1, 3):
            client.send(b"too early")
            if way.outward or PRIVILEGED:
                with pytest.raises(ConnectionRefusedError):
                    client.recv(9)
            expected = before.socket_errors + turn
            until(lambda minimum=expected: way.net.statistics().socket_errors >= minimum, "refused")
        refusals = 2 if way.outward or PRIVILEGED else 0
        assert way.net.statistics().refusals == before.refusals + refusals
        with way.service() as service:
            for data in (b"first", b"second"):
                client.send(data)
                assert [heard for heard, _ in serve(service)] == [data]
                assert client.recv(9) == data
        assert drops(way.net.statistics()) == drops(before)


@superframes_only
def test_a_burst_to_a_closed_port_ends_with_an_open_one(way: Way) -> None:
    """Unconnected senders are not told, and go on; what they send after the service's start arrives."""
    with way.client() as client, way.client() as marker:
        before = way.net.statistics().socket_errors
        for _ in range(20):
            client.sendto(b"too early", (way.address, way.port))
        until(lambda: way.net.statistics().socket_errors > before, "refused")
        with way.service(OTHER_SERVICE) as other:
            # Ahead of what follows here is all that was sent before.
            marker.sendto(b"mark", (way.address, way.other_port))
            serve(other)
        with way.service() as service:
            client.sendto(b"in time", (way.address, way.port))
            until(lambda: service.recv(99) == b"in time", "the datagram after the service's start")


# --- Which listeners there are -------------------------------------------------------------------------------------


def test_an_address_of_the_host_opens_no_loopback_listener() -> None:
    with gpasst.Pasta(udp_ports=f"{HOST4}/5000", config_net=True) as net:
        with bound(host_socket(socket.AF_INET), "127.0.0.1", 5000), bound(host_socket(socket.AF_INET6), "::", 5000):
            with bound(net.socket(), ANY[4], 5000) as guest, bound(host_socket(socket.AF_INET), HOST4) as client:
                client.sendto(b"?", (HOST4, 5000))
                assert guest.recvfrom(9)[1][0] == net.gateway4
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


# --- What is tracked -----------------------------------------------------------------------------------------------


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
        for _ in range(POOL):
            exchange(way, stack.enter_context(way.client()), service)
        assert asked == []
    scan(way.net)
    assert asked == [(FAMILY[way.family], socket.SOCK_DGRAM, 0, POOL)]


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


# --- Loopback alone, and no way round ------------------------------------------------------------------------------


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
