"""Clients of forwarded ports: accepted a few at a time, and left waiting while they cannot be accepted."""

from __future__ import annotations

import errno
import os
import select
import socket
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.host.descriptors import Descriptors
from gpasst.host.tcp import accept
from gpasst.link.port import Link
from gpasst.path import tcp_accept
from gpasst.path.tcp_accept import CLIENTS_AT_ONCE, PAUSE_SECONDS, TcpListeners
from gpasst.path.tcp_opener import TcpOpener
from gpasst.tcp.listener import TcpListener
from tests.support.addresses import ip
from tests.support.families import FAMILIES, FAMILY, LOOPBACK

TARGET, TARGET_ADDRESS = 80, ip("192.0.2.5")


class Pause:
    """An entry of the timers."""

    def __init__(self, seconds: float, callback: Callable[[float], None]) -> None:
        self.when = self.seconds = seconds
        self.callback: Callable[[float], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def pass_(self) -> None:
        assert self.callback
        self.callback(0.0)


class Bench:
    """A listener, and all that its clients meet."""

    def __init__(self, family: int) -> None:
        self.ready = True
        self.counters = Counters()
        self.opened: list[tuple[Any, ...]] = []
        self.refuse: Drop | None = None
        self.step: Callable[[TcpListener], int] | None = None
        self.pauses: list[Pause] = []
        self.room = 0
        self.held: list[RawSocket] = []
        sock = RawSocket(FAMILY[family], socket.SOCK_STREAM, 0)
        sock.setblocking(False)
        sock.bind((LOOPBACK[family], 0))
        sock.listen(64)
        self.socket, self.address = sock, sock.getsockname()[:2]
        self.listener = TcpListener(family, self.address[1], TARGET, TARGET_ADDRESS, False, sock)
        self.listeners = TcpListeners(
            cast(Link, self),
            cast(TcpOpener, self),
            None,
            cast(Descriptors, self),
            self.counters,
            self._watch,
            self._unwatch,
            self._later,
        )
        self.listeners.watch(self.listener)

    def _watch(self, listener: TcpListener, step: Callable[[TcpListener], int]) -> None:
        assert (listener, self.step) == (self.listener, None)
        self.step = step

    def _unwatch(self, listener: TcpListener) -> None:
        assert listener is self.listener
        self.step = None

    def _later(self, seconds: float, callback: Callable[[float], None]) -> Pause:
        self.pauses.append(Pause(seconds, callback))
        return self.pauses[-1]

    def inbound(self, sock: RawSocket, *arguments: Any) -> None:
        self.held.append(sock)
        if self.refuse:
            raise PacketError(self.refuse)
        self.opened.append(arguments)

    def settle(self, sock: RawSocket) -> RawSocket:
        return sock

    def let_go(self) -> bool:
        self.room -= 1
        return self.room >= 0

    def event(self) -> int:
        """Let the listener be readable once; return how many clients that moved."""
        select.select([self.socket], [], [], 2)
        assert self.step
        return self.step(self.listener)

    def client(self) -> socket.socket:
        return socket.create_connection(self.address, 2)

    def close(self) -> None:
        self.listeners.unwatch(self.listener)
        self.listeners.close()
        for sock in (self.socket, *self.held):
            sock.close()


@contextmanager
def bench(family: int = 4) -> Iterator[Bench]:
    found = Bench(family)
    try:
        yield found
    finally:
        found.close()


def fails(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let the next calls of accept fail with these errors."""
    left = list(numbers)

    def refuse(listener: Any) -> tuple[RawSocket, bytes, int, int]:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return accept(listener)

    monkeypatch.setattr(tcp_accept, "accept", refuse)


@FAMILIES
def test_a_client_becomes_a_connection_to_the_target(family: int) -> None:
    with bench(family) as it, it.client() as client:
        assert it.event() == 1
        source = client.getsockname()[1]
        assert it.opened == [(family, ip(LOOPBACK[family]), source, 0, TARGET, TARGET_ADDRESS)]


def test_an_event_accepts_a_few() -> None:
    with bench() as it, ExitStack() as stack:
        for _ in range(CLIENTS_AT_ONCE + 3):
            stack.enter_context(it.client())
        assert (it.event(), it.event()) == (CLIENTS_AT_ONCE, 3)
        assert len(it.opened) == CLIENTS_AT_ONCE + 3


def test_without_a_guest_a_client_is_reset() -> None:
    with bench() as it, it.client() as client:
        it.ready = False
        it.event()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert it.counters.drops == {Drop.NO_GUEST: 1}
        assert not it.opened


def test_a_client_that_the_guest_cannot_be_shown_is_counted() -> None:
    with bench() as it, it.client(), it.client():
        it.refuse = Drop.NO_GUEST_ADDRESS
        it.event()
        assert it.counters.drops == {Drop.NO_GUEST_ADDRESS: 2}


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_client_that_has_gone_is_passed_over(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench() as it, it.client():
        fails(monkeypatch, number)
        it.event()
        assert len(it.opened) == 1
        assert not it.pauses


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_client_that_cannot_be_accepted_waits(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench() as it, it.client():
        fails(monkeypatch, number, number)
        for _ in range(2):
            assert it.event() == 0
            # The listener stays readable, so it is not looked at for a while.
            assert it.step is None
            pause = it.pauses.pop()
            assert pause.seconds == PAUSE_SECONDS
            pause.pass_()
        assert it.event() == 1
        assert len(it.opened) == 1
        assert len(caplog.records) == 1


def test_an_idle_flow_gives_way_to_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench() as it, it.client():
        it.room = 1
        fails(monkeypatch, errno.EMFILE)
        it.event()
        assert len(it.opened) == 1
        assert not it.pauses


def test_a_listener_that_is_closed_while_it_waits_is_never_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench() as it, it.client():
        fails(monkeypatch, errno.EMFILE)
        it.event()
        it.listeners.unwatch(it.listener)
        (pause,) = it.pauses
        assert pause.callback is None
        assert it.step is None
