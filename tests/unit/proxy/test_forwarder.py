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

from gpasst.commands.demo import free_ports
from gpasst.config import Config
from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, lay_rules
from gpasst.host.descriptors import RESERVE
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener
from gpasst.path.udp_splice import UdpSplice
from gpasst.proxy import forwarder
from gpasst.proxy.forwarder import CHOICES, Forwarder, descriptor_room
from gpasst.udp.mapping import Listener
from gpasst.udp.nat import UdpNat
from tests.support.lab import HOST4

EPHEMERAL = (32768, 60999)
NO_PORTS = (1, 1)  # an ephemeral range outside of all that the tests use


class Nat:
    """Records the listeners that lead to it.

    :ivar peers: how many each listener has when it is retired.
    """

    def __init__(self) -> None:
        self.tables: dict[int, object] = {}
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
        self.looked = 0
        config = Config(**{"ipv4_only": True, **options})
        self.nat.tables = dict.fromkeys(config.families)
        self.pool = SocketPool(self.make)
        self.own = OwnSockets(tracked=True)
        self.forwarder = Forwarder(
            config,
            lay_rules(config, ephemeral, ephemeral),
            cast(UdpNat, self.nat),
            splice,
            self.pool,
            self.own,
            self.watched.append,
            self.unwatch,
            gro=False,
        )

    def make(self, family: int, kind: int, protocol: int, count: int) -> list[int]:
        return [socket.socket(family, kind, protocol).detach() for _ in range(count)]

    def unwatch(self, listener: Listener) -> None:
        if listener in self.watched:
            self.watched.remove(listener)

    def look(self) -> dict[int, int]:
        """Follow what is bound once; return the open ports with their targets."""
        self.forwarder.follow(lambda descriptor: select.select([descriptor], [], []), self.count)
        return self.ports

    def count(self) -> None:
        self.looked += 1

    @property
    def bound(self) -> list[int]:
        return [listener.port for listener in self.watched]

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
    assert found.watched == found.nat.listeners == []
    assert found.forwarder.listed() == ()


@contextmanager
def taken(port: int = 0, address: str = "0.0.0.0") -> Iterator[int]:
    """Bind a port, the kernel's choice unless it is given."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        yield sock.getsockname()[1]


@pytest.fixture
def lists_sockets() -> None:
    try:
        here = SockDiag.here()
        here.scan(lambda descriptor: select.select([descriptor], [], []))
    except PlatformError as error:
        pytest.skip(f"needs sock_diag: {error}")
    here.close()


def test_explicit_rules_are_opened_on_both_sides() -> None:
    first, second, inside = free_ports(3)
    with bench(udp_ports=(f"{first}:53", f"127.0.0.1/{second}"), udp_ns=f"{inside}:54") as it:
        it.forwarder.open()
        assert it.ports == {first: 53, second: second, inside: 54}
        assert [listener.inside for listener in it.watched] == [False, False, True]
        # What listens in the namespace leads past the NAT.
        assert it.nat.listeners == it.watched[:2]
        assert [listener.general for listener in it.watched] == [True, False, False]
        assert not it.forwarder.automatic


def test_the_kernel_chooses_a_port() -> None:
    with bench(udp_ports="0:80,0:81,0:127.0.0.9/80", udp_ns="0:54") as it:
        it.forwarder.open()
        assert sorted(it.ports.values()) == [54, 80, 80, 81]
        assert 0 not in it.ports
        assert all(forward.chosen for forward in it.forwarder.listed())
        assert [cast(RawSocket, listener.socket).getsockname()[1] for listener in it.watched] == it.bound


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


def test_a_named_port_that_is_taken_is_an_error() -> None:
    (free,) = free_ports(1)
    with bench() as nothing, taken() as port:
        nothing.forwarder.open()
        with bench(udp_ports=f"{free},{port}") as it:
            with pytest.raises(GpasstError, match=f"cannot forward udp port {port} on 0.0.0.0"):
                it.forwarder.open()


def test_a_port_without_splice_pairs_is_not_kept() -> None:
    port, *_ = free_ports(1)
    with bench(splice=cast(UdpSplice, NoSplice()), udp_ports=str(port)) as it:
        with pytest.raises(PlatformError, match="too many open files") as caught:
            it.forwarder.open()
        # The error's traceback refers to all that was made on the way.
        with taken(port):
            pass
        del caught


def test_a_rule_of_exclusions_passes_over_a_port_that_is_taken() -> None:
    (free,) = free_ports(1)
    with taken() as port:
        low, high = sorted((port, free))
        ranges = ((1, low - 1), (low + 1, high - 1), (high + 1, 65535))
        rest = ",".join(f"~{first}-{last}" for first, last in ranges if first <= last)
        with bench(NO_PORTS, udp_ports=rest) as it:
            it.forwarder.open()
            assert it.ports == {free: free}
        with bench(NO_PORTS, udp_ports=f"{rest},~{free}") as it:
            with pytest.raises(PlatformError, match=f"cannot forward udp port {port} on 0.0.0.0"):
                it.forwarder.open()


@pytest.mark.usefixtures("lists_sockets")
def test_an_automatic_rule_follows_what_is_bound() -> None:
    port, target = free_ports(2)
    with bench(udp_ports=f"{port}:{target},auto") as it:
        it.forwarder.open()
        assert it.forwarder.automatic
        assert it.look() == {}
        with taken(target):
            assert it.look() == {port: target}
            assert it.look() == {port: target}
        # One list may lack a socket that stays; two that do, agree.
        assert it.look() == {port: target}
        assert it.look() == {}


@pytest.mark.usefixtures("lists_sockets")
def test_a_port_that_is_taken_is_tried_again() -> None:
    port, target = free_ports(2)
    with bench(udp_ports=f"{port}:{target},auto") as it, taken(target):
        it.forwarder.open()
        with taken(port):
            assert it.look() == {}
        assert it.look() == {port: target}


@pytest.mark.usefixtures("lists_sockets")
def test_sockets_of_the_proxy_are_not_followed() -> None:
    port, target = free_ports(2)
    with bench(udp_ports=f"{port}:{target},auto") as it, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        it.forwarder.open()
        own.bind(("0.0.0.0", target))
        it.own.exclude(own)
        assert it.look() == {}
        it.own.include(own)
        own.close()
        # From the next list on, the number of its inode may be another socket's.
        assert it.look() == {}
        with taken(target):
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
    port, target = free_ports(2)
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
    port, target = free_ports(2)
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

    monkeypatch.setattr(forwarder, "new_udp_socket", new_socket)
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
    (port,) = free_ports(1)
    with bench(udp_ports=f"%nosuch0/{port}") as it, pytest.raises(ConfigurationError, match="no such interface"):
        it.forwarder.open()
