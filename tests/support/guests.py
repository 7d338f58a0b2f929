"""What end-to-end tests do with the guests that they open."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gpasst
from gpasst.proxy.proxy import Proxy
from tests.support.families import ANY, FAMILY
from tests.support.lab import FAR, Remote, bound, host_socket

SIOCGIFINDEX = 0x8933  # linux/sockios.h
TIMEOUT = 180  # seconds of --udp-timeout unless it is given


@contextmanager
def guest_socket(net: gpasst.Pasta, family: int, port: int = 0) -> Iterator[socket.socket]:
    """A socket of the guest; without `port`, at one that the kernel chose and that is free on the host too."""
    rejected = []
    try:
        while True:
            guest = bound(net.socket(FAMILY[family], socket.SOCK_DGRAM), ANY[family], port)
            sock = guest.__enter__()
            if port or free_on_host(family, sock.getsockname()[1]):
                break
            rejected.append(guest)
        with sock:
            yield sock
    finally:
        for guest in rejected:
            guest.__exit__(None, None, None)


def resolve_gateway(net: gpasst.Pasta, remote: Remote) -> None:
    """Let a guest find the MAC addresses of its gateways; see `resolve_by`."""
    resolve_by(lambda family: net.socket(FAMILY[family], socket.SOCK_DGRAM), remote)


def resolve_by(make: Callable[[int], socket.socket], remote: Remote) -> None:
    """Let a guest find the MAC addresses of its gateways.

    Its kernel keeps datagrams until it has, some 200 kB of them, and one that is sent just when it has may overtake
    these on another processor.

    :param make: makes a socket of the guest, of family 4 or 6.
    """
    for family, far in FAR.items():
        with bound(remote.socket(FAMILY[family]), far) as server, make(family) as guest:
            guest.sendto(b"?", (far, server.getsockname()[1]))
            assert server.recv(9) == b"?"


def free_on_host(family: int, port: int) -> bool:
    """Whether a host port can be had; mappings of earlier tests may still hold it."""
    try:
        with bound(host_socket(FAMILY[family]), ANY[family], port):
            return True
    except OSError:
        return False


def expire(guest: gpasst.Pasta | gpasst.Passt) -> None:
    """End all mappings and pairs: time is an argument, so a scan at a later hour takes no time."""
    scan(guest)
    scan(guest, TIMEOUT + 1)


def scan(guest: gpasst.Pasta | gpasst.Passt, later: int = 0) -> None:
    """Do what is done once a second, `later` seconds from now."""
    proxy = proxy_of(guest)
    call(guest, lambda: proxy.scan(proxy.clock.now() + later))


def journey(guest: gpasst.Pasta | gpasst.Passt) -> Callable[[float], None]:
    """Return what moves a proxy's clock on by seconds, and does what is due then.

    The clock runs all the while, and never goes back.
    """
    proxy = proxy_of(guest)
    original, ahead = proxy.clock.source, 0.0
    proxy.clock.source = lambda: original() + ahead

    def advance(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds
        call(guest, proxy._timers.run)  # noqa: SLF001

    return advance


def proxy_of(guest: gpasst.Pasta | gpasst.Passt) -> Proxy:
    """Return what moves a guest's traffic: nothing public sets its clock, or shows the ends of what it opened."""
    proxy = guest._proxy  # noqa: SLF001
    assert proxy is not None
    return proxy


def call(guest: gpasst.Pasta | gpasst.Passt, function: Callable[[], object]) -> None:
    """Call a function where the proxy runs, which no other thread may disturb."""
    runtime = guest._runtime  # noqa: SLF001
    assert runtime is not None
    runtime.call(function)


def tap_index(net: gpasst.Pasta) -> int:
    """Return the index of the tap in its namespace."""
    with net.socket() as sock:
        answer = fcntl.ioctl(sock, SIOCGIFINDEX, struct.pack("16si20x", net.interface.encode(), 0))
    return int(struct.unpack_from("16si", answer)[1])


def gateway(net: gpasst.Pasta, family: int) -> str:
    return net.gateway4 if family == 4 else net.gateway6
