"""Connections between a guest and a remote machine, and what scenarios do with them."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from select import select
from threading import Lock
from typing import Any

from tests.support.families import ANY, FAMILY
from tests.support.lab import FAR, HOST, Remote
from tests.support.machines import PATIENCE, Machine

PORT = 5000  # forwarded to the guest
FORWARD = str(PORT)
MEBI = 1 << 20
PIECE = 1 << 18  # bytes of one receive
STILL = 0.25  # seconds without progress, after which a sender counts as stopped
OUT, IN = "out", "in"  # who opened a connection: the guest, or the remote machine
WAYS = (OUT, IN)


@cache
def noise(size: int, seed: int = 0) -> bytes:
    """Return random bytes, the same ones in every run."""
    return random.Random(seed).randbytes(size)


def patient(sock: socket.socket) -> socket.socket:
    """Bound the patience of a socket's calls."""
    sock.settimeout(PATIENCE)
    return sock


@contextmanager
def listening(sock: socket.socket, address: str, port: int = 0, backlog: int = 128) -> Iterator[tuple[Any, Any]]:
    """Listen with a socket; yields it, and its address with its port."""
    with patient(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        yield sock, sock.getsockname()[:2]


def accepted(server: socket.socket) -> socket.socket:
    """Accept a client."""
    return patient(server.accept()[0])


@contextmanager
def served(
    machine: Machine, remote: Remote, family: int, way: str
) -> Iterator[tuple[socket.socket, Callable[[], socket.socket], Any]]:
    """A server on the one side; yields it, what makes a client's socket on the other side, and where it connects to.

    Any thread may make clients.
    """
    lock = Lock()

    def far() -> socket.socket:
        with lock:
            return patient(remote.socket(FAMILY[family], socket.SOCK_STREAM))

    def guest() -> socket.socket:
        with lock:
            return machine.socket(family)

    if way == OUT:
        with listening(far(), FAR[family]) as (server, address):
            yield server, guest, address
    else:
        with listening(guest(), ANY[family], PORT) as (server, _):
            yield server, far, (HOST[family], PORT)


@contextmanager
def connected(
    machine: Machine, remote: Remote, family: int, way: str = OUT, window: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection; yields the guest's end and the remote machine's.

    :param way: who opened it.
    :param window: bytes of both receive buffers, 0 for the kernel's choice.
    """
    with served(machine, remote, family, way) as (server, client_socket, address), client_socket() as client:
        for sock in (server, client):
            if window:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.connect(address)
        with accepted(server) as other:
            yield (client, other) if way == OUT else (other, client)


def received(sock: socket.socket, size: int = -1, piece: int = PIECE) -> bytes:
    """Receive so many bytes, or all to the end of the stream."""
    data = bytearray()
    while len(data) != size:
        part = sock.recv(piece if size < 0 else min(piece, size - len(data)))
        if not part:
            assert size < 0, f"the stream ended after {len(data)} of {size} bytes"
            break
        data += part
    return bytes(data)


def carried(sender: socket.socket, receiver: socket.socket, data: bytes, piece: int = PIECE) -> bool:
    """Send data from one end to the other; return whether it arrived whole."""
    return carried_all([(sender, receiver, data)], piece)


def carried_all(transfers: list[tuple[socket.socket, socket.socket, bytes]], piece: int = PIECE) -> bool:
    """Send data at once over many streams; return whether all of it arrived whole."""
    with ThreadPoolExecutor(2 * len(transfers)) as pool:
        sent = [pool.submit(sender.sendall, data) for sender, _, data in transfers]
        got = [pool.submit(received, receiver, len(data), piece) for _, receiver, data in transfers]
        for done in sent:
            done.result()
        return all(data == found.result() for (_, _, data), found in zip(transfers, got, strict=True))


def retransmissions(sock: socket.socket) -> int:
    """Return how many segments the kernel of a socket has sent again (tcpi_total_retrans of linux/tcp.h)."""
    return int(struct.unpack_from("@I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0])


def sent_until_stopped(sender: socket.socket, data: bytes) -> int:
    """Send until nothing moves any more, since nobody reads; return how many bytes the socket took."""
    sender.setblocking(False)
    view, at = memoryview(data), 0
    while at < len(data) and select([], [sender], [], STILL)[1]:
        at += sender.send(view[at : at + PIECE])
    patient(sender)
    return at


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer gets a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    sock.close()


def is_reset(sock: socket.socket) -> bool:
    """Wait for the end of a stream; return whether it was reset."""
    try:
        received(sock)
    except ConnectionResetError:
        return True
    return False
