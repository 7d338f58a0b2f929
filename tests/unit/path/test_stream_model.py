"""Random programs at both ends of a splice pair: each end reads what a connection without a proxy would let it read.

Never other bytes; never fewer without a reset; the end where the other end has ended in order, and not before; a reset
only where the other end has closed or was reset.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.host import pipes
from gpasst.path.budget import STEP_SECONDS
from tests.support.ready import PATIENCE
from tests.support.splicing import Spliced, readable, spliced
from tests.support.streams import noise, reset

MANY = 1 << 23
FLOOD = 8  # sends
SIZES = st.one_of(
    st.integers(1, 300_000), st.sampled_from([1, 16383, 16384, 16385, 65536, 300_000]), st.integers(1, 20)
)
CALLS = (
    "send",
    "send",
    "flood",
    "flood",
    "urgent",
    "receive",
    "receive",
    "receive",
    "shutdown",
    "close",
    "reset",
    "turn",
    "turn",
)
PROGRAMS = st.lists(st.tuples(st.booleans(), st.sampled_from(CALLS), SIZES), min_size=1, max_size=20)
WINDOWS = st.sampled_from([0, 0, 1 << 15, 1 << 17])


class Program:
    """What one end does, and what it has seen.

    :ivar sent: bytes that its socket has taken.
    :ivar got: bytes that it has received.
    :ivar shut: whether it has ended its half.
    :ivar gone: whether it has closed its socket, in order or with a reset.
    :ivar sees: how the stream that it reads has ended, as far as it has seen that.
    """

    def __init__(self, sock: socket.socket, stream: bytes) -> None:
        self.sock, self.stream = sock, stream
        self.sent = 0
        self.got = bytearray()
        self.shut = self.gone = False
        self.sees = ""
        self.other: Program
        sock.setblocking(False)

    def call(self, name: str, size: int) -> None:
        if not self.gone:
            getattr(self, name)(size)

    def send(self, size: int, flags: int = 0) -> None:
        if self.shut or self.sees == "reset":
            return
        try:
            self.sent += self.sock.send(self.stream[self.sent : self.sent + size], flags)
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.is_reset()

    def urgent(self, size: int) -> None:
        self.send(size, socket.MSG_OOB)

    def receive(self, size: int) -> None:
        if self.sees or not readable(self.sock):
            return
        try:
            data = self.sock.recv(size)
        except (BrokenPipeError, ConnectionResetError):
            self.is_reset()
            return
        self.got += data
        other = self.other
        assert self.got == other.stream[: len(self.got)], "other bytes"
        assert len(self.got) <= other.sent
        if not data:
            self.sees = "end"
            assert other.shut, "an end that nobody made"
            assert len(self.got) == other.sent, "lost without a reset"

    def is_reset(self) -> None:
        assert self.other.gone, "a reset that nobody made"
        self.sees = "reset"

    def shutdown(self, size: int) -> None:
        del size
        if not self.shut and self.sees != "reset":
            self.shut = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                # Not connected any more.
                self.is_reset()

    def close(self, size: int) -> None:
        del size
        # With bytes that nobody has read, the kernel resets; in order it is where all was read before.
        self.shut = self.gone = True
        self.sock.close()

    def reset(self, size: int) -> None:
        del size
        self.gone = True
        reset(self.sock)

    flood = send  # many times, with turns of the proxy between

    def turn(self, size: int) -> None:
        """Do nothing while the proxy has its turn."""


def ended(it: Spliced, ends: tuple[Program, Program]) -> None:
    """Let one end shut, and then the other; each has to see the end of the other."""
    for end in ends:
        end.call("shutdown", 0)
        while not (end.other.gone or end.other.sees):
            read(it, ends)
    while len(it.splice.pairs):
        read(it, ends)


def read(it: Spliced, ends: tuple[Program, Program]) -> None:
    """Let both ends read; await an event where nothing waits."""

    def reached() -> list[object]:
        return [len(it.splice.pairs), *((len(end.got), end.sees) for end in ends)]

    before = reached()
    it.turn()
    for end in ends:
        end.call("receive", MANY)
    if reached() == before:
        waiting = [end.sock.fileno() for end in ends if not end.gone and not end.sees]
        assert select.select([it.epoll.fileno(), *waiting], [], [], PATIENCE)[0], "it stands still"


@pytest.fixture(params=[pipes.PIPES, 0], ids=["pipes", "copies"], scope="module")
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipes, "PIPES", request.param)
        yield


@pytest.mark.usefixtures("_engine")
@settings(deadline=None, max_examples=150)
@given(program=PROGRAMS, inside=st.booleans(), early=st.booleans(), window=WINDOWS, lap=st.sampled_from([0, 1]))
def test_each_end_reads_what_it_would_without_a_proxy(
    program: list[tuple[bool, str, int]], inside: bool, early: bool, window: int, lap: int
) -> None:
    """Whether the pair has connected before they begin or not."""
    with spliced(4, inside, window=window) as it:
        it.lap = lap * STEP_SECONDS
        sock = it.client()
        pair = it.accept()
        if not early:
            it.until(lambda: not pair.connecting, "connected")
        with sock, it.served() as service:
            ends = Program(sock, noise(MANY)), Program(service, noise(MANY, 1))
            ends[0].other, ends[1].other = ends[1], ends[0]
            for by_service, name, size in program:
                for _ in range(FLOOD if name == "flood" else 1):
                    ends[by_service].call(name, size)
                    if name in ("turn", "flood"):
                        it.turn()
            ended(it, ends)
            in_order = not any(end.gone for end in ends)
            assert not in_order or [end.sees for end in ends] == ["end", "end"]
        assert it.counters.drops == {}
