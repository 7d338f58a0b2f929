"""UDP between the guest and the host's sockets, both ways.

Theory of operation: `gpasst.udp.nat` decides which mapping and peer a datagram belongs to; `MappingSockets` opens and
closes the host sockets of mappings; `UdpSockets` moves the datagrams.

* `step` receives runs (`gpasst.host.receive`) from one socket. A known sender costs one look-up and one write a run. In
  each batch, runs of known senders are carried first; only then do the others set up their peers or splice pairs.
* `send` carries a run of the guest to a peer, and reports to the guest what the host's network does not carry.
* `outbound` handles a datagram of the guest for which there may be no peer yet.

A send that the kernel refuses as a superframe (path MTU below the segment, no segmentation on the way) is repeated
datagram by datagram (`gpasst.host.send`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.features import Feature
from gpasst.flow.guest import Guest
from gpasst.flow.key import PORTS_BYTES
from gpasst.host.descriptors import Descriptors
from gpasst.host.receive import Receiver, Run, split_key
from gpasst.host.send import SEGMENTS_PER_SEND, send_run, sender_to
from gpasst.host.sockets import open_own
from gpasst.link.port import Link
from gpasst.packet.address import is_loopback
from gpasst.packet.parse import Packet, parse_udp
from gpasst.path.budget import BATCHES_PER_STEP, STEP_SECONDS
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.udp_many import MANY, ManySenders
from gpasst.path.udp_splice import UdpSplice
from gpasst.udp.mapping import Listener, Peer, UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import NO_PAIRS, Pair

# Handles a datagram to a service's port: the packet, and the payload of its datagram.
ServiceHandler = Callable[[Packet, memoryview], None]

log = logging.getLogger(__name__)


class MappingSockets:
    """Opens and closes the host sockets of mappings (`gpasst.udp.nat.SocketOpener`).

    :param guest: the guest, for the outbound address and interface of each family.
    :param gro: let the kernel join datagrams of one sender.
    :param watch: begins to call `UdpSockets.step` when a socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param descriptors: closes idle sockets near the limit of open files.
    """

    def __init__(
        self,
        guest: Guest,
        gro: bool,
        watch: Callable[[UdpSocket], None],
        unwatch: Callable[[UdpSocket], None],
        descriptors: Descriptors,
    ) -> None:
        self._descriptors = descriptors
        self._guest = guest
        self._gro = gro
        self._watch = watch
        self._unwatch = unwatch

    def open(self, family: int, port: int) -> UdpSocket:
        """Open a socket of `family`, 4 or 6, at `port` if that is free, else at another one; any for port 0.

        :raises PacketError: if no socket can be had, or the kernel watches no more.
        """
        network = self._guest.addresses[family].network
        udp_socket = self._descriptors.make(lambda: open_own(network, port, self._gro))
        assert udp_socket.socket is not None
        udp_socket.socket = self._descriptors.settle(udp_socket.socket)
        try:
            self._watch(udp_socket)
        except OSError as error:
            udp_socket.socket.close()
            raise PacketError(Drop.NO_SOCKET, f"no host socket: {error.strerror}") from error
        if port and udp_socket.port != port:
            log.info("IPv%d source port %d is taken on the host; port changed to %d", family, port, udp_socket.port)
        return udp_socket

    def close(self, udp_socket: UdpSocket) -> None:
        """Close a socket; more calls do nothing."""
        sock = udp_socket.socket
        if sock is not None:
            self._unwatch(udp_socket)
            sock.close()
            udp_socket.socket = None


class UdpSockets:
    """Carries UDP between a guest and host sockets: those of mappings, and listeners.

    :param nat: the rules and tables.
    :param link: the guest's end, None with ``--splice-only``.
    :param icmp: reports errors to the guest.
    :param splice: carries loopback traffic of listeners, None where the link does.
    :param receivers: the receiver of each family.
    :param services: handlers of datagrams to a port that is not carried, by (family, port).
    :param counters: where traffic and drops are counted.
    :param features: the ways to move more than one datagram at once.
    :param carried: whether datagrams are carried, or only served.
    :param clock: returns seconds, for the budget of a step.
    :param many: carries batches of many senders, None where each is a row.
    :ivar nat: the rules and tables.
    """

    def __init__(
        self,
        nat: UdpNat,
        link: Link | None,
        icmp: IcmpToGuest,
        splice: UdpSplice | None,
        receivers: Mapping[int, Receiver],
        services: Mapping[tuple[int, int], ServiceHandler],
        counters: Counters,
        features: frozenset[Feature],
        carried: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        many: ManySenders | None = None,
    ) -> None:
        self.nat = nat
        self._link = link
        self._icmp = icmp
        self._splice = splice
        self._receivers = receivers
        self._services = services
        self._counters = counters
        self._most = SEGMENTS_PER_SEND if Feature.GSO in features else 1
        self._carried = carried
        self._clock = clock
        self._many = many

    # --- Host to guest ----------------------------------------------------------------------------------------------

    def step(self, udp_socket: UdpSocket, batches: int = BATCHES_PER_STEP) -> int:
        """Move batches from a socket, for at most `STEP_SECONDS`.

        :param batches: how many at most.
        :return: runs moved; a run of several datagrams counts as two.
        """
        family = udp_socket.family
        receive, activity = self._receivers[family].receive, self.nat.tables[family].activity
        link, splice, many = self._link, self._splice, self._many
        nat, guest = self.nat, self.nat.guest
        stamp = guest.stamp
        moved = 0
        deadline = 0.0
        for _ in range(batches):
            sock = udp_socket.socket
            if sock is None:
                break
            try:
                if udp_socket.scattered:
                    runs, more, carried = many.receive(udp_socket)  # type: ignore[union-attr]  # which marks sockets so
                    moved += carried
                else:
                    runs, more = receive(sock.fileno())
                    if len(runs) >= MANY and many is not None:
                        many.look(udp_socket, runs)
            except OSError:
                # The error that an earlier datagram met. There may be datagrams behind it.
                now = self._clock()
                if deadline and now >= deadline:
                    break
                deadline = deadline or now + STEP_SECONDS
                if not self._icmp.queued(udp_socket):
                    self._counters.socket_errors += 1
                continue
            if not runs and not moved:
                # The watcher was woken by an error that a send has cleared before.
                self._icmp.queued(udp_socket)
            pairs = splice.pairs.of(udp_socket) if splice is not None and udp_socket.splices else NO_PAIRS
            first, first_key, others = udp_socket.first, udp_socket.first_key, udp_socket.others
            unknown: list[Run] = []
            try:
                for run in runs:
                    key, total, segment, payload, tos_ttl = run
                    peer = first if key == first_key else others.get(key)
                    if peer is not None:
                        header = peer.header
                        activity[peer.byte] |= peer.bit
                        if tos_ttl != header.tos_ttl:
                            header = nat.header(peer, tos_ttl)
                        if header.stamp is not stamp:
                            guest.readdress(header, peer.mapping.guest)
                        link.write_run(header, total, segment, payload)  # type: ignore[union-attr]  # peers need a link
                    elif (pair := pairs.get(key)) is not None:
                        splice.forward(pair, payload, segment)  # type: ignore[union-attr]  # and pairs need splicing
                    else:
                        unknown.append(run)
                        continue
                    moved += 1 if segment >= total else 2
                if unknown:
                    moved += self.carry_unknown(udp_socket, unknown)
            finally:
                # Whatever happens, before the next receive: gathered frames lie in the receiver's buffers.
                if link is not None:
                    link.flush()
            if not more or batches == 1:
                break
            now = self._clock()
            if deadline and now >= deadline:
                break
            deadline = deadline or now + STEP_SECONDS
        return moved

    def carry_unknown(self, udp_socket: UdpSocket, runs: list[Run]) -> int:
        """Carry runs of a socket; set up splice pairs or peers for unknown senders. Return as `step` does."""
        moved = 0
        for key, total, segment, payload, tos_ttl in runs:
            try:
                found = self._find(udp_socket, key)
            except PacketError as error:
                self._counters.drop(error.reason, -(-total // segment) if total else 1)
                continue
            if isinstance(found, Pair):
                assert self._splice is not None
                self._splice.forward(found, payload, segment)
            else:
                self.nat.tables[udp_socket.family].activity[found.byte] |= found.bit
                header, guest = self.nat.header(found, tos_ttl), self.nat.guest
                if header.stamp is not guest.stamp:
                    guest.readdress(header, found.mapping.guest)
                assert self._link is not None
                self._link.write_run(header, total, segment, payload)
            moved += 1 if segment >= total else 2
        return moved

    def _find(self, udp_socket: UdpSocket, key: bytes) -> Peer | Pair:
        """Return what carries a sender's datagrams, set up unless an earlier run of the batch has done so.

        :raises PacketError: if they must be dropped.
        """
        known = udp_socket.find(key)
        if known is not None:
            return known
        address, port, scope, local = split_key(udp_socket.family, key)
        if self._splice is not None and udp_socket.splices:
            assert isinstance(udp_socket, Listener)
            # Where route_localnet is set, the kernel lets other machines send to loopback addresses (ip-sysctl).
            if udp_socket.inside or (is_loopback(local[: len(address)]) and is_loopback(address)):
                pair = self._splice.pairs.of(udp_socket).get(key)
                return pair or self._splice.open(udp_socket, key, address, port, scope, local)
        if self._link is None:
            raise PacketError(Drop.NO_TAP)
        return self.nat.inbound(udp_socket, key, address, port, scope, local)

    def scan(self, now: int) -> None:
        """Give back memory that nothing needs between steps."""
        del now
        if self._many is not None:
            self._many.give_back()

    # --- Guest to host ----------------------------------------------------------------------------------------------

    def send(self, peer: Peer, payload: memoryview, segment: int) -> None:
        """Send datagrams of the guest to a peer, which counts as active.

        :param payload: the datagrams, one behind the other.
        :param segment: bytes of each but perhaps the last.
        """
        self.nat.tables[peer.udp_socket.family].activity[peer.byte] |= peer.bit
        counters = self._counters
        failure = send_run(peer.sender or sender_to(peer), payload, segment, self._most, counters.udp.down, counters)
        if failure:
            self._icmp.refused(peer, failure, payload[:segment])

    def outbound(self, packet: Packet) -> None:
        """Handle a UDP packet of the guest: serve it, or send it to its peer, which is set up if need be.

        :raises PacketError: if it is malformed or must be dropped.
        """
        guest_port, port, data = parse_udp(packet.payload)
        service = self._services.get((packet.family, port))
        if service is not None:
            service(packet, data)
            return
        if not self._carried:
            raise PacketError(Drop.PROTOCOL_DISABLED)
        peer = self.nat.tables[packet.family].down.get(
            packet.source + packet.destination + packet.payload[:PORTS_BYTES]
        )
        if peer is None:
            peer = self.nat.outbound(packet.family, packet.source, packet.destination, guest_port, port)
        if packet.tos_ttl != peer.tos_ttl:
            peer.set_tos_ttl(packet.tos_ttl)
        self.send(peer, data, packet.segment or len(data))
