"""Messages between the caller and the helper."""

from __future__ import annotations

import errno
import json
import os
import socket
from array import array
from typing import Any, cast

import pytest

from gpasst.errors import PlatformError
from gpasst.helper import pool
from gpasst.helper.channel import CHUNK, Channel, adopt, pair
from gpasst.helper.client import OpenRequest, Route
from gpasst.helper.request import open_request, to_message


def test_request_survives_the_channel() -> None:
    request = OpenRequest(runas=(1, 2), addresses=(("10.0.0.1", 8),), routes=(Route(None, 0, "10.0.0.2"),))
    assert open_request(json.loads(json.dumps(to_message(request)))) == request


def test_long_messages_are_sent_in_pieces() -> None:
    one, other = (Channel(end) for end in pair())
    text = "x" * (CHUNK * 3)
    reading, writing = os.pipe()
    one.send({"text": text}, [writing])
    os.close(writing)
    answer = other.receive()
    assert answer is not None
    assert answer[0] == {"text": text}
    os.write(answer[1][0], b"!")
    assert os.read(reading, 1) == b"!"
    for descriptor in (reading, *answer[1]):
        os.close(descriptor)
    one.close()
    assert other.receive() is None
    other.close()


def test_ends_block_whatever_timeout_is_the_default() -> None:
    socket.setdefaulttimeout(1)
    try:
        ends = pair()
    finally:
        socket.setdefaulttimeout(None)
    assert [end.gettimeout() for end in ends] == [None, None]
    assert all(os.get_blocking(end.fileno()) for end in ends)
    for end in ends:
        end.close()


class Flaky:
    """A socket, one call of which fails."""

    def __init__(self, sock: Any, call: str, number: int) -> None:
        self._sock = sock
        self._call = call
        self._number = number

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            self._call = ""
            return self._fail
        return getattr(self._sock, name)

    def _fail(self, *_: Any) -> Any:
        raise OSError(self._number, os.strerror(self._number))


TRANSIENT = pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])


@TRANSIENT
def test_an_error_of_one_receive_ends_no_series_of_requests(number: int) -> None:
    ours, theirs = pair()
    one = Channel(theirs)
    for text in ("first", "second"):
        one.send({"text": text})
    one.close()
    flaky = Channel(cast(Any, Flaky(ours, "recvmsg", number)))
    assert [message["text"] for message, _ in flaky.arrivals()] == ["first", "second"]
    flaky.close()


@TRANSIENT
def test_an_error_of_one_receive_does_not_end_the_namespace(number: int) -> None:
    ours, theirs = pair()
    assert pool.serve_once(cast(Any, Flaky(ours, "recvmsg", number)))
    ours.close()
    assert not pool.serve_once(theirs)
    theirs.close()


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
def test_sockets_that_cannot_be_sent_are_an_error_for_the_caller_alone(number: int) -> None:
    ours, theirs = pair()
    caller = Channel(ours)
    request = {"family": socket.AF_INET, "type": socket.SOCK_DGRAM, "proto": 0, "count": 2}
    caller.send({**request, "seq": 1})
    before = os.listdir("/proc/self/fd")
    assert pool.serve_once(cast(Any, Flaky(theirs, "sendmsg", number)))
    assert os.listdir("/proc/self/fd") == before
    answer = caller.receive()
    assert answer is not None
    assert os.strerror(number) in answer[0]["error"]["message"]
    assert answer[1] == []
    caller.close()
    theirs.close()


NO_MESSAGES = pytest.mark.parametrize(
    "data", [b"", b"7", b"null", b"[1]", b"{", b"\xff", b"9" * 5000, b"[" * 20000], ids=lambda data: repr(data[:4])
)


@NO_MESSAGES
def test_what_is_no_message_is_an_error_that_ends_nothing(data: bytes) -> None:
    ours, theirs = pair()
    reading, writing = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [writing]))]
    channel = Channel(ours)
    for _ in range(2):
        theirs.sendmsg([b"." + data], rights)
    os.close(writing)
    with pytest.raises(PlatformError, match="no message"):
        channel.receive()
    Channel(theirs).send({"text": "behind it"})
    assert next(channel.arrivals()) == ({"text": "behind it"}, [])
    assert os.read(reading, 1) == b"", "what came with it is closed"
    os.close(reading)
    channel.close()
    theirs.close()


@NO_MESSAGES
def test_what_is_no_request_does_not_end_the_namespace(data: bytes) -> None:
    ours, theirs = pair()
    theirs.send(b"." + data)
    assert pool.serve_once(ours)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "wrong",
    [{"count": "2"}, {"count": 1.5}, {"family": 1 << 70}, {"proto": None}, {"type": [1]}, {"count": 65}],
    ids=str,
)
def test_a_request_with_other_values_is_answered_with_an_error(wrong: dict[str, Any]) -> None:
    ours, theirs = pair()
    caller = Channel(ours)
    request = {"do": "sockets", "family": socket.AF_INET, "type": socket.SOCK_DGRAM, "proto": 0, "count": 2}
    with pytest.raises(PlatformError, match="cannot make a socket"):
        number = caller.ask({**request, **wrong})
        assert pool.serve_once(theirs)
        caller.answer(number)
    caller.close()
    theirs.close()


def test_a_request_brings_its_channel_and_nothing_else() -> None:
    assert adopt([]) is None
    before = os.listdir("/proc/self/fd")
    reading, writing = os.pipe()
    assert adopt([reading, writing]) is None
    assert os.listdir("/proc/self/fd") == before
    ours, theirs = pair()
    other = os.dup(theirs.fileno())
    channel = adopt([ours.detach(), other])
    assert channel is not None
    Channel(theirs).send({"text": "through it"})
    assert channel.receive() == ({"text": "through it"}, [])
    channel.close()
    theirs.close()
    assert os.listdir("/proc/self/fd") == before
