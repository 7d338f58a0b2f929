"""Two ends of a UDP flow across weather: what one sends, and all that the other receives."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpasst.api.impairments import Impairment
from tests.support.families import FAMILY
from tests.support.lab import FAR, Remote, bound
from tests.support.machines import Machine

END = b"end"
PATIENCE = 5.0  # seconds until frames that a rule should meet count as lost


class Ends:
    """The guest's socket and the remote machine's, whose mapping is known and whose neighbours are resolved."""

    def __init__(self, guest: socket.socket, server: socket.socket) -> None:
        self.guest, self.server = guest, server
        self.port = server.getsockname()[1]
        guest.connect(server.getsockname()[:2])
        guest.send(END)
        _, self.mapped = server.recvfrom(9)
        server.sendto(END, self.mapped)
        assert guest.recv(9) == END

    def send(self, to: str, data: bytes) -> None:
        """Send a datagram to the guest or to the host's side."""
        if to == "guest":
            self.server.sendto(data, self.mapped)
        else:
            self.guest.send(data)

    def receive(self, to: str) -> bytes:
        return (self.guest if to == "guest" else self.server).recv(65535)

    def rest(self, to: str) -> list[bytes]:
        """Return all that was received before a datagram that is sent now; no rule may be about that."""
        self.send(to, END)
        return list(iter(lambda: self.receive(to), END))


@contextmanager
def ends(machine: Machine, remote: Remote, family: int) -> Iterator[Ends]:
    with (
        bound(remote.socket(FAMILY[family]), FAR[family]) as server,
        machine.socket(family, socket.SOCK_DGRAM) as guest,
    ):
        yield Ends(guest, server)


def numbered(count: int, size: int = 0) -> list[bytes]:
    """Return datagrams that differ, with numbers from 1 on."""
    return [b"%d " % number + bytes(size) for number in range(1, count + 1)]


def await_hits(impaired: Impairment, count: int) -> None:
    """Wait until rules have matched so many frames."""
    until = time.monotonic() + PATIENCE
    while impaired.hits < count:
        assert time.monotonic() < until, f"{impaired.hits} frames of {count}"
        time.sleep(0.001)
