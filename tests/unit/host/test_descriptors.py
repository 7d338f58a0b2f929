"""Near the limit of open files the holder of most sockets closes the one that was idle longest."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from _socket import socket as RawSocket  # a class

import pytest

from gpasst.host.descriptors import RESERVE, Descriptors, exhausted, reserve


class Sockets:
    """A holder whose sockets are numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def held(self) -> int:
        return self.count

    def let_go(self) -> bool:
        self.count -= 1
        return True


def test_below_the_line_nothing_goes() -> None:
    descriptors, holder = Descriptors(1 << 20), Sockets(3)
    descriptors.add(holder)
    with socket.socket() as sock:
        assert descriptors.settle(sock) is sock
    assert holder.count == 3


def test_above_the_line_the_holder_of_most_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    descriptors, less, more = Descriptors(0), Sockets(3), Sockets(5)
    descriptors.add(less)
    descriptors.add(more)
    for _ in range(5):
        descriptors.settle(socket.socket()).close()
    assert less.count + more.count == 3
    assert max(less.count, more.count) == 2
    assert caplog.text.count("the limit of open files is near") == 1


def test_a_socket_stays_where_it_is_if_another_took_what_was_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", refuse)
    descriptors = Descriptors(0)
    descriptors.add(Sockets(1))
    with socket.socket() as sock:
        assert descriptors.settle(sock) is sock
        assert sock.fileno() >= 0


class Open:
    """A holder of real sockets, the longest idle one first."""

    def __init__(self) -> None:
        self.sockets: list[RawSocket] = []

    def held(self) -> int:
        return len(self.sockets)

    def let_go(self) -> bool:
        self.sockets.pop(0).close()
        return True


def test_no_number_above_the_line_is_taken_for_long() -> None:
    """A hole below the line would hide how many are open."""
    lowest = os.dup(0)
    os.close(lowest)
    line, holder = lowest + 8, Open()
    descriptors = Descriptors(4 * line // 3)
    line = descriptors.line
    descriptors.add(holder)
    for _ in range(50):
        sock = descriptors.settle(RawSocket(socket.AF_INET, socket.SOCK_DGRAM, 0))
        holder.sockets.append(sock)
        assert sock.fileno() < line
    assert len({sock.fileno() for sock in holder.sockets}) == len(holder.sockets) <= 9
    for sock in holder.sockets:
        sock.close()


def test_who_has_nothing_cannot_give_way() -> None:
    descriptors = Descriptors(0)
    assert not descriptors.let_go()
    descriptors.add(Sockets(0))
    assert not descriptors.let_go()


def test_who_is_closed_gives_way_no_more() -> None:
    descriptors, holder = Descriptors(0), Sockets(1)
    descriptors.add(holder)
    descriptors.close()
    assert not descriptors.let_go()


def test_the_reserve_leaves_most_of_a_small_limit() -> None:
    assert [reserve(limit) for limit in (256, 1024, 20000)] == [64, 256, RESERVE]
    assert Descriptors(256).line == 192
    assert Descriptors(resource.RLIM_INFINITY).line == sys.maxsize


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_errors_that_say_so(number: int) -> None:
    assert exhausted(OSError(number, ""))


@pytest.mark.parametrize("error", [None, OSError(errno.EACCES, ""), ValueError()])
def test_errors_that_say_something_else(error: BaseException | None) -> None:
    assert not exhausted(error)
