"""Splice pairs: traffic between the loopback addresses of host and namespace, socket to socket.

Theory of operation:

1. A *listener* with `splices` set takes datagrams to a loopback address of its side. The first one of a sender (address
   and port) to an addressed address and port sets up a *pair*: a connected socket on the other side that stands for the
   sender.
2. `route` chooses where the pair leads (`gpasst.flow.loopback`) and how its socket is bound. The sender's address is
   kept between loopback addresses.
3. The sender's port is kept where it is free. A port that is the target of a forward in the other direction is known on
   the other side under the forward's number, and is shown there so; for this choice only, and only where a single
   forward leads to it.
4. Answers leave from the listener, from the address that was addressed, to exactly the sender.
5. Datagrams of a pair's own socket never set up another pair, so no chain of forwards can turn into a circle.

NOTE: at most `limit` pairs are kept. At the limit the longest idle one goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.activity import Ages, Tracked
from gpasst.flow.loopback import LoopbackTargets
from gpasst.flow.sender import HostSocket, Sender
from gpasst.packet.address import is_loopback
from gpasst.records import dataclass
from gpasst.udp.mapping import Listener, UdpSocket

PAIRS_LIMIT = 8192  # each holds a socket, and 20000 open files are a common hard limit
UNBOUND = b""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a pair leads, and how its socket is to be bound.

    :ivar address: target address, 4 or 16 bytes.
    :ivar port: target port.
    :ivar scope: interface index of a link-local target on its side, else 0.
    :ivar source: address to bind, empty for the kernel's choice.
    :ivar source_port: port to bind if it is free, 0 for any.
    """

    address: bytes
    port: int
    scope: int
    source: bytes
    source_port: int


class Pair(Tracked):
    """One sender on one side, and the connected socket that stands for it on the other.

    :param listener: the listener that it sends to.
    :param key: its raw sender key there.
    :param source: its (address, port, scope).
    :param addressed: the address it sends to, as the raw sender key holds it.
    :param route: where the pair leads.
    :param sock: the connected socket on the other side.
    :param local: (address, port) that socket is bound to: how the sender is shown.
    :param to_target: how its datagrams leave.
    :param to_sender: how answers leave.
    :ivar socket: the connected socket, None once closed.
    :ivar inside: whether that socket is in the namespace rather than on the host.
    """

    __slots__ = (
        "__weakref__",
        "addressed",
        "inside",
        "key",
        "listener",
        "local",
        "route",
        "socket",
        "source",
        "to_sender",
        "to_target",
    )

    def __init__(
        self,
        listener: Listener,
        key: bytes,
        source: tuple[bytes, int, int],
        addressed: bytes,
        route: Route,
        sock: HostSocket,
        local: tuple[bytes, int],
        to_target: Sender,
        to_sender: Sender,
    ) -> None:
        self.listener = listener
        self.key = key
        self.source = source
        self.addressed = addressed
        self.route = route
        self.socket: HostSocket | None = sock
        self.inside = not listener.inside
        self.local = local
        self.to_target = to_target
        self.to_sender = to_sender


NO_PAIRS: Mapping[bytes, Pair] = {}


class Pairs:
    """All splice pairs of one namespace, and the rules that set them up.

    :param targets: where loopback traffic leads.
    :param shown_inside: port under which the namespace knows a port of the host (targets of ``-U``).
    :param shown_outside: port under which the host knows a port of the namespace (targets of ``-u``).
    :param now: monotonic seconds.
    :param limit: how many pairs are kept.
    """

    def __init__(
        self,
        targets: LoopbackTargets,
        shown_inside: Mapping[int, int],
        shown_outside: Mapping[int, int],
        now: int = 0,
        limit: int = PAIRS_LIMIT,
    ) -> None:
        self.limit = limit
        self.ages: Ages[Pair] = Ages(now)
        self._targets = targets
        self._shown_inside = shown_inside
        self._shown_outside = shown_outside
        # Ends of pairs' own sockets by side: what they send is no new sender's.
        self._own: set[tuple[bool, bytes, int]] = set()
        self._by_listener: dict[UdpSocket, dict[bytes, Pair]] = {}

    def __len__(self) -> int:
        return len(self.ages)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.ages)

    def of(self, listener: UdpSocket) -> Mapping[bytes, Pair]:
        """Return the pairs of a listener by raw sender key; the mapping is valid until the next change of pairs."""
        return self._by_listener.get(listener, NO_PAIRS)

    def route(self, listener: Listener, source: bytes, port: int, addressed: bytes) -> Route:
        """Choose where a new sender's pair leads.

        :param listener: what it sent to.
        :param source: its address, 4 or 16 bytes.
        :param port: its port.
        :param addressed: the loopback address it sent to, 4 or 16 bytes.
        :raises PacketError: if the datagram must be dropped.
        """
        if not port:
            raise PacketError(Drop.SOURCE_PORT_ZERO)
        if not is_loopback(addressed):
            raise PacketError(Drop.SPLICE_ADDRESS)
        if (listener.inside, source, port) in self._own:
            raise PacketError(Drop.HAIRPIN)
        target, scope = self._targets.of(listener.inside, listener.family, listener.target_address, addressed)
        shown = (self._shown_outside if listener.inside else self._shown_inside).get(port, port)
        bind = source if is_loopback(target) and is_loopback(source) else UNBOUND
        # A socket bound to its own target would hear itself.
        if shown == listener.target and bind in (UNBOUND, target):
            shown = 0
        return Route(target, listener.target, scope, bind, shown)

    def add(self, pair: Pair) -> list[Pair]:
        """Enter a new pair; return those that had to make room, already removed."""
        ended = []
        while len(self.ages) >= self.limit:
            oldest = self.ages.oldest()
            self.remove(oldest)
            ended.append(oldest)
        self._by_listener.setdefault(pair.listener, {})[pair.key] = pair
        self._own.add((pair.inside, *pair.local))
        self.ages.add(pair)
        return ended

    def remove(self, pair: Pair) -> None:
        """Forget a pair."""
        of_listener = self._by_listener[pair.listener]
        del of_listener[pair.key]
        self.ages.remove(pair)
        if not of_listener:
            del self._by_listener[pair.listener]
        self._own.discard((pair.inside, *pair.local))

    def scan(self, now: int, timeout: int) -> Iterator[list[Pair]]:
        """Let go of pairs that were idle for more than `timeout` seconds at `now`.

        :return: those that ended, already removed, after each piece of bounded work.
        """
        for ended in self.ages.scan(now, timeout):
            for pair in ended:
                self.remove(pair)
            yield ended
