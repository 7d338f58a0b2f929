"""sock_diag (Linux 3.3, sock_diag(7)): a dump names each bound UDP socket of a family with its inode."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from gpasst.linux import (
    AF_NETLINK,
    INET_DIAG_SKV6ONLY,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    SOCK_DIAG_BY_FAMILY,
    TCP_CLOSE,
)
from tests.support.families import ANY, FAMILIES, FAMILY, LOOPBACK
from tests.support.lab import bound, host_socket

NLMSGHDR = struct.Struct("@IHHII")  # length, type, flags, sequence, port
REQUEST = struct.Struct("@BBBxI48x")  # struct inet_diag_req_v2: family, protocol, attributes, states
ANSWER = struct.Struct("@BBBB2s2s16s16sI8xIIIII")  # struct inet_diag_msg; the last one is the inode
ATTRIBUTE = struct.Struct("@HH")


def dump(family: int) -> dict[int, tuple[bytes, int, dict[int, bytes]]]:
    """Return local address, port and attributes of each unconnected UDP socket, by its inode."""
    found: dict[int, tuple[bytes, int, dict[int, bytes]]] = {}
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(2)
        body = REQUEST.pack(FAMILY[family], socket.IPPROTO_UDP, 0, 1 << TCP_CLOSE)
        head = NLMSGHDR.pack(NLMSGHDR.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 7, 0)
        netlink.send(head + body)
        while True:
            data = netlink.recv(1 << 16)
            while data:
                length, kind, _, sequence, _ = NLMSGHDR.unpack_from(data)
                assert sequence == 7
                if kind == NLMSG_DONE:
                    return found
                assert kind == SOCK_DIAG_BY_FAMILY
                fields = ANSWER.unpack_from(data, NLMSGHDR.size)
                assert fields[0] == FAMILY[family]
                attributes, at = {}, NLMSGHDR.size + ANSWER.size
                while at < length:
                    size, name = ATTRIBUTE.unpack_from(data, at)
                    attributes[name] = data[at + ATTRIBUTE.size : at + size]
                    at += -(-size // 4) * 4
                width = {4: 4, 6: 16}[family]
                found[fields[-1]] = fields[6][:width], int.from_bytes(fields[4], "big"), attributes
                data = data[-(-length // 4) * 4 :]


@FAMILIES
@pytest.mark.parametrize("addresses", [ANY, LOOPBACK])
def test_a_bound_socket_is_listed_by_the_inode_of_its_descriptor(family: int, addresses: dict[int, str]) -> None:
    with bound(host_socket(FAMILY[family]), addresses[family]) as sock:
        inode = os.fstat(sock.fileno()).st_ino
        address, port, attributes = dump(family)[inode]
        assert (address, port) == (socket.inet_pton(FAMILY[family], addresses[family]), sock.getsockname()[1])
        assert attributes.get(INET_DIAG_SKV6ONLY) == (b"\x01" if family == 6 else None)
    assert inode not in dump(family)


def test_an_ipv6_socket_of_both_families_says_so() -> None:
    with host_socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        inode = os.fstat(sock.fileno()).st_ino
        assert dump(6)[inode][2][INET_DIAG_SKV6ONLY] == b"\0"
        assert inode not in dump(4)


@FAMILIES
def test_a_connected_or_unbound_socket_is_not_listed(family: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as sock, host_socket(FAMILY[family]) as unbound:
        sock.connect(sock.getsockname()[:2])
        assert not {os.fstat(one.fileno()).st_ino for one in (sock, unbound)} & set(dump(family))
