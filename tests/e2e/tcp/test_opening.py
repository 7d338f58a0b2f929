"""How TCP connections begin: many short ones, and targets without a way there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.lab import BLACKHOLE, NOWHERE, PROHIBITED, UNREACHABLE, Remote
from tests.support.machines import Machine
from tests.support.streams import WAYS, accepted, noise, received, served

pytestmark = pytest.mark.usefixtures("tun", "remote")

SHORT = 1000  # connections one after the other
CLIENTS = 16
EACH = 32  # connections of each client
ANSWER = 100_000  # bytes
one_of_each_link = pytest.mark.parametrize("machine", ["tap-65520", "stream-1500"], indirect=True)


def serve(server: socket.socket, count: int, answer: bytes) -> None:
    """Answer each of `count` clients, and end the connection first."""
    for _ in range(count):
        with accepted(server) as sock:
            assert sock.recv(9) == b"question"
            sock.sendall(answer)


def ask(client: Callable[[], socket.socket], address: Any, count: int, answer: bytes) -> None:
    """Make `count` connections, one after the other."""
    for _ in range(count):
        with client() as sock:
            sock.connect(address)
            sock.sendall(b"question")
            assert received(sock) == answer


@one_of_each_link
@pytest.mark.parametrize("way", WAYS)
def test_many_short_connections(machine: Machine, remote: Remote, family: int, way: str) -> None:
    with served(machine, remote, family, way) as (server, client, address), ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, server, SHORT, b"answer")
        ask(client, address, SHORT, b"answer")
        serving.result()


@one_of_each_link
@pytest.mark.parametrize("way", WAYS)
def test_short_connections_at_once_are_not_reset(machine: Machine, remote: Remote, family: int, way: str) -> None:
    """The server ends each while its answer is still on the way."""
    answer = noise(ANSWER)
    with (
        served(machine, remote, family, way) as (server, client, address),
        ThreadPoolExecutor(2 * CLIENTS) as pool,
    ):
        serving = [pool.submit(serve, server, EACH, answer) for _ in range(CLIENTS)]
        asking = [pool.submit(ask, client, address, EACH, answer) for _ in range(CLIENTS)]
        for done in asking + serving:
            done.result()


NO_WAY = {
    "no route": (NOWHERE, {4: errno.ENETUNREACH, 6: errno.ENETUNREACH}),
    "prohibited": (PROHIBITED, {4: errno.EHOSTUNREACH, 6: errno.EACCES}),
    "unreachable": (UNREACHABLE, {4: errno.EHOSTUNREACH, 6: errno.ENETUNREACH}),
    "discarded": (BLACKHOLE, {4: errno.ECONNREFUSED, 6: errno.ECONNREFUSED}),
}


@one_of_each_link
@pytest.mark.parametrize("why", NO_WAY)
def test_without_a_way_a_connect_fails_at_once(machine: Machine, family: int, why: str) -> None:
    targets, numbers = NO_WAY[why]
    with machine.socket(family) as sock:
        assert errno.errorcode[sock.connect_ex((targets[family], 80))] == errno.errorcode[numbers[family]]
