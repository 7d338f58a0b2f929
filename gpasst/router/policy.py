"""What a router does with a packet: where it goes, whether the firewall lets it, and what NAT makes of it.

Theory of operation: without NAT and without rules a packet is routed, and that is all. With rules, or with NAT of IPv4,
each flow has a session; its first packet asks the rules, and those behind it find the session. ICMP errors pass with
the session that they are about, keep none alive and end none (RFC 5508, REQ-6; RFC 4787, REQ-12).

A packet from inside to the router's own outside address is for the mapping of that port: hairpinning. It reaches the
mapped host from the outside endpoint of its sender (RFC 4787, REQ-9 a), by the filtering of any packet from outside.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Final

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import V4, V6
from gpasst.packet.icmp_error import TYPES, Problem
from gpasst.packet.refusal import NO_ROUTE, PROHIBITED
from gpasst.records import dataclass
from gpasst.router.behaviour import Behaviour
from gpasst.router.firewall import ALLOW, REJECT, verdict
from gpasst.router.interface import INSIDE, OUTSIDE, Routes
from gpasst.router.nat import Nat
from gpasst.router.patch import Patch, readdressed, requoted
from gpasst.router.quoted import Quoted, quoted
from gpasst.router.session import Key, Session, Sessions
from gpasst.router.view import View
from gpasst.wire import PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP

_TRANSLATED: Final = (PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP)

Ends = tuple[bytes, int, bytes, int]
"""Source address, source port, destination address, destination port."""


class Refused(PacketError):
    """A packet that is not forwarded, and whose sender hears of it.

    :param reason: the counter of such drops.
    :param problem: what the ICMP error says; None for silence.
    """

    def __init__(self, reason: Drop, problem: Problem | None) -> None:
        super().__init__(reason)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Path:
    """How a packet leaves.

    :ivar side: `INSIDE` or `OUTSIDE`.
    :ivar next_hop: 4 or 16 bytes.
    :ivar patch: its new addresses and ports, None for those that it has.
    :ivar session: its session, None without one.
    :ivar outward: whether it goes from inside to outside, as far as the session is concerned.
    :ivar data: the frame in its place, None for the frame itself.
    """

    side: int
    next_hop: bytes
    patch: Patch | None = None
    session: Session | None = None
    outward: bool = True
    data: bytes | None = None


class Policy:
    """The decisions of one router.

    :param behaviour: what it does.
    :param outside: its outside IPv4 address, 4 bytes; None without IPv4.
    :param routes: its routing table.
    :param ways: the forwarder's table; see `Sessions`.
    :param chance: returns a number from 0 to below its argument.
    :ivar behaviour: as above.
    :ivar tables: sessions by family, where there are any.
    :ivar nat: those of IPv4, if they are translated.
    :ivar outside: as the parameter.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        outside: bytes | None,
        routes: Routes,
        ways: MutableMapping[Any, Any],
        chance: Callable[[int], int],
    ) -> None:
        self.behaviour = behaviour
        self._routes = routes
        self.outside = outside
        self.tables: dict[int, Sessions] = {}
        self.nat: Nat | None = None
        if behaviour.firewall:
            self.tables = {V4: Sessions(behaviour, ways), V6: Sessions(behaviour, ways)}
        if behaviour.mapping is not None and outside is not None:
            self.tables[V4] = self.nat = Nat(behaviour, ways, chance)

    def decide(self, side: int, view: View, now: float) -> Path:
        """Return how a packet leaves that is not for the router itself.

        :param side: where it came in.
        :param view: the packet.
        :param now: seconds.
        :raises PacketError: if it does not.
        """
        nat, table = self.nat, self.tables.get(view.packet.family)
        if nat is not None and table is nat:
            return self._translated(side, view, now, nat)
        out, next_hop = self._route(view)
        if table is None or out == side or view.later_fragment:
            # The first fragment, without which the others are nothing, has the ports.
            return Path(out, next_hop)
        outward = side == INSIDE
        if self._is_error(view):
            about = quoted(view)
            # The quoted packet went the other way.
            if table.find(_key(about.protocol, _ends_of(about, not outward), not outward), now) is None:
                self._ask(view, outward, view.packet.source, view.packet.destination, view.destination_port)
            return Path(out, next_hop)
        key = _key(view.packet.protocol, _ends(view, outward), outward)
        session = table.find(key, now)
        if session is None:
            self._ask(view, outward, view.packet.source, view.packet.destination, view.destination_port)
            session = table.open(key, None, now)
        table.refresh(session, outward, now, view.flags)
        return Path(out, next_hop, None, session, outward)

    def _translated(self, side: int, view: View, now: float, nat: Nat) -> Path:
        packet = view.packet
        if packet.protocol not in _TRANSLATED:
            raise PacketError(Drop.PROTOCOL)
        if view.kind >= 0 and not view.echo:
            if not self._is_error(view):
                # RFC 5508, REQ-9: neither a query nor an error.
                raise PacketError(Drop.ICMP_TYPE)
            return self._error(side, view, now, nat)
        if side == OUTSIDE:
            return self._inbound(view, now, nat)
        if packet.destination == self.outside:
            if view.echo:
                # The router itself answers requests.
                raise PacketError(Drop.NAT_FILTERED)
            return self._hairpin(view, now, nat)
        out, next_hop = self._route(view)
        if out == INSIDE:
            return Path(out, next_hop)
        session, new = self._outbound(view, now, nat)
        return Path(out, next_hop, Patch(packet.protocol, _ends(view, True), new), session)

    def _outbound(self, view: View, now: float, nat: Nat) -> tuple[Session, Ends]:
        """Return the session of a packet from inside, and its ends as the outside sees them."""
        packet, ends = view.packet, _ends(view, True)
        key = _key(packet.protocol, ends, True)
        session = nat.find(key, now)
        if session is None:
            self._ask(view, True, packet.source, packet.destination, view.destination_port)
            session = nat.outbound(key, now)
        nat.refresh(session, True, now, view.flags)
        assert session.mapping is not None and self.outside is not None
        return session, (self.outside, session.mapping.port, ends[2], ends[3])

    def _inbound(self, view: View, now: float, nat: Nat) -> Path:
        packet = view.packet
        if packet.destination != self.outside:
            out, next_hop = self._route(view)
            if out == INSIDE:
                # Inside addresses mean nothing to the outside.
                raise PacketError(Drop.NAT_FILTERED)
            return Path(out, next_hop)
        remote, remote_port, _, port = _ends(view, False)
        session, new = self._admitted(view, (remote, remote_port), port, now, nat)
        patch = Patch(packet.protocol, _written(view), _written(view, destination=new))
        return Path(INSIDE, self._next_hop(new[0]), patch, session, False)

    def _admitted(
        self, view: View, remote: tuple[bytes, int], port: int, now: float, nat: Nat
    ) -> tuple[Session, tuple[bytes, int]]:
        """Return the session of a packet to an outside port, and the inside endpoint that it is for."""
        protocol = view.packet.protocol
        mapping = nat.mapped(protocol, port, now)
        if mapping is None:
            raise PacketError(Drop.NAT_FILTERED)
        session, new = nat.inbound(mapping, *remote, now)
        if new:
            try:
                self._ask(view, False, remote[0], *mapping.inside)
            except PacketError:
                nat.end(session)
                raise
        nat.refresh(session, False, now, view.flags)
        return session, mapping.inside

    def _hairpin(self, view: View, now: float, nat: Nat) -> Path:
        if not self.behaviour.hairpin:
            raise PacketError(Drop.HAIRPIN_OFF)
        _, (outside, own_port, _, port) = self._outbound(view, now, nat)
        _, new = self._admitted(view, (outside, own_port), port, now, nat)
        ends = (outside, own_port, *new)
        return Path(INSIDE, self._next_hop(new[0]), Patch(view.packet.protocol, _ends(view, True), ends))

    def _error(self, side: int, view: View, now: float, nat: Nat) -> Path:
        """Return how an ICMP error leaves (RFC 5508, REQ-3 to REQ-5, and REQ-7 for hairpinning)."""
        about, outside = quoted(view), self.outside
        assert outside is not None
        source, source_port, destination, port = about.ends
        new_source, new_destination = (source, source_port), (destination, port)
        sender, receiver = view.packet.source, view.packet.destination
        if side == INSIDE:
            # The quoted packet was for an inside host.
            inner_port = about.source_port if about.echo else port
            mapping = nat.of_endpoint((about.protocol, destination, inner_port, source, _remote(about)), now)
            if mapping is None:
                raise PacketError(Drop.GUEST_ERROR)
            sender, new_destination = outside, (outside, 0 if about.echo else mapping.port)
            if about.echo:
                new_source = source, mapping.port
        if receiver == outside:
            # The quoted packet came from an inside host.
            mapping = nat.mapped(about.protocol, source_port, now) if source == outside else None
            if mapping is None:
                raise PacketError(Drop.GUEST_ERROR)
            new_source, receiver = mapping.inside, mapping.inside[0]
        out, next_hop = self._way_to(view, receiver)
        if side == OUTSIDE and out == INSIDE and receiver == view.packet.destination:
            raise PacketError(Drop.NAT_FILTERED)
        message = requoted(
            bytes(view.packet.payload), about.at, about.protocol, about.ends, (*new_source, *new_destination)
        )
        return Path(out, next_hop, data=readdressed(view.data, view.at, message, sender, receiver))

    def _is_error(self, view: View) -> bool:
        return view.kind in TYPES[view.packet.family] and view.kind >= 0

    def _ask(self, view: View, outward: bool, source: bytes, destination: bytes, port: int) -> None:
        """Ask the firewall for the first packet of a flow.

        :raises PacketError: if it does not pass.
        """
        packet = view.packet
        answer = verdict(self.behaviour.firewall, outward, packet.protocol, source, destination, port)
        if answer != ALLOW:
            raise Refused(Drop.FIREWALL, PROHIBITED.problem(packet.family) if answer == REJECT else None)

    def _route(self, view: View) -> tuple[int, bytes]:
        return self._way_to(view, view.packet.destination)

    def _way_to(self, view: View, destination: bytes) -> tuple[int, bytes]:
        """Return the side and the next hop to a destination.

        :raises Refused: without a route.
        """
        found = self._routes.find(destination)
        if found is None:
            raise Refused(Drop.NO_ROUTE, NO_ROUTE.problem(view.packet.family))
        return found

    def _next_hop(self, inside: bytes) -> bytes:
        """Return the next hop to an inside address, which may lie behind another router."""
        found = self._routes.find(inside)
        return inside if found is None else found[1]


