"""TOS, traffic class, TTL and hop limit end to end: what the other side sees of what a socket set."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import gpasst
from gpasst.linux import UDP_SEGMENT
from tests.support.engines import ENGINES
from tests.support.families import FAMILY, LOOPBACK
from tests.support.guests import gateway, guest_socket
from tests.support.lab import FAR, HOST, Remote, bound, host_socket

pytestmark = pytest.mark.usefixtures("tun", "remote")

TOS = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
HOPS = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
RECV = {4: ((socket.IPPROTO_IP, 13), (socket.IPPROTO_IP, 12)), 6: ((41, 66), (41, 51))}
SEEN = {(0, 1): "tos", (0, 2): "hops", (41, 67): "tos", (41, 52): "hops"}
MARKS = [(0, 64), (1, 64), (2, 64), (3, 64), (0xB8, 64), (0xB9, 17), (0, 255), (0, 64), (0xFF, 9), (0, 128)]
Seen = tuple[bytes, int, int]


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A guest with the host's configuration; port 5000 leads to it."""
    del tun, remote
    with gpasst.Pasta(config_net=True, udp_ports="5000", **ENGINES[request.param]) as opened:
        yield opened


def watching(sock: socket.socket, family: int) -> socket.socket:
    for level, option in RECV[family]:
        sock.setsockopt(level, option, 1)
    return sock


def with_tos_ttl(sock: socket.socket, family: int, tos_ttl: tuple[int, int]) -> None:
    sock.setsockopt(*TOS[family], tos_ttl[0])
    sock.setsockopt(*HOPS[family], tos_ttl[1])


def seen(sock: socket.socket) -> Seen:
    """Receive one datagram: data, TOS, TTL."""
    data, control, _, _ = sock.recvmsg(65535, 256)
    found = {}
    for level, kind, value in control:
        if (level, kind) in SEEN:
            found[SEEN[level, kind]] = value[0]
    return data, found["tos"], found["hops"]


def send_all(sock: socket.socket, family: int, to: Any) -> list[Seen]:
    """Send bursts under marks that change; give what must be seen."""
    expected = []
    for turn in range(3):
        for number, tos_ttl in enumerate(MARKS):
            with_tos_ttl(sock, family, tos_ttl)
            for copy in range(1 + (turn + number) % 4):
                data = bytes([turn, number, copy]) * 20
                sock.sendto(data, to)
                expected.append((data, *tos_ttl))
    return expected


def test_marks_of_the_guest_reach_the_remote_machine(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        # What waits for the guest's first neighbour discovery may be overtaken by what comes right behind it.
        guest.sendto(b"first", server.getsockname()[:2])
        assert server.recv(9) == b"first"
        expected = send_all(guest, family, watching(server, family).getsockname()[:2])
        assert [seen(server) for _ in expected] == expected


def test_marks_of_superframes_of_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 100))]
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        watching(server, family)
        for tos_ttl in MARKS:
            with_tos_ttl(guest, family, tos_ttl)
            guest.sendmsg([bytes(1050)], control, 0, server.getsockname()[:2])
            got = [seen(server) for _ in range(11)]
            assert got == [(bytes(100), *tos_ttl)] * 10 + [(bytes(50), *tos_ttl)]


def test_marks_of_fragments(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        watching(server, family)
        for tos_ttl in MARKS:
            with_tos_ttl(guest, family, tos_ttl)
            guest.sendto(bytes(65507), server.getsockname()[:2])
            assert seen(server) == (bytes(65507), *tos_ttl)


def test_marks_of_the_guest_reach_the_hosts_loopback(net: gpasst.Pasta, family: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as server, guest_socket(net, family) as guest:
        expected = send_all(guest, family, (gateway(net, family), watching(server, family).getsockname()[1]))
        assert [seen(server) for _ in expected] == expected


def test_a_multicast_ttl_is_the_guests(net: gpasst.Pasta, remote: Remote) -> None:
    group = "239.1.2.3"
    with bound(remote.socket(socket.AF_INET), "0.0.0.0") as server, guest_socket(net, 4) as guest:
        membership = socket.inet_aton(group) + socket.inet_aton("192.0.2.1")
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        watching(server, 4)
        for hops in (1, 64, 9):
            guest.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
            guest.sendto(b"all", (group, server.getsockname()[1]))
            assert seen(server) == (b"all", 0, hops)


def test_marks_of_the_remote_machine_reach_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as client, guest_socket(net, family, 5000) as guest:
        watching(guest, family)
        expected = send_all(client, family, (HOST[family], 5000))
        assert [seen(guest) for _ in expected] == expected


def test_marks_of_many_senders_reach_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family])) for _ in range(20)]
        guest = watching(stack.enter_context(guest_socket(net, family, 5000)), family)
        for turn in range(len(MARKS)):
            expected = []
            for number, client in enumerate(clients):
                tos_ttl = MARKS[(turn + number % 3) % len(MARKS)]
                with_tos_ttl(client, family, tos_ttl)
                client.sendto(bytes([number]) * 20, (HOST[family], 5000))
                expected.append((bytes([number]) * 20, *tos_ttl))
            assert sorted(seen(guest) for _ in clients) == expected


def test_marks_of_answers_reach_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        watching(guest, family).sendto(b"?", server.getsockname()[:2])
        _, sender = server.recvfrom(9)
        expected = send_all(server, family, sender)
        assert [seen(guest) for _ in expected] == expected


def test_marks_of_superframes_to_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 100))]
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        watching(guest, family).sendto(b"?", server.getsockname()[:2])
        _, sender = server.recvfrom(9)
        for tos_ttl in MARKS:
            with_tos_ttl(server, family, tos_ttl)
            server.sendmsg([bytes(1050)], control, 0, sender)
            assert [seen(guest) for _ in range(11)] == [(bytes(100), *tos_ttl)] * 10 + [(bytes(50), *tos_ttl)]
