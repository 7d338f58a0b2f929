"""What UDP tracks: host sockets, mappings and peers; `gpasst.udp.table` holds them.

Theory of operation:

1. A *mapping* is one guest endpoint (address and port) and the host socket that stands for it, whichever remote end it
   talks to (endpoint-independent mapping, RFC 4787 REQ-1).
2. A *peer* is one remote address and port within a mapping, as the guest sees it and as the host sees it. Downward
   superframes find it by the raw addresses and ports of their headers, upward ones by the raw sender (and, where the
   socket reports it, the addressed local address). Both ways lead to the same record, so an answer is translated by
   the pair that was stored, never by running rules again.
3. Each port of a scan becomes a mapping with a socket and a peer. So such a mapping holds little: what stands in a key
   is read from there, the only peer of a socket needs no dictionary, headers are made for the first datagram up, and
   a peer that is idle has neither headers nor a sender.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

from gpasst.flow import key as flow_key
from gpasst.flow.activity import Tracked
from gpasst.flow.order import Linked
from gpasst.flow.sender import HostSocket, Sender
from gpasst.udp.header import DEFAULT_TOS_TTL, NO_HEADER

REMOTES_SHARED = 256  # remote ends that are held once for all peers
NO_KEY = b"\0"  # no raw sender key is so short, but for that of a service, which is empty


class UdpSocket:
    """A host UDP socket (an address and port, RFC 4787) as the pure rooms see it: a mapping's own, or a `Listener`.

    Its peers are found by raw sender key: `first`, if the key is `first_key`, else that of `others`. A comparison costs
    less than a look-up, and most sockets have one peer alone.

    :param family: 4 or 6.
    :param port: the local port.
    :param sock: the socket; nothing in this room calls it.
    :ivar socket: the socket, None once closed.
    :ivar mapping: the mapping whose own socket it is, None for a listener.
    :ivar first: a peer, None if there is none under `first_key`.
    :ivar first_key: its raw sender key, else `NO_KEY`.
    :ivar others: the other peers by raw sender key, and the first again under its other keys.
    :ivar scattered: whether its latest batches had many senders.
    :ivar splices: whether loopback traffic goes to splice pairs; only a listener's may.
    :ivar served: whether a service of the program stands here in place of a socket.
    """

    splices = served = False

    __slots__ = ("family", "first", "first_key", "mapping", "others", "port", "scattered", "socket")

    def __init__(self, family: int, port: int, sock: HostSocket | None = None) -> None:
        self.family = family
        self.port = port
        self.socket = sock
        self.mapping: Mapping | None = None
        self.first: Peer | None = None
        self.first_key = NO_KEY
        self.others = _NO_OTHERS
        self.scattered = False

    def find(self, key: bytes) -> Peer | None:
        """Return the peer of a raw sender key."""
        return self.first if key == self.first_key else self.others.get(key)

    def enter(self, key: bytes, peer: Peer) -> None:
        """Let a raw sender key that is not known yet lead to `peer`."""
        if self.first is None:
            self.first, self.first_key = peer, key
            return
        if self.others is _NO_OTHERS:
            self.others = {}
        self.others[key] = peer

    def leave(self, key: bytes) -> None:
        """Forget a raw sender key."""
        if key == self.first_key:
            self.first, self.first_key = None, NO_KEY
            return
        del self.others[key]
        if not self.others:
            self.others = _NO_OTHERS

    def take_over(self, old: UdpSocket) -> None:
        """Take the peers of another socket, which has none then."""
        self.first, self.first_key, self.others = old.first, old.first_key, old.others
        old.first, old.first_key, old.others = None, NO_KEY, _NO_OTHERS

    @property
    def keys(self) -> int:
        """How many raw sender keys lead to peers."""
        return len(self.others) + (self.first is not None)

    def peers(self) -> Iterator[Peer]:
        """Return the peers, each once for every raw sender key."""
        return chain(() if self.first is None else (self.first,), self.others.values())


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


class Mapping(Linked):
    """One guest endpoint and what stands for it on the host.

    :param guest: the guest's address, 4 or 16 bytes.
    :param port: the guest's port.
    :ivar end: both, as the key of the mapping.
    :ivar peers: how many peers it has.
    :ivar admitted: host-side addresses that the guest has sent to, each with the number of its peers on own sockets;
        kept only where senders are filtered.
    """

    __slots__ = ("_sockets", "admitted", "end", "peers")

    def __init__(self, guest: bytes, port: int) -> None:
        self.unlink()
        self.end = flow_key.end_key(guest, port)
        self._sockets: UdpSocket | tuple[UdpSocket, ...] = ()  # a single one without a tuple around it
        self.peers = 0
        self.admitted: Counter[bytes] | None = None

    @property
    def guest(self) -> bytes:
        """The guest's address, 4 or 16 bytes."""
        return flow_key.split_end(self.end)[0]

    @property
    def port(self) -> int:
        """The guest's port."""
        return flow_key.split_end(self.end)[1]

    @property
    def sockets(self) -> list[UdpSocket]:
        """A list of the host sockets for new peers, in order of preference: its own or a listener, then spare ones."""
        sockets = self._sockets
        return [*sockets] if isinstance(sockets, tuple) else [sockets]

    @sockets.setter
    def sockets(self, sockets: Iterable[UdpSocket]) -> None:
        found = tuple(sockets)
        self._sockets = found[0] if len(found) == 1 else found


