"""Ports for programs that cannot let the kernel choose theirs."""

from __future__ import annotations

import socket
from contextlib import ExitStack

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def free_ports(count: int, protocol: str = "tcp") -> list[int]:
    """Return ports of the host that are free at present, on every address of both families.

    Nothing keeps them free: a program that can bind port 0 needs no such call, and neither do the forwards of gpasst,
    which take ``0:80``.

    :param count: how many, all different.
    :param protocol: ``"tcp"`` or ``"udp"``.
    :raises OSError: if the kernel has none.
    """
    with ExitStack() as held:
        return [_hold(held, KINDS[protocol]) for _ in range(count)]


def free_port(protocol: str = "tcp") -> int:
    """Return a port of the host that is free at present; see `free_ports`."""
    return free_ports(1, protocol)[0]


def _hold(held: ExitStack, kind: socket.SocketKind) -> int:
    """Return a port that is bound in both families until `held` ends."""
    try:
        sock = held.enter_context(socket.socket(socket.AF_INET6, kind))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
    except OSError:  # a kernel without IPv6
        sock = held.enter_context(socket.socket(socket.AF_INET, kind))
        sock.bind(("0.0.0.0", 0))
    return int(sock.getsockname()[1])
