"""Both ways of loopback traffic between host and namespace, and what tests of splice pairs do with them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import gpasst
from gpasst.linux import IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, IPV6_RECVPKTINFO
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.guests import proxy_of, scan
from tests.support.lab import HOST, PATIENCE, bound, host_socket

LOOPBACKS = {4: [f"127.0.0.{last}" for last in range(1, 10)], 6: ["::1"]}
SERVICE, OTHER_SERVICE = 53, 54
TIMEOUT = 180
PRIVILEGED = os.geteuid() == 0  # else the host's senders are not told of refusals
PACKET_INFO = {
    4: (IPPROTO_IP, IP_PKTINFO, struct.Struct("@4x4s4x")),
    6: (IPPROTO_IPV6, IPV6_PKTINFO, struct.Struct("@16s4x")),
}


@dataclass(frozen=True)
class Way:
    """One direction: clients on one side, services on the other.

    :ivar outward: from the namespace to the host.
    :ivar port: where the clients' side leads to port 53 of the other.
    :ivar other_port: where it leads to port 54.
    """

    net: gpasst.Pasta
    family: int
    outward: bool
    port: int
    other_port: int

    def client(self, address: str = "", port: int = 0) -> AbstractContextManager[socket.socket]:
        """A socket on the clients' side."""
        return bound(self._socket(self.outward), address or LOOPBACK[self.family], port)

    def service(self, port: int = SERVICE, address: str = "") -> AbstractContextManager[socket.socket]:
        """A socket on the other side, which tells where it was addressed."""
        sock = self._socket(not self.outward)
        sock.setsockopt(PACKET_INFO[self.family][0], IP_PKTINFO if self.family == 4 else IPV6_RECVPKTINFO, 1)
        return bound(sock, address or ANY[self.family], port)

    def free_port(self) -> int:
        """A port that nobody has on either side."""
        while True:
            with bound(self._socket(self.outward), ANY[self.family]) as one:
                port = int(one.getsockname()[1])
                try:
                    with bound(self._socket(not self.outward), ANY[self.family], port):
                        return port
                except OSError:
                    continue

    @property
    def address(self) -> str:
        """The loopback address of the family."""
        return LOOPBACK[self.family]

    @property
    def seen(self) -> str:
        """Where the services see clients at."""
        return (LOOPBACK if self.outward else HOST)[self.family]

    def _socket(self, inside: bool) -> socket.socket:
        return self.net.socket(FAMILY[self.family]) if inside else host_socket(FAMILY[self.family])


superframes_only = pytest.mark.parametrize("net", ["superframes"], indirect=True)
ipv4_only = pytest.mark.parametrize("family", [4])
to_host_only = pytest.mark.parametrize("way", [True], indirect=True, ids=["to-host"])
to_namespace_only = pytest.mark.parametrize("way", [False], indirect=True, ids=["to-namespace"])


def inward(net: gpasst.Pasta, port: int, family: int = 4) -> Way:
    return Way(net, family, False, port, 0)


def outward(net: gpasst.Pasta, port: int, family: int = 4) -> Way:
    return Way(net, family, True, port, 0)


@contextmanager
def clock(net: gpasst.Pasta) -> Iterator[Callable[[int], None]]:
    """Let time pass only when told so, by seconds; each time is followed by a scan."""
    proxy = proxy_of(net)
    original, now = proxy.clock.source, proxy.clock.now()
    proxy.clock.source = lambda: now

    def advance(seconds: int) -> None:
        nonlocal now
        now += seconds
        scan(net)

    try:
        yield advance
        advance(TIMEOUT)
        advance(TIMEOUT + 1)
    finally:
        proxy.clock.source = original


def drops(statistics: gpasst.Statistics) -> dict[str, int]:
    """Give what was dropped."""
    return statistics.drops


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def serve(service: socket.socket, count: int = 1) -> list[tuple[bytes, Any]]:
    """Answer datagrams with what they say, from where they were addressed; give them with their senders."""
    level, kind, layout = PACKET_INFO[4 if service.family == socket.AF_INET else 6]
    served = []
    for _ in range(count):
        data, control, _, sender = service.recvmsg(65535, 64)
        addressed = next(layout.unpack(value)[0] for at, what, value in control if (at, what) == (level, kind))
        service.sendmsg([data], [(level, kind, layout.pack(addressed))], 0, sender)
        served.append((data, sender[:2]))
    return served


def exchange(way: Way, client: socket.socket, service: socket.socket, data: bytes = b"?", address: str = "") -> Any:
    """Ask and answer once; give whom the service took the client for."""
    target = address or way.address, way.port
    client.sendto(data, target)
    ((heard, sender),) = serve(service)
    assert heard == data
    answer, answerer = client.recvfrom(65535)
    assert (answer, answerer[:2]) == (data, target)
    return sender


def nothing_came(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(9)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(PATIENCE)
    return False
