"""What connections live through: hours of silence, a link that goes down, the end of the guest or of the proxy."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.linux import SO_KEEPALIVE, SOL_SOCKET
from gpasst.tcp.states import State
from tests.support import machines
from tests.support.cli import AS_ROOT, GPASST
from tests.support.families import FAMILY
from tests.support.guests import journey, proxy_of
from tests.support.lab import BEYOND, FAR, HOST6, REMOTE, Remote
from tests.support.machines import PATIENCE, Machine
from tests.support.need import need
from tests.support.passt import stream_of
from tests.support.ready import sleeper, until
from tests.support.streams import (
    FORWARD,
    IN,
    MEBI,
    WAYS,
    accepted,
    carried,
    connected,
    is_reset,
    listening,
    noise,
    received,
    sent_until_stopped,
    served,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")

# A guest that connects, and stays until its input ends.
STRANGER = "import socket, sys; sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); sys.stdin.read()"
HOUR = 3600.0
PROBES = 1800.0  # seconds: not less than the longest time between two questions whether the guest is still there
LIMIT = 256  # descriptors
MANY = 400  # connections
QUIET = 0.5  # seconds
BUSY = 0.1  # of that, the processor time of a process that waits for nothing


@pytest.fixture(params=[machines.tap, machines.stream], ids=["tap", "stream"])
def fresh(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[Machine]:
    """A guest of the test's own; the gateway's address is the remote machine's."""
    del tun, remote
    with request.param(tcp_ports=FORWARD, no_map_gw=True) as opened:
        yield opened


def idle(machine: Machine) -> int:
    """Return the seconds since the guest last sent something on its only connection."""
    (flow,) = (flow for flow in machine.net.flows() if flow.protocol == "tcp")
    return int(flow.idle)


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_lives_through_hours_of_silence(fresh: Machine, remote: Remote, family: int, way: str) -> None:
    # Real time hardly passes, and Linux answers what is beyond its window only twice a second.
    fresh.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/tcp_invalid_ratelimit"])
    with connected(fresh, remote, family, way) as (guest, far):
        advance = journey(fresh.net)
        assert carried(guest, far, b"before")
        for _ in range(int(3 * HOUR / PROBES)):
            advance(PROBES)
            until(lambda: idle(fresh) == 0, "the guest's answer to the proxy's question")
        assert carried(guest, far, noise(5000))
        assert carried(far, guest, noise(5000))


def test_a_guest_that_is_gone_is_forgotten_after_two_hours(fresh: Machine, remote: Remote, family: int) -> None:
    with connected(fresh, remote, family) as (guest, far):
        advance = journey(fresh.net)
        assert carried(guest, far, b"before")
        fresh.run([need("ip"), "link", "set", fresh.interface, "down"])
        for _ in range(int(2 * HOUR / PROBES)):
            advance(PROBES)
            assert idle(fresh) >= PROBES
        advance(PROBES)
        assert is_reset(far)
        assert fresh.net.flows() == ()


def test_a_keep_alive_of_the_guest_is_answered(fresh: Machine, remote: Remote, family: int) -> None:
    with connected(fresh, remote, family) as (guest, far):
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            guest.setsockopt(socket.IPPROTO_TCP, option, 1)
        guest.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        tcp = proxy_of(fresh.net).tcp
        assert tcp is not None
        (connection,) = tcp.table
        sock: Any = connection.socket
        until(lambda: sock.getsockopt(SOL_SOCKET, SO_KEEPALIVE), "keep-alives of the host's kernel")
        until(lambda: not guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[3], "probes answered")
        assert carried(far, guest, b"still there")


@pytest.mark.parametrize("reading", ["guest", "remote"])
def test_the_link_goes_down_and_up_during_a_transfer(fresh: Machine, remote: Remote, family: int, reading: str) -> None:
    data = noise(32 * MEBI)
    ip, card = need("ip"), fresh.interface
    with ExitStack() as stack:
        server = remote.socket(FAMILY[family], socket.SOCK_STREAM)
        # On the link, so that no route has to be made again.
        listener, address = stack.enter_context(listening(server, REMOTE[family]))
        guest = stack.enter_context(fresh.socket(family))
        guest.connect(address)
        far = stack.enter_context(accepted(listener))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        sender, reader = (far, guest) if reading == "guest" else (guest, far)
        sending = pool.submit(sender.sendall, data)
        assert received(reader, MEBI) == data[:MEBI]
        fresh.run([ip, "link", "set", card, "down"])
        fresh.run([ip, "link", "set", card, "up"])
        if family == 6:
            # The kernel forgets IPv6 addresses of a link that is down.
            fresh.run([ip, "address", "replace", f"{HOST6}/64", "dev", card, "nodad"])
        assert received(reader, len(data) - MEBI) == data[MEBI:]
        sending.result()


def test_a_guest_that_connects_again_goes_on_with_its_connections(remote: Remote, family: int) -> None:
    """As a machine does whose stream was cut."""
    with machines.stream() as guest, connected(guest, remote, family) as (near, far):
        assert carried(near, far, b"before")
        guest.unplug()
        until(lambda: not stream_of(guest.net).ready, "the end of the guest's connection")
        far.sendall(noise(5000))
        near.sendall(noise(5000))
        guest.plug()
        assert received(near, 5000) == noise(5000)
        assert received(far, 5000) == noise(5000)


def test_the_guest_of_another_process_has_none_of_its_connections(remote: Remote, family: int) -> None:
    with machines.stream() as guest, connected(guest, remote, family) as (near, far):
        assert carried(near, far, b"before")
        guest.unplug()
        until(lambda: not stream_of(guest.net).ready, "the end of the guest's connection")
        with subprocess.Popen([sys.executable, "-c", STRANGER, guest.net.path], stdin=subprocess.PIPE):
            assert is_reset(far)
            until(lambda: stream_of(guest.net).ready, "the other guest's connection")
            assert guest.net.flows() == ()


