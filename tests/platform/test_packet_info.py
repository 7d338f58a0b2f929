"""IP_PKTINFO and IPV6_PKTINFO (ip(7); RFC 3542, section 6): where a datagram was addressed, or leaves from."""

from __future__ import annotations

import socket
import struct

import pytest

from gpasst.linux import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO
from tests.support.families import ANY, FAMILIES, FAMILY, LEVEL
from tests.support.lab import FAR, HOST, Remote, bound, host_socket

OPTION = {4: IP_PKTINFO, 6: IPV6_RECVPKTINFO}
KIND = {4: IP_PKTINFO, 6: IPV6_PKTINFO}
PKTINFO = struct.Struct("@I4s4s")  # struct in_pktinfo: interface, local address, address in the header
PKTINFO6 = struct.Struct("@16sI")  # struct in6_pktinfo: address, interface
ADDRESSED = [(4, "127.0.0.1"), (4, "127.0.0.5"), (6, "::1")]


def reporting(sock: socket.socket, family: int) -> socket.socket:
    sock.setsockopt(LEVEL[family], OPTION[family], 1)
    return sock


def local(family: int, control: list[tuple[int, int, bytes]]) -> tuple[str, int]:
    """Return the local address of a datagram and the interface it came by."""
    ((level, kind, value),) = control
    assert (level, kind) == (LEVEL[family], KIND[family])
    if family == 4:
        interface, address, header = PKTINFO.unpack(value)
        assert address == header, "but for broadcasts and multicasts"
    else:
        address, interface = PKTINFO6.unpack(value)
    return socket.inet_ntop(FAMILY[family], address), interface


@pytest.mark.parametrize(("family", "address"), ADDRESSED)
def test_the_addressed_loopback_address_is_reported(family: int, address: str) -> None:
    with bound(reporting(host_socket(FAMILY[family]), family), ANY[family]) as server:
        with host_socket(FAMILY[family]) as client:
            client.sendto(b"?", (address, server.getsockname()[1]))
            _, control, _, _ = server.recvmsg(9, 64)
            assert local(family, control) == (address, socket.if_nametoindex("lo"))


@FAMILIES
def test_an_address_of_an_interface_is_reported_with_it(remote: Remote, family: int) -> None:
    with bound(reporting(host_socket(FAMILY[family]), family), ANY[family]) as server:
        with bound(remote.socket(FAMILY[family]), FAR[family]) as client:
            client.sendto(b"?", (HOST[family], server.getsockname()[1]))
            _, control, _, _ = server.recvmsg(9, 64)
            assert local(family, control) == (HOST[family], socket.if_nametoindex("up0"))


@pytest.mark.parametrize(("family", "address"), ADDRESSED)
def test_what_was_reported_makes_the_answer_leave_from_there(family: int, address: str) -> None:
    with bound(reporting(host_socket(FAMILY[family]), family), ANY[family]) as server:
        with host_socket(FAMILY[family]) as client:
            client.sendto(b"?", (address, server.getsockname()[1]))
            _, _, _, sender = server.recvmsg(9, 64)
            raw = socket.inet_pton(FAMILY[family], address)
            value = PKTINFO.pack(0, raw, bytes(4)) if family == 4 else PKTINFO6.pack(raw, 0)
            server.sendmsg([b"!"], [(LEVEL[family], KIND[family], value)], 0, sender)
            assert client.recvfrom(9)[1][:2] == (address, server.getsockname()[1])


def test_without_it_the_kernel_chooses() -> None:
    with bound(host_socket(socket.AF_INET), "0.0.0.0") as server, host_socket(socket.AF_INET) as client:
        client.sendto(b"?", ("127.0.0.5", server.getsockname()[1]))
        server.sendto(b"!", server.recvfrom(9)[1])
        assert client.recvfrom(9)[1][0] == "127.0.0.1"
