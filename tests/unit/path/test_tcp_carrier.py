"""One direction of a splice pair, between real connections: what is moved, and why it goes no further."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from gpasst.counters import Tally
from gpasst.host.pipes import Pipes
from gpasst.path import tcp_carrier
from gpasst.path.tcp_carrier import COPIED_BYTES, ROUNDS, Carrier, Outcome
from gpasst.tcp.pairs import Way
from tests.support.ready import until
from tests.support.splicing import PLENTY, TCP_CLOSE, TCP_CLOSE_WAIT, arrived, became, queued, socket_pair, taken
from tests.support.streams import noise, reset

NEVER = float("inf")
WINDOW, WIDE = 1 << 16, 1 << 18  # bytes of socket buffers
MUCH = 4 << 20  # more than two sockets and a pipe hold
SIZES = [
    size + more for size in (0, COPIED_BYTES, 2 * COPIED_BYTES, ROUNDS * COPIED_BYTES, 1 << 19) for more in (-1, 0, 1)
][1:]
both_engines = pytest.mark.parametrize("limit", [PLENTY, 0], ids=["pipes", "copies"])


class Carried:
    """A way between two connections.

    :ivar sender: the remote end of the source.
    :ivar receiver: the remote end of the target.
    :ivar got: what the receiver has received.
    :ivar conversed: ways that moved one piece.
    :ivar lap: seconds of the stopwatch between two looks at it.
    """

    def __init__(self, limit: int, window: int) -> None:
        self.lap = self.now = 0.0
        self.spliced = Tally()
        self.conversed: list[object] = []
        self.carrier = Carrier(Pipes(limit), self.spliced, self.conversed.append, self._stopwatch)
        self.sender, self.source = socket_pair(window=window)
        self.target, self.receiver = socket_pair(window=window)
        self.way = Way(self.source, self.target)
        self.got = bytearray()

    def carry(self, deadline: float = NEVER) -> Outcome:
        return self.carrier.carry(self.way, deadline)

    def run(self) -> Outcome:
        """Carry as long as there is more."""
        while (outcome := self.carry()) is Outcome.MORE:
            pass
        return outcome

    def send(self, data: bytes) -> None:
        """Send, and wait until the source has all."""
        self.sender.sendall(data)
        arrived(self.source, len(data))

    def read(self) -> bytes:
        self.got += taken(self.receiver)
        return bytes(self.got)

    def arrives(self, count: int) -> bytes:
        """Carry and receive until so many bytes have come."""

        def come() -> bool:
            self.run()
            return len(self.read()) >= count

        until(come, f"{count} bytes")
        return bytes(self.got)

    def fill(self, piece: int = MUCH) -> int:
        """Send pieces and carry until the target takes no more; return how many bytes were sent."""
        self.sender.setblocking(False)
        data, sent = noise(MUCH), 0

        def full() -> bool:
            nonlocal sent
            with suppress(BlockingIOError):
                sent += self.sender.send(data[sent : sent + piece])
            self.way.bulk = piece > COPIED_BYTES
            return self.run() is Outcome.BLOCKED

        until(full, "a full socket")
        assert sent < MUCH
        return sent

    def close(self) -> None:
        self.carrier.forget(self.way)
        self.carrier.close()
        for sock in (self.sender, self.source, self.target, self.receiver):
            sock.close()

    def _stopwatch(self) -> float:
        self.now += self.lap
        return self.now


@contextmanager
def carried(limit: int = PLENTY, window: int = 0) -> Iterator[Carried]:
    descriptors = os.listdir("/proc/self/fd")
    found = Carried(limit, window)
    try:
        yield found
    finally:
        found.close()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors), "no pipe is left"


@both_engines
@pytest.mark.parametrize("size", SIZES)
def test_every_size_arrives_whole(size: int, limit: int) -> None:
    with carried(limit) as it:
        it.sender.sendall(noise(size))
        assert it.arrives(size) == noise(size)
        assert it.run() is Outcome.EMPTY
        assert (it.spliced.bytes, it.way.pipe, it.way.piped, bytes(it.way.kept)) == (size, None, 0, b"")


@both_engines
@pytest.mark.parametrize("size", [0, *SIZES])
def test_the_end_comes_behind_the_last_byte(size: int, limit: int) -> None:
    """Though both have come at once."""
    with carried(limit) as it:
        it.sender.sendall(noise(size))
        it.sender.shutdown(socket.SHUT_WR)
        if size <= WINDOW:
            became(it.source, TCP_CLOSE_WAIT)
        it.way.thorough = True
        ends: list[bool] = []

        def ended() -> bool:
            ends.append(it.run() is Outcome.ENDED)
            it.read()
            return ends[-1]

        until(ended, "the end")
        assert it.arrives(size) == noise(size)
        assert it.way.ended and it.run() is Outcome.ENDED


def test_a_small_piece_costs_one_receive_and_borrows_nothing() -> None:
    with carried() as it:
        it.send(b"question")
        assert it.carry() is Outcome.EMPTY
        assert (it.conversed, it.way.waits) == ([it.way], True)
        it.send(b"and more")
        it.way.thorough = True
        assert it.carry() is Outcome.EMPTY
        assert it.conversed == [it.way] * 2
        assert it.arrives(16) == b"questionand more"


@both_engines
def test_nothing_is_no_conversation(limit: int) -> None:
    with carried(limit) as it:
        assert it.carry() is Outcome.EMPTY
        it.send(noise(COPIED_BYTES + 1))
        it.run()
        assert it.conversed == [it.way]


def test_a_carrier_that_nobody_watches() -> None:
    with carried() as it:
        it.carrier.close()
        it.send(b"x")
        assert (it.carry(), it.conversed) == (Outcome.EMPTY, [])


def test_much_at_once_goes_by_pipe() -> None:
    with carried(window=WIDE) as it:
        it.send(noise(8 * COPIED_BYTES))
        assert it.carry() is Outcome.EMPTY
        assert not it.way.waits
        assert [os.get_blocking(sock.fileno()) for sock in (it.source, it.target)] == [False, False]
        assert it.arrives(8 * COPIED_BYTES) == noise(8 * COPIED_BYTES)
        assert it.way.pipe is None


@both_engines
def test_a_target_that_takes_no_more_stops_its_sender(limit: int) -> None:
    with carried(limit, WINDOW) as it:
        sent = it.fill()
        assert bool(it.way.piped) == bool(limit)
        assert bytes(it.way.kept) == b""
        waiting = queued(it.source)
        assert it.carry() is Outcome.BLOCKED
        assert queued(it.source) >= waiting, "nothing more is taken"
        assert it.spliced.bytes <= sent - waiting - it.way.piped
        assert it.arrives(sent) == noise(MUCH)[:sent]
        assert it.run() is Outcome.EMPTY
        assert it.way.pipe is None


def test_bytes_that_wait_are_not_those_of_another_way() -> None:
    """Though all ways share one buffer."""
    with carried(0, WINDOW) as it:
        sent = it.fill(5000)
        assert it.way.kept
        other, source = socket_pair()
        target, receiver = socket_pair()
        with other, source, target, receiver:
            other.sendall(noise(COPIED_BYTES, 1))
            arrived(source, COPIED_BYTES)
            it.carrier.carry(Way(source, target), NEVER)
            arrived(receiver, COPIED_BYTES)
            assert taken(receiver) == noise(COPIED_BYTES, 1)
        assert it.arrives(sent) == noise(MUCH)[:sent]


@both_engines
@pytest.mark.parametrize("size", SIZES[:6])
def test_a_reset_comes_behind_what_was_sent(size: int, limit: int) -> None:
    with carried(limit) as it:
        it.send(noise(size))
        reset(it.sender)
        became(it.source, TCP_CLOSE)
        it.way.thorough = True
        assert it.run() is Outcome.SOURCE_BROKEN
        assert it.arrives(size) == noise(size)


def test_a_reset_while_bytes_go_by_pipe() -> None:
    with carried(PLENTY, WINDOW) as it:
        sent = it.fill()
        reset(it.sender)
        became(it.source, TCP_CLOSE)
        assert it.run() is Outcome.BLOCKED
        # What the sender's own socket had still is lost, as it is without a proxy.
        whole = it.spliced.bytes + it.way.piped + queued(it.source)
        assert it.way.piped and whole <= sent
        ends: list[Outcome] = []

        def broken() -> bool:
            it.read()
            ends.append(it.run())
            return ends[-1] is Outcome.SOURCE_BROKEN

        until(broken, "the reset")
        until(lambda: len(it.read()) >= whole, "what was sent")
        assert bytes(it.got) == noise(MUCH)[:whole]


@both_engines
def test_a_target_that_was_reset(limit: int) -> None:
    with carried(limit) as it:
        it.send(noise(2 * COPIED_BYTES))
        reset(it.receiver)
        became(it.target, TCP_CLOSE)
        assert it.carry() is Outcome.TARGET_BROKEN
        it.carrier.forget(it.way)
        assert (bytes(it.way.kept), it.way.pipe, it.way.piped) == (b"", None, 0)


@both_engines
def test_a_target_that_is_reset_while_bytes_wait(limit: int) -> None:
    with carried(limit, WINDOW) as it:
        it.fill()
        reset(it.receiver)
        became(it.target, TCP_CLOSE)
        assert it.carry() is Outcome.TARGET_BROKEN
        pipe = it.way.pipe
        it.carrier.forget(it.way)
        assert (bytes(it.way.kept), it.way.pipe, it.way.piped) == (b"", None, 0)
        assert bool(pipe) == bool(limit)
        if pipe:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(pipe.reader)


@both_engines
def test_a_target_that_was_shut(limit: int) -> None:
    """As by an end that closed before it was written to."""
    with carried(limit) as it:
        it.target.shutdown(socket.SHUT_WR)
        it.send(b"nobody reads that")
        assert it.carry() is Outcome.TARGET_BROKEN


@both_engines
def test_a_way_takes_a_few_rounds(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_carrier, "BULK_BYTES", COPIED_BYTES)
    size = (ROUNDS + 2) * COPIED_BYTES
    with carried(limit, WIDE) as it:
        it.send(noise(size))
        outcome = it.carry()
        assert outcome is (Outcome.EMPTY if limit else Outcome.MORE)
        assert it.spliced.bytes == (size if limit else ROUNDS * COPIED_BYTES)
        assert it.arrives(size) == noise(size)


def test_a_way_takes_one_round_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_carrier, "BULK_BYTES", COPIED_BYTES)
    with carried(0) as it:
        it.send(noise(3 * COPIED_BYTES))
        it.lap = 1.0
        assert it.carry(0.0) is Outcome.MORE
        assert it.spliced.bytes == COPIED_BYTES
        assert it.carry(it.now + 1.5) is Outcome.MORE
        assert it.spliced.bytes == 3 * COPIED_BYTES
        assert it.carry(NEVER) is Outcome.EMPTY


@both_engines
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("before", [0, 1, COPIED_BYTES - 1, COPIED_BYTES, COPIED_BYTES + 1, 5 * COPIED_BYTES])
@pytest.mark.parametrize("after", [0, 1, 5 * COPIED_BYTES])
def test_urgent_data_stays_in_line(before: int, after: int, ended: bool, limit: int) -> None:
    """Both of what comes in pieces, and of what goes by pipe already."""
    with carried(limit, WIDE) as it:
        for bulk in (False, True):
            data = noise(before) + b"!" + noise(after, 1)
            it.got.clear()
            it.way.bulk = it.way.thorough = bulk
            it.sender.sendall(noise(before))
            it.sender.send(b"!", socket.MSG_OOB)
            it.sender.sendall(noise(after, 1))
            if bulk and ended:
                it.sender.shutdown(socket.SHUT_WR)
                became(it.source, TCP_CLOSE_WAIT)
            arrived(it.source, len(data))
            it.way.thorough = True
            assert it.arrives(len(data)) == data
        assert it.run() is (Outcome.ENDED if ended else Outcome.EMPTY)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM, errno.ENOSYS, errno.EPERM])
def test_where_nothing_moves_through_pipes_it_is_copied(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def refuse(*arguments: object, **options: object) -> int:
        nonlocal tried
        tried += 1
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "splice", refuse)
    with carried(PLENTY, WIDE) as it:
        it.sender.sendall(noise(200_000))
        assert it.arrives(200_000) == noise(200_000)
    assert tried == 1


def test_no_pipe_at_all_is_no_obstacle() -> None:
    with carried(0) as it:
        it.sender.setblocking(False)
        data, sent = noise(MUCH), 0
        while len(it.got) < MUCH:
            if sent < MUCH:
                with suppress(BlockingIOError):
                    sent += it.sender.send(data[sent : sent + WIDE])
            it.run()
            it.read()
        assert bytes(it.got) == data
        assert it.way.pipe is None
