"""Error queues: entries as the kernel writes them, and sockets whose datagrams the kernel itself reports on."""

from __future__ import annotations

import struct
from _socket import socket as RawSocket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpasst.flow.sender import SocketAddress
from gpasst.host.error_queue import ERRORS_LIMIT, QueuedError, discard_errors, parse_error, read_errors
from gpasst.host.sockets import new_udp_socket, stand_in
from gpasst.packet.icmp_error import CLOSED_PORT, Problem
from tests.support.addresses import ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.loopback import bound

GUEST = {4: ip("192.0.2.2"), 6: ip("2001:db8::2")}
PEER = {4: ip("198.51.100.9"), 6: ip("2001:db8:1::9")}
ROUTER = {4: ip("203.0.113.1"), 6: ip("2001:db8:2::1")}
PORT = 53


def extended(number: int, origin: int, kind: int, code: int, info: int, address: bytes) -> bytes:
    return struct.pack("@IBBBxII", number, origin, kind, code, info, 0) + address


OFFENDER = {
    4: struct.pack("@HH4s8x", 2, 0, ROUTER[4]),
    6: struct.pack("@HHI16sI", 10, 0, 0, ROUTER[6], 0),
}
RECVERR = {4: (0, 11), 6: (41, 25)}
NAME: dict[int, SocketAddress] = {4: ("198.51.100.9", PORT), 6: ("2001:db8:1::9", PORT, 0, 7)}


@pytest.mark.parametrize(
    ("family", "value", "problem", "offender"),
    [
        (4, extended(111, 2, 3, 3, 0, OFFENDER[4]), Problem(3, 3), ROUTER[4]),
        (6, extended(111, 3, 1, 4, 0, OFFENDER[6]), Problem(1, 4), ROUTER[6]),
        (4, extended(90, 2, 3, 4, 1280, OFFENDER[4]), Problem(3, 4, 1280), ROUTER[4]),
        (6, extended(90, 3, 2, 0, 1280, OFFENDER[6]), Problem(2, 0, 1280), ROUTER[6]),
        (4, extended(90, 1, 0, 0, 1500, bytes(16)), Problem(3, 4, 1500), b""),
        (6, extended(90, 1, 0, 0, 1500, bytes(28)), Problem(2, 0, 1500), b""),
        (4, extended(1, 1, 0, 0, 0, bytes(16)), None, b""),
        (4, extended(90, 2, 5, 1, 0, OFFENDER[4]), None, b""),
        (6, extended(90, 4, 1, 4, 0, OFFENDER[6]), None, b""),
    ],
)
def test_entries_of_error_queues(family: int, value: bytes, problem: Problem | None, offender: bytes) -> None:
    got = parse_error(family, b"start", [(*RECVERR[family], value)], NAME[family])
    scope = 7 if family == 6 else 0
    assert got == QueuedError(PEER[family], PORT, scope, b"", problem, offender, b"start")


def test_entries_of_error_queues_report_the_own_address() -> None:
    info4 = struct.pack("@i4s4s", 3, bytes(4), GUEST[4])
    assert parse_error(4, b"", [(0, 8, info4)], NAME[4]).local == GUEST[4]
    info6 = GUEST[6] + struct.pack("@I", 3)
    assert parse_error(6, b"", [(41, 50, info6), (41, 52, b"\0\0\0\1")], NAME[6]).local == info6


# The kernel's own errors, over loopback.


@contextmanager
def sender(family: int, packet_info: bool = False) -> Iterator[RawSocket]:
    sock = new_udp_socket(family, gro=False, packet_info=packet_info)
    try:
        stand_in(sock, family)
        yield sock
    finally:
        sock.close()


def closed_port(family: int) -> Any:
    with bound(family) as sock:
        return sock.getsockname()


def send(sock: RawSocket, data: bytes, name: Any) -> None:
    """Send a datagram; the error of the one before may have to be taken first."""
    try:
        sock.sendto(data, name)
    except ConnectionRefusedError:
        sock.sendto(data, name)


@FAMILIES
def test_a_closed_port_is_reported_with_the_datagram(family: int) -> None:
    name = closed_port(family)
    with sender(family) as sock:
        assert read_errors(sock, family) == []
        send(sock, b"nobody there", name)
        loopback = ip(LOOPBACK[family])
        expected = QueuedError(loopback, name[1], 0, b"", CLOSED_PORT[family], loopback, b"nobody there")
        assert read_errors(sock, family) == [expected]
        assert read_errors(sock, family) == []


@FAMILIES
def test_errors_may_be_discarded(family: int) -> None:
    name = closed_port(family)
    with sender(family) as sock:
        for _ in range(ERRORS_LIMIT + 3):
            send(sock, b"nobody there", name)
        assert [discard_errors(sock) for _ in range(3)] == [ERRORS_LIMIT, 3, 0]
        assert read_errors(sock, family) == []


@FAMILIES
def test_errors_name_the_local_address_where_the_socket_reports_it(family: int) -> None:
    name = closed_port(family)
    with sender(family, packet_info=True) as sock:
        send(sock, b"x", name)
        (error,) = read_errors(sock, family)
    assert error.local[: len(ip(LOOPBACK[family]))] == ip(LOOPBACK[family])


@FAMILIES
def test_a_long_queue_is_read_in_pieces_and_in_order(family: int) -> None:
    name = closed_port(family)
    payloads = [bytes([number]) for number in range(ERRORS_LIMIT + 6)]
    with sender(family) as sock:
        for payload in payloads:
            send(sock, payload, name)
        pieces = [read_errors(sock, family) for _ in range(3)]
    assert [len(piece) for piece in pieces] == [ERRORS_LIMIT, 6, 0]
    assert [error.payload for piece in pieces for error in piece] == payloads
