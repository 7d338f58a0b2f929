"""IP_RECVERR and IPV6_RECVERR (ip(7), ipv6(7), Linux 2.2): which datagram met which ICMP error, and what else fails."""

from __future__ import annotations

import errno
import select
import socket
import struct

import pytest

from gpasst.linux import IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE
from tests.support.families import ANY, FAMILIES, FAMILY, LEVEL, LOOPBACK
from tests.support.lab import bound, host_socket

OPTION = {4: IP_RECVERR, 6: IPV6_RECVERR}
EXTENDED_ERROR = struct.Struct("@IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data
ORIGIN_ICMP = {4: 2, 6: 3}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # RFC 792, RFC 4443
OFFENDER = {4: struct.Struct("@H2x4s8x"), 6: struct.Struct("@H6x16sI")}  # a socket address without port


def keeping(family: int) -> socket.socket:
    sock = host_socket(FAMILY[family])
    sock.setsockopt(LEVEL[family], OPTION[family], 1)
    return sock


def closed(family: int) -> tuple[str, int]:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as sock:
        return LOOPBACK[family], int(sock.getsockname()[1])


@FAMILIES
def test_an_error_names_the_datagram_and_who_reported_it(family: int) -> None:
    nobody = closed(family)
    with bound(keeping(family), ANY[family]) as sock:
        sock.sendto(b"payload", nobody)
        data, control, flags, name = sock.recvmsg(999, 512, MSG_ERRQUEUE)
        assert data == b"payload"
        assert flags & MSG_ERRQUEUE
        assert name[:2] == nobody, "where the datagram was sent to"
        ((level, kind, value),) = control
        assert (level, kind) == (LEVEL[family], OPTION[family])
        number, origin, type_, code, _, _ = EXTENDED_ERROR.unpack_from(value)
        assert (number, origin, (type_, code)) == (
            errno.ECONNREFUSED,
            ORIGIN_ICMP[family],
            PORT_UNREACHABLE[family],
        )
        kind, address, *_ = OFFENDER[family].unpack_from(value, EXTENDED_ERROR.size)
        assert (kind, socket.inet_ntop(FAMILY[family], address)) == (FAMILY[family], LOOPBACK[family])


@FAMILIES
def test_the_next_send_fails_once_whatever_it_is_about(family: int) -> None:
    """The pending error (sk_err) belongs to no call: that datagram has not been sent, and can be sent again."""
    with bound(keeping(family), ANY[family]) as sock, bound(host_socket(FAMILY[family]), LOOPBACK[family]) as other:
        sock.sendto(b"?", closed(family))
        with pytest.raises(ConnectionRefusedError):
            sock.sendto(b"lost", other.getsockname()[:2])
        sock.sendto(b"sent", other.getsockname()[:2])
        assert other.recv(9) == b"sent"


@FAMILIES
def test_reading_the_queue_takes_the_pending_error_too(family: int) -> None:
    with bound(keeping(family), ANY[family]) as sock, bound(host_socket(FAMILY[family]), LOOPBACK[family]) as other:
        sock.sendto(b"?", closed(family))
        sock.recvmsg(999, 512, MSG_ERRQUEUE)
        sock.sendto(b"sent", other.getsockname()[:2])
        assert other.recv(9) == b"sent"


@FAMILIES
def test_a_socket_that_holds_an_error_is_readable_until_it_is_read(family: int) -> None:
    with bound(keeping(family), ANY[family]) as sock:
        poll = select.epoll()
        poll.register(sock, select.EPOLLIN)
        assert poll.poll(0) == []
        sock.sendto(b"?", closed(family))
        for _ in range(2):
            ((_, events),) = poll.poll(1)
            assert events & select.EPOLLERR, "which is reported though it was not asked for"
        sock.recvmsg(999, 512, MSG_ERRQUEUE)
        assert poll.poll(0) == []
        poll.close()


@FAMILIES
def test_an_unconnected_socket_without_the_option_meets_no_error(family: int) -> None:
    nobody = closed(family)
    with bound(host_socket(FAMILY[family]), ANY[family]) as sock:
        for _ in range(2):
            sock.sendto(b"?", nobody)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recvmsg(999, 512, MSG_ERRQUEUE)


@FAMILIES
def test_a_connected_one_does(family: int) -> None:
    with host_socket(FAMILY[family]) as sock:
        sock.connect(closed(family))
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(9)
