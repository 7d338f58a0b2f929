"""recvmmsg (Linux 2.6.33, net/socket.c): the layout of its headers on 64-bit Linux, and what it changes in them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

import pytest

from gpasst.linux import IP_PKTINFO, IP_RECVERR, IPPROTO_IP, MSG_DONTWAIT
from tests.support.loopback import sockets

# struct mmsghdr: name and its bytes, vectors and their number, control messages and their bytes, flags; and received
# bytes.
MMSGHDR = struct.Struct("@PI4xPQPQi4xI4x")
IOVEC = struct.Struct("@PQ")
SOCKADDR = struct.Struct("@H2s4s8x")
SLOTS, NAME, CONTROL, FIRST, SECOND = 4, 28, 64, 8, 100
_libc = ctypes.CDLL(None, use_errno=True)


def at(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


class Slots:
    """Four headers, each with a buffer of 8 bytes and one of 100."""

    def __init__(self) -> None:
        self.names, self.controls = bytearray(SLOTS * NAME), bytearray(SLOTS * CONTROL)
        self.first, self.second = bytearray(SLOTS * FIRST), bytearray(SLOTS * SECOND)
        vectors = (
            IOVEC.pack(at(self.first) + i * FIRST, FIRST) + IOVEC.pack(at(self.second) + i * SECOND, SECOND)
            for i in range(SLOTS)
        )
        self.vectors = bytearray(b"".join(vectors))
        self.headers = bytearray(MMSGHDR.size * SLOTS)
        for i in range(SLOTS):
            fields = (at(self.names) + i * NAME, NAME, at(self.vectors) + i * 2 * IOVEC.size, 2)
            MMSGHDR.pack_into(self.headers, i * MMSGHDR.size, *fields, at(self.controls) + i * CONTROL, CONTROL, 0, 0)

    def receive(self, sock: socket.socket) -> int:
        count: int = _libc.recvmmsg(sock.fileno(), ctypes.c_void_p(at(self.headers)), SLOTS, MSG_DONTWAIT, None)
        if count < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return count

    def field(self, i: int, index: int) -> int:
        return int(MMSGHDR.unpack_from(self.headers, i * MMSGHDR.size)[index])


def test_a_header_is_64_bytes() -> None:
    assert MMSGHDR.size == 64


def test_what_is_written_for_each_datagram() -> None:
    slots = Slots()
    with sockets(4, info=True) as (target, sender):
        for data in (b"", b"12345", b"12345678abcdef"):
            sender.send(data)
        assert slots.receive(target) == 3
        assert [slots.field(i, -1) for i in range(3)] == [0, 5, 14]
        # The second buffer takes what the first has no room for.
        assert slots.first[8:13] == b"12345"
        assert slots.first[16:24] + slots.second[200:206] == b"12345678abcdef"
        port = sender.getsockname()[1]
        for i in range(3):
            assert slots.field(i, 1) == SOCKADDR.size, "bytes of the sender's address"
            family, number, address = SOCKADDR.unpack_from(slots.names, i * NAME)
            assert (family, int.from_bytes(number, "big"), address) == (socket.AF_INET, port, b"\x7f\0\0\1")
            assert slots.field(i, 5) == 32, "bytes of control messages, padding included"
            assert struct.unpack_from("@Qii", slots.controls, i * CONTROL) == (28, IPPROTO_IP, IP_PKTINFO)
        # What was not filled stays as it was, so it need not be set again.
        assert (slots.field(3, 1), slots.field(3, 5)) == (NAME, CONTROL)


def test_no_more_than_there_are_slots() -> None:
    slots = Slots()
    with sockets(4) as (target, sender):
        for i in range(SLOTS + 1):
            sender.send(bytes([i]))
        assert slots.receive(target) == SLOTS
        assert Slots().receive(target) == 1


def test_nothing_there_is_an_error() -> None:
    with sockets(4) as (target, _), pytest.raises(BlockingIOError):
        Slots().receive(target)


def test_a_pending_error_comes_first_and_costs_no_datagram() -> None:
    slots = Slots()
    with sockets(4) as (target, sender):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = closed.getsockname()
        target.setsockopt(IPPROTO_IP, IP_RECVERR, 1)
        target.sendto(b"?", nobody)
        sender.send(b"there")
        with pytest.raises(OSError) as caught:
            slots.receive(target)
        assert caught.value.errno == errno.ECONNREFUSED
        assert slots.receive(target) == 1
