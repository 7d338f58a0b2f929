"""New connections in both directions: where they lead, what refuses them, and who gives way."""

from __future__ import annotations

import errno
import os
import socket
import struct
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLERR, EPOLLHUP, EPOLLOUT
from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError, PlatformError
from gpasst.flow.network import FamilyNetwork
from gpasst.formats import TCP_ACK, TCP_RST, TCP_SYN
from gpasst.host.tcp import open_outbound
from gpasst.packet.parse import parse_ip
from gpasst.path import tcp_opener
from gpasst.path.tcp_opener import PORTS_TRIED
from gpasst.tcp import table
from gpasst.tcp.states import State
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES, FAMILY, LOOPBACK
from tests.support.networks import INDEX
from tests.support.replies import opened, refused
from tests.support.scripted_tcp import tcp_frame
from tests.support.tcp import ISN, OURS, TARGET, THEIRS, House, house, was_reset

GATEWAY = {4: GATEWAY4, 6: GATEWAY6}
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
PORT = 40000  # of the guest
OPTIONS = bytes.fromhex("0204 05b4 0103 0307")
FAILURES = [
    (errno.ENETUNREACH, {4: (3, 0), 6: (1, 0)}),
    (errno.EHOSTUNREACH, {4: (3, 1), 6: (1, 3)}),
    (errno.EACCES, {4: (3, 13), 6: (1, 1)}),
    (errno.EPERM, {4: (3, 13), 6: (1, 1)}),
    (errno.EADDRNOTAVAIL, {4: (3, 0), 6: (1, 0)}),
]


class Dialled(RawSocket):
    """A socket that is connected as a test says.

    :ivar result: what `connect_ex` returns.
    :ivar address: where it was to be connected.
    """

    result = errno.EINPROGRESS
    address: Any = None

    def connect_ex(self, address: Any, /) -> int:
        self.address = address
        return self.result


def dialled(monkeypatch: pytest.MonkeyPatch, result: int = errno.EINPROGRESS) -> list[Dialled]:
    """Let no socket be connected; return those that were opened."""
    made: list[Dialled] = []

    def open_(network: Any) -> Dialled:
        sock = Dialled(FAMILY[network.family], socket.SOCK_STREAM, 0)
        sock.result = result
        made.append(sock)
        return sock

    monkeypatch.setattr(tcp_opener, "open_outbound", open_)
    return made


def syn(made: House, family: int, port: int, target: str = "", own: int = PORT) -> None:
    """Let the guest send a SYN, to its gateway unless told otherwise."""
    ends = OURS[family], target or GATEWAY[family]
    frame = HOST_MAC + GUEST_MAC + tcp_frame(ends, (own, port), (ISN, 0), TCP_SYN, options=OPTIONS)
    made.frames.outbound(parse_ip(memoryview(frame)))


def only(made: House) -> Any:
    (connection,) = made.tcp.table
    return connection


def closed_port(family: int) -> int:
    with socket.socket(FAMILY[family]) as sock:
        sock.bind((LOOPBACK[family], 0))
        return int(sock.getsockname()[1])


def fails(number: int, times: int = 1) -> Callable[..., None]:
    """Return what raises an errno so many times, and does nothing then."""
    left = [number] * times

    def call(*_: object) -> None:
        if left:
            raise OSError(left.pop(), "as the test wants it")

    return call


@contextmanager
def without_socket() -> Iterator[None]:
    """Expect that no socket could be had."""
    with pytest.raises(PacketError) as caught:
        yield
    assert caught.value.reason is Drop.NO_SOCKET


# --- Outwards ---------------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_guest_is_answered_when_the_remote_end_has_answered(family: int) -> None:
    with house() as made, socket.create_server((LOOPBACK[family], 0), family=FAMILY[family]) as server:
        syn(made, family, server.getsockname()[1])
        assert made.run() == []
        fd = only(made).socket.fileno()
        assert fd in made.ready.watched
        made.ready.events.append((fd, EPOLLOUT))
        made.sockets.step()
        (answer,) = made.link.take()
        assert (answer.flags, answer.acknowledgement) == (TCP_SYN | TCP_ACK, ISN + 1)
        remote, _ = server.accept()
        with remote:
            syn(made, family, server.getsockname()[1])
            assert made.run() == [answer], "sent again, it is answered again"
            assert only(made).state is State.SYN_RECEIVED


@FAMILIES
def test_what_is_refused_is_reset(family: int) -> None:
    with house() as made:
        syn(made, family, closed_port(family))
        made.ready.events.append((only(made).socket.fileno(), EPOLLOUT | EPOLLERR | EPOLLHUP))
        made.sockets.step()
        (answer,) = made.link.take()
        assert (answer.flags, answer.sequence, answer.acknowledgement) == (TCP_RST | TCP_ACK, 0, ISN + 1)
        assert len(made.tcp.table) == 0


