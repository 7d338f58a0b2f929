"""The table of all mappings and peers of one family: entering, finding, ending them.

Theory of operation: downward frames find a peer in `down`. A peer ends when it has been idle for more than the timeout
(`gpasst.flow.activity`), and a mapping with its last peer. Listeners never end this way. Near the limit of open files a
mapping gives way earlier, with its sockets (`evict`).

NOTE: the table holds at most `limit` peers. At the limit the longest idle one goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.activity import Ages
from gpasst.flow.key import down_key
from gpasst.flow.order import Order
from gpasst.records import dataclass
from gpasst.udp.mapping import Mapping, Peer, UdpSocket

PEERS_LIMIT = 131072  # per family; what upstream's flow table holds
PORT_LOWEST, PORT_MAXIMUM = 1024, 65535  # shown in place of a sender's own
PORT_FIRST = 61000  # above the usual ephemeral range, where guests expect senders least
PEERS_EVICTED = 128  # at once, of each socket of a mapping; half a millisecond
PORTS_TRIED = 1024  # for one sender; a third of a millisecond


@dataclass(frozen=True, slots=True)
class Expired:
    """What a scan let go of.

    :ivar mappings: how many mappings ended.
    :ivar sockets: host sockets to close.
    """

    mappings: int
    sockets: list[UdpSocket]


class _PeerAges(Ages[Peer]):
    """When each peer was last active; a scan that finds a peer active renews its mapping in `owners`."""

    __slots__ = ("_owners",)

    def __init__(self, now: int, owners: Order[Mapping]) -> None:
        super().__init__(now)
        self._owners = owners

    def touched(self, item: Peer) -> None:
        """Take note that a scan found `item` active."""
        self._owners.renew(item.mapping)

    def cold(self, item: Peer) -> None:
        """Free what the next datagram makes anew."""
        item.rest()


class Table:
    """All mappings and peers of one family.

    :ivar down: peers by `down_key`.
    :ivar mappings: mappings by their ends (`gpasst.flow.key.end_key`).
    :ivar owners: the mappings with sockets of their own, the longest idle one first.
    :ivar ages: when each peer was last active.
    :ivar activity: the activity bitmap, a bit a peer.
    """

    __slots__ = ("_next_port", "activity", "ages", "down", "limit", "mappings", "owners")

    def __init__(self, now: int = 0, limit: int = PEERS_LIMIT) -> None:
        self.down: dict[bytes, Peer] = {}
        self.mappings: dict[bytes, Mapping] = {}
        self.owners: Order[Mapping] = Order()
        self.ages: Ages[Peer] = _PeerAges(now, self.owners)
        self.activity = self.ages.activity
        self.limit = limit
        self._next_port = PORT_FIRST

    def __len__(self) -> int:
        return len(self.down)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.ages)

    def idle_seconds(self, peer: Peer) -> int:
        """Return how long ago `peer` was last found active."""
        return self.ages.idle_seconds(peer)

    def active(self, peer: Peer) -> bool:
        """Return whether `peer` was active since the scan before the last."""
        return bool(self.activity[peer.byte] & peer.bit) or not self.ages.idle_seconds(peer)

    def add(self, peer: Peer, up_key: bytes) -> list[UdpSocket]:
        """Enter a new peer under its keys.

        :param up_key: its raw sender key on its endpoint.
        :return: host sockets to close, of mappings that had to make room.
        """
        mapping = peer.mapping
        # First of all, lest making room should end this mapping and close its socket.
        mapping.peers += 1
        closing: list[UdpSocket] = []
        while len(self.down) >= self.limit:
            closing += self.remove(self.ages.oldest())
        self.mappings[mapping.end] = mapping
        if peer.udp_socket.mapping is mapping:
            if mapping not in self.owners:
                self.owners.append(mapping)
            self.owners.renew(mapping)
            if mapping.admitted is not None:
                mapping.admitted[peer.remote[0]] += 1
        self.down[peer.down_key] = peer
        peer.enter(up_key)
        self.ages.add(peer)
        return closing

    def remove(self, peer: Peer) -> list[UdpSocket]:
        """Forget `peer`, and its mapping if it was the last; return the host sockets to close then."""
        del self.down[peer.down_key]
        self.ages.remove(peer)
        for key in peer.up_keys:
            peer.udp_socket.leave(key)
        mapping = peer.mapping
        mapping.peers -= 1
        if mapping.admitted is not None and peer.udp_socket.mapping is mapping:
            address = peer.remote[0]
            mapping.admitted[address] -= 1
            if not mapping.admitted[address]:
                del mapping.admitted[address]
        if mapping.peers:
            return []
        return self.forget(mapping)

    def evict(self) -> list[UdpSocket]:
        """Forget the own sockets of the mapping that was idle longest, with their peers; return them, to be closed.

        Of a mapping with more peers than `PEERS_EVICTED`, so many are forgotten, and the sockets when none is left.
        """
        mapping = self.owners.first
        if mapping is None:
            return []
        own = [udp_socket for udp_socket in mapping.sockets if udp_socket.mapping is mapping]
        closing = []
        for udp_socket in own:
            for peer in dict.fromkeys(islice(udp_socket.peers(), PEERS_EVICTED)):
                closing += self.remove(peer)
        for udp_socket in own:
            # The mapping goes on where peers of a listener are left.
            if udp_socket.mapping is mapping and not udp_socket.keys:
                udp_socket.mapping = None
                mapping.sockets = [other for other in mapping.sockets if other is not udp_socket]
                closing.append(udp_socket)
        if mapping in self.owners and not any(udp_socket.mapping is mapping for udp_socket in mapping.sockets):
            self.owners.remove(mapping)
        return closing

    def forget(self, mapping: Mapping) -> list[UdpSocket]:
        """Forget a mapping that has no peers; return its own host sockets, to be closed."""
        self.mappings.pop(mapping.end, None)
        if mapping in self.owners:
            self.owners.remove(mapping)
        own = [udp_socket for udp_socket in mapping.sockets if udp_socket.mapping is mapping]
        for udp_socket in own:
            udp_socket.mapping = None
        mapping.sockets = []
        return own

    def scan(self, now: int, timeout: int) -> Iterator[Expired]:
        """Turn activity since the last scan into ages, and let go of peers that were idle for more than `timeout`.

        :param now: monotonic seconds.
        :param timeout: seconds; a peer last active at t is kept at t + timeout and gone after that.
        :return: what ended in each piece of bounded work.
        """
        for idle in self.ages.scan(now, timeout):
            before = len(self.mappings)
            closing = [udp_socket for peer in idle for udp_socket in self.remove(peer)]
            yield Expired(before - len(self.mappings), closing)

    def free_port(self, guest: bytes, shown: bytes, guest_port: int, wanted: int) -> int:
        """Choose a port to show a sender under, when it would look like another one to the guest under its own.

        The search goes on where the last one ended, so look-alikes in number do not pass each other's ports again.

        :param guest: the guest's address.
        :param shown: the address that the guest sees as sender.
        :param guest_port: the guest's port.
        :param wanted: the sender's own port.
        :raises PacketError: `Drop.PORTS_EXHAUSTED`, if `PORTS_TRIED` ports in a row are taken.
        """
        for _ in range(PORTS_TRIED):
            port = self._next_port
            self._next_port = port + 1 if port < PORT_MAXIMUM else PORT_LOWEST
            if port != wanted and down_key(guest, shown, guest_port, port) not in self.down:
                return port
        raise PacketError(Drop.PORTS_EXHAUSTED)
