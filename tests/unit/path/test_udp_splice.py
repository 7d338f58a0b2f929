"""Splice pairs over real sockets on loopback; the namespace is the host itself here."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.features import ALL, Feature
from gpasst.flow.loopback import LoopbackTargets
from gpasst.host.descriptors import Descriptors
from gpasst.host.raw import RawSockets
from gpasst.host.receive import sender_key, split_key
from gpasst.host.receive_contiguous import ContiguousReceiver
from gpasst.host.socket_pool import READY, SocketPool
from gpasst.packet import icmp_error
from gpasst.packet.parse import Packet
from gpasst.path import udp_splice
from gpasst.path.udp_splice import UdpSplice
from gpasst.udp.mapping import Listener
from gpasst.udp.pairs import Pair, Pairs
from tests.support.addresses import ip
from tests.support.families import FAMILIES, FAMILY, LOOPBACK
from tests.support.networks import rules
from tests.support.replies import refused

ICMP = {4: 1, 6: 58}
WAYS = [ALL, ALL - {Feature.GSO}, ALL - {Feature.GRO}]


class Raw:
    """Keeps what is sent through raw sockets."""

    def __init__(self, permitted: bool = True) -> None:
        self.permitted = permitted
        self.opened: list[tuple[bool, int]] = []
        self.sent: list[tuple[bool, bytes, bytes, int]] = []

    def open(self, inside: bool, family: int) -> None:
        self.opened.append((inside, family))

    def send(self, inside: bool, built: bytes, target: bytes, scope: int = 0, local: bytes = b"") -> bool:
        self.sent.append((inside, built, target, scope))
        return self.permitted


class Case:
    """Pairs of a namespace that has the host's loopback, with a listener and a service of a test."""

    def __init__(self, family: int, inside: bool, features: frozenset[Feature] = ALL, permitted: bool = True) -> None:
        self.family = family
        self.counters = Counters()
        self.asked: list[int] = []
        self.pool = SocketPool(self.make)
        self.raw = Raw(permitted)
        self.steps: dict[Pair, Callable[[Pair], int]] = {}
        addresses = {4: rules(4, address=None), 6: rules(6, address=None)}
        self.splice = UdpSplice(
            Pairs(LoopbackTargets(addresses, True, 0), {}, {}, 1000),
            self.pool,
            self.steps.__setitem__,
            self.unwatch,
            cast(RawSockets, self.raw),
            {number: ContiguousReceiver(number) for number in (4, 6)},
            self.counters,
            features,
            Descriptors(),
        )
        self.service = self.bound()
        self.client = self.bound()
        sock = self.bound()
        port, target = sock.getsockname()[1], self.service.getsockname()[1]
        self.listener = Listener(family, port, sock, target=target, inside=inside, splices=True)

    def unwatch(self, pair: Pair) -> None:
        del self.steps[pair]

    def bound(self) -> socket.socket:
        sock = socket.socket(FAMILY[self.family], socket.SOCK_DGRAM)
        sock.bind((LOOPBACK[self.family], 0))
        sock.settimeout(2)
        return sock

    def make(self, family: int, kind: int, protocol: int, count: int) -> list[int]:
        self.asked.append(count)
        return [socket.socket(family, kind, protocol).detach() for _ in range(count)]

    def open(self, client: socket.socket | None = None) -> Pair:
        """Open the pair of a client that has sent to the listener."""
        port = (client or self.client).getsockname()[1]
        source = ip(LOOPBACK[self.family])
        key = sender_key(self.family, source, port, 0) + source
        assert split_key(self.family, key)[:2] == (source, port)
        return self.splice.open(self.listener, key, source, port, 0, source)

    def forward(self, pair: Pair, payload: bytes, segment: int = 0) -> None:
        self.splice.forward(pair, [memoryview(payload)], segment or len(payload))

    def move(self, pair: Pair) -> int:
        return self.steps[pair](pair)

    def close(self) -> None:
        self.splice.close()
        self.pool.close()
        for sock in (self.service, self.client, cast(socket.socket, self.listener.socket)):
            sock.close()
        assert self.steps == {}, "every pair's socket is unwatched before it is closed"


@contextmanager
def splice(family: int, inside: bool = False, **options: Any) -> Iterator[Case]:
    case = Case(family, inside, **options)
    try:
        yield case
    finally:
        case.close()


@FAMILIES
@pytest.mark.parametrize("inside", [True, False])
def test_there_and_back(family: int, inside: bool) -> None:
    with splice(family, inside) as case:
        pair = case.open()
        case.forward(pair, b"question")
        data, sender = case.service.recvfrom(99)
        assert data == b"question"
        case.service.sendto(b"answer", sender)
        assert case.move(pair) == 1
        data, answerer = case.client.recvfrom(99)
        assert (data, answerer[1]) == (b"answer", case.listener.port)
        assert case.counters.udp.spliced.datagrams == 2
        assert case.counters.drops == {}


