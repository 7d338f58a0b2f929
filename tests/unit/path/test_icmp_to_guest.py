"""Errors that datagrams of the guest met, as frames for it: what the kernel queued, and what it refused to send."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from gpasst.counters import Drop
from gpasst.packet import icmp_error
from gpasst.packet.icmp_error import CLOSED_PORT, Problem
from gpasst.packet.parse import parse_ip
from gpasst.packet.refusal import refusal
from gpasst.path.icmp_to_guest import ERRORS, IcmpToGuest
from gpasst.testing import free_port
from gpasst.udp.mapping import Peer, UdpSocket
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.bench import GATEWAY, GUEST, Bench, bench, server, udp_packet
from tests.support.families import FAMILIES

MULTICAST = {4: "239.1.2.3", 6: "ff0e::1234"}
FAR = {4: "198.51.100.9", 6: "2001:db8:1::9"}
EXPIRED = {4: Problem(11, 0), 6: Problem(3, 0)}


def reported(bench: Bench) -> tuple[str, icmp_error.Reported]:
    """Return the source of the only frame, and the error in it."""
    (frame,) = bench.link.frames
    assert frame[:12] == GUEST_MAC + HOST_MAC
    packet = parse_ip(memoryview(frame))
    assert packet.destination == ip(GUEST[packet.family])
    error = icmp_error.parse(packet)
    assert error is not None
    family = socket.AF_INET if packet.family == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packet.source), error


def asked(bench: Bench, family: int, payload: bytes = b"payload") -> tuple[UdpSocket, Peer, int, int]:
    """Let the guest ask a port that is closed; return the socket, the peer and both ports."""
    with server(family) as closed:
        nobody = closed.getsockname()
    port = free_port("udp")
    bench.send(family, nobody, payload, port)
    (udp_socket,) = bench.watched
    (peer,) = udp_socket.peers()
    return udp_socket, peer, port, nobody[1]


@FAMILIES
def test_a_closed_port_is_reported_by_the_gateway(family: int) -> None:
    with bench() as it:
        udp_socket, _, port, closed = asked(it, family)
        assert udp_socket.socket is not None
        assert select.select([udp_socket.socket.fileno()], [], [], 2)[0]
        assert it.icmp.queued(udp_socket) == 1
        source, error = reported(it)
        assert source == GATEWAY[family]
        assert error.problem == CLOSED_PORT[family]
        assert (error.source, error.source_port) == (ip(GUEST[family]), port)
        assert (error.destination, error.destination_port) == (ip(GATEWAY[family]), closed)
        assert error.payload == b"payload"
        assert (it.counters.errors_up, it.counters.socket_errors) == (1, 1)
        assert it.icmp.queued(udp_socket) == 0, "each is reported once"


@FAMILIES
def test_an_error_about_a_peer_that_is_gone_is_only_counted(family: int) -> None:
    with bench() as it:
        udp_socket, peer, _, _ = asked(it, family)
        (key,) = peer.up_keys
        udp_socket.leave(key)
        assert it.icmp.queued(udp_socket) == 1
        udp_socket.enter(key, peer)
        assert it.link.frames == []
        assert (it.counters.errors_up, it.counters.socket_errors) == (0, 1)


@FAMILIES
@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM])
def test_what_the_kernel_refuses_is_reported_as_a_router_would(family: int, number: int) -> None:
    with bench() as it:
        peer = it.nat.outbound(family, ip(GUEST[family]), ip(FAR[family]), free_port("udp"), 9)
        it.icmp.refused(peer, number, memoryview(b"never sent"))
        source, error = reported(it)
        assert source == GATEWAY[family]
        assert error.problem == refusal(number).problem(family)
        assert (error.destination, error.payload) == (ip(FAR[family]), b"never sent")
        assert (it.counters.errors_up, it.counters.socket_errors) == (1, 0)


@FAMILIES
def test_a_long_datagram_is_quoted_in_part(family: int) -> None:
    with bench() as it:
        peer = it.nat.outbound(family, ip(GUEST[family]), ip(FAR[family]), free_port("udp"), 9)
        it.icmp.refused(peer, errno.EHOSTUNREACH, memoryview(bytes(60_000)))
        _, error = reported(it)
        assert 400 < len(error.payload) <= 1280
        assert len(it.link.frames[0]) <= 14 + icmp_error.MESSAGE_BYTES[family] + 40


@FAMILIES
def test_errors_that_mean_nothing_to_the_guest_are_none(family: int) -> None:
    with bench() as it:
        peer = it.nat.outbound(family, ip(GUEST[family]), ip(FAR[family]), free_port("udp"), 9)
        for number in (errno.ENOBUFS, errno.ECONNREFUSED, errno.EINVAL):
            it.icmp.refused(peer, number, memoryview(b"?"))
        assert (it.link.frames, it.counters.errors_up) == ([], 0)


@FAMILIES
def test_nobody_hears_of_what_went_to_a_group(family: int) -> None:
    """RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e.3)."""
    with bench() as it:
        peer = it.nat.outbound(family, ip(GUEST[family]), ip(MULTICAST[family]), free_port("udp"), 9)
        it.icmp.refused(peer, errno.ENETUNREACH, memoryview(b"?"))
        assert (it.link.frames, it.counters.errors_up) == ([], 0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENETUNREACH])
def test_nobody_hears_of_a_broadcast(number: int) -> None:
    """The host's socket refuses broadcasts with the error of a prohibiting route."""
    with bench() as it:
        peer = it.nat.outbound(4, ip(GUEST[4]), ip("255.255.255.255"), free_port("udp"), 9)
        it.icmp.refused(peer, number, memoryview(b"?"))
        assert (it.link.frames, it.counters.errors_up) == ([], 0)


