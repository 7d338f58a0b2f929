"""Splice pairs of TCP: connections between the loopback addresses of host and namespace, socket to socket.

Theory of operation:

1. A client that connects to a loopback address of its side is accepted there, and a socket of the other side connects
   to where `gpasst.flow.loopback` leads. The two sockets are a *pair*, with a *way* in each direction.
2. The bytes of a way are in the receive queue of its source, *kept* here (what one receive took and the target did
   not), or in a *pipe* that the way has borrowed. A way takes no more while it has any that the target has not, so that
   the sender meets a slow reader as it would without a proxy.
3. Each way ends by itself: behind the last byte of a source that has shut its half, the target's is shut. When both
   have ended, so has the pair, in order.
4. An end that is reset, or takes no more, *breaks* the pair: what it had sent before is delivered still, as far as the
   other end takes it, and then that is reset.
5. A connection of a pair's own socket never sets up another pair, so no chain of forwards can turn into a circle.

The events of sockets come once (edge-triggered), so a way has to know when it has come to the end of its source's
queue: where a receive had room for more, unless the stream has an end or a mark of urgent data in it. Those are events
too, and make the way *thorough*: it goes on until the kernel says that there is nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.second_chance import longest_idle
from gpasst.flow.sender import StreamSocket
from gpasst.packet.address import is_loopback
from gpasst.tcp.listener import TcpListener
from gpasst.tcp.states import State

End = tuple[bytes, int]
"""One end of a connection: its address, 4 or 16 bytes, and its port."""


class Pipe(NamedTuple):
    """A pipe.

    :ivar reader: descriptor of the end that is read.
    :ivar writer: descriptor of the other end.
    :ivar size: bytes that it holds at most.
    """

    reader: int
    writer: int
    size: int


class Worker(Protocol):
    """A greenlet that takes one step whenever it is woken; nothing in this room wakes it."""

    def wake(self, pair: StreamPair, /) -> None:
        """Take a step with a pair."""

    def close(self) -> None:
        """End the greenlet; from within its own step, at the end of that."""


class Way:
    """One direction of a pair.

    :param source: the socket that its bytes come from.
    :param target: the socket that they go to.
    :ivar kept: bytes that were received and that the target has not taken yet.
    :ivar pipe: the pipe that it has borrowed, None without one.
    :ivar piped: bytes in that.
    :ivar bulk: whether so much came at once that the next is moved by pipe.
    :ivar waits: whether calls on its sockets may wait where nothing says otherwise (O_NONBLOCK is not set).
    :ivar thorough: whether it goes on until the source's queue is known to be empty.
    :ivar events: events of the source that have not been looked at (EPOLL*).
    :ivar due: whether there may be something to move.
    :ivar blocked: whether it waits until the target takes more.
    :ivar ended: whether the source has nothing more to come.
    :ivar finished: whether the target has been shut behind that, or takes no more.
    """

    __slots__ = (
        "blocked",
        "bulk",
        "due",
        "ended",
        "events",
        "finished",
        "kept",
        "pipe",
        "piped",
        "source",
        "target",
        "thorough",
        "waits",
    )

    def __init__(self, source: StreamSocket, target: StreamSocket) -> None:
        self.source = source
        self.target = target
        self.kept = b""
        self.pipe: Pipe | None = None
        self.piped = self.events = 0
        self.waits = True
        self.bulk = self.thorough = self.blocked = self.due = self.ended = self.finished = False


class StreamPair:
    """A client on one side, and the connected socket that stands for it on the other.

    :param listener: the listener that accepted the client.
    :param client: the accepted socket.
    :param source: the client's end.
    :param addressed: the address that it connected to.
    :param sock: the socket on the other side.
    :param local: that socket's own end: how the client is shown.
    :param remote: what it connects to.
    :param worker: its greenlet.
    :param now: monotonic seconds.
    :ivar ways: from the client, and to it; each at the index of its source, with which the sockets are counted.
    :ivar open: whether its sockets are open; one that has ended has no worker.
    :ivar connecting: whether the other side has not answered yet.
    :ivar broken: whether one end was reset, or takes no more.
    :ivar queued: whether it is about to be looked at.
    :ivar heard: when there was an event last.
    """

    __slots__ = (
        "addressed",
        "broken",
        "connecting",
        "entered",
        "heard",
        "listener",
        "local",
        "open",
        "queued",
        "remote",
        "source",
        "ways",
        "worker",
    )

    def __init__(
        self,
        listener: TcpListener,
        client: StreamSocket,
        source: End,
        addressed: bytes,
        sock: StreamSocket,
        local: End,
        remote: End,
        worker: Worker,
        now: float,
    ) -> None:
        self.listener = listener
        self.source = source
        self.addressed = addressed
        self.local = local
        self.remote = remote
        self.worker: Worker | None = worker
        self.ways = Way(client, sock), Way(sock, client)
        self.open = self.connecting = True
        self.broken = self.queued = False
        self.heard = self.entered = now

    @property
    def inside(self) -> bool:
        """Whether the pair's own socket is in the namespace rather than on the host."""
        return not self.listener.inside

    @property
    def state(self) -> State:
        """The state of the connection on the guest's side, named as that of a connection that crosses the link."""
        guest, host = self.ways if self.listener.inside else self.ways[::-1]
        if self.connecting:
            return State.CONNECTING if self.listener.inside else State.SYN_SENT
        if guest.finished:
            return State.CLOSE_WAIT
        return State.FIN_WAIT_2 if host.finished else State.ESTABLISHED


class StreamPairs:
    """All splice pairs of one namespace."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[StreamPair, StreamPair] = OrderedDict()
        # Own sockets by side, with both ends: what connects from there is no new client.
        self._own: set[tuple[bool, End, End]] = set()

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[StreamPair]:
        return iter(self._pairs)

    def __contains__(self, pair: object) -> bool:
        return pair in self._pairs

    def check(self, inside: bool, client: End, addressed: End) -> None:
        """Check that a client may have a pair.

        :param inside: whether it connected in the namespace.
        :param client: its end.
        :param addressed: what it connected to.
        :raises PacketError: if not.
        """
        if not is_loopback(client[0]) or not is_loopback(addressed[0]):
            raise PacketError(Drop.SPLICE_ADDRESS)
        if (inside, client, addressed) in self._own:
            raise PacketError(Drop.HAIRPIN)

    def add(self, pair: StreamPair) -> None:
        """Enter a new pair."""
        self._pairs[pair] = pair
        self._own.add((pair.inside, pair.local, pair.remote))

    def remove(self, pair: StreamPair) -> None:
        """Forget a pair."""
        del self._pairs[pair]
        self._own.discard((pair.inside, pair.local, pair.remote))

    def longest_idle(self) -> StreamPair | None:
        """Return the pair that was idle longest, None if there is none."""
        return longest_idle(self._pairs)
