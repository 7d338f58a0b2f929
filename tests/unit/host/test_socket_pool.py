"""The namespace's sockets: how many each message brings, and that none is left open."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, cast

import pytest

from gpasst.errors import PlatformError
from gpasst.helper.kept import LateError
from gpasst.host.socket_pool import SocketPool, datagrams


class Namespace:
    """Makes sockets here, and remembers what it was asked for.

    :ivar failure: what is in the way.
    """

    def __init__(self) -> None:
        self.failure: PlatformError | None = None
        self.asked: list[tuple[int, int, int, int]] = []
        self.made: list[int] = []

    def sockets(self, family: int, kind: int, protocol: int, count: int) -> list[int]:
        if self.failure:
            raise self.failure
        self.asked.append((family, kind, protocol, count))
        made = [socket.socket(family, kind, protocol).detach() for _ in range(count)]
        self.made += made
        return made


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_what_is_expected_comes_in_as_few_messages_as_possible() -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.expect(datagrams(4), 100)
    taken = [pool.take(datagrams(4)) for _ in range(100)]
    assert namespace.asked == [(socket.AF_INET, socket.SOCK_DGRAM, 0, count) for count in (64, 36)]
    assert {sock.family for sock in taken} == {socket.AF_INET}
    assert len({sock.fileno() for sock in taken}) == 100
    for sock in taken:
        sock.close()
    pool.close()


def test_without_an_announcement_they_come_one_by_one() -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.expect(datagrams(4), 3)
    for _ in range(2):
        pool.take(datagrams(6)).close()
    assert [count for *_, count in namespace.asked] == [1, 1]


def test_closing_closes_what_nobody_took() -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.expect(datagrams(6), 3)
    taken = pool.take(datagrams(6))
    pool.close()
    pool.close()
    assert [is_open(descriptor) for descriptor in namespace.made].count(True) == 1
    assert is_open(taken.fileno())
    taken.close()


def test_other_kinds_are_made_when_asked_for() -> None:
    namespace = Namespace()
    sock = SocketPool(namespace.sockets).make(socket.AF_INET, socket.SOCK_STREAM, 0)
    assert sock.type == socket.SOCK_STREAM
    sock.close()
    assert namespace.asked == [(socket.AF_INET, socket.SOCK_STREAM, 0, 1)]


@pytest.mark.parametrize("failure", [LateError(), PlatformError("too many open files")])
def test_what_is_ready_is_handed_out_whatever_is_in_the_way_of_more(failure: PlatformError) -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.keep(datagrams(4), 8)
    namespace.failure = failure
    for _ in range(8):
        pool.take(datagrams(4)).close()
    with pytest.raises(type(failure)):
        pool.take(datagrams(4))
    namespace.failure = None
    pool.take(datagrams(4)).close()
    pool.close()


@pytest.mark.parametrize(
    ("failure", "calls"), [(LateError(), 2), (PlatformError("too many open files"), 1)], ids=["late", "refused"]
)
def test_what_is_in_the_way_is_logged_once(
    failure: PlatformError, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.keep(datagrams(4), 8)
    for turn in (1, 2):
        pool.take(datagrams(4)).close()
        namespace.failure = failure
        for call in range(4):
            pool.refill()
            assert caplog.text.count(failure.message) == (turn if call + 1 >= calls else turn - 1)
        namespace.failure = None
        pool.refill()
        pool.refill()
        assert caplog.text.count("again") == turn
    pool.close()


def test_one_answer_that_is_late_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    namespace = Namespace()
    pool = SocketPool(namespace.sockets)
    pool.keep(datagrams(4), 8)
    for _ in range(3):
        pool.take(datagrams(4)).close()
        namespace.failure = LateError()
        pool.refill()
        namespace.failure = None
        pool.refill()
    assert not caplog.records
    pool.close()


class Reserved:
    """A socket whose port this process has no right to."""

    def bind(self, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def fileno(self) -> int:
        return 7


def test_a_port_without_a_right_to_it_is_bound_by_the_process_of_the_namespace() -> None:
    bound: list[tuple[int, object]] = []
    pool = SocketPool(Namespace().sockets, lambda descriptor, address: bound.append((descriptor, address)))
    pool.bind(cast(Any, Reserved()), ("127.0.0.1", 77))
    assert bound == [(7, ("127.0.0.1", 77))]


@pytest.mark.parametrize("failure", [OSError(errno.EADDRINUSE, "in use"), LateError(), None])
def test_what_is_in_the_way_of_that_is_an_error_of_the_kernel(failure: Exception | None) -> None:
    def refuse(*_: object) -> None:
        assert failure is not None
        raise failure

    pool = SocketPool(Namespace().sockets, refuse if failure else None)
    with pytest.raises(OSError) as caught:
        pool.bind(cast(Any, Reserved()), ("127.0.0.1", 77))
    assert caught.value.errno == (errno.EADDRINUSE if isinstance(failure, OSError) else errno.EACCES)


def test_a_port_that_is_free_is_nobody_elses_business() -> None:
    pool = SocketPool(Namespace().sockets)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        pool.bind(sock, ("127.0.0.1", 0))
        assert sock.getsockname()[1]