@FAMILIES
@pytest.mark.parametrize("features", WAYS, ids=["all", "no GSO", "no GRO"])
def test_superframes_both_ways(family: int, features: frozenset[Feature]) -> None:
    payload = bytes(at * 7 & 0xFF for at in range(2500))
    pieces = [payload[:1000], payload[1000:2000], payload[2000:]]
    with splice(family, features=features) as case:
        pair = case.open()
        case.splice.forward(pair, [memoryview(payload[:700]), memoryview(payload[700:])], 1000)
        got = [case.service.recvfrom(9999) for _ in pieces]
        assert [data for data, _ in got] == pieces
        for piece in pieces:
            case.service.sendto(piece, got[0][1])
        while case.move(pair):
            pass
        assert [case.client.recv(9999) for _ in pieces] == pieces
        assert case.counters.udp.spliced.datagrams == 6


@FAMILIES
def test_sockets_of_the_namespace_come_from_the_pool(family: int) -> None:
    with splice(family) as case:
        case.splice.listen(False, family)
        assert (case.asked, case.raw.opened) == ([READY], [(False, family)])
        clients = [case.bound() for _ in range(READY)]
        for client in clients:
            case.open(client)
            client.close()
        assert case.asked == [READY], "nobody was asked"


@FAMILIES
def test_those_of_the_host_do_not(family: int) -> None:
    with splice(family, inside=True) as case:
        case.splice.listen(True, family)
        case.open()
        assert (case.asked, case.raw.opened) == ([], [(True, family)])


@FAMILIES
@pytest.mark.parametrize("permitted", [True, False])
def test_a_closed_port_is_reported_to_the_sender(family: int, permitted: bool) -> None:
    with splice(family, permitted=permitted) as case:
        pair = case.open()
        case.service.close()
        case.forward(pair, b"anyone?")
        case.move(pair)
        ((inside, built, target, scope),) = case.raw.sent
        assert (inside, target, scope) == (False, ip(LOOPBACK[family]), 0)
        error = icmp_error.parse(Packet(family, target, target, ICMP[family], memoryview(built), 64))
        assert error is not None
        assert error.problem == icmp_error.CLOSED_PORT[family]
        assert (error.source_port, error.destination_port) == (case.client.getsockname()[1], case.listener.port)
        assert (case.counters.socket_errors, case.counters.refusals) == (1, int(permitted))


@FAMILIES
@pytest.mark.parametrize("strays", [1, 30])
def test_what_comes_before_the_socket_is_connected_is_dropped(
    family: int, strays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with splice(family, inside=True) as case:
        stranger = case.bound()
        bind = udp_splice._bind  # noqa: SLF001  # nothing public happens between bind and connect

        def bind_and_wait(sock: Any, number: int, *rest: Any) -> None:
            bind(sock, number, *rest)
            if sock.getsockname()[1] == 0:
                sock.bind((LOOPBACK[family], 0))
            for _ in range(strays):
                stranger.sendto(b"stray", (LOOPBACK[family], sock.getsockname()[1]))

        monkeypatch.setattr(udp_splice, "_bind", bind_and_wait)
        pair = case.open()
        stranger.close()
        assert case.counters.drops == {Drop.SPLICE_STRAY: strays}
        assert case.move(pair) == 0


@FAMILIES
def test_idle_pairs_end_and_active_ones_stay(family: int) -> None:
    with splice(family) as case:
        pair, idle = case.open(), case.open(case.service)
        assert sum(case.splice.scan(1000, 180)) == 0
        case.forward(pair, b"?")
        assert sum(case.splice.scan(1180, 180)) == 0
        assert sum(case.splice.scan(1181, 180)) == 1
        assert list(case.splice.pairs) == [pair]
        assert (idle.socket, list(case.steps)) == (None, [pair])


@FAMILIES
def test_answers_are_activity_too(family: int) -> None:
    with splice(family) as case:
        pair = case.open()
        case.forward(pair, b"?")
        assert sum(case.splice.scan(1000, 180)) == 0
        case.service.sendto(b"!", case.service.recvfrom(9)[1])
        case.move(pair)
        assert sum(case.splice.scan(1150, 180)) == 0
        assert sum(case.splice.scan(1181, 180)) == 0
        assert sum(case.splice.scan(1331, 180)) == 1


@FAMILIES
def test_with_a_listener_all_its_pairs_end(family: int) -> None:
    with splice(family) as case:
        pair = case.open()
        assert list(case.splice.retire(case.listener)) == [None]
        assert (len(case.splice.pairs), pair.socket, case.steps) == (0, None, {})
        assert case.splice.step(pair) == 0, "a step that was due is no error"


@FAMILIES
@pytest.mark.parametrize("inside", [True, False])
def test_without_a_socket_the_datagram_is_dropped(family: int, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files") if inside else PlatformError("the namespace is gone")

    with splice(family, inside) as case:
        if inside:
            monkeypatch.setattr(udp_splice, "new_udp_socket", refuse)
        else:
            monkeypatch.setattr(case.pool, "take", refuse)
        with refused(Drop.NO_SOCKET):
            case.open()
        assert (len(case.splice.pairs), case.steps) == (0, {})


def test_without_a_way_to_the_target_the_datagram_is_dropped(remote: object) -> None:
    """The lab's host has no route there."""
    del remote
    with splice(4) as case:
        case.listener.target_address = ip("203.0.113.73")
        with refused(Drop.UNREACHABLE):
            case.open()
        assert len(case.splice.pairs) == 0
