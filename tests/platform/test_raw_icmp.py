"""Raw ICMP sockets (raw(7), RFC 3542 section 3): who may have one, whose checksum it is, and a filter of all types."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from gpasst.linux import ICMP_FILTER, ICMPV6_FILTER, SOL_RAW
from gpasst.packet import checksum
from tests.support.families import FAMILIES, FAMILY, LOOPBACK
from tests.support.lab import bound, host_socket
from tests.support.need import ROOT_ONLY

PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
PORT_UNREACHABLE = {4: b"\x03\x03", 6: b"\x01\x04"}


def raw_socket(family: int) -> socket.socket:
    if os.geteuid():
        pytest.skip(f"{ROOT_ONLY} have raw sockets")
    return socket.socket(FAMILY[family], socket.SOCK_RAW, PROTOCOL[family])


@FAMILIES
def test_an_ordinary_user_may_have_none(family: int) -> None:
    if os.geteuid() == 0:
        raw_socket(family).close()
    else:
        with pytest.raises(PermissionError):
            socket.socket(FAMILY[family], socket.SOCK_RAW, PROTOCOL[family])


@FAMILIES
def test_an_error_that_is_sent_reaches_the_socket_that_it_is_about(family: int) -> None:
    """Over IPv6 the kernel computes the checksum (RFC 3542, section 3.1), over IPv4 it is the sender's."""
    with raw_socket(family) as raw, bound(host_socket(FAMILY[family]), LOOPBACK[family]) as sock:
        with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as peer:
            sock.connect(peer.getsockname()[:2])
            address = socket.inet_pton(FAMILY[family], LOOPBACK[family])
            udp = struct.pack(">HHHH", sock.getsockname()[1], peer.getsockname()[1], 8, 0)
            if family == 4:
                quoted = struct.pack(">BBHIBBH", 0x45, 0, 28, 0, 64, 17, 0) + address * 2 + udp
            else:
                quoted = struct.pack(">IHBB", 6 << 28, 8, 17, 64) + address * 2 + udp
            message = PORT_UNREACHABLE[family] + bytes(6) + quoted
            if family == 4:
                total = 0xFFFF ^ checksum.ones_sum(message)
                message = message[:2] + total.to_bytes(2, "big") + message[4:]
            raw.sendto(message, (LOOPBACK[family], 0))
            with pytest.raises(ConnectionRefusedError):
                sock.recv(9)


@FAMILIES
def test_a_filter_of_all_types_lets_nothing_in(family: int) -> None:
    with raw_socket(family) as raw, host_socket(FAMILY[family]) as sock:
        raw.setblocking(False)
        with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as closed:
            nobody = closed.getsockname()[:2]
        sock.connect(nobody)
        for blocked in (False, True):
            if blocked and family == 4:
                raw.setsockopt(SOL_RAW, ICMP_FILTER, b"\xff" * 4)
            elif blocked:
                raw.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, b"\xff" * 32)
            sock.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(9)
            if blocked:
                with pytest.raises(BlockingIOError):
                    raw.recv(999)
            else:
                assert raw.recv(999)
