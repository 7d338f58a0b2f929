"""Sockets on the host's loopback, and bursts of datagrams between them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hypothesis import strategies as st

from gpasst.host.receive import FIRST_STRIDE
from gpasst.linux import IP_PKTINFO, SOL_UDP, UDP_GRO, UDP_SEGMENT
from tests.support.families import FAMILY, LOOPBACK

BUFFER_BYTES = 212992  # what Linux gives by default, so that the tests are the same everywhere
Piece = tuple[int, bytes]  # port of the sender, datagram
SIZES = st.one_of(st.integers(0, 2000), st.sampled_from([0, 1, 100, 1471, FIRST_STRIDE, 1473, 2000]))
# Few enough for the receive buffer. Who sends, bytes of each datagram, how many, whether in one call, bytes of a
# shorter last one.
BURSTS = st.lists(
    st.tuples(st.integers(0, 2), SIZES, st.integers(1, 8), st.booleans(), st.integers(0, 2000)),
    min_size=1,
    max_size=5,
)


def bound(family: int, gro: bool = False, info: bool = False) -> socket.socket:
    sock = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    sock.bind((LOOPBACK[family], 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    if gro:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    if info:
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        sock.setsockopt(level, IP_PKTINFO if family == 4 else socket.IPV6_RECVPKTINFO, 1)
    return sock


@contextmanager
def sockets(family: int, senders: int = 1, gro: bool = False, info: bool = False) -> Iterator[list[socket.socket]]:
    """Yield a receiving socket, then sending ones that are connected to it."""
    with ExitStack() as stack:
        target = stack.enter_context(bound(family, gro, info))
        made = [target]
        for _ in range(senders):
            sender = stack.enter_context(bound(family))
            sender.connect(target.getsockname())
            made.append(sender)
        yield made


def send_joined(sender: socket.socket, payload: bytes, segment: int) -> None:
    """Send many datagrams in one call (UDP_SEGMENT)."""
    sender.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", segment))])


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
