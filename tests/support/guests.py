"""What end-to-end tests do with the guests that they open."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gpasst
from tests.support.families import ANY, FAMILY
from tests.support.lab import bound, host_socket

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
    proxy = guest._proxy
    assert proxy is not None and guest._runtime is not None
    guest._runtime.call(lambda: proxy.scan(proxy.clock.now() + later))


def gateway(net: gpasst.Pasta, family: int) -> str:
    return net.gateway4 if family == 4 else net.gateway6
