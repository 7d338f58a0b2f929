"""ICMP errors end to end: what the guest's sockets are told of the datagrams they sent, and the host's of theirs."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import gpasst
from gpasst.linux import UDP_SEGMENT
from gpasst.packet.icmp_error import port_unreachable
from tests.support.engines import ENGINES
from tests.support.families import FAMILY, LOOPBACK
from tests.support.guests import gateway, guest_socket
from tests.support.lab import (
    BEYOND,
    BLACKHOLE,
    FAR,
    HOST,
    INHERITED,
    NARROW_MTU,
    NOWHERE,
    PATIENCE,
    PROHIBITED,
    REMOTE,
    TIGHT,
    UNREACHABLE,
    Remote,
    bound,
    host_socket,
)
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

MSG_ERRQUEUE = 0x2000
RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
HOPS = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
PMTUDISC_DO = 2
ORIGIN = {4: 2, 6: 3}  # SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6
CLOSED = 9  # a port that nobody binds
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
HOST_UNREACHABLE = {4: (3, 1), 6: (1, 0)}  # Linux answers for an unreachable route so
NO_ROUTE = {4: (3, 0), 6: (1, 0)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
# Addresses whose path MTU the host has not learned yet; another run on the same host may have used the first ones.
_fresh = itertools.count(20 if INHERITED in os.environ else 0)
# Linux sends one error a second to a host; tests want every one, as in `tests.support.lab`.
UNLIMITED = "echo 0 > /proc/sys/net/ipv4/icmp_ratemask; echo 127 > /proc/sys/net/ipv6/icmp/ratemask"
TRIES = 5
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A guest with the host's configuration; ports 5000 and 5001 lead to it."""
    del tun, remote
    with gpasst.Pasta(config_net=True, udp_ports="5000-5001", **ENGINES[request.param]) as opened:
        opened.run(["sh", "-c", UNLIMITED], check=True)
        yield opened


@dataclass(frozen=True)
class Told:
    """One error as a socket of the guest finds it in its queue."""

    errno: int
    origin: int
    kind: tuple[int, int]
    info: int
    offender: str
    target: tuple[str, int]
    payload: bytes


