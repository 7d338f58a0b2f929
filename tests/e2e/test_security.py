"""What docs/security.md promises of a guest that nobody trusts. Takes 2 s."""

from __future__ import annotations

import os
import socket
import sys

import pytest

import gpasst
from tests.support.cli import AS_ROOT, cli
from tests.support.lab import REMOTE4, host_socket
from tests.support.pages import blocks

pytestmark = pytest.mark.usefixtures("tun", "remote")

# Prints the addresses where something listens at a port.
TRY = """
import socket, sys
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), timeout=5).close()
    except OSError:
        continue
    print(address)
"""
STANDARD = "0 1 2"
OPEN = "import os; print(*[fd for fd in range(1024) if os.path.exists(f'/proc/self/fd/{fd}')])"


def confined() -> list[str]:
    """Return the options that the page recommends."""
    (found,) = [found for block in blocks("security.md") if (found := block.arguments("gpasst"))]
    assert (found[0], found[-2:]) == ("pasta", ["--", "sh"])
    return found[1:-2]


def test_the_recommended_options_hide_the_host() -> None:
    with host_socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        reached = [
            cli("pasta", *AS_ROOT, *options, "--", sys.executable, "-c", TRY, port, REMOTE4, "127.0.0.1").stdout.split()
            for options in (["--config-net", "-T", port], confined())
        ]
    assert reached == [[REMOTE4, "127.0.0.1"], []]


def test_programs_inherit_no_descriptors() -> None:
    reader, writer = os.pipe()
    try:
        done = cli("pasta", *AS_ROOT, "--", sys.executable, "-c", OPEN, pass_fds=(reader, writer))
        assert done.stdout.strip() == STANDARD, done.stderr
        with gpasst.Pasta() as net:
            for init in (False, True):
                with net.popen([sys.executable, "-c", OPEN], init=init, stdout=writer) as program:
                    assert program.wait(10) == 0
                assert os.read(reader, 100).decode().strip() == STANDARD
            done = net.run([sys.executable, "-c", OPEN], capture_output=True, text=True)
            assert done.stdout.strip() == STANDARD
    finally:
        os.close(reader)
        os.close(writer)
