"""The parts of TCP's splice pairs over real sockets; the namespace is the host itself here."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from gpasst.counters import Counters
from gpasst.flow.loopback import LoopbackTargets
from gpasst.host.descriptors import Descriptors
from gpasst.host.socket_pool import SocketPool
from gpasst.host.tcp import Epoll, accept, prepare_listener
from gpasst.path.tcp_splice import TcpSplice
from gpasst.tcp.listener import TcpListener
from gpasst.tcp.pairs import StreamPair
from tests.support.addresses import ip
from tests.support.families import FAMILY, LOOPBACK
from tests.support.networks import rules
from tests.support.ready import PATIENCE, until

PLENTY = 1 << 20  # a limit of descriptors that nothing here comes near
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8  # states of tcpi_state (net/tcp_states.h)


def socket_pair(family: int = 4, window: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over loopback.

    :param window: size of its buffers, 0 for the kernel's choice.
    """
    with socket.socket(FAMILY[family]) as server, socket.socket(FAMILY[family]) as client:
        prepare(server, window)
        prepare(client, window)
        server.bind((LOOPBACK[family], 0))
        server.listen()
        client.connect(server.getsockname())
        other, _ = server.accept()
        for sock in (client, other):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        return socket.socket(fileno=client.detach()), other


def prepare(sock: socket.socket, size: int) -> None:
    """Set the size of a socket's buffers, unless it is 0, and let a listener have its port in TIME-WAIT."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def queued(sock: socket.socket) -> int:
    """Return the number of bytes that wait in a socket."""
    return int(struct.unpack("@i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def arrived(sock: socket.socket, count: int) -> None:
    """Return when so many bytes wait in a socket."""
    until(lambda: queued(sock) >= count, f"{count} bytes in the socket")


def became(sock: socket.socket, state: int) -> None:
    """Return when a socket is in a state of the kernel's."""
    until(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == state, f"state {state}")


def taken(sock: socket.socket, size: int = 1 << 20) -> bytes:
    """Return what can be received at once; nothing where nothing waits, and at the end."""
    return sock.recv(size) if readable(sock) else b""


def readable(sock: socket.socket) -> bool:
    """Return whether something waits in a socket: bytes, an end or an error."""
    return bool(select.select([sock], [], [], 0)[0])


class Worker:
    """What takes the steps of pairs, without a greenlet.

    :param owner: knows which are not closed.
    :param step: one step.
    """

    def __init__(self, owner: Spliced, step: Callable[[StreamPair], None]) -> None:
        self._owner = owner
        self._step = step
        owner.workers.append(self)

    def wake(self, pair: StreamPair, /) -> None:
        try:
            self._step(pair)
        except Exception as error:
            self._owner.errors.append(error)

    def close(self) -> None:
        self._owner.workers.remove(self)


