"""Weather and TCP connections, on a tap and on a stream (8 s)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.families import FAMILY
from tests.support.lab import FAR, Remote, bound
from tests.support.machines import Machine
from tests.support.streams import noise

STREAM = socket.SOCK_STREAM
SIZE = 300_000
REFUSED = {
    "reset": {4: errno.ECONNREFUSED, 6: errno.ECONNREFUSED},
    "unreachable port": {4: errno.ECONNREFUSED, 6: errno.ECONNREFUSED},
    "unreachable host": {4: errno.EHOSTUNREACH, 6: errno.EHOSTUNREACH},
    "unreachable net": {4: errno.ENETUNREACH, 6: errno.ENETUNREACH},
    "unreachable admin": {4: errno.EHOSTUNREACH, 6: errno.EACCES},
}


@contextmanager
def listening(remote: Remote, family: int) -> Iterator[socket.socket]:
    with bound(remote.socket(FAMILY[family], STREAM), FAR[family]) as server:
        server.listen()
        yield server


@contextmanager
def connected(machine: Machine, remote: Remote, family: int) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Connect the guest to a server; yield both ends and the server's port."""
    with listening(remote, family) as server, machine.socket(family) as guest:
        guest.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(20)
            guest.settimeout(20)
            yield guest, accepted, server.getsockname()[1]


def about(port: int, effects: str, to: str = "") -> str:
    """Return a rule about a server's connections."""
    if to:
        return f"to {to} tcp {'sport' if to == 'guest' else 'dport'} {port}: {effects}"
    return f"tcp: {effects}"


def carry(sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
    """Send data while the other end receives as much."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sender.sendall, data)
        received = bytearray()
        while len(received) < len(data) and (piece := receiver.recv(1 << 20)):
            received += piece
        sending.result()
    return bytes(received)


@pytest.mark.parametrize(
    "effects",
    [
        "delay 2ms±1ms seed 5",
        "loss 2% delay 1ms seed 5",
        "corrupt 2% seed 5",
        "duplicate 10% seed 5",
        "reorder 5% gap 2 seed 5",
        "rate 50mbit",
    ],
)
def test_streams_arrive_whole(machine: Machine, remote: Remote, family: int, effects: str) -> None:
    data = noise(SIZE)
    with connected(machine, remote, family) as (guest, server, _), machine.net.impair(f"tcp: {effects}") as impaired:
        assert carry(guest, server, data) == data
        assert carry(server, guest, data) == data
        assert impaired.hits > 2 * SIZE // 1460


@pytest.mark.parametrize("effects", ["reset", "rebind"])
def test_both_ends_see_a_reset(machine: Machine, remote: Remote, family: int, to: str, effects: str) -> None:
    with connected(machine, remote, family) as (guest, server, port):
        assert carry(guest, server, b"?") == b"?"
        with machine.net.impair(about(port, effects, to)):
            sender, receiver = (server, guest) if to == "guest" else (guest, server)
            with pytest.raises(ConnectionResetError):
                # An acknowledgement of what came before may have met the rule already.
                sender.send(b"!")
                while sender.recv(9):
                    pass
            with pytest.raises(ConnectionResetError):
                while receiver.recv(9):
                    pass


@pytest.mark.parametrize("effects", REFUSED)
def test_a_connect_fails_at_once(machine: Machine, remote: Remote, family: int, effects: str) -> None:
    with listening(remote, family) as server, machine.socket(family) as guest:
        with machine.net.impair(about(server.getsockname()[1], effects, "host")):
            number = guest.connect_ex(server.getsockname()[:2])
        assert number == REFUSED[effects][family]


def test_a_narrow_path_makes_segments_smaller(machine: Machine, remote: Remote, family: int) -> None:
    data = noise(50_000)
    with connected(machine, remote, family) as (guest, server, _), machine.net.impair("tcp: mtu 1300 icmp") as narrow:
        assert carry(guest, server, data) == data
        assert carry(server, guest, data) == data
        assert any("too big" in line.fate or "long" in line.fate or "mtu" in line.fate for line in narrow.log)


def test_a_connection_survives_a_partition(machine: Machine, remote: Remote, family: int) -> None:
    with connected(machine, remote, family) as (guest, server, _):
        with machine.net.impair("partition"):
            guest.send(b"down")
            server.send(b"up")
        assert guest.recv(9) == b"up"
        assert server.recv(9) == b"down"


def test_a_schedule_changes_the_weather(machine: Machine, remote: Remote, family: int) -> None:
    with connected(machine, remote, family) as (guest, server, _):
        with machine.net.weather([(0, "tcp: loss 100%"), (0.05, "tcp: delay 1ms"), (0.1, ())]) as schedule:
            guest.send(b"down")
            assert server.recv(9) == b"down"
            assert schedule.hits
        server.send(b"up")
        assert guest.recv(9) == b"up"