@FAMILIES
@pytest.mark.parametrize(("number", "problem"), FAILURES)
def test_no_way_there_is_reported_with_the_syn(
    monkeypatch: pytest.MonkeyPatch, family: int, number: int, problem: dict[int, tuple[int, int]]
) -> None:
    socks = dialled(monkeypatch, number)
    with house() as made:
        for turn in (1, 2):
            syn(made, family, 80, THEIRS[family])
            assert made.run() == [], "no RST"
            packet = opened(made.link.frames[-1], family == 6)
            assert len(made.link.frames) == turn
            assert tuple(packet.payload[:2]) == problem[family]
            quoted = parse_ip(memoryview(bytes(12) + ETHERTYPE[family] + packet.payload[8:]))
            assert (quoted.source, quoted.destination) == (ip(OURS[family]), ip(THEIRS[family]))
            assert bytes(quoted.payload[:8]) == struct.pack(">HHI", PORT, 80, ISN)
        assert [sock.fileno() for sock in socks] == [-1, -1]
        assert len(made.tcp.table) == 0


def test_a_connect_that_fails_otherwise_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled(monkeypatch, errno.ETIMEDOUT)
    with house() as made:
        syn(made, 4, 80, THEIRS[4])
        (answer,) = made.run()
        assert answer.flags == TCP_RST | TCP_ACK


def test_a_link_local_target_has_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    socks = dialled(monkeypatch)
    with house() as made:
        syn(made, 6, 80, "fe80::99")
        assert socks[0].address == ("fe80::99", 80, 0, INDEX)
        assert only(made).remote == (ip("fe80::99"), 80, INDEX)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("224.0.0.1", Drop.NOT_UNICAST),
        ("255.255.255.255", Drop.NOT_UNICAST),
        ("127.0.0.1", Drop.LOOPBACK_ADDRESS),
        ("0.0.0.0", Drop.UNSPECIFIED_ADDRESS),
    ],
)
def test_a_target_that_is_no_host_opens_nothing(monkeypatch: pytest.MonkeyPatch, target: str, reason: Drop) -> None:
    socks = dialled(monkeypatch)
    with house() as made:
        with refused(reason):
            syn(made, 4, 80, target)
        assert socks == []


def test_many_refused_connections_leave_nothing_behind() -> None:
    with house() as made:
        port = closed_port(4)
        for own in range(10000, 11000):
            syn(made, 4, port, own=own)
            made.ready.events.append((only(made).socket.fileno(), EPOLLOUT | EPOLLERR | EPOLLHUP))
            made.sockets.step()
        assert len(made.link.take()) == 1000
        assert (len(made.tcp.table), promised(made), made.tcp.later, made.tcp.armed) == (0, 0, [], [])
        assert not made.sockets.queue


def promised(made: House) -> int:
    """Return the bytes that all connections promise."""
    return made.tcp.opener._budget.promised  # noqa: SLF001


class Service:
    """A service of the program, with a listener on loopback.

    :ivar expected: whom its clients stand for.
    :ivar lacks: what to raise instead of opening a socket.
    """

    def __init__(self, server: socket.socket) -> None:
        self.address = server.getsockname()
        self.expected: dict[int, tuple[bytes, int]] = {}
        self.lacks: Exception | None = None

    def socket(self) -> RawSocket:
        if self.lacks:
            raise self.lacks
        sock = RawSocket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    def expect(self, port: int, guest: tuple[bytes, int]) -> None:
        self.expected[port] = guest


@FAMILIES
def test_a_served_address_leads_to_its_service(family: int) -> None:
    with house() as made, socket.create_server(("127.0.0.1", 0)) as server:
        service = Service(server)
        made.tcp.opener.served[ip(THEIRS[family]), 80] = service
        syn(made, family, 80, THEIRS[family])
        remote, client = server.accept()
        with remote:
            assert service.expected == {client[1]: (ip(OURS[family]), PORT)}
            assert only(made).remote == (ip(THEIRS[family]), 80, 0)
            assert only(made).family == family
        with without_socket():
            service.lacks = PlatformError("no more sockets")
            syn(made, family, 80, THEIRS[family], PORT + 1)
        assert len(made.tcp.table) == 1


# --- Inwards ----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_clients_that_would_look_alike_are_shown_under_different_ports(family: int) -> None:
    """As those are that reach different ports of the host, or different addresses."""
    with house() as made:
        assert [made.join(family, port=65535).port for _ in range(3)] == [65535, 1, 2]


def test_a_client_is_reset_where_no_port_is_left() -> None:
    with house() as made:
        for _ in range(PORTS_TRIED):
            made.join(port=1000)
        sock, remote = made.accepted()
        with refused(Drop.PORTS_EXHAUSTED):
            made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, TARGET, b"")
        assert was_reset(remote)
        assert len(made.tcp.table) == PORTS_TRIED


def test_a_client_is_reset_while_the_guest_has_no_address() -> None:
    with house() as made:
        addresses = made.guest.addresses[6]
        addresses.seen = addresses.link_local = None
        sock, remote = made.accepted(6)
        with refused(Drop.NO_GUEST_ADDRESS):
            made.tcp.opener.inbound(sock, 6, ip(THEIRS[6]), 1000, 0, TARGET, b"")
        assert was_reset(remote)


