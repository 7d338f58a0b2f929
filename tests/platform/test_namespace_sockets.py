"""A socket stays in the network namespace that it was made in (sock_net), whoever uses it and whoever has ended.

Binding below 1024 there is permitted to the owner of the user namespace that the network namespace belongs to
(inet_port_requires_bind_service, user_namespaces(7)).
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.families import FAMILIES, FAMILY, LOOPBACK

COUNT = 4  # sockets of each family
# In a namespace of its own with its loopback up, makes sockets, sends them out and ends.
MAKER = f"""
import ctypes, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare((0 if os.geteuid() == 0 else 0x10000000) | 0x40000000) == 0, os.strerror(ctypes.get_errno())
made = [socket.socket(family, socket.SOCK_DGRAM) for family in (2, 10) for _ in range({COUNT})]
fcntl.ioctl(made[0], 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS: IFF_UP
channel = socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(channel, [b"!"], [sock.fileno() for sock in made])
"""


@pytest.fixture
def orphans() -> Iterator[dict[int, list[socket.socket]]]:
    """Sockets of a namespace whose only process has ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-I", "-S", "-c", MAKER, str(theirs.fileno())]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True)
        if "not permitted" in done.stderr or "No space left" in done.stderr:
            pytest.skip("needs user namespaces")
        assert done.returncode == 0, done.stderr
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 2 * COUNT)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for sock in sockets:
        sock.settimeout(2)
    yield {4: sockets[:COUNT], 6: sockets[COUNT:]}
    for sock in sockets:
        sock.close()


@FAMILIES
def test_they_act_where_they_were_made(orphans: dict[int, list[socket.socket]], family: int) -> None:
    server, client, outsider = orphans[family][0], orphans[family][1], socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    with outsider:
        server.bind((LOOPBACK[family], 0))
        outsider.bind(server.getsockname()[:2])  # the same port, which is another one here
        client.connect(server.getsockname()[:2])
        client.send(b"inside")
        assert server.recv(9) == b"inside"
        outsider.setblocking(False)
        with pytest.raises(BlockingIOError):
            outsider.recv(9)


@FAMILIES
def test_ports_below_1024_are_the_owners_to_bind(orphans: dict[int, list[socket.socket]], family: int) -> None:
    server, client = orphans[family][:2]
    server.bind((LOOPBACK[family], 53))
    client.sendto(b"?", (LOOPBACK[family], 53))
    data, sender = server.recvfrom(9)
    server.sendto(data.replace(b"?", b"!"), sender)
    assert client.recv(9) == b"!"


def test_they_know_its_interfaces_only(orphans: dict[int, list[socket.socket]]) -> None:
    with pytest.raises(OSError, match="No such device"):
        orphans[4][0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"up0")
    with pytest.raises(OSError, match="unreachable"):
        orphans[4][1].sendto(b"?", ("192.0.2.1", 9))
