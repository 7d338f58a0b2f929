"""Segments that get lost on the link, each kind of them alone: connections go on all the same."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH
from tests.support import machines
from tests.support.lab import Remote
from tests.support.machines import DOWN, SYN, SYN_ACK, UP, Stream
from tests.support.streams import FORWARD, IN, OUT, carried, connected, noise, received

pytestmark = pytest.mark.usefixtures("tun", "remote")


@pytest.fixture(scope="module")
def lossy(remote: Remote, tun: None) -> Iterator[Stream]:
    """A guest whose segments can be lost."""
    del remote, tun
    with machines.stream(mtu=1500, tcp_ports=FORWARD) as opened:
        yield opened


LOST = {
    "guest's SYN": (OUT, DOWN, SYN),
    "SYN+ACK to the guest": (OUT, UP, SYN_ACK),
    "SYN to the guest": (IN, UP, SYN),
    "guest's SYN+ACK": (IN, DOWN, SYN_ACK),
    "end of the guest's handshake": (OUT, DOWN, TCP_ACK),
    "end of the handshake to the guest": (IN, UP, TCP_ACK),
}


@pytest.mark.parametrize("what", LOST)
def test_a_lost_handshake_is_made_again(lossy: Stream, remote: Remote, family: int, what: str) -> None:
    way, direction, flags = LOST[what]
    lossy.lose(direction, flags, 1)
    with connected(lossy, remote, family, way) as (guest, far):
        lossy.lost()
        # The first byte is where it belongs: what is sent again has the number that it had.
        assert carried(far, guest, noise(5000))
        assert carried(guest, far, noise(5000))


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_lost_data_is_sent_again(lossy: Stream, remote: Remote, family: int, direction: int) -> None:
    with connected(lossy, remote, family) as (guest, far):
        sender, reader = (guest, far) if direction == DOWN else (far, guest)
        assert carried(sender, reader, b"before")
        for flags in (TCP_ACK | TCP_PSH, TCP_ACK) if direction == DOWN else (TCP_ACK | TCP_PSH,):
            lossy.lose(direction, flags, 3)
            assert carried(sender, reader, noise(200_000))
            for _ in range(3):
                lossy.lost()


@pytest.mark.parametrize("direction", [DOWN, UP])
def test_a_lost_end_is_sent_again(lossy: Stream, remote: Remote, family: int, direction: int) -> None:
    with connected(lossy, remote, family) as (guest, far):
        sender, reader = (guest, far) if direction == DOWN else (far, guest)
        assert carried(sender, reader, b"all")
        lossy.lose(direction, TCP_ACK | TCP_FIN, 1)
        sender.shutdown(socket.SHUT_WR)
        assert received(reader) == b""
        lossy.lost()
        assert carried(reader, sender, b"and the other direction goes on")
