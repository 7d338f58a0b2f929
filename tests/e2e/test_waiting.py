"""Waiting until a program in the namespace has bound its port."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import gpasst
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

# Binds a port of its own protocol once it is told to, and keeps it until the end of input.
PROGRAM = """
import socket, sys
sys.stdin.readline()
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 5000))
if sys.argv[1] == "tcp":
    sock.listen()
sys.stdin.read()
"""


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_program_is_waited_for(protocol: str) -> None:
    with gpasst.Pasta(config_net=True) as net:
        command = [sys.executable, "-c", PROGRAM, protocol]
        with net.popen(command, stdin=subprocess.PIPE, text=True) as program:
            assert program.stdin is not None
            with pytest.raises(gpasst.PlatformError, match=f"bound {protocol} port 5000 within 0 s"):
                net.wait_bound(protocol, 5000, timeout=0)
            program.stdin.write("go\n")
            program.stdin.flush()
            net.wait_bound(protocol, 5000)
            other = {"tcp": "udp", "udp": "tcp"}[protocol]
            with pytest.raises(gpasst.PlatformError, match=f"bound {other} port 5000"):
                net.wait_bound(other, 5000, timeout=0)


def test_the_ports_that_are_bound_instead_are_named() -> None:
    with gpasst.Pasta(config_net=True) as net, net.socket() as one, net.socket(socket.AF_INET6) as two:
        one.bind(("127.0.0.1", 5001))
        two.bind(("::", 5002))
        with pytest.raises(gpasst.PlatformError) as caught:
            net.wait_bound("udp", 5000, timeout=0)
        assert caught.value.remedy == "see whether it has started; bound ports of udp: 5001, 5002"
        with pytest.raises(gpasst.ConfigurationError, match="sctp is no protocol with ports"):
            net.wait_bound("sctp", 5000)


def test_a_close_ends_the_wait() -> None:
    net = gpasst.Pasta(config_net=True)
    with net, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(net.wait_bound, "udp", 5000, 3600.0)
        until(lambda: waiting.running(), "the wait")
        net.close()
        with pytest.raises(gpasst.ConfigurationError, match=r"closed meanwhile|is not open"):
            waiting.result(20)
