"""Near the limit of open files the holder of most sockets closes the one that was idle longest."""

from __future__ import annotations

import errno
import resource
import socket
import sys

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
        descriptors.opened(sock)
    assert holder.count == 3


def test_above_the_line_the_holder_of_most_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    descriptors, less, more = Descriptors(0), Sockets(3), Sockets(5)
    descriptors.add(less)
    descriptors.add(more)
    with socket.socket() as sock:
        for _ in range(5):
            descriptors.opened(sock)
    assert less.count + more.count == 3
    assert max(less.count, more.count) == 2
    assert caplog.text.count("the limit of open files is near") == 1


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
