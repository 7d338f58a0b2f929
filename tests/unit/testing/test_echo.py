"""Servers that send back what they receive."""

from __future__ import annotations

import socket

import pytest

from gpasst.testing import Echo, free_port
from tests.support.families import FAMILY, LOOPBACK

PATIENCE = 10.0  # seconds


def connected(family: int, port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(FAMILY[family], kind)
    sock.settimeout(PATIENCE)
    sock.connect((LOOPBACK[family], port))
    return sock


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"], name="family")
def _family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_datagrams_and_streams_on_one_port(family: int) -> None:
    with Echo() as echo:
        with connected(family, echo.port, socket.SOCK_DGRAM) as client:
            for data in (b"one", b"", b"three"):
                client.send(data)
                assert client.recv(9) == data
        with connected(family, echo.port, socket.SOCK_STREAM) as client:
            client.sendall(b"stream")
            assert client.recv(9) == b"stream"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(9) == b""


def test_a_port_and_an_address_of_the_callers_choice() -> None:
    port = free_port("udp")
    with Echo(port=port, address="127.0.0.9"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"x", ("127.0.0.9", port))
        assert client.recvfrom(9) == (b"x", ("127.0.0.9", port))
        with pytest.raises(OSError, match="in use"):
            Echo(port=port, address="127.0.0.9")


def test_an_answer_comes_from_the_address_that_was_asked() -> None:
    with Echo(address="0.0.0.0") as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"x", ("127.0.0.9", echo.port))
        assert client.recvfrom(9)[1] == ("127.0.0.9", echo.port)


def test_more_than_the_buffers_hold() -> None:
    data = bytes(range(256)) * (1 << 14)
    with Echo() as echo, connected(4, echo.port, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        sent = 0
        # Until the server takes no more, since nobody takes its answers.
        while sent < len(data):
            try:
                sent += client.send(data[sent:])
            except BlockingIOError:
                break
        client.settimeout(PATIENCE)
        received = b""
        while len(received) < sent:
            received += client.recv(1 << 20)
        assert received == data[:sent]


def test_clients_that_break_off_leave_the_others_alone() -> None:
    with Echo() as echo, connected(4, echo.port, socket.SOCK_STREAM) as client:
        with connected(4, echo.port, socket.SOCK_STREAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.sendall(bytes(1 << 16))
        client.sendall(b"still")
        assert client.recv(9) == b"still"


def test_closing_frees_the_port() -> None:
    echo = Echo()
    client = connected(4, echo.port, socket.SOCK_STREAM)
    client.sendall(b"x")
    assert client.recv(9) == b"x"
    echo.close()
    echo.close()
    assert client.recv(9) == b""
    client.close()
    with Echo(port=echo.port):
        pass
