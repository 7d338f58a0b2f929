"""The sockets of TCP's splice pairs, and the bytes that move between them.

Theory of operation: `gpasst.tcp.pairs` has the rules. All sockets of pairs stand in one private epoll set,
edge-triggered, and one watcher watches the set: a way whose target takes no more wakes nobody until it does. An event
queues its pair, and `wake` wakes the greenlet of each pair in the queue, until its time is over; `again` asks for the
rest.
"""

from __future__ import annotations

import errno
import time
from _socket import socket as RawSocket  # a class
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from gpasst.counters import Counters, Drop
from gpasst.errors import GpasstError, PacketError
from gpasst.flow.loopback import LoopbackTargets
from gpasst.host.descriptors import Descriptors
from gpasst.host.pipes import Pipes
from gpasst.host.socket_pool import SocketPool, kept_ready, streams
from gpasst.host.sockets import family_constant, socket_address
from gpasst.host.tcp import Epoll, close_with_reset, end_of, prepare_stream
from gpasst.linux import (
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    SHUT_WR,
    SO_ERROR,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
)
from gpasst.path.budget import STEP_SECONDS
from gpasst.path.tcp_carrier import BLOCKED, ENDED, MORE, SOURCE_BROKEN, TARGET_BROKEN, Carrier
from gpasst.tcp.listener import TcpListener
from gpasst.tcp.pairs import End, StreamPair, StreamPairs, Worker

EVENTS = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET
EVENTS_AT_ONCE = 64
SPARE = 64  # greenlets kept for new pairs
MANY = 256  # pairs, whose memory is worth giving back
TRIES = 4  # sockets tried until one is not connected to itself

_RESET = frozenset((errno.ECONNRESET, errno.EPIPE))  # errors of a connection that was accepted
_ARRIVES = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR


