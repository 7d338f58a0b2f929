"""Raw sockets: an ICMP error that they send fails the socket of the datagram's sender, or is known not to be sent."""

from __future__ import annotations

import _socket
import ctypes
import errno
import logging
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gpasst.host import raw
from gpasst.host.raw import RawSockets
from gpasst.packet.icmp_error import port_unreachable
from tests.support.addresses import ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.loopback import bound, port_of

CAPABILITY_VERSION = 0x20080522  # linux/capability.h: _LINUX_CAPABILITY_VERSION_3
CAP_NET_RAW = 13


@pytest.fixture
def sockets() -> Iterator[RawSockets]:
    made = RawSockets(None)
    yield made
    made.close()


def effective(number: int) -> bool:
    with open("/proc/thread-self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def drop_net_raw() -> None:
    """Take CAP_NET_RAW from the calling thread; others keep it."""
    header, data = struct.pack("@Ii", CAPABILITY_VERSION, 0), bytearray(24)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    assert libc.capget(header, buffer) == 0
    words = list(struct.unpack("@6I", data))
    words[0] &= ~(1 << CAP_NET_RAW)
    data[:] = struct.pack("@6I", *words)
    assert libc.capset(header, buffer) == 0


def closed_port_error(family: int, source_port: int, port: int) -> bytes:
    address = ip(LOOPBACK[family])
    return port_unreachable(address, source_port, address, port)


@FAMILIES
def test_the_sender_gets_the_error(sockets: RawSockets, family: int) -> None:
    if not effective(CAP_NET_RAW):
        pytest.skip("needs CAP_NET_RAW")
    with bound(family) as receiver, bound(family) as sender:
        sender.connect(receiver.getsockname())
        sender.settimeout(10)
        error = closed_port_error(family, port_of(sender), port_of(receiver))
        for _ in range(2):
            assert sockets.send(False, error, ip(LOOPBACK[family]))
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)


@FAMILIES
def test_errors_come_from_the_address_that_was_sent_to(sockets: RawSockets, family: int) -> None:
    if not effective(CAP_NET_RAW):
        pytest.skip("needs CAP_NET_RAW")
    with bound(family) as receiver, bound(family) as sender:
        sender.connect(receiver.getsockname())
        error = closed_port_error(family, port_of(sender), port_of(receiver))
        strange = ip("192.0.2.9") if family == 4 else ip("2001:db8::9") + bytes(4)
        # The host has no such address, so the kernel does not send from it.
        assert not sockets.send(False, error, ip(LOOPBACK[family]), local=strange)
        own = ip(LOOPBACK[family]) + (b"" if family == 4 else bytes(4))
        assert sockets.send(False, error, ip(LOOPBACK[family]), local=own)


@FAMILIES
def test_without_the_capability_nothing_is_sent(family: int, caplog: pytest.LogCaptureFixture) -> None:
    def attempt() -> list[bool]:
        drop_net_raw()
        made = RawSockets(None)
        try:
            return [made.send(False, closed_port_error(family, 1, 2), ip(LOOPBACK[family])) for _ in range(2)]
        finally:
            made.close()

    with caplog.at_level(logging.DEBUG, "gpasst.host.raw"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(attempt).result() == [False, False]
    # The socket is tried once, and so is its failure logged.
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert f"IPv{family}" in caplog.text


@FAMILIES
@pytest.mark.parametrize("call", ["socket", "setsockopt"])
def test_an_error_of_one_call_is_not_for_good(
    sockets: RawSockets, family: int, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not effective(CAP_NET_RAW):
        pytest.skip("needs CAP_NET_RAW")
    opened: list[_socket.socket] = []

    class Socket(_socket.socket):
        def __init__(self, *arguments: int) -> None:
            if call == "socket":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            super().__init__(*arguments)
            opened.append(self)

        def setsockopt(self, *_: Any) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "gpasst.host.raw"):
        patch.setattr(raw, "RawSocket", Socket)
        for _ in range(2):
            assert not sockets.send(False, closed_port_error(family, 1, 2), ip(LOOPBACK[family]))
    assert len(caplog.records) == 1
    assert {sock.fileno() for sock in opened} <= {-1}
    assert sockets.send(False, closed_port_error(family, 1, 2), ip(LOOPBACK[family]))
