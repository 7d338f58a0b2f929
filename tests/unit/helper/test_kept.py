"""Sockets of a namespace whose process answers late: nobody waits for it, and nothing is lost or left open."""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpasst.errors import PlatformError
from gpasst.helper import kept, pool
from gpasst.helper.channel import Channel, pair
from gpasst.helper.kept import LateError, Namespace

PATIENCE = 0.001  # seconds
REPLY = {"name": "", "offloads": [], "ephemeral": [1, 2], "pid": 0}
UDP4, UDP6 = (socket.AF_INET, socket.SOCK_DGRAM, 0), (socket.AF_INET6, socket.SOCK_DGRAM, 0)


@contextmanager
def namespace() -> Iterator[tuple[Namespace, _socket.socket]]:
    """A namespace, and the process's end of its channel; no descriptor may be left open."""
    before = os.listdir("/proc/self/fd")
    ours, theirs = pair()
    made = Namespace(REPLY, {"netns": os.dup(0)}, Channel(ours))
    made.patience = PATIENCE
    try:
        yield made, theirs
    finally:
        made.close()
        theirs.close()
    assert os.listdir("/proc/self/fd") == before


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def asked(theirs: _socket.socket) -> bool:
    """Return whether a request waits for the process."""
    return bool(select.select([theirs], [], [], 0)[0])


def test_nobody_waits_longer_than_patience_and_one_request_is_made() -> None:
    with namespace() as (made, theirs):
        for _ in range(3):
            with pytest.raises(LateError, match="does not answer") as caught:
                made.sockets(*UDP4, 4)
            assert caught.value.remedy
        assert pool.serve_once(theirs)
        assert not asked(theirs)


def test_what_comes_late_is_taken_by_the_next_who_wants_it() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4, 4)
        pool.serve_once(theirs)
        assert select.select([made.fileno()], [], [], 0)[0]
        descriptors = made.sockets(*UDP4, 2)
        assert len(descriptors) == 2
        assert not asked(theirs)
        for descriptor in descriptors:
            with socket.socket(fileno=descriptor) as sock:
                assert sock.family == socket.AF_INET


def test_what_comes_late_and_is_too_few_is_taken_as_well() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4, 1)
        pool.serve_once(theirs)
        with pytest.raises(LateError):
            made.sockets(*UDP4, 3)
        pool.serve_once(theirs)
        close(*made.sockets(*UDP4, 2))


def test_what_comes_late_and_nobody_wants_is_closed() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4, 4)
        pool.serve_once(theirs)
        with pytest.raises(LateError):
            made.sockets(*UDP6, 1)
        pool.serve_once(theirs)
        (descriptor,) = made.sockets(*UDP6, 1)
        with socket.socket(fileno=descriptor) as sock:
            assert sock.family == socket.AF_INET6


def test_what_comes_when_nobody_asks_any_more_is_closed_with_the_namespace() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4, 4)
        pool.serve_once(theirs)


def test_a_late_error_is_that_of_its_own_request_alone() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(99, socket.SOCK_DGRAM)
        pool.serve_once(theirs)
        with pytest.raises(LateError):
            made.sockets(*UDP4)
        pool.serve_once(theirs)
        close(*made.sockets(*UDP4))


def test_who_has_a_way_to_wait_waits() -> None:
    with namespace() as (made, theirs):
        for number in range(2):
            if not number:
                with pytest.raises(LateError):
                    made.sockets(*UDP4)
            waited: list[int] = []

            def wait(descriptor: int, waited: list[int] = waited) -> None:
                waited.append(descriptor)
                pool.serve_once(theirs)

            close(*made.sockets(*UDP4, wait=wait))
            assert waited == [made.fileno()]


def test_the_small_program_changes_nothing() -> None:
    with namespace() as (made, theirs), pytest.raises(PlatformError) as caught:
        made.forward(lambda _: pool.serve_once(theirs))
    assert str(caught.value) == (
        "the namespace cannot be changed any more, since the helper process has ended; open another namespace"
    )


def test_a_change_waits_for_sockets_that_are_late() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4)
        with pytest.raises(LateError):
            made.forward()
        pool.serve_once(theirs)
        with pytest.raises(PlatformError, match="cannot be changed"):
            made.forward(lambda _: pool.serve_once(theirs))


def test_the_end_of_the_process_is_no_delay() -> None:
    with namespace() as (made, theirs):
        with pytest.raises(LateError):
            made.sockets(*UDP4)
        theirs.close()
        with pytest.raises(PlatformError, match="ended unexpectedly"):
            made.sockets(*UDP4)


def test_before_a_proxy_runs_there_is_time() -> None:
    ours, theirs = pair()
    made = Namespace(REPLY, {"netns": os.dup(0)}, Channel(ours))
    assert made.patience == kept.ANSWER_SECONDS > PATIENCE
    made.close()
    theirs.close()


def test_a_socket_is_bound_by_the_process_and_stays_the_callers() -> None:
    with namespace() as (made, theirs), socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(LateError):
            made.bind(sock.fileno(), ("127.0.0.1", 0))
        with pytest.raises(LateError):
            made.bind(sock.fileno(), ("127.0.0.1", 0))
        pool.serve_once(theirs)
        assert sock.getsockname()[1], "late, and done all the same"
        assert not asked(theirs), "one request was made"
        with pytest.raises(LateError):
            made.bind(sock.fileno(), ("127.0.0.1", 0))
        pool.serve_once(theirs)


def test_an_error_of_binding_is_that_of_the_kernel() -> None:
    ours, theirs = pair()
    made = Namespace(REPLY, {"netns": os.dup(0)}, Channel(ours))
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        helper = threading.Thread(target=pool.serve_once, args=(theirs,))
        helper.start()
        with pytest.raises(OSError) as caught:
            made.bind(sock.fileno(), ("192.0.2.77", 0))
        helper.join()
    assert caught.value.errno == errno.EADDRNOTAVAIL
    made.close()
    theirs.close()