class TcpSplice:
    """All splice pairs of TCP of one namespace, with their sockets.

    :param targets: where loopback traffic leads.
    :param pool: the sockets of the namespace.
    :param epoll: an empty epoll set, which becomes this one's to close.
    :param descriptors: closes idle sockets near the limit of open files.
    :param counters: where traffic and drops are counted.
    :param new_worker: makes a greenlet with a step, which becomes this one's to close.
    :param again: asks for a call of `wake` soon; more calls before it do nothing.
    :param conversed: takes note of a way that moved one piece, since an answer may come soon.
    :param clock: returns monotonic seconds.
    :param stopwatch: returns seconds, for the budget of a step.
    :ivar pairs: the rules and tables.
    :ivar inward: see `LoopbackTargets`.
    """

    def __init__(
        self,
        targets: LoopbackTargets,
        pool: SocketPool,
        epoll: Epoll,
        descriptors: Descriptors,
        counters: Counters,
        new_worker: Callable[[Callable[[StreamPair], None]], Worker],
        again: Callable[[], None],
        conversed: Callable[[object], None] | None,
        clock: Callable[[], float],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pairs = StreamPairs()
        self._targets = targets
        self.inward = targets.inward
        self._pool = pool
        self._epoll = epoll
        self._descriptors = descriptors
        self._counters = counters
        self._carrier = Carrier(Pipes(descriptors.line), counters.tcp.spliced, conversed, stopwatch)
        self._new_worker = new_worker
        self._spare: list[Worker] = []  # making one takes a page of memory
        self._again = again
        self._clock = clock
        self._stopwatch = stopwatch
        self._by_fd: dict[int, tuple[StreamPair, int]] = {}
        self._queue: deque[StreamPair] = deque()
        self._deadline = 0.0
        self._most = 0

    def listen(self, inside: bool, family: int) -> None:
        """Get ready for pairs of clients on one side: sockets in the pool.

        :raises GpasstError: if the namespace makes no sockets.
        """
        if not inside:
            self._pool.keep(streams(family), kept_ready(self._descriptors.line))

    def open(self, listener: TcpListener, client: RawSocket, source: End, addressed: End) -> None:
        """Set up the pair of an accepted client.

        :param client: its socket, closed if an error is raised.
        :param source: its end.
        :param addressed: what it connected to.
        :raises PacketError: if it must not have one, or no socket can be had.
        """
        try:
            inside, family = listener.inside, listener.family
            self.pairs.check(inside, source, addressed)
            address, scope = self._targets.of(inside, family, listener.target_address, addressed[0])
            remote = address, listener.target
            sock, local = self._connected(not inside, family, remote, scope)
        except PacketError:
            close_with_reset(client)
            raise
        worker = self._spare.pop() if self._spare else self._new_worker(self._step)
        pair = StreamPair(listener, client, source, addressed[0], sock, local, remote, worker, self._clock())
        self.pairs.add(pair)
        self._most = max(self._most, len(self.pairs))
        try:
            for index, way in enumerate(pair.ways):
                self._epoll.register(way.source.fileno(), EVENTS)
                self._by_fd[way.source.fileno()] = pair, index
        except OSError as error:
            # As epoll_ctl(2) says: no memory, or as many watches as the user may have.
            self._close(pair, reset=True)
            raise PacketError(Drop.NO_SOCKET, f"no watch: {error.strerror}") from error

    def wake(self) -> None:
        """Take the events of sockets, and move what they have, for at most `STEP_SECONDS`; called in the hub."""
        self._deadline = self._stopwatch() + STEP_SECONDS
        now, queue = self._clock(), self._queue
        for fd, event in self._epoll.poll(0, EVENTS_AT_ONCE):
            pair, index = self._by_fd[fd]
            pair.ways[index].events |= event
            pair.heard = now
            if not pair.queued:
                pair.queued = True
                queue.append(pair)
        while queue:
            pair = queue.popleft()
            pair.queued = False
            if pair.worker is not None:
                pair.worker.wake(pair)
            if queue and self._stopwatch() >= self._deadline:
                self._again()
                break

    def shrunk(self) -> bool:
        """Return whether most of many pairs have ended since this last returned true."""
        count = len(self.pairs)
        if self._most < MANY or count > self._most // 2:
            return False
        self._most = count
        return True

    def held(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def let_go(self) -> bool:
        """Reset the pair that was idle longest; return whether there was one."""
        pair = self.pairs.longest_idle()
        if pair is None:
            return False
        self._counters.drop(Drop.CONNECTIONS_FULL)
        self._close(pair, reset=True)
        return True

    def close(self) -> None:
        """Reset all pairs, and close the epoll set; more calls do nothing."""
        for pair in list(self.pairs):
            self._close(pair, reset=True)
        for worker in self._spare:
            worker.close()
        self._spare.clear()
        self._queue.clear()
        self._carrier.close()
        self._epoll.close()
        # Their owners refer back to this one, and all would have to wait for the garbage collector.
        self._again, self._new_worker = _nothing, _no_worker

    def _step(self, pair: StreamPair) -> None:
        """Look at the events of a pair, and move what there is; a pair that meets an internal error is reset."""
        try:
            if pair.connecting and not self._answered(pair):
                return
            first, second = pair.ways
            if first.events:
                self._note(pair, 0)
            if second.events:
                self._note(pair, 1)
            if first.due:
                self._carry(pair, 0)
            if second.due:
                self._carry(pair, 1)
            if first.due or second.due:
                pair.queued = True
                self._queue.append(pair)
        except Exception:
            self._close(pair, reset=True)
            raise

    def _answered(self, pair: StreamPair) -> bool:
        """Return whether the other side has accepted; where it has refused, or the client has gone, the pair ends."""
        client, own = pair.ways
        if client.events & EPOLLERR:
            self._close(pair, reset=True)
        elif own.events & (EPOLLERR | EPOLLHUP):
            number = own.source.getsockopt(SOL_SOCKET, SO_ERROR)
            if number in _RESET:
                pair.connecting = False
                self._break(pair, 1)
            else:
                if number == errno.ECONNREFUSED:
                    self._counters.refusals += 1
                else:
                    self._counters.drop(Drop.UNREACHABLE)
                self._close(pair, reset=True)
        elif own.events & EPOLLOUT:
            pair.connecting = False
        return pair.open and not pair.connecting

    def _note(self, pair: StreamPair, index: int) -> None:
        """Let the events of the socket with an index make the ways due that they concern."""
        way, back = pair.ways[index], pair.ways[not index]
        events, way.events = way.events, 0
        if events & _ARRIVES and not way.finished:
            way.due = not way.blocked
            if events & (EPOLLPRI | EPOLLRDHUP):
                way.thorough = True
        if events & EPOLLOUT and back.blocked:
            back.blocked, back.due = False, True
        if events & EPOLLERR and pair.open and way.source.getsockopt(SOL_SOCKET, SO_ERROR):
            self._break(pair, index)

    def _break(self, pair: StreamPair, index: int) -> None:
        """Take note that the end with an index was reset, or takes no more; what it has sent may still be delivered."""
        way, back = pair.ways[index], pair.ways[not index]
        pair.broken = True
        self._carrier.forget(back)
        back.finished, back.due, back.blocked = True, False, False
        if way.finished:
            self._close(pair, reset=True)
        else:
            way.due, way.thorough = not way.blocked, True

    def _carry(self, pair: StreamPair, index: int) -> None:
        """Move what comes from the socket with an index; a way that is still due then has more."""
        way = pair.ways[index]
        outcome = self._carrier.carry(way, self._deadline)
        if outcome is MORE:
            return
        way.due = False
        if outcome is BLOCKED:
            way.blocked = True
        elif outcome is ENDED:
            self._finish(pair, index)
        elif outcome is SOURCE_BROKEN:
            self._close(pair, reset=True)
        elif outcome is TARGET_BROKEN:
            self._break(pair, 1 - index)

    def _finish(self, pair: StreamPair, index: int) -> None:
        """End a way whose source has nothing more to come, and whose target has all."""
        way, back = pair.ways[index], pair.ways[not index]
        if pair.broken or back.finished:
            self._close(pair, pair.broken)
            return
        # A socket that is not connected any more refuses; an event says why.
        with suppress(OSError):
            way.target.shutdown(SHUT_WR)
        way.finished = True

    def _close(self, pair: StreamPair, reset: bool) -> None:
        """End a pair; more calls do nothing."""
        if not pair.open:
            return
        pair.open = False
        self.pairs.remove(pair)
        for way in pair.ways:
            way.due = False
            self._carrier.forget(way)
            if self._by_fd.pop(way.source.fileno(), None) is not None:
                # A process that was forked may have the socket for a moment; closing it here leaves it in the set then.
                self._epoll.unregister(way.source.fileno())
            if reset:
                close_with_reset(way.source)
            else:
                way.source.close()
        if pair.worker is not None:
            # It may be in the midst of its last step.
            if len(self._spare) < SPARE:
                self._spare.append(pair.worker)
            else:
                pair.worker.close()
            pair.worker = None

    def _connected(self, inside: bool, family: int, remote: End, scope: int) -> tuple[RawSocket, End]:
        """Return a socket of one side that connects to a remote end, and its own end.

        :raises PacketError: if none can be had, or there is no way there.
        """
        target = socket_address(*remote, scope)
        for _ in range(TRIES):
            try:
                sock = self._descriptors.make(lambda: self._socket(inside, family))
            except (OSError, GpasstError) as error:
                raise PacketError(Drop.NO_SOCKET) from error
            try:
                prepare_stream(sock)
                sock = self._descriptors.settle(sock)
                number = sock.connect_ex(target)
                local = end_of(sock.getsockname())
            except OSError as error:
                sock.close()
                raise PacketError(Drop.NO_SOCKET) from error
            if number not in (0, errno.EINPROGRESS):
                sock.close()
                raise PacketError(Drop.UNREACHABLE)
            if local != remote:
                return sock, local
            # By chance, the kernel gave it the port it shall talk to, and it has connected to itself.
            sock.close()
        raise PacketError(Drop.NO_SOCKET)

    def _socket(self, inside: bool, family: int) -> RawSocket:
        if inside:
            return self._pool.take(streams(family))
        return RawSocket(family_constant(family), SOCK_STREAM | SOCK_NONBLOCK, 0)


def _nothing() -> None:
    """Do nothing: a callback of closed pairs."""


def _no_worker(_: object) -> NoReturn:
    """Refuse, as closed pairs do."""
    raise PacketError(Drop.NO_SOCKET)
