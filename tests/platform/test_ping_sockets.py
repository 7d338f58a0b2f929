"""Ping sockets (Linux 3.0, IPv6 3.11; net/ipv4/ping.c): echo for users whose group net.ipv4.ping_group_range admits."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from tests.support.families import ANY, FAMILIES, FAMILY, LOOPBACK
from tests.support.lab import FAR, PATIENCE, Remote

PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
ECHO = struct.Struct(">BBHHH")  # type, code, checksum, identifier, sequence number


def ping_socket(family: int, identifier: int = 0) -> socket.socket:
    try:
        sock = socket.socket(FAMILY[family], socket.SOCK_DGRAM, PROTOCOL[family])
    except PermissionError:
        pytest.skip("needs a group within net.ipv4.ping_group_range")
    sock.settimeout(PATIENCE)
    sock.bind((ANY[family], identifier))
    return sock


@FAMILIES
@pytest.mark.parametrize("where", [LOOPBACK, FAR], ids=["loopback", "remote"])
def test_an_echo_is_answered_under_the_sockets_own_identifier(
    remote: Remote, family: int, where: dict[int, str]
) -> None:
    """Whatever identifier was sent; the checksum is the kernel's as well."""
    del remote
    with ping_socket(family) as sock:
        sock.sendto(ECHO.pack(REQUEST[family], 0, 0xBAD, 0xBAD, 7) + b"data", (where[family], 0))
        data, sender = sock.recvfrom(999)
        kind, code, _, identifier, sequence = ECHO.unpack_from(data)
        assert (kind, code, sequence, data[ECHO.size :]) == (REPLY[family], 0, 7, b"data")
        assert identifier == sock.getsockname()[1] != 0xBAD
        assert sender[0] == where[family]


@FAMILIES
def test_its_port_is_the_identifier(remote: Remote, family: int) -> None:
    del remote
    with ping_socket(family, 4321) as sock:
        assert sock.getsockname()[1] == 4321


@FAMILIES
def test_an_identifier_is_shared_unless_one_of_two_does_not_allow_it(remote: Remote, family: int) -> None:
    """These sockets are made with SO_REUSEADDR (INET_PROTOSW_REUSE), and of two the kernel serves either."""
    del remote
    with ping_socket(family, 4321) as one, ping_socket(family, 4321) as other:
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert one.getsockname()[1] == other.getsockname()[1]
        with socket.socket(FAMILY[family], socket.SOCK_DGRAM, PROTOCOL[family]) as third:
            third.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            with pytest.raises(OSError) as caught:
                third.bind((ANY[family], 4321))
            assert caught.value.errno == errno.EADDRINUSE


@FAMILIES
def test_it_receives_its_own_replies_alone(remote: Remote, family: int) -> None:
    del remote
    with ping_socket(family) as one, ping_socket(family) as other:
        for sock, sequence in ((one, 1), (other, 2)):
            sock.sendto(ECHO.pack(REQUEST[family], 0, 0, 0, sequence), (LOOPBACK[family], 0))
        assert [ECHO.unpack_from(sock.recv(999))[-1] for sock in (one, other)] == [1, 2]
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.recv(999)


@FAMILIES
def test_it_sends_requests_only(remote: Remote, family: int) -> None:
    del remote
    with ping_socket(family) as sock, pytest.raises(OSError) as caught:
        sock.sendto(ECHO.pack(REPLY[family], 0, 0, 0, 1), (LOOPBACK[family], 0))
    assert caught.value.errno == errno.EINVAL