class Peer(Tracked):
    """One remote end of a mapping, in both views.

    :param mapping: the guest's end.
    :param udp_socket: the host socket that its datagrams pass.
    :param shown: (address, port) as the guest sees it.
    :param remote: (address, port, scope) as the host sees it.
    :param local: the host's address that it addressed, empty if that is the kernel's choice.
    :ivar header: headers of upward frames, `NO_HEADER` until the first one and after a `rest`.
    :ivar tos_ttl: TOS and TTL of the guest's datagrams to it (`gpasst.udp.header`).
    :ivar sender: how datagrams leave for it, with that TOS and TTL; None until the first one and after a change
        or a `rest`.
    :ivar down_key: its key in `gpasst.udp.table.Table.down`.
    """

    __slots__ = (
        "_remote",
        "_up_keys",
        "down_key",
        "header",
        "local",
        "mapping",
        "sender",
        "tos_ttl",
        "udp_socket",
    )

    def __init__(
        self,
        mapping: Mapping,
        udp_socket: UdpSocket,
        shown: tuple[bytes, int],
        remote: tuple[bytes, int, int],
        local: bytes,
    ) -> None:
        self.mapping = mapping
        self.udp_socket = udp_socket
        self.down_key = flow_key.down_key(mapping.guest, shown[0], mapping.port, shown[1])
        # Most remote ends are what the guest sees, and the key has that.
        self._remote = None if remote == (*shown, 0) else _shared(remote)
        self.local = local
        self.header = NO_HEADER
        self.tos_ttl = DEFAULT_TOS_TTL
        self.sender: Sender | None = None
        self._up_keys: bytes | tuple[bytes, ...] = ()  # a single one without a tuple around it

    @property
    def shown(self) -> tuple[bytes, int]:
        """(address, port) as the guest sees it."""
        address, port, _ = flow_key.shown(self.down_key)
        return address, port

    @property
    def remote(self) -> tuple[bytes, int, int]:
        """(address, port, scope) as the host sees it."""
        return self._remote or flow_key.shown(self.down_key)

    @property
    def up_keys(self) -> tuple[bytes, ...]:
        """The raw sender keys under which its host socket finds it."""
        keys = self._up_keys
        return keys if isinstance(keys, tuple) else (keys,)

    def enter(self, up_key: bytes) -> None:
        """Let its host socket find it under another raw sender key."""
        known = self.up_keys
        self._up_keys = (*known, up_key) if known else up_key
        self.udp_socket.enter(up_key, self)

    def rest(self) -> None:
        """Let go of headers and sender, which the next datagram each way makes anew."""
        self.header = NO_HEADER
        self.sender = None

    def set_tos_ttl(self, tos_ttl: int) -> None:
        """Send with another TOS and TTL from now on."""
        self.tos_ttl = tos_ttl
        self.sender = None


_NO_OTHERS: dict[bytes, Peer] = {}  # of all sockets that have none; nothing is entered here


@lru_cache(REMOTES_SHARED)
def _shared(remote: tuple[bytes, int, int]) -> tuple[bytes, int, int]:
    """Return one object for equal remote ends."""
    return remote
