"""Sends whose errors are older datagrams': every datagram leaves once, or is counted."""

from __future__ import annotations

import errno
import sys
from typing import Any

import pytest

from gpasst.counters import Counters, Drop
from gpasst.flow.sender import Sender
from gpasst.host.send import REPEATS, answering, send_one, send_run
from tests.support.addresses import ip

ADDRESS = ("192.0.2.1", 7)
# What an ICMP error may leave behind on a socket.
OLDER = [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO, errno.EACCES, errno.EMSGSIZE]
SEGMENT = 10


class Socket:
    """Fails with the errors it is given, one a call, and then sends."""

    def __init__(self, *failures: int, whole: int = 0) -> None:
        self.failures = list(failures)
        self.sent: list[bytes] = []
        self.whole = whole  # the error that every superframe meets

    def sendto(self, payload: memoryview, address: Any) -> None:
        assert address == ADDRESS
        self.sendmsg([payload], (), 0, address)

    def sendmsg(self, payload: list[memoryview], control: Any, flags: int, address: Any) -> None:
        del flags, address
        if self.failures:
            raise OSError(self.failures.pop(0), "refused")
        if control and self.whole:
            raise OSError(self.whole, "no superframe")
        data = bytes(payload[0])
        self.sent += [data[i : i + SEGMENT] for i in range(0, len(data), SEGMENT)] if control else [data]


def sender(*failures: int, whole: int = 0, connected: bool = False) -> tuple[Socket, Sender]:
    sock: Any = Socket(*failures, whole=whole)
    return sock, Sender(sock, None if connected else ADDRESS)


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("times", range(1, REPEATS + 1))
def test_an_older_error_loses_no_datagram(number: int, times: int) -> None:
    sock, to = sender(*[number] * times)
    counters = Counters()
    assert send_one(to, memoryview(b"one"), counters.udp.down, counters) == 0
    assert sock.sent == [b"one"]
    assert (counters.udp.down.datagrams, counters.drops) == (1, {})
    # They are counted when they are read from the queue.
    assert counters.socket_errors == 0


def test_errors_of_connected_sockets_are_counted_here() -> None:
    sock, to = sender(errno.ECONNREFUSED, connected=True)
    counters = Counters()
    assert send_one(to, memoryview(b"one"), counters.udp.spliced, counters) == 0
    assert (sock.sent, counters.socket_errors) == ([b"one"], 1)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENETUNREACH, Drop.SEND_FAILED),
        (errno.EMSGSIZE, Drop.MESSAGE_SIZE),
        (errno.EPERM, Drop.SEND_FAILED),
        (errno.EAGAIN, Drop.SEND_FULL),
    ],
)
def test_an_error_that_stays_is_the_datagrams_own(number: int, reason: Drop) -> None:
    sock, to = sender(*[number] * 9)
    counters = Counters()
    assert send_one(to, memoryview(b"one"), counters.udp.down, counters) == number
    assert (sock.sent, counters.drops) == ([], {reason: 1})
    assert counters.udp.down.datagrams == 0


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("whole", [0, errno.EINVAL, errno.EMSGSIZE])
def test_an_older_error_loses_no_superframe(number: int, whole: int) -> None:
    sock, to = sender(number, whole=whole)
    counters = Counters()
    payload = bytes(range(95))
    assert send_run(to, memoryview(payload), SEGMENT, 64, counters.udp.down, counters) == 0
    assert sock.sent == [payload[i : i + SEGMENT] for i in range(0, 95, SEGMENT)]
    assert (counters.udp.down.datagrams, counters.udp.down.bytes, counters.drops) == (10, 95, {})


def test_refused_superframes_are_counted_by_their_datagrams() -> None:
    sock, to = sender(*[errno.ENETUNREACH] * 99)
    counters = Counters()
    assert send_run(to, memoryview(bytes(95)), SEGMENT, 4, counters.udp.down, counters) == errno.ENETUNREACH
    assert (sock.sent, counters.drops) == ([], {Drop.SEND_FAILED: 10})


def controls(address: bytes, tos_ttl: int) -> dict[tuple[int, int], int]:
    sock, _ = sender()
    made = answering(sock, address, 7, 0, tos_ttl=tos_ttl)  # type: ignore[arg-type]
    return {(level, kind): int.from_bytes(value, sys.byteorder) for level, kind, value in made.control}


@pytest.mark.parametrize(
    ("address", "tos_ttl", "expected"),
    [
        ("192.0.2.1", 64, {}),
        ("192.0.2.1", 0x0240, {(0, 1): 2, (0, 2): 64}),
        ("192.0.2.1", 1, {(0, 1): 0, (0, 2): 1}),
        ("192.0.2.1", 0xFF00, {(0, 1): 255, (0, 2): 1}),
        ("224.0.0.251", 64, {(0, 1): 0, (0, 2): 64}),
        ("2001:db8::1", 64, {}),
        ("2001:db8::1", 0xB9FF, {(41, 67): 0xB9, (41, 52): 255}),
        ("ff02::fb", 64, {(41, 67): 0, (41, 52): 64}),
    ],
)
def test_only_unusual_marks_cost_a_control_message(address: str, tos_ttl: int, expected: Any) -> None:
    assert controls(ip(address), tos_ttl) == expected
