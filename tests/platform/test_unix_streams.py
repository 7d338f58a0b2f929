"""AF_UNIX stream sockets (unix(7), net/unix/af_unix.c): how much a write that must not wait takes, and what follows."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from gpasst.linux import MSG_DONTWAIT

SIZE = 4 << 20  # bytes; more than the buffer takes


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        yield one, other


def writable(sock: socket.socket) -> bool:
    return bool(select.select([], [sock], [], 0)[1])


def test_a_write_takes_what_there_is_room_for_and_the_next_one_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    payload = bytes(i * 7 & 0xFF for i in range(SIZE))
    taken = one.sendmsg([payload[:1000], payload[1000:]], [], MSG_DONTWAIT)
    assert 1000 < taken < SIZE
    with pytest.raises(BlockingIOError):
        one.send(b"more", MSG_DONTWAIT)
    assert not writable(one)
    received = bytearray()
    while len(received) < taken:
        received += other.recv(1 << 16)
    assert received == payload[:taken]
    assert writable(one)


def test_it_is_not_writable_again_before_three_quarters_are_free(ends: tuple[socket.socket, socket.socket]) -> None:
    """unix_writable: a quarter of the buffer at most is in use. So its watcher does not fire after each read."""
    one, other = ends
    taken = one.send(bytes(SIZE), MSG_DONTWAIT)
    left = taken
    while not writable(one):
        left -= len(other.recv(4096))
    assert 0 < left < taken / 2


def test_bytes_of_many_writes_are_one_stream(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    for _ in range(3):
        one.sendmsg([b"ab", b"", b"c"])
    assert other.recv(99) == b"abc" * 3


def test_what_was_written_can_be_read_after_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    one.send(b"last words")
    one.close()
    assert (other.recv(99), other.recv(99)) == (b"last words", b"")
    with pytest.raises(BrokenPipeError):
        other.send(b"?")


def test_an_end_with_bytes_unread_resets_the_other(ends: tuple[socket.socket, socket.socket]) -> None:
    """unix_release_sock; the other learns of it behind everything that had been written before."""
    one, other = ends
    other.send(b"never read")
    one.send(b"last words")
    one.close()
    assert other.recv(99) == b"last words"
    with pytest.raises(ConnectionResetError):
        other.recv(99)


def test_the_other_process_is_known(ends: tuple[socket.socket, socket.socket]) -> None:
    """SO_PEERCRED: who it was that connected, or made the pair."""
    raw = ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert struct.unpack("@iII", raw) == (os.getpid(), os.geteuid(), os.getegid())
