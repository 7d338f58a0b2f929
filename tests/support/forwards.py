"""Namespaces with forwarded ports, and sockets on either side of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gpasst
from tests.support.families import ANY, FAMILY
from tests.support.lab import bound, host_socket


@contextmanager
def pasta(**options: Any) -> Iterator[gpasst.Pasta]:
    """A namespace whose host has all its ports again when it ends."""
    with gpasst.Pasta(config_net=True, **options) as net:
        yield net
        listed = [forward for forward in net.forwards if not forward.inside]
    for forward in listed:
        assert can_be_bound(forward.address, forward.port)


def can_be_bound(address: str, port: int, net: gpasst.Pasta | None = None) -> bool:
    """Whether a port is free, on the host or in a namespace."""
    family = FAMILY[6 if ":" in address else 4]
    try:
        with bound(net.socket(family) if net else host_socket(family), address, port):
            return True
    except OSError:
        return False


def inside(net: gpasst.Pasta, family: int, port: int, address: str = "") -> Any:
    """A socket bound in the namespace."""
    return bound(net.socket(FAMILY[family]), address or ANY[family], port)


def outside(family: int, port: int = 0, address: str = "") -> Any:
    """A socket bound on the host."""
    return bound(host_socket(FAMILY[family]), address or ANY[family], port)


def automatic(net: gpasst.Pasta, inside: bool = False) -> set[tuple[str, int, str | None, int]]:
    """Give address, port, interface and target of the listeners that follow bound sockets, on one side."""
    return {
        (forward.address, forward.port, forward.interface, forward.target)
        for forward in net.forwards
        if forward.automatic and forward.inside == inside
    }


def ask(client: socket.socket, service: socket.socket, target: tuple[str, int]) -> Any:
    """Send to a service and let it answer; give whom it took the client for."""
    client.sendto(b"question", target)
    data, sender = service.recvfrom(99)
    assert data == b"question"
    service.sendto(b"answer", sender)
    data, answerer = client.recvfrom(99)
    assert (data, answerer[:2]) == (b"answer", target)
    return sender[:2]


def refused(client: socket.socket, target: tuple[str, int]) -> bool:
    """Whether nothing listens there."""
    client.connect(target)
    client.send(b"?")
    try:
        client.recv(9)
    except ConnectionRefusedError:
        return True
    return False
