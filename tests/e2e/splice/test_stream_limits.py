"""What spliced connections leave behind, and who gives way where there are too many."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
from contextlib import ExitStack

import pytest
from greenlet import greenlet

import gpasst
from gpasst.host.pipes import IDLE
from gpasst.path.tcp_splice import SPARE
from tests.support.cli import AS_ROOT, GPASST
from tests.support.guests import scan
from tests.support.ready import sleeper, until
from tests.support.stream_ways import SERVICE, StreamWay, pairs
from tests.support.streams import accepted, carried, is_reset, noise, received, reset

pytestmark = pytest.mark.usefixtures("tun", "remote")

MANY = 300
LIMIT = 256  # descriptors
PORT = 5000


def descriptors(net: gpasst.Pasta) -> int:
    """Return how many descriptors are open while the pool of sockets is full."""
    scan(net)
    return len(os.listdir("/proc/self/fd"))


def greenlets() -> int:
    gc.collect()
    return sum(isinstance(found, greenlet) for found in gc.get_objects())


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("by", ["client", "service"])
def test_many_connections_leave_nothing(stream_way: StreamWay, by: str, end: str) -> None:
    with stream_way.service() as (server, _):

        def once() -> None:
            with stream_way.client() as client, accepted(server) as service:
                one, other = (client, service) if by == "client" else (service, client)
                one.sendall(noise(20_000))
                if end == "close":
                    one.close()
                    assert received(other) == noise(20_000)
                else:
                    assert received(other, 20_000) == noise(20_000)
                    reset(one)
                    assert is_reset(other)

        once()
        until(lambda: not pairs(stream_way.net), "no pair left")
        before, woven = descriptors(stream_way.net), greenlets()
        for _ in range(MANY):
            once()
        until(lambda: not pairs(stream_way.net), "no pair left")
        assert descriptors(stream_way.net) <= before + 2 * IDLE
        assert greenlets() <= woven + SPARE
    assert stream_way.net.statistics().pairs == 0


def test_at_the_limit_of_descriptors_the_longest_idle_pair_gives_way() -> None:
    limiting = ["sh", "-c", f'ulimit -n {LIMIT}; exec "$0" "$@"', *GPASST, "pasta", *AS_ROOT, "-f", "-I", "joined"]
    with gpasst.Pasta() as net, sleeper(net) as holder, ExitStack() as stack:
        way = StreamWay(net, 4, False, PORT)
        server, _ = stack.enter_context(way.service())
        command = [*limiting, "--host-lo-to-ns-lo", "-t", f"{PORT}:{SERVICE}", str(holder.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
            try:
                until(lambda: is_served(PORT), "the forward")
                made = []
                for number in range(MANY):
                    client = stack.enter_context(way.client())
                    service = stack.enter_context(accepted(server))
                    assert carried(client, service, b"%d" % number)
                    made.append((client, service))
                for client, service in made[-LIMIT // 8 :]:
                    assert carried(service, client, b"the newest go on")
                for client, service in made[:8]:
                    assert is_reset(client) and is_reset(service)
            finally:
                program.terminate()
                _, log = program.communicate()
        assert log.count("the limit of open files is near") == 1, log


def is_served(port: int) -> bool:
    """Return whether something listens at a port of the host; a trial connection would be its client."""
    with socket.socket() as sock:
        # Connections of an earlier test may be in TIME-WAIT there.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
