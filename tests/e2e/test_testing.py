"""`gpasst.testing` in namespaces. Takes 8 seconds."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

import gpasst
from gpasst.testing import Echo, assert_flat, require
from tests.support.families import FAMILY, LOOPBACK
from tests.support.lab import PATIENCE, Remote

pytestmark = pytest.mark.usefixtures("tun", "remote")


def test_the_machine_allows_namespaces() -> None:
    require()


def test_echo_in_a_namespace(family: int) -> None:
    with gpasst.Pasta(config_net=True, tcp_ports="0:7", udp_ports="0:7") as net, Echo(net, 7):
        with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect((LOOPBACK[family], net.port("udp", 7)))
            client.send(b"datagram")
            assert client.recv(99) == b"datagram"
        with socket.create_connection((LOOPBACK[family], net.port("tcp", 7)), PATIENCE) as stream:
            stream.sendall(b"stream")
            assert stream.recv(99) == b"stream"


def test_echo_on_the_host(family: int) -> None:
    with gpasst.Pasta(config_net=True) as net, Echo() as echo, net.socket(FAMILY[family]) as client:
        client.settimeout(PATIENCE)
        client.connect((net.gateway4 if family == 4 else net.gateway6, echo.port))
        client.send(b"datagram")
        assert client.recv(99) == b"datagram"


def test_echo_on_the_remote_machine(remote: Remote) -> None:
    with gpasst.Pasta(config_net=True) as net, Echo(remote) as echo:
        with net.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            client.connect((remote.ip4, echo.port))
            client.sendall(b"stream")
            assert client.recv(99) == b"stream"


def visit() -> None:
    with gpasst.Pasta(config_net=True, udp_ports="0:53", tcp_ports="0:80", tcp_ns="0:80") as net:
        with net.socket() as sock:
            sock.sendto(b"x", (net.gateway4, 9))
        program = net.popen(["sleep", "1000"])
    assert program.poll() is not None


def test_namespaces_leave_nothing_behind() -> None:
    assert_flat(visit, repeats=60)


HOSTS = """
import socket, sys
from gpasst.testing import Echo, hosts

with hosts() as machines:
    with Echo(machines.remote, 7), machines.guest(udp_ports="5000:5000").socket() as client:
        client.settimeout(10)
        client.sendto(b"x", (machines.remote.ip4, 7))
        assert client.recv(9) == b"x"
    done = machines.remote.run(["ip", "-br", "address"], capture_output=True, text=True, check=True)
    assert machines.remote.ip4 in done.stdout and machines.ip4 not in done.stdout
    fed = machines.remote.run("cat", input=b"fed", capture_output=True, timeout=10)
    assert fed.stdout == b"fed"
    with machines.remote.popen(["sleep", "1000"]) as program:
        program.kill()
    with socket.socket() as own:
        own.bind((machines.ip4, 0))
machines.close()
print("done")
"""


def test_three_machines() -> None:
    command = [sys.executable, "-W", "error", "-c", HOSTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


THREADS = """
import threading
from gpasst.testing import hosts
threading.Thread(target=threading.Event().wait, daemon=True).start()
hosts()
"""


def test_a_process_with_threads_cannot_become_a_host() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gpasst.errors.PlatformError: a process with threads cannot become a host; call hosts() ")
