"""The tap and the command line of rootlesskit."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.cli import AS_ROOT, GPASST
from tests.support.lab import FAR4, Remote, bound
from tests.support.need import need
from tests.support.ready import PATIENCE

pytestmark = pytest.mark.usefixtures("tun", "remote")

# rootlesskit makes and configures the tap itself, and pasta opens it.
TAP = """
ip link set lo up
ip tuntap add name tap0 mode tap
ip link set tap0 mtu 65520 up
ip addr add 10.0.2.100/24 dev tap0
ip route add default via 10.0.2.2
echo made
exec "$@"
"""
# Each line of standard input is "udp" or "tcp", address and port of a server to be asked.
ASK = """
import socket, sys
for line in sys.stdin:
    kind, host, port = line.split()
    kind = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[kind]
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(10)
        client.connect((host, int(port)))
        client.send(b"question")
        print(client.recv(100).decode(), flush=True)
"""


@contextmanager
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process that has made a namespace with a tap, as rootlesskit's child has."""
    inside = [sys.executable, "-I", "-S", "-c", ASK]
    command = [need("unshare"), "--user", "--map-root-user", "--net", "sh", "-ec", TAP, "sh", *inside]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "made\n"
            yield program
        finally:
            program.kill()


def asked(child: subprocess.Popen[str], remote: Remote, kind: socket.SocketKind) -> None:
    """Let the namespace ask the remote machine."""
    assert child.stdin is not None and child.stdout is not None
    with bound(remote.socket(socket.AF_INET, kind), FAR4) as server:
        server.settimeout(PATIENCE)
        name = "tcp" if kind == socket.SOCK_STREAM else "udp"
        if name == "tcp":
            server.listen()
        child.stdin.write(f"{name} {FAR4} {server.getsockname()[1]}\n")
        child.stdin.flush()
        if name == "tcp":
            with server.accept()[0] as client:
                client.send(client.recv(100).upper())
        else:
            question, sender = server.recvfrom(100)
            server.sendto(question.upper(), sender)
    assert child.stdout.readline() == "QUESTION\n"


def test_rootlesskit(remote: Remote) -> None:
    """rootlesskit 2.0.2, --net=pasta --disable-host-loopback: it does not wait for pasta, and ends it with SIGTERM."""
    line = (
        "--foreground --stderr --ns-ifname=tap0 --mtu=65520 --no-dhcp --no-ra --address=10.0.2.100 --netmask=24 "
        "--gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none"
    )
    with owner() as child:
        command = [*GPASST, "pasta", *AS_ROOT, *line.split(), str(child.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
            try:
                # A SYN that comes too early is repeated; a datagram is not.
                asked(child, remote, socket.SOCK_STREAM)
                asked(child, remote, socket.SOCK_DGRAM)
                program.terminate()
                assert program.wait(PATIENCE) == 0
            finally:
                program.kill()
