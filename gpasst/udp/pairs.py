"""Splice pairs: traffic between the loopback addresses of host and namespace, socket to socket.

Theory of operation:

1. A *listener* with `splices` set takes what is sent to a loopback address of its side. A datagram that it has not
   seen the like of sets up a *pair*: whoever sends (address and port) to what it addressed (address, and the listener's
   port), and a connected socket on the other side that stands for the sender (errata D1, E-05 to E-07).
2. `route` chooses where the pair leads and how its socket should be bound. From the namespace both loopback addresses
   are kept, so that a resolver on 127.0.0.53 is reached. From the host the guest's own address is the target, so that
   services meant for the namespace alone are not exposed; with `keep_loopback` loopback addresses are kept here too.
3. The sender's port is kept where it is free (E-08). A port that is the target of a forward in the other direction is
   known on the other side under the forward's number, and is shown there so (seed rule 9; E-09 to E-11: for this choice
   only, and only where it is unambiguous).
4. Answers leave from the listener, from the address that was addressed, to exactly the sender.
5. What a pair's own socket sends never sets up another pair, so no chain of forwards can turn into a circle.

NOTE: at most `limit` pairs are kept. At the limit the longest idle one goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.activity import Ages, Tracked
from gpasst.flow.translation import Addresses
from gpasst.packet.address import is_link_local, is_loopback
from gpasst.udp.mapping import UdpSocket

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
    """One sender on one side and what stands for it on the other.

    :ivar listener: the listener that it sends to.
    :ivar key: its raw sender key there.
    :ivar sender: its (address, port, scope).
    :ivar addressed: the address it sends to, as the raw sender key tells it.
    :ivar route: where the pair leads.
    :ivar udp_socket: the connected socket on the other side.
    :ivar local: (address, port) that socket is bound to: how the sender is shown.
    :ivar to_target: what the adapter needs to pass datagrams on.
    :ivar to_sender: what the adapter needs to answer.
    """

    __slots__ = ("addressed", "key", "listener", "local", "route", "sender", "to_sender", "to_target", "udp_socket")

    # A peer of the guest path has the headers of its frames here; a pair has no frames.
    header = None

    def __init__(
        self,
        listener: UdpSocket,
        key: bytes,
        sender: tuple[bytes, int, int],
        addressed: bytes,
        route: Route,
        udp_socket: UdpSocket,
        local: tuple[bytes, int],
    ) -> None:
        self.listener = listener
        self.key = key
        self.sender = sender
        self.addressed = addressed
        self.route = route
        self.udp_socket = udp_socket
        self.local = local
        self.to_target: Any = None
        self.to_sender: Any = None


class Pairs:
    """All splice pairs of one namespace, and the rules that set them up.

    :param addresses: what is known of the guest's addresses, by family.
    :param keep_loopback: whether loopback addresses are kept from the host as well.
    :param scope: interface index of the tap in the namespace.
    :param shown_inside: port under which the namespace knows a port of the host (targets of ``-U``).
    :param shown_outside: port under which the host knows a port of the namespace (targets of ``-u``).
    :param now: monotonic seconds.
    :param limit: how many pairs are kept.
    """

    def __init__(
        self,
        addresses: Mapping[int, Addresses],
        keep_loopback: bool,
        scope: int,
        shown_inside: Mapping[int, int],
        shown_outside: Mapping[int, int],
        now: int = 0,
        limit: int = PAIRS_LIMIT,
    ) -> None:
        self.limit = limit
        self.ages: Ages[Pair] = Ages(now)
        self._addresses = addresses
        self._keep_loopback = keep_loopback
        self._scope = scope
        self._shown_inside = shown_inside
        self._shown_outside = shown_outside
        # Ends of pairs' own sockets by side: what they send is no new sender's.
        self._own: set[tuple[bool, bytes, int]] = set()

    def __len__(self) -> int:
        return len(self.ages)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.ages)

    def route(self, listener: UdpSocket, source: bytes, port: int, addressed: bytes) -> Route:
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
        target, scope = self._target(listener, addressed)
        shown = (self._shown_outside if listener.inside else self._shown_inside).get(port, port)
        bind = source if is_loopback(target) and is_loopback(source) else UNBOUND
        # A socket bound to its own target would hear itself.
        if shown == listener.target and bind in (UNBOUND, target):
            shown = 0
        return Route(target, listener.target, scope, bind, shown)

    def add(self, pair: Pair) -> list[Pair]:
        """Enter a new pair; give those that had to make room, already removed."""
        ended = []
        while len(self.ages) >= self.limit:
            oldest = self.ages.oldest()
            self.remove(oldest)
            ended.append(oldest)
        pair.listener.peers[pair.key] = pair
        self._own.add((pair.udp_socket.inside, *pair.local))
        self.ages.add(pair)
        return ended

    def remove(self, pair: Pair) -> None:
        """Forget a pair."""
        self.ages.remove(pair)
        del pair.listener.peers[pair.key]
        self._own.discard((pair.udp_socket.inside, *pair.local))

    def scan(self, now: int, timeout: int) -> list[Pair]:
        """Let go of pairs that were idle for more than `timeout` seconds at `now`; give them, already removed."""
        ended = []
        for pair in self.ages.scan(now, timeout):
            self.remove(pair)
            ended.append(pair)
        return ended

    def _target(self, listener: UdpSocket, addressed: bytes) -> tuple[bytes, int]:
        """Give target address and scope."""
        if listener.target_address:
            return listener.target_address, 0
        if listener.inside or self._keep_loopback:
            return addressed, 0
        addresses = self._addresses[listener.family]
        target = addresses.seen or addresses.link_local
        if target is None:
            raise PacketError(Drop.NO_GUEST_ADDRESS)
        return target, self._scope if is_link_local(target) else 0