def reported(guest: socket.socket, family: int, patience: float = PATIENCE) -> Told:
    """Wait for an error in the queue of a guest's socket."""
    deadline = time.monotonic() + patience
    guest.settimeout(0.005)
    while True:
        try:
            data, control, _, name = guest.recvmsg(2000, 512, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            break
        except (BlockingIOError, TimeoutError):
            assert time.monotonic() < deadline, "no error has come"
            time.sleep(0.005)
    (value,) = [value for *kind, value in control if tuple(kind) == RECVERR[family]]
    number, origin, kind, code, info = struct.unpack_from("@IBBBxI", value)
    raw = value[20:24] if family == 4 else value[24:40]
    return Told(number, origin, (kind, code), info, socket.inet_ntop(FAMILY[family], raw), name[:2], data)


def reported_at_last(guest: socket.socket, family: int, target: tuple[str, int]) -> Told:
    """Ask until an error comes.

    Where a route of its own says that there is no way, Linux reports five errors to one sender at once, then one a
    second, and drops all others (net/ipv4/route.c, ip_error).
    """
    reporting(guest, family)
    for _ in range(TRIES):
        guest.sendto(b"anyone?", target)
        with suppress(AssertionError):
            return reported(guest, family, PATIENCE / 2)
    pytest.fail("no error has come")


def reporting(guest: socket.socket, family: int) -> socket.socket:
    guest.setsockopt(*RECVERR[family], 1)
    return guest


def closed_port(family: int) -> int:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as sock:
        return int(sock.getsockname()[1])


def test_a_closed_remote_port_fails_a_connected_socket(net: gpasst.Pasta, family: int) -> None:
    before = net.statistics().errors_up
    with guest_socket(net, family) as guest:
        guest.connect((FAR[family], CLOSED))
        for _ in range(3):
            guest.send(b"anyone?")
            with pytest.raises(ConnectionRefusedError):
                guest.recv(9)
    assert net.statistics().errors_up == before + 3


def test_a_closed_port_of_the_host_fails_a_connected_socket(net: gpasst.Pasta, family: int) -> None:
    with guest_socket(net, family) as guest:
        target = socket.getaddrinfo(gateway(net, family), closed_port(family), type=socket.SOCK_DGRAM)[0][4]
        guest.connect(target)
        guest.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            guest.recv(9)


def test_a_closed_port_is_reported_with_all_that_is_known(net: gpasst.Pasta, family: int) -> None:
    payload = bytes(range(200))
    with guest_socket(net, family) as guest:
        reporting(guest, family).sendto(payload, (FAR[family], CLOSED))
        assert reported(guest, family) == Told(
            errno.ECONNREFUSED,
            ORIGIN[family],
            PORT_UNREACHABLE[family],
            0,
            FAR[family],
            (FAR[family], CLOSED),
            payload,
        )


def test_the_hosts_loopback_is_reported_as_the_gateway(net: gpasst.Pasta, family: int) -> None:
    port = closed_port(family)
    with guest_socket(net, family) as guest:
        reporting(guest, family).sendto(b"?", (gateway(net, family), port))
        error = reported(guest, family)
        assert (error.kind, error.offender) == (PORT_UNREACHABLE[family], gateway(net, family))
        assert error.target == (gateway(net, family), port)


@pytest.mark.parametrize(
    ("targets", "kinds", "offenders", "number"),
    [
        (UNREACHABLE, HOST_UNREACHABLE, REMOTE, {4: errno.EHOSTUNREACH, 6: errno.ENETUNREACH}),
        (NOWHERE, NO_ROUTE, REMOTE, dict.fromkeys((4, 6), errno.ENETUNREACH)),
    ],
    ids=["router", "host"],
)
def test_what_cannot_be_reached(
    net: gpasst.Pasta, family: int, targets: Any, kinds: Any, offenders: Any, number: Any
) -> None:
    with guest_socket(net, family) as guest:
        error = reported_at_last(guest, family, (targets[family], CLOSED))
        assert (error.errno, error.kind, error.target) == (number[family], kinds[family], (targets[family], CLOSED))
        assert error.payload == b"anyone?"
        assert error.offender in {offenders[family], "fe80::2"}


def test_what_a_route_of_the_host_prohibits(net: gpasst.Pasta, family: int) -> None:
    with guest_socket(net, family) as guest:
        reporting(guest, family).sendto(b"may I?", (PROHIBITED[family], CLOSED))
        error = reported(guest, family)
        assert (error.kind, error.target) == ({4: (3, 13), 6: (1, 1)}[family], (PROHIBITED[family], CLOSED))
        assert error.payload == b"may I?"


def test_a_blackhole_is_silent_and_counted(net: gpasst.Pasta, family: int) -> None:
    before, reason = net.statistics(), gpasst.Drop.SEND_FAILED.value
    with guest_socket(net, family) as guest:
        guest.sendto(b"?", (BLACKHOLE[family], CLOSED))
        until(lambda: net.statistics().drops.get(reason, 0) == before.drops.get(reason, 0) + 1, "it was counted")
    assert net.statistics().errors_up == before.errors_up


def test_a_next_hop_that_is_too_narrow(net: gpasst.Pasta, family: int) -> None:
    # The host remembers path MTUs, and cuts what exceeds them itself.
    target = str(ipaddress.ip_address(TIGHT[family]) + next(_fresh))
    with guest_socket(net, family) as guest:
        guest.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DO)
        reporting(guest, family).sendto(bytes(1400), (target, CLOSED))
        error = reported(guest, family)
        assert (error.errno, error.kind, error.info) == (errno.EMSGSIZE, TOO_BIG[family], NARROW_MTU)
        assert error.offender == REMOTE[family]
        with pytest.raises(OSError) as caught:
            guest.sendto(bytes(1400), (target, CLOSED))
        assert caught.value.errno == errno.EMSGSIZE


def test_errors_lose_and_repeat_no_datagram_to_others(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        expected = []
        for number in range(300):
            data = number.to_bytes(2, "big")
            guest.sendto(data, (FAR[family], CLOSED if number % 3 == 0 else server.getsockname()[1]))
            if number % 7 == 0:
                guest.sendto(b"!", (gateway(net, family), CLOSED))
            if number % 3:
                expected.append(data)
            if number % 40 == 0:
                time.sleep(0.002)
        assert [server.recv(9) for _ in expected] == expected
        # Behind everything that was sent, and so behind what was sent twice.
        guest.sendto(b"end", (FAR[family], server.getsockname()[1]))
        assert server.recv(9) == b"end"


def test_errors_lose_and_repeat_no_superframe(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 100))]
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        expected = []
        for number in range(30):
            guest.sendto(b"?", (FAR[family], CLOSED))
            datagrams = [bytes([number, i]) * 50 for i in range(10)]
            guest.sendmsg([b"".join(datagrams)], control, 0, (FAR[family], server.getsockname()[1]))
            expected += datagrams
        assert [server.recv(999) for _ in expected] == expected
        guest.sendto(b"end", (FAR[family], server.getsockname()[1]))
        assert server.recv(999) == b"end"


