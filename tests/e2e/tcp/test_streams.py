"""Data of TCP connections end to end: whole, in order, in both directions, whoever opened the connection.

Each test runs over every link of the fixture `machine`.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from gpasst.tcp.sender import FLIGHT_MAXIMUM
from tests.support.lab import Remote
from tests.support.machines import Machine
from tests.support.streams import (
    IN,
    MEBI,
    OUT,
    PIECE,
    WAYS,
    accepted,
    carried,
    carried_all,
    connected,
    is_reset,
    noise,
    received,
    reset,
    retransmissions,
    sent_until_stopped,
    served,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")
both_ways = pytest.mark.parametrize("way", WAYS)

BULK = 6 * MEBI + 12345
ANSWER = 8 * MEBI
MUCH = 64 * MEBI
FEW = 5  # things sent again because a side that waits for the processor answers late
SMALL_WINDOW = 4096  # bytes of a receive buffer, which the kernel doubles
STREAMS = 64


@both_ways
def test_random_data_in_both_directions_at_once(machine: Machine, remote: Remote, family: int, way: str) -> None:
    with connected(machine, remote, family, way) as (guest, far):
        assert carried_all([(guest, far, noise(BULK)), (far, guest, noise(BULK, 1))])


def test_random_data_in_either_direction_alone(machine: Machine, remote: Remote, family: int) -> None:
    with connected(machine, remote, family) as (guest, far):
        assert carried(guest, far, noise(BULK))
        assert carried(far, guest, noise(BULK, 1))


@pytest.mark.parametrize("machine", ["tap-1500", "tap-65520", "stream-65520"], indirect=True)
@pytest.mark.parametrize("reading", ["fast", "slow"])
def test_much_data_is_sent_once(machine: Machine, remote: Remote, family: int, reading: str) -> None:
    """What fits into a window is never dropped, however slow the reader, so nothing has to be sent again."""
    size, piece = (MUCH, PIECE) if reading == "fast" else (BULK, 2000)
    with connected(machine, remote, family, window=0 if reading == "fast" else 1 << 15) as (guest, far):
        before = machine.net.statistics()
        assert carried(guest, far, noise(size), piece)
        assert retransmissions(guest) <= FEW
        assert carried(far, guest, noise(size, 1), piece)
        after = machine.net.statistics()
        assert after.tcp_bytes_down - before.tcp_bytes_down == size
        assert after.tcp_bytes_up - before.tcp_bytes_up <= size + FEW * FLIGHT_MAXIMUM


def test_a_reader_with_a_small_window(machine: Machine, remote: Remote, family: int) -> None:
    """Of about one segment, where segments are large: some is sent all the same."""
    with connected(machine, remote, family, window=SMALL_WINDOW) as (guest, far):
        assert carried(guest, far, noise(100_000), piece=1000)
        assert carried(far, guest, noise(100_000, 1), piece=1000)


@both_ways
@pytest.mark.parametrize("asking", ["guest", "remote"])
def test_an_answer_behind_the_end_of_the_question(
    machine: Machine, remote: Remote, family: int, way: str, asking: str
) -> None:
    with connected(machine, remote, family, way) as (guest, far):
        client, server = (guest, far) if asking == "guest" else (far, guest)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert received(server) == b"question"
        assert carried(server, client, noise(ANSWER))
        server.close()
        assert received(client) == b""


@pytest.mark.parametrize("stopping", ["guest", "remote"])
def test_a_reader_that_stops_and_goes_on(machine: Machine, remote: Remote, family: int, stopping: str) -> None:
    data = noise(32 * MEBI)
    with connected(machine, remote, family, window=1 << 16) as (guest, far):
        sender, reader = (far, guest) if stopping == "guest" else (guest, far)
        count = sent_until_stopped(sender, data)
        assert count < len(data), "somebody keeps what nobody reads"
        # The other direction does not stop with it.
        assert carried(reader, sender, noise(100_000))
        assert received(reader, count) == data[:count]
        assert carried(sender, reader, noise(MEBI, 2))


@both_ways
@pytest.mark.parametrize("resetting", ["guest", "remote"])
def test_a_reset_arrives_as_one(machine: Machine, remote: Remote, family: int, way: str, resetting: str) -> None:
    with connected(machine, remote, family, way) as (guest, far):
        one, other = (guest, far) if resetting == "guest" else (far, guest)
        assert carried(one, other, b"before")
        reset(one)
        assert is_reset(other)


@both_ways
def test_an_end_is_no_reset(machine: Machine, remote: Remote, family: int, way: str) -> None:
    with connected(machine, remote, family, way) as (guest, far):
        guest.sendall(b"last words")
        guest.close()
        assert received(far) == b"last words"
        assert not is_reset(far)


def test_a_closed_port_refuses_at_once(machine: Machine, remote: Remote, family: int) -> None:
    with served(machine, remote, family, OUT) as (server, client, address):
        server.close()
        with client() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(address)


def test_a_closed_port_of_the_guest_resets(machine: Machine, remote: Remote, family: int) -> None:
    """The host's kernel has accepted the client before the guest refuses."""
    with served(machine, remote, family, IN) as (server, client, address):
        server.close()
        with client() as sock:
            try:
                sock.connect(address)
            except ConnectionResetError:
                return
            assert is_reset(sock)


@both_ways
def test_many_streams_at_once(machine: Machine, remote: Remote, family: int, way: str) -> None:
    with ExitStack() as stack:
        server, client, address = stack.enter_context(served(machine, remote, family, way))
        pairs = []
        for _ in range(STREAMS):
            sock = stack.enter_context(client())
            sock.connect(address)
            other = stack.enter_context(accepted(server))
            pairs.append((sock, other))
        pieces = [noise(50_000 + number, number) for number in range(2 * STREAMS)]
        there = [(one, other, data) for (one, other), data in zip(pairs, pieces, strict=False)]
        back = [(other, one, data) for (one, other), data in zip(pairs, reversed(pieces), strict=False)]
        assert carried_all(there + back)