@FAMILIES
def test_the_quoted_packet_is_the_guests_own(family: int) -> None:
    with bench() as it:
        peer = it.nat.outbound(family, ip(GUEST[family]), ip(FAR[family]), free_port("udp"), 9)
        peer.set_tos_ttl(0xB811)
        it.icmp.refused(peer, errno.EHOSTUNREACH, memoryview(b"?"))
        quoted = it.link.frames[0][14 + (20 if family == 4 else 40) + 8 :]
        if family == 4:
            assert (quoted[1], quoted[8]) == (0xB8, 17)
        else:
            assert (quoted[0] << 4 & 0xF0 | quoted[1] >> 4, quoted[7]) == (0xB8, 17)


@FAMILIES
def test_the_host_is_shown_as_the_gateway_and_others_as_they_are(family: int) -> None:
    with bench() as it:
        assert it.icmp.shown(family, b"") == ip(GATEWAY[family])
        assert it.icmp.shown(family, ip(FAR[family])) == ip(FAR[family])


def test_a_report_about_anything() -> None:
    """As echo has them: the quoted packet is the caller's."""
    with bench() as it:
        packet = udp_packet(4, 1, 2, b"quoted")
        quoted = icmp_error.quoted_udp(packet.source, 1, packet.destination, 2, b"quoted")
        it.icmp.report(EXPIRED[4], ip(FAR[4]), packet.source, quoted)
        source, error = reported(it)
        assert (source, error.problem, error.payload) == (FAR[4], EXPIRED[4], b"quoted")


@FAMILIES
def test_errors_are_limited_as_those_of_a_router(family: int) -> None:
    times: list[float] = []
    with bench() as it:
        _, peer, _, _ = asked(it, family)
        icmp = IcmpToGuest(it.link, it.guest, it.counters, lambda: times[-1])
        for now in (100.0, 101.0):
            times.append(now)
            for _ in range(2 * ERRORS.burst):
                icmp.refused(peer, errno.EHOSTUNREACH, memoryview(b"payload"))
        assert it.counters.errors_up == ERRORS.burst + ERRORS.per_second
        assert it.counters.drops[Drop.ERROR_RATE] == 3 * ERRORS.burst - ERRORS.per_second


@FAMILIES
def test_a_queue_of_which_nothing_would_be_reported_is_emptied_unread(
    family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench() as it:
        udp_socket, peer, _, _ = asked(it, family)
        icmp = IcmpToGuest(it.link, it.guest, it.counters, lambda: 100.0)
        for _ in range(ERRORS.burst):
            icmp.refused(peer, errno.EHOSTUNREACH, memoryview(b"payload"))
        with monkeypatch.context() as patch:
            patch.setattr("gpasst.path.icmp_to_guest.read_errors", None)
            assert icmp.queued(udp_socket) == 1
            assert icmp.queued(udp_socket) == 0
        assert (it.counters.errors_up, it.counters.socket_errors) == (ERRORS.burst, 1)
        assert it.counters.drops == {Drop.ERROR_RATE: 1}