class Spliced:
    """Splice pairs with a listener and a service.

    :param inside: whether the clients are in the namespace.
    :param limit: of descriptors.
    :param epoll: watches the sockets, the kernel's own unless one is given.
    :param window: size of all buffers, 0 for the kernel's choice.
    :ivar time: seconds of the clock.
    :ivar lap: seconds of the stopwatch between two looks at it.
    :ivar asked: whether another step was asked for.
    :ivar errors: internal errors of steps.
    :ivar workers: those that are not closed.
    """

    def __init__(
        self,
        family: int = 4,
        inside: bool = False,
        limit: int = PLENTY,
        epoll: Epoll | None = None,
        window: int = 0,
    ) -> None:
        self.family, self.window = family, window
        self.counters = Counters()
        self.time = self.lap = self._watch = 0.0
        self.asked = False
        self.errors: list[Exception] = []
        self.workers: list[Worker] = []
        self.made: list[int] = []
        self.pool = SocketPool(self._make)
        self.epoll = epoll or select.epoll()
        self.descriptors = Descriptors(limit)
        addresses = {4: rules(4, address=None), 6: rules(6, address=None)}
        self.splice = TcpSplice(
            LoopbackTargets(addresses, True, 0),
            self.pool,
            self.epoll,
            self.descriptors,
            self.counters,
            self._new_worker,
            self._ask,
            None,
            lambda: self.time,
            self._stopwatch,
        )
        self.descriptors.add(self.splice)
        self.service = self._listening(socket.socket(FAMILY[family]))
        listener = socket.socket(FAMILY[family])
        prepare_listener(listener, family)
        self._listener = self._listening(listener)
        self.remote = ip(LOOPBACK[family]), int(self.service.getsockname()[1])
        self.addressed = ip(LOOPBACK[family]), int(self._listener.getsockname()[1])
        self.listener = TcpListener(family, self.addressed[1], self.remote[1], b"", inside, self._listener)

    def lead(self, address: bytes) -> None:
        """Let the listener lead to an address of the rule's."""
        self.listener = replace(self.listener, target_address=address)

    def client(self) -> socket.socket:
        """Return a client that has connected to the listener."""
        client = socket.socket(FAMILY[self.family])
        client.settimeout(PATIENCE)
        prepare(client, self.window)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(self._listener.getsockname())
        return client

    def accept(self) -> StreamPair:
        """Open the pair of a client that waits."""
        select.select([self._listener], [], [], PATIENCE)
        sock, address, port, _ = accept(self._listener)
        self.splice.open(self.listener, sock, (address, port), self.addressed)
        pair = next(reversed(list(self.splice.pairs)))
        pair.ways[1].source.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return pair

    def open(self) -> tuple[socket.socket, socket.socket, StreamPair]:
        """Return a client, the service's socket for it, and their pair."""
        client = self.client()
        pair = self.accept()
        self.until(lambda: not pair.connecting, "connected")
        return client, self.served(), pair

    def served(self) -> socket.socket:
        """Accept a connection as the service."""
        sock, _ = self.service.accept()
        sock.settimeout(PATIENCE)
        return sock

    def turn(self) -> None:
        """Let the events of sockets be looked at, and what follows be done."""
        self.splice.wake()
        while self.asked:
            self.asked = False
            self.splice.wake()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Take turns until a condition is met."""

        def met() -> bool:
            self.turn()
            return bool(condition())

        until(met, what)

    def received(self, sock: socket.socket, count: int) -> bytes:
        """Receive so many bytes, while the pairs take turns."""
        data = bytearray()

        def whole() -> bool:
            data.extend(taken(sock, count - len(data)) if len(data) < count else b"")
            return len(data) == count

        self.until(whole, f"{count} bytes")
        return bytes(data)

    def ended(self, sock: socket.socket) -> bool:
        """Await the end of a stream that has nothing more to come; return whether it is one in order, and no reset."""
        ends: list[bool] = []

        def end() -> bool:
            if not readable(sock):
                return False
            try:
                assert sock.recv(1) == b""
                ends.append(True)
            except (ConnectionResetError, BrokenPipeError):
                ends.append(False)
            return True

        self.until(end, "the end")
        return ends[0]

    def close(self) -> None:
        """Close everything."""
        self.splice.close()
        self.pool.close()
        self.service.close()
        self._listener.close()
        assert self.workers == [], "every greenlet is ended"

    def _new_worker(self, step: Callable[[StreamPair], None]) -> Worker:
        return Worker(self, step)

    def _listening(self, sock: socket.socket) -> socket.socket:
        prepare(sock, self.window)
        sock.bind((LOOPBACK[self.family], 0))
        sock.listen(64)
        return sock

    def _make(self, family: int, kind: int, protocol: int, count: int) -> list[int]:
        self.made.append(count)
        made = [socket.socket(family, kind, protocol) for _ in range(count)]
        for sock in made:
            prepare(sock, self.window)
        return [sock.detach() for sock in made]

    def _ask(self) -> None:
        self.asked = True

    def _stopwatch(self) -> float:
        self._watch += self.lap
        return self._watch


@contextmanager
def spliced(
    family: int = 4, inside: bool = False, limit: int = PLENTY, epoll: Epoll | None = None, window: int = 0
) -> Iterator[Spliced]:
    """Splice pairs, as `Spliced` makes them; no step may meet an internal error."""
    found = Spliced(family, inside, limit, epoll, window)
    try:
        yield found
        assert found.errors == []
    finally:
        found.close()
