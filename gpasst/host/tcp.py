"""The host's TCP sockets: opening and closing them, and the set that watches them."""

from __future__ import annotations

import struct
from _socket import inet_aton, inet_pton
from _socket import socket as RawSocket  # a class
from contextlib import suppress
from typing import Any, Protocol

from gpasst.errors import PlatformError
from gpasst.features import Feature
from gpasst.flow.network import FamilyNetwork
from gpasst.flow.sender import HostSocket, StreamSocket
from gpasst.host.sockets import family_constant, text
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_BINDTODEVICE,
    SO_LINGER,
    SO_OOBINLINE,
    SO_PEEK_OFF,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from gpasst.packet.address import V6

_ADDRESS4_FIELDS = 2  # address and port
_RESET_ON_CLOSE = struct.pack("@ii", 1, 0)  # struct linger: on, for no time


class Epoll(Protocol):
    """An epoll set, as `select.epoll` is one."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor."""

    def unregister(self, fd: int, /) -> None:
        """Watch a descriptor no more."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Return what is ready."""

    def close(self) -> None:
        """Close the set."""


def lacking() -> frozenset[Feature]:
    """Return those features of TCP sockets that this kernel lacks, found out by trying them.

    :raises PlatformError: if there is no socket to try them on.
    """
    try:
        sock = RawSocket(AF_INET, SOCK_STREAM, 0)
    except OSError as error:
        raise PlatformError(f"no socket: {error.strerror}", "raise ulimit -n") from error
    try:
        sock.setsockopt(SOL_SOCKET, SO_PEEK_OFF, 0)
    except OSError:
        return frozenset((Feature.PEEK,))
    finally:
        sock.close()
    return frozenset()


def open_outbound(network: FamilyNetwork) -> RawSocket:
    """Open a socket for a connection of the guest, bound to the outbound address and interface if there are any.

    :raises OSError: if the kernel refuses the socket, or an option or address.
    """
    sock = RawSocket(family_constant(network.family), SOCK_STREAM, 0)
    try:
        prepare_stream(sock)
        if network.outbound_interface:
            sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, network.outbound_interface.encode())
        if network.outbound:
            sock.bind((text(network.outbound), 0))
    except OSError:
        sock.close()
        raise
    return sock


def prepare(sock: RawSocket, peek_offset: bool) -> None:
    """Set the options of a socket that stands for a connection, beyond those of `prepare_stream`.

    :param sock: the socket.
    :param peek_offset: let each peek begin behind what was peeked before.
    :raises OSError: if the kernel refuses one.
    """
    sock.setblocking(False)
    if peek_offset:
        sock.setsockopt(SOL_SOCKET, SO_PEEK_OFF, 0)


def prepare_stream(sock: RawSocket) -> None:
    """Set the options of every socket that carries data; one that is accepted has them from its listener.

    Urgent data stays in line, since a peek or splice(2) would stop before it, and the other end gets no urgent pointer.

    :raises OSError: if the kernel refuses one.
    """
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    sock.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)


def prepare_listener(sock: RawSocket, family: int) -> RawSocket:
    """Set the options of a listener on a new socket and return it: non-blocking, one family only.

    The kernel passes those of `prepare_stream` on to each socket that it accepts. With SO_REUSEADDR its port can be had
    again while connections of an earlier listener are in TIME-WAIT.

    :param sock: the socket; closed on failure.
    :param family: 4 or 6.
    :raises OSError: if the kernel refuses an option.
    """
    try:
        sock.setblocking(False)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        prepare_stream(sock)
        if family == V6:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener: HostSocket) -> tuple[RawSocket, bytes, int, int]:
    """Accept a client; return its socket, address, port, and the interface index of a link-local address or 0.

    :raises BlockingIOError: if none waits.
    :raises OSError: if the kernel refuses.
    """
    # The C class has no public accept: socket.accept itself calls this method.
    descriptor, name = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    address, port = end_of(name)
    family, scope = (AF_INET, 0) if len(name) == _ADDRESS4_FIELDS else (AF_INET6, name[3])
    # With family and type given, the class does not ask the kernel for them.
    return RawSocket(family, SOCK_STREAM, 0, descriptor), address, port, scope


def end_of(name: Any) -> tuple[bytes, int]:
    """Return address and port of a name of a socket, as the kernel states it."""
    if len(name) == _ADDRESS4_FIELDS:
        return inet_aton(name[0]), name[1]
    return inet_pton(AF_INET6, name[0].partition("%")[0]), name[1]


def local_port(sock: StreamSocket | None) -> int:
    """Return the port of a socket; 0 where it has none any more."""
    try:
        return int(sock.getsockname()[1]) if sock is not None else 0
    except OSError:
        return 0


def peek_from_start(sock: StreamSocket) -> None:
    """Let the next peek begin with the first byte of a socket's queue.

    :raises OSError: if the kernel refuses.
    """
    sock.setsockopt(SOL_SOCKET, SO_PEEK_OFF, 0)


def close_with_reset(sock: StreamSocket) -> None:
    """Close a socket so that the remote end gets a RST."""
    # A socket that has failed already may refuse, and needs none.
    with suppress(OSError):
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET_ON_CLOSE)
    sock.close()