def test_a_socket_that_a_forked_child_has_still_says_nothing_of_the_next_one(
    fresh: Machine, remote: Remote, family: int
) -> None:
    tcp = proxy_of(fresh.net).tcp
    assert tcp is not None
    # The others have their descriptors first, so that the next connection takes that of the one before.
    with (
        fresh.socket(family) as late,
        connected(fresh, remote, family) as (near, far),
        open(os.devnull, "rb") as null,
    ):
        late.setblocking(False)
        (connection,) = tcp.table
        assert connection.socket is not None
        number = connection.socket.fileno()
        held = os.dup(number)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.dup2(null.fileno(), near.fileno())
        until(lambda: not list(tcp.table), "the end of the connection")
        assert late.connect_ex((BEYOND[family], 9)) == errno.EINPROGRESS
        until(lambda: list(tcp.table), "the next connection")
        (connection,) = tcp.table
        assert connection.socket is not None and connection.socket.fileno() == number, "what the test is about"
        far.sendall(b"to nobody")
        with socket.socket(fileno=held) as left:
            assert left.recv(100) == b"to nobody"
            # The proxy has heard by then whatever it hears of that.
            with connected(fresh, remote, family) as (other, end):
                assert carried(other, end, b"hello")
        assert connection.state is State.CONNECTING


def test_the_end_of_the_proxy_resets_what_is_on_the_way(remote: Remote, family: int) -> None:
    with (
        listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (server, address),
        ThreadPoolExecutor(1) as pool,
    ):
        with machines.tap() as guest, guest.socket(family) as sock:
            sock.connect(address)
            far = accepted(server)
            sending = pool.submit(sock.sendall, noise(64 * MEBI))
            assert received(far, MEBI) == noise(64 * MEBI)[:MEBI]
            guest.net.close()
            with far:
                assert is_reset(far)
            sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(OSError, match="Broken pipe"):
                sending.result()


@contextmanager
def limited(limit: int) -> Iterator[tuple[Machine, subprocess.Popen[str], subprocess.Popen[str]]]:
    """A guest whose proxy is a process of its own, with so many descriptors.

    Yields the guest, that process, and the one whose namespace it joined.
    """
    with gpasst.Pasta() as net, sleeper(net) as inside:
        limiting = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"']
        command = [
            *limiting,
            *GPASST,
            "pasta",
            *AS_ROOT,
            "-f",
            "--config-net",
            "-I",
            "joined",
            "-t",
            FORWARD,
            str(inside.pid),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
            try:
                machine = machines.Tap(net)
                with machine.socket(4) as sock:
                    until(lambda: sock.connect_ex((FAR[4], 9)) == 111, "a way out")
                yield machine, program, inside
            finally:
                program.terminate()
                program.wait(PATIENCE)


def processor_seconds(program: subprocess.Popen[str]) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{program.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_quiet(program: subprocess.Popen[str]) -> bool:
    """Return whether a process takes hardly any processor time."""
    before = processor_seconds(program)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(QUIET)
    return processor_seconds(program) - before < BUSY


@pytest.mark.parametrize("way", WAYS)
def test_waiting_for_windows_takes_no_processor_time(remote: Remote, way: str) -> None:
    """Though either socket stays readable, for the proxy and in the kernel, and has its end behind its data."""
    with limited(LIMIT) as (machine, program, _), connected(machine, remote, 4, way, window=1 << 16) as (guest, far):
        data = noise(32 * MEBI)
        up, down = sent_until_stopped(far, data), sent_until_stopped(guest, data)
        far.shutdown(socket.SHUT_WR)
        guest.shutdown(socket.SHUT_WR)
        assert is_quiet(program)
        assert received(guest) == data[:up]
        assert received(far) == data[:down]


@pytest.mark.parametrize("way", WAYS)
def test_at_the_limit_of_descriptors_the_oldest_connection_gives_way(remote: Remote, way: str) -> None:
    with limited(LIMIT) as (machine, program, _), ExitStack() as stack:
        server, client, address = stack.enter_context(served(machine, remote, 4, way))
        pairs = []
        for number in range(MANY):
            sock = stack.enter_context(client())
            sock.connect(address)
            other = stack.enter_context(accepted(server))
            assert carried(sock, other, struct.pack("@I", number))
            pairs.append((sock, other))
        assert is_quiet(program)
        for sock, other in pairs[-LIMIT // 4 :]:
            assert carried(other, sock, b"the newest go on")
        for sock, other in pairs[:8]:
            assert is_reset(sock) and is_reset(other)
        for sock, other in pairs:
            sock.close()
            other.close()
        with client() as sock:
            sock.connect(address)
            with accepted(server) as other:
                assert carried(other, sock, noise(5000))
        program.terminate()
        assert program.stderr is not None
        log = program.stderr.read()
        assert log.count("the limit of open files is near") == 1, log
        assert len(log.splitlines()) <= 3, log


@pytest.mark.parametrize("ending", ["proxy", "guest"])
def test_a_proxy_that_ends_during_a_transfer_resets_it(remote: Remote, ending: str) -> None:
    """Whether it was told to, or the process is gone whose namespace it joined."""
    with (
        limited(LIMIT) as (machine, program, inside),
        connected(machine, remote, 4, IN) as (guest, far),
        ThreadPoolExecutor(1) as pool,
    ):
        sending = pool.submit(far.sendall, noise(64 * MEBI))
        received(guest, MEBI)
        (program if ending == "proxy" else inside).terminate()
        program.wait(PATIENCE)
        with pytest.raises(ConnectionResetError):
            sending.result()