def _written(view: View, destination: tuple[bytes, int] | None = None) -> Ends:
    """Return the ends as they stand in a packet: the identifier of an echo in the place of the source port."""
    packet = view.packet
    if destination is None:
        return packet.source, view.source_port, packet.destination, view.destination_port
    if view.echo:
        return packet.source, destination[1], destination[0], 0
    return packet.source, view.source_port, *destination


def _ends(view: View, outward: bool) -> Ends:
    """Return the ends of a packet: an echo has its identifier in the place of the inside port."""
    packet = view.packet
    if view.kind >= 0 and not outward:
        return packet.source, 0, packet.destination, view.source_port
    return packet.source, view.source_port, packet.destination, view.destination_port


def _ends_of(about: Quoted, outward: bool) -> Ends:
    """Return the ends of a quoted packet likewise."""
    if about.echo and not outward:
        return about.source, 0, about.destination, about.source_port
    return about.ends


def _remote(about: Quoted) -> int:
    """Return the remote port of a packet that was for an inside host."""
    return 0 if about.echo else about.source_port


def _key(protocol: int, ends: Ends, outward: bool) -> Key:
    """Return the key of the session of a packet."""
    source, source_port, destination, port = ends
    if outward:
        return protocol, source, source_port, destination, port
    return protocol, destination, port, source, source_port
