"""What UDP tracks: host sockets, mappings and peers.

Theory of operation:

1. A *mapping* is one guest endpoint (address and port) and the host socket that stands for it, whichever remote end it
   talks to (endpoint-independent mapping, RFC 4787 REQ-1).
2. A *peer* is one remote address and port within a mapping, as the guest sees it and as the host sees it. Downward
   superframes find it by the raw addresses and ports of their headers, upward ones by the raw sender (and, where the
   socket reports it, the addressed local address). Both ways lead to the same record, so an answer is translated by
   the pair that was stored, never by running rules again.
3. A peer ends when it has been idle for more than the timeout (`gpasst.flow.activity`), and a mapping with its last
   peer. Listeners never end this way.

NOTE: the table holds at most `limit` peers. At the limit the longest idle one goes first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import islice

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.activity import Ages, Tracked
from gpasst.flow.key import down_key
from gpasst.flow.sender import HostSocket, Sender
from gpasst.records import dataclass
from gpasst.udp.header import DEFAULT_TOS_TTL, Header

PEERS_LIMIT = 131072  # per family; what upstream's flow table holds
PORT_LOWEST, PORT_MAXIMUM = 1024, 65535  # shown in place of a sender's own
PORT_FIRST = 61000  # above the usual ephemeral range, where guests expect senders least
PEERS_EVICTED = 128  # at once, of each socket of a mapping; half a millisecond
PORTS_TRIED = 1024  # for one sender; a third of a millisecond


class UdpSocket:
    """A host UDP socket (an address and port, RFC 4787) as the pure rooms see it: a mapping's own, or a `Listener`.

    :param family: 4 or 6.
    :param port: the local port.
    :param sock: the socket; nothing in this room calls it.
    :ivar socket: the socket, None once closed.
    :ivar mapping: the mapping whose own socket it is, None for a listener.
    :ivar peers: peers by raw sender key.
    :ivar splices: whether loopback traffic goes to splice pairs; only a listener's may.
    :ivar served: whether a service of the program stands here in place of a socket.
    """

    splices = served = False

    __slots__ = ("family", "mapping", "peers", "port", "socket")

    def __init__(self, family: int, port: int, sock: HostSocket | None = None) -> None:
        self.family = family
        self.port = port
        self.socket = sock
        self.mapping: Mapping | None = None
        self.peers: dict[bytes, Peer] = {}


class ServedSocket(UdpSocket):
    """What stands for a host socket between one end of the guest and a service of the program: it has one peer."""

    served = True

    __slots__ = ()


class Listener(UdpSocket):
    """The socket of a forwarded port; its owner opens and closes it.

    :param family: 4 or 6.
    :param port: the local port.
    :param sock: the socket.
    :ivar target: the port that it leads to.
    :ivar target_address: the address that it leads to, 4 or 16 bytes; empty where rules choose.
    :ivar general: whether it is bound to every address and interface.
    :ivar inside: whether it listens in the namespace rather than on the host.
    """

    __slots__ = ("general", "inside", "splices", "target", "target_address")

    def __init__(
        self,
        family: int,
        port: int,
        sock: HostSocket | None = None,
        *,
        target: int,
        target_address: bytes = b"",
        general: bool = True,
        inside: bool = False,
        splices: bool = False,
    ) -> None:
        super().__init__(family, port, sock)
        self.target = target
        self.target_address = target_address
        self.general = general
        self.inside = inside
        self.splices = splices


class Mapping:
    """One guest endpoint and what stands for it on the host.

    :ivar guest: the guest's address, 4 or 16 bytes.
    :ivar port: the guest's port.
    :ivar sockets: host sockets for new peers in order of preference: its own or a listener, then spare ones.
    :ivar peers: how many peers it has.
    :ivar admitted: host-side addresses that the guest has sent to, each with the number of its peers on own sockets;
        kept only where senders are filtered.
    """

    __slots__ = ("admitted", "guest", "peers", "port", "sockets")

    def __init__(self, guest: bytes, port: int) -> None:
        self.guest = guest
        self.port = port
        self.sockets: list[UdpSocket] = []
        self.peers = 0
        self.admitted: Counter[bytes] | None = None


class Peer(Tracked):
    """One remote end of a mapping, in both views.

    :ivar mapping: the guest's end.
    :ivar udp_socket: the host socket that its datagrams pass.
    :ivar shown: (address, port) as the guest sees it.
    :ivar remote: (address, port, scope) as the host sees it.
    :ivar local: the host's address that it addressed, empty if that is the kernel's choice.
    :ivar header: headers of upward frames.
    :ivar tos_ttl: TOS and TTL of the guest's datagrams to it (`gpasst.udp.header`).
    :ivar sender: how datagrams leave for it, with that TOS and TTL; None until the first one, and after a change.
    :ivar down_key: its key in `Table.down`.
    :ivar up_keys: its keys in `UdpSocket.peers`.
    """

    __slots__ = (
        "down_key",
        "header",
        "local",
        "mapping",
        "remote",
        "sender",
        "shown",
        "tos_ttl",
        "udp_socket",
        "up_keys",
    )

    def __init__(
        self,
        mapping: Mapping,
        udp_socket: UdpSocket,
        shown: tuple[bytes, int],
        remote: tuple[bytes, int, int],
        local: bytes,
        header: Header,
    ) -> None:
        self.mapping = mapping
        self.udp_socket = udp_socket
        self.shown = shown
        self.remote = remote
        self.local = local
        self.header = header
        self.tos_ttl = DEFAULT_TOS_TTL
        self.sender: Sender | None = None
        self.down_key = b""
        self.up_keys: tuple[bytes, ...] = ()

    def set_tos_ttl(self, tos_ttl: int) -> None:
        """Send with another TOS and TTL from now on."""
        self.tos_ttl = tos_ttl
        self.sender = None


@dataclass(frozen=True, slots=True)
class Expired:
    """What a scan let go of.

    :ivar mappings: how many mappings ended.
    :ivar sockets: host sockets to close.
    """

    mappings: int
    sockets: list[UdpSocket]


class _PeerAges(Ages[Peer]):
    """When each peer was last active; a scan that finds a peer active moves its mapping to the end of `owners`."""

    __slots__ = ("_owners",)

    def __init__(self, now: int, owners: OrderedDict[Mapping, None]) -> None:
        super().__init__(now)
        self._owners = owners

    def touched(self, item: Peer) -> None:
        """Take note that a scan found `item` active."""
        if item.mapping in self._owners:
            self._owners.move_to_end(item.mapping)


class Table:
    """All mappings and peers of one family.

    :ivar down: peers by `down_key`.
    :ivar mappings: mappings by guest address and port.
    :ivar owners: the mappings with sockets of their own, the longest idle one first.
    :ivar ages: when each peer was last active.
    :ivar activity: the activity bitmap, a bit a peer.
    """

    __slots__ = ("_next_port", "activity", "ages", "down", "limit", "mappings", "owners")

    def __init__(self, now: int = 0, limit: int = PEERS_LIMIT) -> None:
        self.down: dict[bytes, Peer] = {}
        self.mappings: dict[tuple[bytes, int], Mapping] = {}
        self.owners: OrderedDict[Mapping, None] = OrderedDict()
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
        self.mappings[mapping.guest, mapping.port] = mapping
        if peer.udp_socket.mapping is mapping:
            self.owners[mapping] = None
            self.owners.move_to_end(mapping)
            if mapping.admitted is not None:
                mapping.admitted[peer.remote[0]] += 1
        peer.down_key = down_key(mapping.guest, peer.shown[0], mapping.port, peer.shown[1])
        self.down[peer.down_key] = peer
        self.alias(peer, up_key)
        self.ages.add(peer)
        return closing

    def alias(self, peer: Peer, up_key: bytes) -> None:
        """Let upward datagrams of another raw sender key find `peer`."""
        peer.up_keys += (up_key,)
        peer.udp_socket.peers[up_key] = peer

    def remove(self, peer: Peer) -> list[UdpSocket]:
        """Forget `peer`, and its mapping if it was the last; return the host sockets to close then."""
        self.ages.remove(peer)
        del self.down[peer.down_key]
        for key in peer.up_keys:
            del peer.udp_socket.peers[key]
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
        if not self.owners:
            return []
        mapping = next(iter(self.owners))
        own = [udp_socket for udp_socket in mapping.sockets if udp_socket.mapping is mapping]
        closing = []
        for udp_socket in own:
            for peer in dict.fromkeys(islice(udp_socket.peers.values(), PEERS_EVICTED)):
                closing += self.remove(peer)
        for udp_socket in own:
            # The mapping goes on where peers of a listener are left.
            if udp_socket.mapping is mapping and not udp_socket.peers:
                udp_socket.mapping = None
                mapping.sockets.remove(udp_socket)
                closing.append(udp_socket)
        if not any(udp_socket.mapping is mapping for udp_socket in mapping.sockets):
            self.owners.pop(mapping, None)
        return closing

    def forget(self, mapping: Mapping) -> list[UdpSocket]:
        """Forget a mapping that has no peers; return its own host sockets, to be closed."""
        self.mappings.pop((mapping.guest, mapping.port), None)
        self.owners.pop(mapping, None)
        own = [udp_socket for udp_socket in mapping.sockets if udp_socket.mapping is mapping]
        for udp_socket in own:
            udp_socket.mapping = None
        mapping.sockets.clear()
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
