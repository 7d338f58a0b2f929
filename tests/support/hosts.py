"""What hosts of a network send each other: streams that have to arrive whole."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gpasst

DEADLINE = 10.0  # seconds; for what takes milliseconds
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PIECE = 1 << 16  # bytes that are sent before they are received


def address(host: gpasst.Host, family: int) -> str:
    """Return the address of a host in a family, 4 or 6."""
    return host.ip4 if family == 4 else host.ip6


@contextmanager
def connected(
    client: gpasst.Host, server: gpasst.Host, family: int = 4
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two hosts; yield the socket of each."""
    with (
        server.socket(FAMILIES[family], socket.SOCK_STREAM) as listener,
        client.socket(FAMILIES[family], socket.SOCK_STREAM) as near,
    ):
        listener.bind((address(server, family), 0))
        listener.listen()
        for sock in (listener, near):
            sock.settimeout(DEADLINE)
        near.connect(listener.getsockname()[:2])
        far, _ = listener.accept()
        with far:
            far.settimeout(DEADLINE)
            yield near, far


def carried(sent: bytes, source: socket.socket, sink: socket.socket) -> bytes:
    """Send from one socket to the other; return what arrived."""
    got = bytearray()
    for at in range(0, len(sent), PIECE):
        source.sendall(sent[at : at + PIECE])
        while len(got) < min(at + PIECE, len(sent)):
            got += sink.recv(PIECE)
    return bytes(got)


def await_loss(capture: gpasst.Capture, payload: bytes) -> None:
    """Wait until a datagram was lost by weather or in a partition.

    The hits of a rule or partition may be those of frames that a kernel has sent by itself, such as reports of groups.

    :param payload: that of the datagram.
    """
    capture.wait_for(lambda frame: frame.payload == payload and bool(frame.fate), DEADLINE)
