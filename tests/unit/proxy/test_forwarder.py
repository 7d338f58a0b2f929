"""Listeners of forwarded ports: opened by rules, and opened and closed by what is bound."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import select
import socket
from _socket import socket as RawSocket  # a class
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from gpasst.config import Config, PortSide
from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, PortRules, lay_rules
from gpasst.host.descriptors import RESERVE, descriptor_room
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener
from gpasst.path.udp_splice import UdpSplice
from gpasst.portspec import lay, parse
from gpasst.proxy import forwarder, openers
from gpasst.proxy.forwarder import CHOICES, Forwarder
from gpasst.proxy.openers import TcpListenerOpener, UdpListenerOpener
from gpasst.tcp.listener import TcpListener
from gpasst.testing.ports import free_ports
from gpasst.udp.mapping import Listener
from gpasst.udp.nat import UdpNat
from tests.support.lab import HOST4

EPHEMERAL = (32768, 60999)
KINDS = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
TCP_OPTIONS = {"tcp_ports": False, "tcp_ns": True}
NO_PORTS = (1, 1)  # an ephemeral range outside of all that the tests use


class Nat:
    """Records the listeners that lead to it.

    :ivar peers: how many each listener has when it is retired.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.peers = 0

    def listen(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def retire(self, listener: Listener) -> Iterator[None]:
        for _ in range(self.peers):
            yield
        self.listeners.remove(listener)


class NoSplice:
    """Stands for splice pairs of a namespace that makes no more sockets."""

    def listen(self, inside: bool, family: int) -> None:
        raise PlatformError("too many open files")


class Bench:
    """A forwarder whose namespace is the host's own, and what it has done to its surroundings."""

    def __init__(self, ephemeral: tuple[int, int], options: dict[str, Any], splice: UdpSplice | None = None) -> None:
        self.nat = Nat()
        self.watched: list[Listener] = []
        self.accepting: list[TcpListener] = []
        self.looked = 0
        tcp = {PortSide("tcp", inside): options.pop(name, ()) for name, inside in TCP_OPTIONS.items()}
        config = Config(**{"ipv4_only": True, **options})
        table = dict(lay_rules(config, ephemeral, ephemeral).table)
        table |= {side: lay(parse("--tcp", specifications, "tcp"), ephemeral) for side, specifications in tcp.items()}
        self.pool = SocketPool(self.make)
        self.own = OwnSockets(tracked=True)
        udp = UdpListenerOpener(
            cast(UdpNat, self.nat),
            splice,
            self.pool,
            self.watched.append,
            self.unwatch,
            gro=False,
            keeps_loopback=config.keeps_loopback,
        )
        both = udp, TcpListenerOpener(self, None, self.pool, config.keeps_loopback)
        rules = PortRules(table, dict.fromkeys((False, True), ephemeral))
        self.forwarder = Forwarder(config, rules, both, config.families, self.pool, self.own)

    def make(self, family: int, kind: int, protocol: int, count: int) -> list[int]:
        return [socket.socket(family, kind, protocol).detach() for _ in range(count)]

    def watch(self, listener: TcpListener) -> None:
        self.accepting.append(listener)

    def unwatch(self, listener: Listener | TcpListener) -> None:
        if isinstance(listener, TcpListener):
            self.accepting.remove(listener)
        elif listener in self.watched:
            self.watched.remove(listener)

    def look(self) -> dict[int, int]:
        """Follow what is bound once; return the open ports with their targets."""
        self.forwarder.follow(lambda descriptor: select.select([descriptor], [], []), self.count)
        return self.ports

    def count(self) -> None:
        self.looked += 1

    @property
    def bound(self) -> list[int]:
        return [port for port, _ in self.listening]

    @property
    def listening(self) -> list[tuple[int, RawSocket]]:
        udp = [(listener.port, listener.socket) for listener in self.watched]
        tcp = [(listener.port, listener.socket) for listener in self.accepting]
        return cast(list[tuple[int, RawSocket]], udp + tcp)

    @property
    def ports(self) -> dict[int, int]:
        listed = self.forwarder.listed()
        assert [forward.port for forward in listed] == self.bound
        return {forward.port: forward.target for forward in listed}

    def close(self) -> None:
        self.forwarder.close()
        self.pool.close()


@contextmanager
def bench(ephemeral: tuple[int, int] = EPHEMERAL, splice: UdpSplice | None = None, **options: Any) -> Iterator[Bench]:
    found = Bench(ephemeral, options, splice)
    try:
        yield found
    finally:
        found.close()
    assert (found.watched, found.accepting, found.nat.listeners) == ([], [], [])
    assert found.forwarder.listed() == ()


def on_host(protocol: str, *specifications: str) -> dict[str, Any]:
    """Return the option that forwards ports of the host."""
    return {f"{protocol}_ports": specifications}


@contextmanager
def taken(port: int = 0, address: str = "0.0.0.0", protocol: str = "udp") -> Iterator[int]:
    """Bind a port, the kernel's choice unless it is given; with TCP, listen there."""
    with socket.socket(socket.AF_INET, KINDS[protocol]) as sock:
        sock.bind((address, port))
        if protocol == "tcp":
            sock.listen()
        yield sock.getsockname()[1]


@pytest.fixture
def lists_sockets() -> None:
    for protocol in KINDS:
        try:
            here = SockDiag.here(protocol)
            here.scan(lambda descriptor: select.select([descriptor], [], []))
        except PlatformError as error:
            pytest.skip(f"needs sock_diag: {error}")
        here.close()


@pytest.fixture(params=list(KINDS))
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol in turn."""
    name: str = request.param
    return name


def test_explicit_rules_are_opened_on_both_sides() -> None:
    first, second, inside = free_ports(3, "udp")
    with bench(udp_ports=(f"{first}:53", f"127.0.0.1/{second}"), udp_ns=f"{inside}:54") as it:
        it.forwarder.open()
        assert it.ports == {first: 53, second: second, inside: 54}
        assert [listener.inside for listener in it.watched] == [False, False, True]
        # What listens in the namespace leads past the NAT.
        assert it.nat.listeners == it.watched[:2]
        assert [listener.general for listener in it.watched] == [True, False, False]
        assert not it.forwarder.automatic


def test_tcp_listens_on_both_sides() -> None:
    first, second, inside = free_ports(3, "tcp")
    ports = f"{first}:80", f"127.0.0.1/{second}:192.0.2.5/81"
    with bench(udp_ports=str(first), tcp_ports=ports, tcp_ns=(f"{inside}:54",)) as it:
        it.forwarder.open()
        assert [(one.protocol, one.port, one.target) for one in it.forwarder.listed()] == [
            ("udp", first, first),
            ("tcp", first, 80),
            ("tcp", second, 81),
            ("tcp", inside, 54),
        ]
        assert [(one.family, one.port, one.target, one.target_address, one.inside) for one in it.accepting] == [
            (4, first, 80, b"", False),
            (4, second, 81, bytes((192, 0, 2, 5)), False),
            (4, inside, 54, b"", True),
        ]
        for listener in it.accepting:
            sock = cast(RawSocket, listener.socket)
            assert sock.getblocking() is False
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        with socket.create_connection(("127.0.0.1", second), 2):
            pass


def test_a_tcp_port_can_be_had_again_at_once() -> None:
    """Although connections of the listener before are in TIME-WAIT."""
    (port,) = free_ports(1, "tcp")
    for _ in range(2):
        with bench(tcp_ports=(str(port),)) as it:
            it.forwarder.open()
            with socket.create_connection(("127.0.0.1", port), 2) as client:
                descriptor, _ = cast(Any, it.accepting[0].socket)._accept()  # noqa: SLF001  # the C class has no other
                os.close(descriptor)
                assert client.recv(1) == b""


def test_both_families_of_tcp_have_their_own_listener() -> None:
    (port,) = free_ports(1, "tcp")
    with bench(tcp_ports=(str(port),), ipv4_only=False) as it:
        it.forwarder.open()
        assert [(one.address, one.port) for one in it.forwarder.listed()] == [("0.0.0.0", port), ("::", port)]


def test_rules_of_a_protocol_that_is_not_carried_open_nothing() -> None:
    rules = PortRules({PortSide("tcp", inside=False): parse("-t", ("5000", "auto"), "tcp")})
    found = Forwarder(Config(), rules, (), (4, 6), None, OwnSockets(tracked=False))
    found.open()
    assert found.listed() == ()
    assert not found.automatic
    found.close()


def test_the_kernel_chooses_a_port() -> None:
    with bench(udp_ports="0:80,0:81,0:127.0.0.9/80", udp_ns="0:54", tcp_ports=("0:443",)) as it:
        it.forwarder.open()
        assert sorted(it.ports.values()) == [54, 80, 80, 81, 443]
        assert 0 not in it.ports
        assert all(forward.chosen for forward in it.forwarder.listed())
        assert [sock.getsockname()[1] for _, sock in it.listening] == it.bound


def test_a_chosen_port_is_free_in_all_families(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [errno.EADDRINUSE] * (CHOICES - 1)

    def bind(sock: RawSocket, at: BindAddress, *arguments: Any) -> int:
        if at.family == 6 and refusals:
            sock.close()
            raise OSError(refusals.pop(), "")
        return bind_listener(sock, at, *arguments)

    monkeypatch.setattr(forwarder, "bind_listener", bind)
    with bench(udp_ports="0:80", ipv4_only=False) as it:
        it.forwarder.open()
        one, two = it.forwarder.listed()
        assert (one.port, one.address, two.address) == (two.port, "0.0.0.0", "::")
        assert not refusals
    refusals += [errno.EADDRINUSE] * CHOICES
    with bench(udp_ports="0:80", ipv4_only=False) as it:
        with pytest.raises(PlatformError, match="the port is in use"):
            it.forwarder.open()
        assert it.ports == {}


def add(it: Bench, protocol: str, *specifications: str, inside: bool = False) -> forwarder.Added:
    """Add forwards to a running bench."""
    return it.forwarder.add(PortSide(protocol, inside), parse("add", specifications, protocol), it.count)


@pytest.mark.parametrize("inside", [False, True])
def test_forwards_come_and_go(protocol: str, inside: bool) -> None:
    first, *ports = free_ports(4, protocol)
    with bench(**on_host(protocol, str(first))) as it:
        it.forwarder.open()
        listed = ",".join(f"{port}:{number}" for number, port in enumerate(ports, 1))
        added = add(it, protocol, listed, inside=inside)
        assert it.looked == len(ports), "others run in between"
        assert {(one.port, one.target, one.inside) for one in added.forwards} == {
            (port, number, inside) for number, port in enumerate(ports, 1)
        }
        assert set(it.ports) == {first, *ports}
        it.nat.peers = 2
        it.looked = 0
        it.forwarder.remove(added, it.count)
        assert it.looked == len(ports) * (3 if protocol == "udp" and not inside else 1), "behind each peer as well"
        assert set(it.ports) == {first}
        it.nat.peers = 0
        for port in ports:
            with taken(port, protocol=protocol):
                pass
        again = add(it, protocol, listed, inside=inside)
        assert len(again.forwards) == len(ports)


def test_an_added_port_of_the_kernels_choice_is_one_for_both_families(protocol: str) -> None:
    with bench(ipv4_only=False) as it:
        it.forwarder.open()
        one, two = add(it, protocol, "0:80").forwards
        assert (one.port, one.target, one.chosen, two.address) == (two.port, 80, True, "::")


def test_of_added_forwards_all_are_open_or_none(protocol: str) -> None:
    (free,) = free_ports(1, protocol)
    with bench() as it, taken(protocol=protocol) as port:
        it.forwarder.open()
        with pytest.raises(PlatformError, match=rf"cannot forward {protocol} port {port} on 0.0.0.0 \(rule {free},"):
            add(it, protocol, f"{free},{port}")
        assert it.ports == {}
        with taken(free, protocol=protocol):
            pass


def test_a_forwarder_that_is_closed_meanwhile_opens_no_more(protocol: str) -> None:
    ports = free_ports(3, protocol)
    with bench() as it:
        it.forwarder.open()
        added = add(it, protocol, ",".join(map(str, ports)))

        def close() -> None:
            it.forwarder.close()

        with pytest.raises(ConfigurationError, match="was closed meanwhile"):
            it.forwarder.remove(added, close)
        with pytest.raises(ConfigurationError, match="was closed meanwhile"):
            it.forwarder.add(PortSide(protocol, False), parse("add", [str(ports[0])], protocol), close)


def test_families_that_are_not_in_use_leave_nothing_to_add(protocol: str) -> None:
    with bench() as it:
        it.forwarder.open()
        with pytest.raises(ConfigurationError, match="no port is left to forward"):
            add(it, protocol, "[::1]/5000")


def test_a_named_port_that_is_taken_is_an_error(protocol: str) -> None:
    (free,) = free_ports(1, protocol)
    with bench() as nothing, taken(protocol=protocol) as port:
        nothing.forwarder.open()
        with bench(**on_host(protocol, f"{free},{port}")) as it:
            with pytest.raises(GpasstError, match=f"cannot forward {protocol} port {port} on 0.0.0.0"):
                it.forwarder.open()


def test_a_port_without_splice_pairs_is_not_kept() -> None:
    port, *_ = free_ports(1, "udp")
    with bench(splice=cast(UdpSplice, NoSplice()), udp_ports=str(port)) as it:
        with pytest.raises(PlatformError, match="too many open files") as caught:
            it.forwarder.open()
        # The error's traceback refers to all that was made on the way.
        with taken(port):
            pass
        del caught


def test_a_rule_of_exclusions_passes_over_a_port_that_is_taken(protocol: str) -> None:
    (free,) = free_ports(1, protocol)
    with taken(protocol=protocol) as port:
        low, high = sorted((port, free))
        ranges = ((1, low - 1), (low + 1, high - 1), (high + 1, 65535))
        rest = ",".join(f"~{first}-{last}" for first, last in ranges if first <= last)
        other = {"udp": "tcp", "tcp": "udp"}[protocol]
        with bench(NO_PORTS, **on_host(protocol, rest)) as it:
            it.forwarder.open()
            assert it.ports == {free: free}
        with bench(NO_PORTS, **on_host(protocol, f"{rest},~{free}"), **on_host(other, "0:53")) as it:
            with pytest.raises(PlatformError, match=f"cannot forward {protocol} port {port} on 0.0.0.0"):
                it.forwarder.open()


@pytest.mark.usefixtures("lists_sockets")
def test_an_automatic_rule_follows_what_is_bound(protocol: str) -> None:
    port, target = free_ports(2, protocol)
    with bench(**on_host(protocol, f"{port}:{target},auto")) as it:
        it.forwarder.open()
        assert it.forwarder.automatic
        assert it.look() == {}
        with taken(target, protocol=protocol):
            assert it.look() == {port: target}
            assert it.look() == {port: target}
        # One list may lack a socket that stays; two that do, agree.
        assert it.look() == {port: target}
        assert it.look() == {}


@pytest.mark.usefixtures("lists_sockets")
def test_a_port_that_is_taken_is_tried_again(protocol: str) -> None:
    port, target = free_ports(2, protocol)
    with bench(**on_host(protocol, f"{port}:{target},auto")) as it, taken(target, protocol=protocol):
        it.forwarder.open()
        with taken(port, protocol=protocol):
            assert it.look() == {}
        assert it.look() == {port: target}


@pytest.mark.usefixtures("lists_sockets")
def test_each_protocol_follows_its_own_sockets() -> None:
    port, target = free_ports(2, "tcp")
    rule = (f"{port}:{target},auto",)
    with bench(udp_ports=rule, tcp_ports=rule) as it:
        it.forwarder.open()
        for protocol in KINDS:
            with taken(target, protocol=protocol):
                it.look()
                assert [one.protocol for one in it.forwarder.listed()] == [protocol]
            assert it.look() == {port: target}
            assert it.look() == {}


@pytest.mark.usefixtures("lists_sockets")
def test_a_connected_or_bound_socket_of_tcp_is_not_followed() -> None:
    with bench(tcp_ports=("127.0.0.9/auto",)) as it, socket.socket() as bound, socket.socket() as service:
        it.forwarder.open()
        bound.bind((HOST4, 0))
        service.bind((HOST4, 0))
        service.listen()
        with socket.create_connection(service.getsockname(), 2) as client:
            found = it.look()
        assert service.getsockname()[1] in found
        assert bound.getsockname()[1] not in found
        del client


@pytest.mark.usefixtures("lists_sockets")
def test_services_on_loopback_are_followed_where_loopback_is_kept(protocol: str) -> None:
    """Clients of TCP cross the tap, so that no service on the namespace's loopback can be reached."""
    with taken(address="127.0.0.1", protocol=protocol) as target, bench(**on_host(protocol, "auto")) as it:
        it.forwarder.open()
        assert target not in it.look()
    (port,) = free_ports(1, protocol)
    with taken(address="127.0.0.1", protocol=protocol) as target:
        with bench(**on_host(protocol, f"{port}:{target},auto"), host_lo_to_ns_lo=True) as it:
            it.forwarder.open()
            assert it.look() == ({port: target} if protocol == "udp" else {})


@pytest.mark.usefixtures("lists_sockets")
def test_a_kernel_that_lists_one_protocol_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(diag: SockDiag, wait: Any) -> Any:
        if diag.protocol == "udp":
            raise PlatformError("the kernel does not list its UDP sockets")
        return whole(diag, wait)

    whole = SockDiag.scan
    monkeypatch.setattr(SockDiag, "scan", scan)
    port, target = free_ports(2, "tcp")
    rule = (f"{port}:{target},auto",)
    with bench(udp_ports=rule, tcp_ports=rule) as it, taken(target, protocol="tcp"):
        it.forwarder.open()
        with pytest.raises(PlatformError, match="UDP sockets"):
            it.look()
        assert it.ports == {port: target}


@pytest.mark.usefixtures("lists_sockets")
def test_sockets_of_the_proxy_are_not_followed(protocol: str) -> None:
    port, target = free_ports(2, protocol)
    with (
        bench(**on_host(protocol, f"{port}:{target},auto")) as it,
        socket.socket(socket.AF_INET, KINDS[protocol]) as own,
    ):
        it.forwarder.open()
        own.bind(("0.0.0.0", target))
        if protocol == "tcp":
            own.listen()
        it.own.exclude(own)
        assert it.look() == {}
        it.own.include(own)
        own.close()
        # From the next list on, the number of its inode may be another socket's.
        assert it.look() == {}
        with taken(target, protocol=protocol):
            assert it.look() == {port: target}


@pytest.mark.usefixtures("lists_sockets")
def test_others_run_while_many_are_opened() -> None:
    with ExitStack() as stack, bench(udp_ports="127.0.0.9/auto") as it:
        it.forwarder.open()
        ports = [stack.enter_context(taken(address=HOST4)) for _ in range(5)]
        assert sorted(it.look()) == sorted(ports)
        assert it.looked == len(ports)


@pytest.mark.usefixtures("lists_sockets")
def test_others_run_while_the_peers_of_a_listener_end() -> None:
    port, target = free_ports(2, "udp")
    with bench(udp_ports=f"{port}:{target},auto") as it:
        it.forwarder.open()
        with taken(target):
            assert it.look() == {port: target}
        it.look()
        it.nat.peers, it.looked = 3, 0
        assert it.look() == {}
        assert it.looked >= 3


@pytest.mark.usefixtures("lists_sockets")
def test_a_listener_is_closed_even_if_that_is_broken_off() -> None:
    port, target = free_ports(2, "udp")
    with bench(udp_ports=f"{port}:{target},auto") as it:
        it.forwarder.open()
        with taken(target):
            it.look()
        it.look()
        (listener,) = it.watched
        it.nat.peers = 3
        with pytest.raises(KeyboardInterrupt):
            it.forwarder.follow(lambda descriptor: select.select([descriptor], [], []), interrupt)
        it.nat.peers = 0
        it.forwarder.close()
        assert listener.socket is None


def test_an_error_of_the_kernel_while_a_port_is_chosen_is_one_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(_socket.socket):
        def getsockname(self) -> Any:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    opened: list[Socket] = []

    def new_socket(*_: Any, **__: Any) -> Socket:
        opened.append(Socket(socket.AF_INET, socket.SOCK_DGRAM))
        return opened[-1]

    monkeypatch.setattr(openers, "new_udp_socket", new_socket)
    with bench(udp_ports="0:5000") as it, pytest.raises(PlatformError, match="No buffer space"):
        it.forwarder.open()
    assert opened
    assert {sock.fileno() for sock in opened} == {-1}


def interrupt() -> None:
    raise KeyboardInterrupt


def test_more_ports_than_open_files_is_an_error() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("needs a limit of open files")
    room = descriptor_room(0)
    assert room == hard - len(os.listdir("/proc/self/fd")) - RESERVE
    assert descriptor_room(room) == room
    with pytest.raises(PlatformError, match=f"forwarding needs {room + 1} sockets") as caught:
        descriptor_room(room + 1)
    assert f"raise ulimit -n to {hard + 1}" in caught.value.remedy


def test_a_rule_for_an_interface_that_does_not_exist_is_an_error() -> None:
    (port,) = free_ports(1, "udp")
    with bench(udp_ports=f"%nosuch0/{port}") as it, pytest.raises(ConfigurationError, match="no such interface"):
        it.forwarder.open()
