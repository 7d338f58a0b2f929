"""SCM_RIGHTS (unix(7)): how many descriptors one message carries, and that they are closed where there is no room."""

from __future__ import annotations

import array
import errno
import os
import socket

import pytest

from gpasst.linux import SCM_MAX_FD


def rights(descriptors: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def test_as_many_as_one_message_carries() -> None:
    one, other = socket.socketpair()
    with one, other, open(os.devnull, "rb") as file:
        one.sendmsg([b"!"], rights([file.fileno()] * SCM_MAX_FD))
        data, descriptors, flags, _ = socket.recv_fds(other, 1, SCM_MAX_FD)
        for descriptor in descriptors:
            os.close(descriptor)
        assert (data, len(descriptors), flags & socket.MSG_CTRUNC) == (b"!", SCM_MAX_FD, 0)


def test_one_more_is_refused() -> None:
    one, other = socket.socketpair()
    with one, other, open(os.devnull, "rb") as file, pytest.raises(OSError) as caught:
        one.sendmsg([b"!"], rights([file.fileno()] * (SCM_MAX_FD + 1)))
    assert caught.value.errno == errno.EINVAL


def test_what_has_no_room_is_closed() -> None:
    one, other = socket.socketpair()
    reader, writer = os.pipe()
    with one, other:
        one.sendmsg([b"!"], rights([writer] * 3))
        os.close(writer)
        _, descriptors, flags, _ = socket.recv_fds(other, 1, 1)
        assert flags & socket.MSG_CTRUNC
        for descriptor in descriptors:
            os.close(descriptor)
        # Room is counted in whole words, so one or two have come; the end of file shows that no more are open.
        assert 1 <= len(descriptors) <= 2
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_descriptor_comes_with_the_byte_it_was_sent_with() -> None:
    one, other = socket.socketpair()
    with one, other, open(os.devnull, "rb") as file:
        one.sendall(b"before")
        one.sendmsg([b"with"], rights([file.fileno()]))
        one.sendall(b"after")
        data, descriptors, _, _ = socket.recv_fds(other, 999, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        # A receive ends with the message that had descriptors, and what is behind it waits for the next one.
        assert (data, len(descriptors)) == (b"beforewith", 1)
        assert other.recv(9) == b"after"


def test_a_closed_end_is_the_end_of_file_even_where_descriptors_wait() -> None:
    one, other = socket.socketpair()
    with other, open(os.devnull, "rb") as file:
        one.sendmsg([b"last"], rights([file.fileno()]))
        one.close()
        data, descriptors, _, _ = socket.recv_fds(other, 9, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        assert (data, len(descriptors)) == (b"last", 1)
        assert other.recv(9) == b""
