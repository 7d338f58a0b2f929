"""The sockets of TCP connections: the work that connections ask for, and the events of their sockets.

Theory of operation:

1. All sockets stand in one private epoll set, edge-triggered, and one watcher watches the set. So a connection costs
   neither a watcher nor a greenlet, and data that is only peeked, or waits for a window, wakes nobody
   (the event loop's own watchers are level-triggered).
2. An event, a segment or a deadline adds *work* to its connection (`gpasst.tcp.work`), and the connection joins a
   queue. `run` does the work, connection by connection, until the step's time is over; the rest waits for the next
   step, which `again` asks for. So one acknowledgement, one discard and one look at the socket serve all segments that
   were read together. Where many requests were, one look at the set finds the answers that are there already.
3. A connection that has more to send goes to the end of the queue after a few superframes.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from gpasst.counters import Counters
from gpasst.flow.sender import StreamSocket
from gpasst.host.peek import discard
from gpasst.host.tcp import Epoll, close_with_reset, peek_from_start
from gpasst.linux import (
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_WR,
    SO_ERROR,
    SO_KEEPALIVE,
    SOL_SOCKET,
)
from gpasst.path.budget import STEP_SECONDS
from gpasst.path.tcp_delayed import Delayed, nothing
from gpasst.path.tcp_writer import TcpWriter
from gpasst.tcp.connection import Connection
from gpasst.tcp.states import State
from gpasst.tcp.table import ConnectionTable
from gpasst.tcp.timers import DELAY_OF_MANY_SECONDS, DELAY_SECONDS
from gpasst.tcp.work import (
    ABORT,
    ACKNOWLEDGE,
    CLOSE,
    CONFIRM,
    DISCARD,
    KEEP_ALIVE,
    LATER,
    LOOK,
    PROBE,
    REFUSE,
    RESET,
    REWIND,
    SEND,
    SYNCHRONISE,
    WRITE,
)
from gpasst.wire import TCP_ACK

EVENTS = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
EVENTS_AT_ONCE = 128
PIECES_AT_ONCE = 64  # of kept data, offered to a socket in one call
CONNECTIONS_PER_LOOK = 4  # at the clock
MANY = 8  # connections with work at once, from which requests leave it to events when their answers come

_SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL
_REQUEST = DISCARD | LOOK | LATER
_UNUSUAL = REWIND | WRITE | SYNCHRONISE | PROBE | KEEP_ALIVE | REFUSE | RESET | ABORT | CLOSE | CONFIRM


class TcpSockets:
    """Does the work of all connections between a guest and the host's sockets.

    :param writer: writes segments for the guest.
    :param table: the connections.
    :param epoll: an empty epoll set, which becomes this one's to close.
    :param counters: where traffic and drops are counted.
    :param failed: called with a connection that could not be made and the errno; returns whether it has answered the
        guest, so that no RST is needed.
    :param again: asks for a call of `step` soon; more calls before it do nothing.
    :param later: calls a function once at a time of the clock; the function gets the present time.
    :param arm: called with a connection and the time after work that may have brought its deadline forward or ended it.
    :param clock: returns monotonic seconds.
    :param stopwatch: returns seconds, for the budget of a step.
    :ivar clock: as above.
    :ivar queue: connections with work; `run` empties it.
    """

    def __init__(
        self,
        writer: TcpWriter,
        table: ConnectionTable,
        epoll: Epoll,
        counters: Counters,
        failed: Callable[[Connection, int], bool],
        again: Callable[[], None],
        later: Callable[[float, Callable[[float], None]], object],
        arm: Callable[[Connection, float], None],
        clock: Callable[[], float],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._writer = writer
        self._table = table
        self._epoll = epoll
        self._counters = counters
        self._down = counters.tcp.down
        self._failed = failed
        self._again = again
        self._arm = arm
        self.clock = clock
        self._stopwatch = stopwatch
        self._by_fd: list[Connection | None] = []  # a dictionary would take ten times the memory
        self.queue: deque[Connection] = deque()
        self._delayed = Delayed(later, lambda connection, now: self._do(connection, ACKNOWLEDGE, now), writer.flush)

    def watch(self, connection: Connection) -> None:
        """Take the events of a connection's socket from now on.

        :raises OSError: if the kernel watches no more.
        """
        assert connection.socket is not None
        fd = connection.socket.fileno()
        self._epoll.register(fd, EVENTS)
        if fd >= len(self._by_fd):
            self._by_fd += [None] * (fd + 1 - len(self._by_fd))
        self._by_fd[fd] = connection

    def mark(self, connection: Connection, work: int) -> None:
        """Add work to a connection; `run` does it."""
        if not connection.work:
            if work & SYNCHRONISE:
                # Somebody waits for it, who does not for the end of another connection.
                self.queue.appendleft(connection)
            else:
                self.queue.append(connection)
        connection.work |= work

    def ask(self) -> None:
        """Let the work that was added be done in a step of its own, soon."""
        if self.queue:
            self._again()

    def offer(self, connection: Connection, more: Sequence[memoryview] = ()) -> int:
        """Offer to the socket what a segment has brought; return the work that follows.

        :param more: data of the segments behind it, with which the receiver was extended.
        """
        fresh, sock = connection.fresh, connection.socket
        if sock is None:
            return 0
        try:
            taken = sock.sendmsg((fresh, *more), (), _SEND_FLAGS) if more else sock.send(fresh, _SEND_FLAGS)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            if error.errno != errno.EPIPE:
                return self._broken(connection, error)
            # The remote end reads no more; its RST follows, if it sends one.
            taken = len(fresh) + sum(map(len, more))
        self._down.bytes += taken
        self._down.datagrams += 1 + len(more)
        return connection.wrote(taken, more)

    def step(self) -> int:
        """Take the events of sockets, and do what follows, for at most `STEP_SECONDS`; return how many events."""
        deadline = self._stopwatch() + STEP_SECONDS
        moved = self.look()
        if self.queue:
            self.run(deadline)
        return moved

    def look(self) -> int:
        """Take the events of sockets; return how many."""
        events = self._epoll.poll(0, EVENTS_AT_ONCE)
        self._take(iter(events))
        return len(events)

    def follow(self, deadline: float) -> None:
        """Do the work that a batch of segments has added; parameters as for `run`.

        One call says which of many requests have their answers already.
        """
        if len(self.queue) >= MANY:
            self.look()
        self.run(deadline)

    def run(self, deadline: float) -> None:
        """Do the work of connections until `deadline`, in seconds of the stopwatch; ask for a step for the rest.

        A connection that meets an internal error is closed, since it might meet that with every event.
        """
        queue, now = self.queue, self.clock()
        many = len(queue) >= MANY
        done = 0
        try:
            while queue:
                connection = queue.popleft()
                work, connection.work = connection.work, 0
                if many and work & LATER and not work & ~_REQUEST:
                    self._delayed.add(connection, now + DELAY_OF_MANY_SECONDS)
                elif connection.socket is not None:
                    self._do(connection, work, now)
                done += 1
                if not done % CONNECTIONS_PER_LOOK and queue:
                    if self._stopwatch() >= deadline:
                        self._again()
                        break
                    now = self.clock()
        except Exception:
            self.drop(connection)
            self.ask()
            raise
        finally:
            self._writer.flush()

    def unconnected(self, connection: Connection, number: int) -> int:
        """Return the work that follows from a connect that failed with the errno `number`."""
        return connection.abort(without=RESET if self._failed(connection, number) else 0)

    def end(self, connection: Connection) -> None:
        """Reset a connection on both sides, at once."""
        if connection.socket is not None:
            self._unusual(connection, connection.abort(), self.clock())
            self._writer.flush()

    def drop(self, connection: Connection) -> None:
        """Reset a connection towards the remote end alone, at once."""
        if connection.socket is not None:
            connection.abort()
            self._close(connection, abort=True)

    def resume(self) -> None:
        """Go on with connections that waited for the link."""
        waiting, self._writer.waiting = self._writer.waiting, {}
        for connection in waiting:
            self.mark(connection, SEND)
        self.ask()

    def close(self) -> None:
        """Close every socket with a RST, and the epoll set; more calls do nothing."""
        for connection in list(self._table):
            self.drop(connection)
        self.queue.clear()
        self._writer.waiting.clear()
        self._epoll.close()
        # Their owners refer back to this one, and all would have to wait for the garbage collector.
        self._failed = self._again = self._arm = nothing
        self._delayed.close()

    def _take(self, events: Iterator[tuple[int, int]]) -> None:
        """Take events; a connection that meets an internal error is closed."""
        connection = None
        try:
            for fd, event in events:
                connection = self._by_fd[fd]
                if connection is not None:
                    work = self._event(connection, event)
                    if work:
                        self.mark(connection, work)
        except Exception:
            if connection is not None:
                self.drop(connection)
            # What the set has reported once it does not report again.
            self._take(events)
            self.ask()
            raise

    def _event(self, connection: Connection, event: int) -> int:
        """Return the work that follows from an event of a connection's socket."""
        sock = connection.socket
        assert sock is not None
        if event & EPOLLRDHUP:
            # It may come with the connection, and is reported once.
            connection.sender.ended = True
        if connection.state is State.CONNECTING:
            if event & (EPOLLERR | EPOLLHUP):
                return self.unconnected(connection, sock.getsockopt(SOL_SOCKET, SO_ERROR))
            return self._table.connected(connection) if event & EPOLLOUT else 0
        if event & EPOLLERR:
            return connection.abort()
        work = 0
        if event & EPOLLOUT and connection.receiver.waits:
            work = WRITE
        if event & (EPOLLIN | EPOLLRDHUP) and connection.established and not connection.sender.blocked:
            work |= SEND
        return work

    def _do(self, connection: Connection, work: int, now: float) -> None:
        """Do work, in the order of its flags."""
        sock, sender = connection.socket, connection.sender
        assert sock is not None
        if sender.discard:
            count, sender.discard = sender.discard, 0
            try:
                discard(sock, count)
            except OSError as error:
                work |= self._broken(connection, error)
        if work & _UNUSUAL:
            work = self._unusual(connection, work, now)
            if connection.socket is None:
                return
        if work & (SEND | LOOK) and connection.established:
            try:
                sent, more = self._writer.send(connection, sock, now)
            except OSError as error:
                self.mark(connection, self._broken(connection, error))
                return
            if sent:
                work &= ~(ACKNOWLEDGE | LATER)
            if more:
                self.mark(connection, SEND)
        if work & ACKNOWLEDGE:
            self._writer.segment(connection, TCP_ACK)
        elif work & LATER:
            self._delayed.add(connection, now + DELAY_SECONDS)
        self._arm(connection, now)

    def _write(self, connection: Connection, sock: StreamSocket) -> int:
        """Offer to the socket what is kept, and shut it behind a FIN; return the work that follows."""
        receiver = connection.receiver
        work = 0
        while pieces := receiver.waiting(PIECES_AT_ONCE):
            size = sum(map(len, pieces))
            try:
                taken = sock.sendmsg(pieces, (), _SEND_FLAGS)
            except BlockingIOError:
                return work
            except OSError as error:
                if error.errno != errno.EPIPE:
                    return self._broken(connection, error)
                taken = size
            receiver.took(taken)
            self._down.bytes += taken
            work = ACKNOWLEDGE
            if taken < size:
                return work
        if not receiver.finishing:
            return work
        # A socket that is not connected any more refuses; an event says why.
        with suppress(OSError):
            sock.shutdown(SHUT_WR)
        return work | connection.shut()

    def _unusual(self, connection: Connection, work: int, now: float) -> int:
        """Do the work that stands between discarding and sending, most of it once or hardly ever; return the rest."""
        sock = connection.socket
        assert sock is not None
        if work & REWIND and self._writer.peek_offset:
            try:
                peek_from_start(sock)
            except OSError as error:
                work |= self._broken(connection, error)
        if work & WRITE:
            work |= self._write(connection, sock)
        if work & SYNCHRONISE and not connection.established:
            # A guest may repeat its SYN, and answer ours, in one batch.
            self._writer.synchronise(connection, now)
        if work & PROBE:
            self._writer.segment(connection, TCP_ACK, back=1)
        if work & KEEP_ALIVE:
            sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        if work & REFUSE:
            self._writer.refuse(connection)
        if work & RESET:
            self._writer.reset(connection)
        if work & CLOSE:
            if work & ACKNOWLEDGE and not work & ABORT:
                self._writer.segment(connection, TCP_ACK)
            self._close(connection, work & ABORT != 0)
        elif work & CONFIRM:
            self._writer.segment(connection, TCP_ACK)
        return work

    def _broken(self, connection: Connection, error: OSError) -> int:
        """Return the work that follows from a call that the kernel refused."""
        self._counters.socket_errors += 1
        return connection.abort()

    def _close(self, connection: Connection, abort: bool) -> None:
        sock = connection.socket
        assert sock is not None
        self._by_fd[sock.fileno()] = None
        # A process that was forked may have the socket for a moment, and closing it here would leave it in the set.
        self._epoll.unregister(sock.fileno())
        if abort:
            close_with_reset(sock)
        else:
            sock.close()
        connection.release()
        self._arm(connection, 0.0)  # a closed one is looked at no more
        self._table.remove(connection)
