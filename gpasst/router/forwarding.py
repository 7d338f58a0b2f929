"""A router between two networks: frames of one side in, frames of either side out.

Theory of operation: a frame is forwarded by one of two ways.

1. The first packet of a flow is parsed (`gpasst.router.view`). What is for the router itself is answered
   (`gpasst.router.answers`); for everything else `gpasst.router.policy` decides where it goes and what NAT makes of it.
   The decision on TCP and UDP is kept as the flow's *way*.
2. The packets behind it find their way by the raw bytes of protocol, addresses and ports. Their TTL is lowered, the
   Ethernet header of the next hop written, and addresses and ports patched, each with the checksum that follows.

Superframes cross whole: each segment of one gets the same changes. What is longer than the next link allows is
fragmented, or comes back as "packet too big" (RFC 1812, section 5.2.7.1; RFC 8200, section 4.5). A frame whose next hop
is unknown waits as it came in, and takes its way from the beginning when the neighbour has answered, so that an error
about it quotes what its sender has sent.

Time is an argument: `receive` and `expire` are called with it, and `due` says when `expire` has something to do.

NOTE: multicast and broadcast are not forwarded, redirects not sent, and IP options and extension headers passed on
unread. Of IPv6 an extension header sends the packet the first way each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.packet import icmp_error
from gpasst.packet.address import UNSPECIFIED, V4, V6, is_link_local, is_loopback
from gpasst.packet.build import ip_packet
from gpasst.packet.dhcp_wire import DHCP_CLIENT_PORT, DHCP_SERVER_PORT
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, too_big
from gpasst.packet.reassembly import Reassembly
from gpasst.packet.refusal import NO_HOST
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import VIRTIO, Buffer
from gpasst.router import answers
from gpasst.router.behaviour import Behaviour
from gpasst.router.fragments import fragments
from gpasst.router.interface import INSIDE, OUTSIDE, Interface, Routes
from gpasst.router.lease import Lease, answer
from gpasst.router.neighbours import Neighbours
from gpasst.router.patch import ETHERNET, HOP_LIMIT6, hop4
from gpasst.router.policy import Path, Policy, Refused
from gpasst.router.unasked import Unasked
from gpasst.router.view import View, view
from gpasst.router.way import TYPE_AT, Key, Way, key_of, longest
from gpasst.services import echo, ndp
from gpasst.tcp.reset import reset
from gpasst.wire import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP_TIME_EXCEEDED,
    ICMPV6_TIME_EXCEEDED,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_ACK,
    TCP_SYN,
    VIRTIO_NET_BLANK,
)

_DHCP: Final = (DHCP_CLIENT_PORT, DHCP_SERVER_PORT)
WAYS_LIMIT: Final = 65536  # then all are forgotten; flows find theirs anew
SCAN_SECONDS: Final = 1.0  # between looks at incomplete datagrams

_NO_HOST: Final = {family: NO_HOST.problem(family) for family in (V4, V6)}
_EXPIRED: Final = {V4: Problem(ICMP_TIME_EXCEEDED, 0), V6: Problem(ICMPV6_TIME_EXCEEDED, 0)}
_MAC_STOP: Final = VIRTIO + 6  # behind the destination MAC address
_SOURCE_MAC: Final = slice(_MAC_STOP, _MAC_STOP + 6)
_GROUP: Final = 1  # bit of the first byte of a MAC address
_IDENTIFICATION_MASK: Final = 0xFFFF


class Router:
    """A router, as it stands between two networks.

    :param behaviour: NAT, filtering, timeouts and rules.
    :param interfaces: the inside one, and the outside one.
    :param routes: its routing table; whoever changes it calls `forget`.
    :param send: what takes the frames that leave inside, and outside, from their virtio-net header on.
    :param counters: where drops are counted of what came in inside, and outside.
    :param chance: returns a number from 0 to below its argument.
    :param lease: returns what an inside host of a MAC address gets that asks for its addresses; None for one that has
        them, and would have others beside.
    :ivar policy: what decides.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        interfaces: tuple[Interface, Interface],
        routes: Routes,
        send: Sequence[Callable[[Buffer], None]],
        counters: Sequence[Counters],
        chance: Callable[[int], int],
        lease: Callable[[bytes], Lease | None],
    ) -> None:
        self._ways: dict[Key, Way] = {}
        self._interfaces = interfaces
        self._send = send
        self._lease = lease
        self._counters = counters
        self._broadcasts = {interface.broadcast for interface in interfaces}
        self._neighbours = tuple(
            Neighbours(interface, _framed(to)) for interface, to in zip(interfaces, send, strict=True)
        )
        self._own = {address for interface in interfaces for address in interface.addresses.values()}
        self._reassembly = Reassembly()
        self._scanned = 0.0
        self._identification = 0
        self._unasked = Unasked()
        self.policy = Policy(behaviour, interfaces[OUTSIDE].addresses.get(V4), routes, self._ways, chance)

    def receive(self, side: int, data: Buffer, now: float) -> bool:
        """Take a frame; return whether `due` may have changed.

        :param side: where it came in, `INSIDE` or `OUTSIDE`.
        :param data: virtio-net header and frame; valid during the call.
        :param now: monotonic seconds.
        """
        try:
            if len(data) < ETHERNET.stop:
                raise PacketError(Drop.FRAME_SHORT)
            if data[VIRTIO:_MAC_STOP] != self._interfaces[side].mac and not data[VIRTIO] & _GROUP:
                # The switch has not learned yet where it is to go.
                return False
            key = key_of(side, data)
            way = self._ways.get(key) if key else None
            if way is not None and way.forward(data, now):
                return False
            self._first(side, data, now, key)
        except PacketError as error:
            self._counters[side].drop(error.reason)
        return True

    @property
    def due(self) -> float | None:
        """When `expire` has something to do, in monotonic seconds; None for never."""
        times = [table.due for table in self.policy.tables.values()]
        times += [neighbours.due for neighbours in self._neighbours]
        times.append(self._unasked.due)
        if len(self._reassembly):
            times.append(self._scanned + SCAN_SECONDS)
        return min((time for time in times if time is not None), default=None)

    def expire(self, now: float) -> None:
        """Do what is due: end sessions, ask neighbours again, answer what was held."""
        for table in self.policy.tables.values():
            table.expire(now)
        for neighbours in self._neighbours:
            for side, data in neighbours.expire(now):
                self._counters[side].drop(Drop.NO_NEIGHBOUR)
                found = view(data)
                self._report(side, found, _NO_HOST[found.packet.family])
        if self.policy.nat is not None:
            for syn in self._unasked.expire(self.policy.nat, now):
                self._report(OUTSIDE, syn, CLOSED_PORT[V4])
        if len(self._reassembly) and now - self._scanned >= SCAN_SECONDS:
            self._scanned = now
            self._counters[INSIDE].drop(Drop.FRAGMENT_TIMEOUT, self._reassembly.scan(int(now)))

    def rebind(self) -> None:
        """End all mappings; what the inside sends next has other outside ports."""
        if self.policy.nat is not None:
            self.policy.nat.rebind()

    def forget(self) -> None:
        """Forget the ways of all flows, so that they are decided on anew."""
        self._ways.clear()

    def _first(self, side: int, data: Buffer, now: float, key: Key | None) -> None:
        """Take a frame of a flow that has no way.

        :raises PacketError: if it is dropped.
        """
        ethertype = data[TYPE_AT] << 8 | data[TYPE_AT + 1]
        if ethertype == ETHERTYPE_ARP:
            learned, reply = answers.arp_packet(self._interfaces[side], memoryview(data)[ETHERNET.stop :])
            self._learn(side, learned, reply, now)
            return
        if ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            raise PacketError(Drop.ETHERTYPE)
        found = view(data)
        packet = found.packet
        if packet.family not in self._interfaces[side].addresses:
            # Kernels greet the groups of a family whatever addresses they have.
            raise PacketError(Drop.NOT_FORWARDED if found.data[VIRTIO] & _GROUP else Drop.FAMILY_DISABLED)
        if packet.protocol == PROTOCOL_ICMPV6 and found.kind in ndp.TYPES:
            advertises = side == INSIDE and self._lease(bytes(data[_SOURCE_MAC])) is not None
            learned, reply = answers.discovery(self._interfaces[side], packet, advertises)
            self._learn(side, learned, reply, now)
            return
        if side == INSIDE and (found.source_port, found.destination_port) == _DHCP and packet.family == V4:
            self._serve(found)
            return
        self._check(found)
        if self._is_own(found):
            self._local(side, found)
            return
        try:
            self._decide(side, found, now, key)
        except Refused as error:
            if error.problem is not None:
                self._report(side, found, error.problem)
            raise

    def _check(self, found: View) -> None:
        """Refuse packets that no router forwards (RFC 1812, sections 4.2.2.11, 5.2.2, 5.3.4 and 5.3.7).

        :raises PacketError: for those.
        """
        packet = found.packet
        if answers.is_group(packet.destination) or packet.destination in self._broadcasts:
            raise PacketError(Drop.NOT_FORWARDED)
        if packet.source == UNSPECIFIED[packet.family] or answers.is_group(packet.source):
            raise PacketError(Drop.UNSPECIFIED_ADDRESS)
        if packet.source in self._own:
            # An answer would be for the router itself, which would ask its neighbours for its own address.
            raise PacketError(Drop.OWN_ADDRESS)
        if is_loopback(packet.source) or is_loopback(packet.destination):
            raise PacketError(Drop.LOOPBACK_ADDRESS)

    def _serve(self, found: View) -> None:
        """Answer a DHCP message.

        :raises PacketError: if it has no answer.
        """
        mac, interface = bytes(found.data[_SOURCE_MAC]), self._interfaces[INSIDE]
        lease = self._lease(mac)
        if found.packet.protocol != PROTOCOL_UDP or lease is None or lease.address is None:
            raise PacketError(Drop.SERVICE)
        reply = answer(interface, lease, found.packet, mac)
        if reply is not None:
            self._send[INSIDE](VIRTIO_NET_BLANK + reply)

    def _is_own(self, found: View) -> bool:
        """Return whether a packet is for the router itself, and for no mapping of its NAT."""
        packet = found.packet
        if packet.family == V6:
            return packet.destination in self._own or is_link_local(packet.destination)
        if self.policy.nat is None or packet.destination != self.policy.outside:
            return packet.destination in self._own
        return found.kind == echo.REQUESTS[V4]

    def _local(self, side: int, found: View) -> None:
        """Answer a packet for the router itself.

        :raises PacketError: if it has no answer.
        """
        packet, interface, mac = found.packet, self._interfaces[side], bytes(found.data[_SOURCE_MAC])
        if packet.fragment is not None:
            raise PacketError(Drop.FRAGMENT)
        if found.kind == echo.REQUESTS[packet.family]:
            reply = echo.reply(
                bytes(packet.payload), found.source_port, packet.destination, packet.source, mac, interface.mac
            )
            self._send[side](VIRTIO_NET_BLANK + reply)
        elif packet.protocol == PROTOCOL_TCP:
            refusal = reset(packet, mac, interface.mac)
            if refusal is not None:
                self._send[side](VIRTIO_NET_BLANK + refusal)
        elif packet.protocol == PROTOCOL_UDP:
            self._report(side, found, CLOSED_PORT[packet.family], packet.destination)

    def _decide(self, side: int, found: View, now: float, key: Key | None) -> None:
        """Forward a packet whose flow has no way.

        :raises PacketError: if it is dropped.
        """
        family, identification = found.packet.family, None
        if family == V4 and found.packet.fragment is not None and self.policy.tables:
            identification = found.packet.fragment.identification
            whole = self._reassemble(found, now)
            if whole is None:
                return
            found = whole
        if found.packet.hop_limit <= 1:
            raise Refused(Drop.HOP_LIMIT, None if found.later_fragment else _EXPIRED[family])
        try:
            way = self.policy.decide(side, found, now)
        except PacketError as error:
            opens = found.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
            if error.reason is Drop.NAT_FILTERED and side == OUTSIDE and opens:
                self._unasked.hold(found.data, now)
            raise
        self._leave(side, found, way, now, identification)
        if key is not None and way.data is None and found.packet.fragment is None and identification is None:
            self._enter(key, found, way)

    def _enter(self, key: Key, found: View, path: Path) -> None:
        """Let the frames behind this one find their way."""
        if len(self._ways) >= WAYS_LIMIT:
            self._ways.clear()
        refreshes = path.outward or self.policy.behaviour.inbound_refresh
        mtu, find = self._interfaces[path.side].mtu, self._neighbours[path.side].header
        self._ways[key] = Way(path, found.at, found.packet.protocol, mtu, refreshes, find, self._send[path.side])
        if path.session is not None:
            path.session.ways.add(key)

    def _leave(self, side: int, found: View, way: Path, now: float, identification: int | None) -> None:
        """Send a packet, in fragments where it has to be.

        :param identification: of its datagram, if that was reassembled.
        :raises Refused: if it is too long.
        """
        mtu, data = self._interfaces[way.side].mtu, way.data or found.data
        fits = longest(data, found.at) <= mtu
        if not fits and not found.fragmentable:
            raise Refused(Drop.MESSAGE_SIZE, too_big(found.packet.family, mtu))
        header = self._neighbours[way.side].header(way.next_hop, now)
        if header is None:
            self._keep(side, found.data, way, now)
            return
        frame = _forwarded(data, header, way, found)
        if fits:
            self._send[way.side](frame)
            return
        start, end = found.at - VIRTIO, found.end - VIRTIO
        for single in split(frame):
            own = identification
            if own is None and found.packet.fragment is None:
                own = self._identification = self._identification + 1 & _IDENTIFICATION_MASK
            for piece in fragments(single, start, min(end, len(single)), mtu, own):
                self._send[way.side](piece)

    def _reassemble(self, found: View, now: float) -> View | None:
        """Return the datagram of a fragment when it is complete, else None (RFC 4787, REQ-14).

        :raises PacketError: `Drop.FRAGMENT`.
        """
        packet = self._reassembly.add(found.packet, int(now))
        if packet is None:
            return None
        built = ip_packet(
            packet.source, packet.destination, packet.protocol, bytes(packet.payload), packet.tos, packet.hop_limit
        )
        return view(VIRTIO_NET_BLANK + bytes(found.data[ETHERNET]) + built)

    def _keep(self, side: int, data: Buffer, way: Path, now: float) -> None:
        """Keep a frame until its next hop is known."""
        if not self._neighbours[way.side].keep(way.next_hop, (side, bytes(data)), now):
            self._counters[side].drop(Drop.NEIGHBOUR_QUEUE)

    def _learn(self, side: int, learned: answers.Learned | None, reply: bytes | None, now: float) -> None:
        """Enter a neighbour, send the answer to it, and let go what has waited for it."""
        if reply is not None:
            self._send[side](VIRTIO_NET_BLANK + reply)
        if learned is None:
            return
        _, mac = learned
        if mac[0] & _GROUP or not any(mac) or mac == self._interfaces[side].mac:
            # Nobody's address (RFC 1812, section 3.3.2); frames to it would go to all, or nowhere.
            self._counters[side].drop(Drop.SOURCE_ADDRESS)
            return
        for origin, data in self._neighbours[side].learn(*learned, now):
            self.receive(origin, data, now)

    def _report(self, side: int, found: View, problem: Problem | None, source: bytes | None = None) -> None:
        """Send an ICMP error to the sender of a packet, unless it is about such an error (RFC 1812, section 4.3.2.7).

        :param source: of the error; None for the router's own address there.
        """
        packet, interface = found.packet, self._interfaces[side]
        if problem is None or (found.kind >= 0 and not found.echo) or found.later_fragment:
            return
        offender = source or interface.addresses[packet.family]
        built = icmp_error.message(packet.family, problem, found.whole)
        mac = bytes(found.data[_SOURCE_MAC])
        self._send[side](VIRTIO_NET_BLANK + icmp_error.frame(mac, interface.mac, offender, packet.source, built))


def _framed(send: Callable[[Buffer], None]) -> Callable[[bytes], None]:
    """Return what sends a frame that begins with its Ethernet header."""
    return lambda frame: send(VIRTIO_NET_BLANK + frame)


def _forwarded(data: Buffer, header: bytes, path: Path, found: View) -> bytearray:
    """Return a frame as it leaves.

    :param header: the Ethernet header to the next hop.
    """
    frame = bytearray(data)
    frame[ETHERNET] = header
    if found.packet.family == V4:
        hop4(frame)
    else:
        frame[HOP_LIMIT6] -= 1
    if path.patch is not None:
        path.patch.apply(frame, found.at)
    return frame
