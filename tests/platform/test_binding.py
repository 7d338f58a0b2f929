"""Which UDP ports can be bound beside which (udp_lib_get_port), and which of two sockets receives a datagram."""

from __future__ import annotations

import errno
import socket

import pytest

from gpasst.linux import IP_FREEBIND, IPV6_FREEBIND, SO_BINDTODEVICE
from tests.support.families import ANY, FAMILIES, FAMILY, LEVEL, LOOPBACK
from tests.support.lab import HOST, Remote, bound, host_socket

FREEBIND = {4: IP_FREEBIND, 6: IPV6_FREEBIND}
ABSENT = {4: "192.0.2.77", 6: "2001:db8::77"}


@FAMILIES
@pytest.mark.parametrize("specific_first", [False, True])
def test_a_wildcard_and_a_specific_address_exclude_each_other(family: int, specific_first: bool) -> None:
    first, second = (LOOPBACK, ANY) if specific_first else (ANY, LOOPBACK)
    with bound(host_socket(FAMILY[family]), first[family]) as one:
        with host_socket(FAMILY[family]) as two, pytest.raises(OSError) as caught:
            if family == 6:
                two.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            two.bind((second[family], one.getsockname()[1]))
        assert caught.value.errno == errno.EADDRINUSE


def test_two_specific_addresses_do_not() -> None:
    with bound(host_socket(socket.AF_INET), "127.0.0.1") as one:
        with bound(host_socket(socket.AF_INET), "127.0.0.2", one.getsockname()[1]) as two, host_socket(2) as sender:
            sender.sendto(b"for two", two.getsockname())
            sender.sendto(b"for one", one.getsockname())
            assert (one.recv(9), two.recv(9)) == (b"for one", b"for two")


def test_both_families_have_a_port_of_their_own_where_ipv6_keeps_to_itself() -> None:
    with bound(host_socket(socket.AF_INET6), "::") as six, bound(host_socket(2), "0.0.0.0", six.getsockname()[1]):
        pass


def test_else_an_ipv6_wildcard_has_the_ipv4_port_too() -> None:
    with host_socket(socket.AF_INET6) as six, host_socket(socket.AF_INET) as four:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        six.bind(("::", 0))
        with pytest.raises(OSError) as caught:
            four.bind(("0.0.0.0", six.getsockname()[1]))
        assert caught.value.errno == errno.EADDRINUSE


def test_a_device_makes_two_wildcards_differ(remote: Remote) -> None:
    """Since Linux 5.7 an ordinary user may bind a socket to a device, if it is not bound to one already."""
    del remote
    with host_socket(socket.AF_INET) as one, host_socket(socket.AF_INET) as two:
        one.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"lo")
        two.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"up0")
        one.bind(("0.0.0.0", 0))
        two.bind(("0.0.0.0", one.getsockname()[1]))


def test_a_device_and_none_exclude_each_other() -> None:
    with host_socket(socket.AF_INET) as one, host_socket(socket.AF_INET) as two:
        one.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"lo")
        one.bind(("0.0.0.0", 0))
        with pytest.raises(OSError) as caught:
            two.bind(("0.0.0.0", one.getsockname()[1]))
        assert caught.value.errno == errno.EADDRINUSE


REUSE = {"address": socket.SO_REUSEADDR, "port": socket.SO_REUSEPORT}


def reusing(family: int, *names: str, device: bytes = b"") -> socket.socket:
    sock = host_socket(FAMILY[family])
    sock.settimeout(2)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for name in names:
        sock.setsockopt(socket.SOL_SOCKET, REUSE[name], 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device)
    return sock


@FAMILIES
@pytest.mark.parametrize(
    ("listener", "program", "allowed"),
    [
        ((), ("address",), False),
        (("address",), (), False),
        (("address",), ("address",), True),
        (("address",), ("port",), False),
        (("address", "port"), ("port",), True),
        (("address", "port"), ("address",), True),
        (("address", "port"), (), False),
        (("port",), ("address",), False),
    ],
)
def test_a_port_is_shared_if_both_want_the_same_reuse(
    family: int, listener: tuple[str, ...], program: tuple[str, ...], allowed: bool
) -> None:
    """SO_REUSEPORT moreover takes sockets of one user (sk_reuseport, Linux 3.9)."""
    with reusing(family, *listener, device=b"lo") as one, reusing(family, *program) as two:
        one.bind((ANY[family], 0))
        port = one.getsockname()[1]
        if allowed:
            two.bind((ANY[family], port))
        else:
            with pytest.raises(OSError) as caught:
                two.bind((ANY[family], port))
            assert caught.value.errno == errno.EADDRINUSE


@FAMILIES
def test_of_two_that_share_a_port_the_one_on_the_device_receives(family: int) -> None:
    with reusing(family, "address", device=b"lo") as one, reusing(family, "address") as two:
        one.bind((ANY[family], 0))
        two.bind((ANY[family], one.getsockname()[1]))
        with host_socket(FAMILY[family]) as sender:
            sender.sendto(b"?", (LOOPBACK[family], one.getsockname()[1]))
            assert one.recv(9) == b"?"
            one.close()
            sender.sendto(b"!", (LOOPBACK[family], two.getsockname()[1]))
            assert two.recv(9) == b"!"


@FAMILIES
def test_a_connected_socket_receives_from_its_peer_alone(family: int) -> None:
    """What arrived between bind and connect is kept all the same."""
    with (
        bound(host_socket(FAMILY[family]), LOOPBACK[family]) as sock,
        bound(host_socket(FAMILY[family]), LOOPBACK[family]) as peer,
        bound(host_socket(FAMILY[family]), LOOPBACK[family]) as stranger,
    ):
        here = sock.getsockname()[:2]
        stranger.sendto(b"before", here)
        sock.connect(peer.getsockname()[:2])
        stranger.sendto(b"after", here)
        peer.sendto(b"peer", here)
        assert (sock.recv(9), sock.recv(9)) == (b"before", b"peer")


@FAMILIES
def test_an_address_that_nobody_has(remote: Remote, family: int) -> None:
    """IP_FREEBIND (Linux 2.4), IPV6_FREEBIND (4.15)."""
    del remote
    with host_socket(FAMILY[family]) as sock:
        with pytest.raises(OSError) as caught:
            sock.bind((ABSENT[family], 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        sock.setsockopt(LEVEL[family], FREEBIND[family], 1)
        sock.bind((ABSENT[family], 0))
        assert sock.getsockname()[0] == ABSENT[family]


@FAMILIES
def test_a_port_is_free_again_at_once(remote: Remote, family: int) -> None:
    del remote
    with bound(host_socket(FAMILY[family]), HOST[family]) as sock:
        port = sock.getsockname()[1]
    with bound(host_socket(FAMILY[family]), HOST[family], port):
        pass