def test_a_link_local_client_keeps_its_interface() -> None:
    with house() as made:
        sock, _ = made.accepted(6)
        made.tcp.opener.inbound(sock, 6, ip("fe80::99"), 1000, 5, TARGET, b"")
        assert only(made).remote == (ip("fe80::99"), 1000, 5)


def test_a_forward_may_lead_to_another_address() -> None:
    with house() as made:
        sock, _ = made.accepted()
        made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, TARGET, ip("192.0.2.77"))
        assert only(made).ends == (ip("192.0.2.77"), ip(THEIRS[4]), TARGET, 1000)


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["out", "in"])
def test_in_a_full_table_what_was_idle_longest_gives_way(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with house(limit=3) as made:
        joined = []
        for _ in range(3):
            made.time += 1.0
            joined.append(made.join())
        joined[0].tell(b"still here")
        assert joined[0].remote.recv(99) == b"still here"
        made.run()
        if way == "out":
            dialled(monkeypatch)
            syn(made, 4, 80, THEIRS[4])
        else:
            sock, _ = made.accepted()
            made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, TARGET, b"")
        answers = made.link.take()
        assert [(answer.flags, answer.source[1]) for answer in answers] == [(TCP_RST | TCP_ACK, joined[1].port)]
        assert was_reset(joined[1].remote)
        assert made.counters.drops == {Drop.CONNECTIONS_FULL: 1}
        assert len(made.tcp.table) == 3


def test_of_many_that_nobody_has_answered_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CONNECTING", 2)
    with house() as made:
        dialled(monkeypatch)
        for port in (80, 81, 82):
            syn(made, 4, port, THEIRS[4])
        assert made.link.take() == []
        made.time += table.CONNECTING_SECONDS
        syn(made, 4, 83, THEIRS[4])
        assert [(answer.flags, answer.source[1]) for answer in made.link.take()] == [(TCP_RST | TCP_ACK, 80)]
        assert made.counters.drops == {Drop.CONNECTIONS_FULL: 1}
        assert len(made.tcp.table) == 3


def test_near_the_limit_of_open_files_what_was_idle_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with house() as made:
        made.tcp.descriptors.add(made.tcp.opener)
        joined = []
        for _ in range(2):
            made.time += 1.0
            joined.append(made.join())
        made.tcp.descriptors.line = 0
        dialled(monkeypatch)
        syn(made, 4, 80, THEIRS[4])
        assert was_reset(joined[0].remote)
        assert next(iter(made.tcp.table)) is joined[1].connection
        assert made.counters.drops == {Drop.CONNECTIONS_FULL: 1}
        assert len(made.tcp.table) == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_one_connection_ends_for_another(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse = fails(number)

    def limited(network: FamilyNetwork) -> RawSocket:
        refuse()
        return open_outbound(network)

    monkeypatch.setattr(tcp_opener, "open_outbound", limited)
    with house() as made:
        made.tcp.descriptors.add(made.tcp.opener)
        joined = made.join()
        syn(made, 4, closed_port(4))
        assert was_reset(joined.remote)
        assert only(made).state is State.CONNECTING


@pytest.mark.parametrize("call", ["open_outbound", "prepare"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_without_a_socket_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with house() as made:
        monkeypatch.setattr(tcp_opener, call, fails(number, 9))
        with without_socket():
            syn(made, 4, 80)
        assert len(os.listdir("/proc/self/fd")) == before
        assert (len(made.tcp.table), promised(made)) == (0, 0)


@FAMILIES
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
@pytest.mark.parametrize("way", ["out", "in"])
def test_a_socket_that_cannot_be_watched_is_closed(family: int, number: int, way: str) -> None:
    with house() as made, socket.create_server((LOOPBACK[family], 0), family=FAMILY[family]) as server:
        made.ready.refuses = OSError(number, "as the test wants it")
        remote = None
        try:
            if way == "out":
                with without_socket():
                    syn(made, family, server.getsockname()[1])
                remote, _ = server.accept()
            else:
                sock, remote = made.accepted(family)
                with without_socket():
                    made.tcp.opener.inbound(sock, family, ip(THEIRS[family]), 1000, 0, TARGET, b"")
            remote.settimeout(2)
            assert was_reset(remote)
        finally:
            if remote:
                remote.close()
        assert (len(made.tcp.table), promised(made), made.run()) == (0, 0, [])
        made.ready.refuses = None
        made.join(family)


def test_a_client_whose_socket_cannot_be_prepared_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    with house() as made:
        sock, remote = made.accepted()
        monkeypatch.setattr(tcp_opener, "prepare", fails(errno.ENOMEM))
        with without_socket():
            made.tcp.opener.inbound(sock, 4, ip(GUEST4), 1000, 0, TARGET, b"")
        assert was_reset(remote)
        assert (len(made.tcp.table), promised(made)) == (0, 0)
