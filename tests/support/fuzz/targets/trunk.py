"""A trunk: what the other switch sends, cut anywhere, before and after it has shown that it has the secret."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, cast

from gpasst.counters import Counters
from gpasst.link.switch import InnerPort, Switch
from gpasst.proxy.trunk_end import TrunkEnd, Trunks
from gpasst.switch.framing import MESSAGE_MAXIMUM, Cutter, framed_message
from gpasst.switch.handshake import CHALLENGE_BYTES, Handshake
from gpasst.switch.membership import MEMBERS_LIMIT
from tests.support.fuzz.choices import Choices
from tests.support.times import Times

SECRET, PREFIX = b"of both", "10.0.0.0/24"
MAC = bytes((2, 0, 0, 0, 0, 1))
HOSTS = (("a", ("10.0.0.1",)),)
LENGTH_BYTES = 4
STEPS_LIMIT = 1000  # of the end's own, after which it does not come to rest


class Wire:
    """A socket: what has come, and what was sent."""

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.sent = bytearray()
        self.closed = False

    def fileno(self) -> int:
        return 0

    def recv_into(self, buffer: memoryview, size: int, flags: int) -> int:
        del size, flags
        if not self.incoming:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        count = min(len(buffer), len(self.incoming))
        buffer[:count] = self.incoming[:count]
        del self.incoming[:count]
        return count

    def sendmsg(self, pieces: Any, *_: Any) -> int:
        data = b"".join(pieces)
        self.sent += data
        return len(data)

    def close(self) -> None:
        self.closed = True


class Worker:
    """Runs a step when it is asked to."""

    def __init__(self, lan: Lan, step: Callable[[], int]) -> None:
        self._lan = lan
        self._step = step

    def wake(self) -> None:
        if self._step not in self._lan.asked:
            self._lan.asked.append(self._step)

    ask = wake


class Lan:
    """A network without a hub: its switch, and the steps that were asked for."""

    def __init__(self) -> None:
        self.name = "lan"
        self.counters = Counters()
        self.switch = Switch(self.counters)
        self.clock = self.watchers = self
        self.timers = Times()
        self.asked: list[Callable[[], int]] = []

    def precise(self) -> float:
        return self.timers.now

    def watch(self, *_: Any, **__: Any) -> None:
        """Nothing becomes readable by itself."""

    unwatch = forget = watch

    def worker(self, step: Callable[[], int], conversational: bool = True) -> Worker:
        del conversational
        return Worker(self, step)

    def repeat(self, worker: Worker) -> Worker:
        return worker

    def run(self) -> None:
        for _ in range(STEPS_LIMIT):
            if not self.asked:
                return
            self.asked.pop(0)()
        raise AssertionError("it does not come to rest")


def take(data: bytes) -> None:
    """Send to an end what the bytes say, in the pieces that they say."""
    choices, lan = Choices(data), Lan()
    got: list[bytes] = []
    host = InnerPort("host", lambda frame: got.append(bytes(frame)), lambda: None, lan.counters)
    lan.switch.add(host, MAC)
    trunks = Trunks(cast(Any, lan), lambda: HOSTS, (PREFIX,), frozenset(), lambda: None)
    wire, connector = Wire(), choices.flag()
    end = TrunkEnd(trunks, "trunk1", cast(Any, wire), connector, SECRET, lambda _: None)
    wake = end._link.wake  # noqa: SLF001 - which its watcher calls
    if choices.flag():
        _greet(wake, lan, wire, not connector)
    while choices.more and not end.closed:
        size = 1 + choices.number(1 << 16) if choices.flag() else 1 + choices.number(8)
        wire.incoming += _message(choices)
        while wire.incoming and not end.closed:
            held, wire.incoming = wire.incoming[size:], wire.incoming[:size]
            wake()
            lan.run()
            wire.incoming += held
        assert len(end.rosters) <= MEMBERS_LIMIT
        # What it took while it was up stays taken when it is closed.
        assert end.up or end.closed or not got
    if end.closed:
        assert wire.closed
        assert end not in trunks.ends
        assert "trunk1" not in lan.switch.named
    else:
        lan.timers.pass_to(lan.timers.now + 10)
        assert end.closed or end.up
        end.close()
    assert trunks.beyond() == ()


def _greet(wake: Callable[[], object], lan: Lan, wire: Wire, connector: bool) -> None:
    """Make the greeting of the other end, which has the secret."""
    other = Handshake(connector, SECRET, bytes(CHALLENGE_BYTES), (PREFIX,))
    heard: list[bytes] = []
    cutter = Cutter(heard.append, lambda: None)
    wire.incoming += other.begin()
    for _ in range(4):
        wake()
        lan.run()
        sent, wire.sent = wire.sent, bytearray()
        cutter.room()[: len(sent)] = sent
        cutter.add(len(sent))
        cutter.cut()
        while heard and not other.done:
            wire.incoming += other.take(heard.pop(0))


def _message(choices: Choices) -> bytes:
    """Return what comes next: a message or a frame, or any bytes."""
    kind = choices.number(4)
    if kind == 0:
        return choices.piece()
    if kind == 1:
        body = choices.piece()
        return len(body).to_bytes(LENGTH_BYTES, "big") + body
    body = bytes((choices.number(8),)) + choices.piece()
    return framed_message((body * (1 + choices.number(256)))[:MESSAGE_MAXIMUM])