def test_answers_behind_errors_arrive(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        guest.sendto(b"?", server.getsockname()[:2])
        _, sender = server.recvfrom(9)
        for number in range(50):
            guest.sendto(b"?", (FAR[family], CLOSED))
            server.sendto(bytes([number]), sender)
        assert [guest.recv(9) for _ in range(50)] == [bytes([number]) for number in range(50)]


def test_a_closed_sender_is_reported_to_a_forwarded_port(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    """A listener's peers are told apart by the addressed address as well."""
    with guest_socket(net, family, 5000) as guest:
        with bound(remote.socket(FAMILY[family]), FAR[family]) as client:
            client.sendto(b"in", (HOST[family], 5000))
            _, sender = guest.recvfrom(9)
        # Whoever made the socket has let go of its own descriptor by the time it makes another.
        remote.socket(FAMILY[family]).close()
        reporting(guest, family).sendto(b"too late", sender)
        error = reported(guest, family)
        assert (error.kind, error.offender, error.target) == (PORT_UNREACHABLE[family], FAR[family], sender[:2])
        assert error.payload == b"too late"


def test_no_socket_spins(net: gpasst.Pasta, family: int) -> None:
    """Once read, an error wakes nobody again."""
    with guest_socket(net, family) as guest:
        before = net.statistics().errors_up
        for _ in range(20):
            guest.sendto(b"?", (FAR[family], CLOSED))
        until(lambda: net.statistics().errors_up > before, "the error was passed on")
        time.sleep(0.05)
        spent = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - spent < 0.1


@pytest.mark.parametrize("hops", [1, 2])
def test_a_ttl_that_is_used_up(net: gpasst.Pasta, family: int, hops: int) -> None:
    """Traceroute: the first hop that shows is the host's router."""
    with guest_socket(net, family) as guest:
        guest.setsockopt(*HOPS[family], hops)
        target = BEYOND[family] if hops == 1 else FAR[family]
        reporting(guest, family).sendto(b"how far?", (target, CLOSED))
        error = reported(guest, family)
        assert error.target == (target, CLOSED)
        if hops == 1:
            assert (error.errno, error.kind, error.offender) == (
                errno.EHOSTUNREACH,
                TIME_EXCEEDED[family],
                REMOTE[family],
            )
        else:
            assert (error.kind, error.offender) == (PORT_UNREACHABLE[family], FAR[family])


@pytest.mark.parametrize("where", ["remote", "loopback"])
def test_errors_of_the_guest_reach_the_sender(net: gpasst.Pasta, remote: Remote, family: int, where: str) -> None:
    """Raw sockets on the host take CAP_NET_RAW."""
    far = where == "remote"
    made = remote.socket(FAMILY[family]) if far else host_socket(FAMILY[family])
    before = net.statistics()
    counted = before.drops.get(gpasst.Drop.GUEST_ERROR.value, 0)
    with bound(made, FAR[family] if far else HOST[family]) as client:
        client.connect((HOST[family], 5001))
        client.send(b"anyone?")
        if os.geteuid():
            until(lambda: net.statistics().drops.get(gpasst.Drop.GUEST_ERROR.value, 0) == counted + 1, "it was counted")
            return
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)
    assert net.statistics().errors_down == before.errors_down + 1


def test_errors_of_the_guest_reach_who_answers_too_late(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    counted = net.statistics().drops.get(gpasst.Drop.GUEST_ERROR.value, 0)
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server:
        with guest_socket(net, family) as guest:
            guest.sendto(b"?", server.getsockname()[:2])
            _, sender = server.recvfrom(9)
        server.connect(sender)
        server.send(b"too late")
        if os.geteuid():
            until(lambda: net.statistics().drops.get(gpasst.Drop.GUEST_ERROR.value, 0) == counted + 1, "it was counted")
            return
        with pytest.raises(ConnectionRefusedError):
            server.recv(9)


def test_errors_of_the_guest_about_nothing_known_are_counted(net: gpasst.Pasta, family: int) -> None:
    protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    guest, peer = (socket.inet_pton(FAMILY[family], address[family]) for address in (HOST, FAR))
    reason = gpasst.Drop.GUEST_ERROR.value
    before = net.statistics().drops.get(reason, 0)
    with net.socket(FAMILY[family], socket.SOCK_RAW, protocol) as raw:
        raw.sendto(port_unreachable(peer, 7, guest, 7), (FAR[family], 0))
        until(lambda: net.statistics().drops.get(reason, 0) == before + 1, "it was counted")
