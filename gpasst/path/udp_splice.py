"""The sockets of splice pairs: opening them, moving runs between them and their listeners, closing them.

Theory of operation: `gpasst.udp.splice` has the rules. A pair is opened by the first datagram of a sender, without
asking anyone: its socket comes from a pool of sockets made in the namespace beforehand, or is made on the host. Runs
then cross in one receive and one send, as superframes where the kernel joins and splits them.

The kernel reports a closed port on the pair's connected socket. The error is read there, counted, and passed on to the
sender as the ICMP error that it would have got, where that can be done (`refusals`).
"""

from __future__ import annotations

import errno
import logging
from _socket import inet_pton
from _socket import socket as RawSocket  # a class
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.errors import GpasstError, PacketError
from gpasst.features import Feature
from gpasst.host.raw import MakeSockets, RawSockets
from gpasst.host.receive import Receiver
from gpasst.host.send import SEGMENTS_PER_SEND, Sender, answering, send_run
from gpasst.host.sockets import family_constant, new_udp_socket, prepare, socket_address, text
from gpasst.linux import SOCK_DGRAM
from gpasst.packet.address import ANY
from gpasst.packet.icmp_error import port_unreachable
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.pairs import Pair, Pairs, Route

POOL = 64  # sockets of a family kept ready; one message of the helper brings that many
BATCHES_PER_STEP = 4
TRIES = 4  # sockets tried until one does not happen to be bound to its own target

log = logging.getLogger(__name__)


class Splice:
    """All splice pairs of one namespace, with their sockets.

    :param pairs: the rules.
    :param make_inside: makes sockets in the namespace, without switching to another greenlet.
    :param watch: begins to call back when a pair's socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param refusals: reports closed ports.
    :param receivers: the receiver of each family.
    :param counters: where traffic and drops are counted.
    :param features: what may move more than one datagram at once.
    """

    def __init__(
        self,
        pairs: Pairs,
        make_inside: MakeSockets,
        watch: Callable[[Pair], None],
        unwatch: Callable[[Pair], None],
        refusals: RawSockets,
        receivers: dict[int, Receiver],
        counters: Counters,
        features: frozenset[Feature],
    ) -> None:
        self.pairs = pairs
        self._make_inside = make_inside
        self._watch = watch
        self._unwatch = unwatch
        self._counters = counters
        self._gro = Feature.GRO in features
        self._most = SEGMENTS_PER_SEND if Feature.GSO in features else 1
        self._refusals = refusals
        self._receivers = receivers
        self._pool: dict[int, list[RawSocket]] = {}

    def listen(self, inside: bool, family: int) -> None:
        """Get ready for pairs of senders on one side: a pool for their sockets, a raw socket for their errors."""
        if not inside and family not in self._pool:
            self._pool[family] = []
            self.top_up()
        self._refusals.open(inside, family)

    def open(self, listener: UdpSocket, key: bytes, source: bytes, port: int, scope: int, addressed: bytes) -> Pair:
        """Set up the pair of a new sender.

        :param listener: what it sent to.
        :param key: its raw sender key there.
        :param source: its address.
        :param port: its port.
        :param scope: interface index of a link-local address, else 0.
        :param addressed: the address it sent to, as the key tells it.
        :raises PacketError: if its datagram must be dropped.
        """
        family = listener.family
        route = self.pairs.route(listener, source, port, addressed[: 4 if family == 4 else 16])
        sock, local = self._connected(not listener.inside, family, route)
        udp_socket = UdpSocket(family, local[1], sock, inside=not listener.inside)
        pair = Pair(listener, key, (source, port, scope), addressed, route, udp_socket, local)
        pair.to_target = Sender(sock)
        pair.to_sender = answering(listener.socket, source, port, scope, addressed)
        for ended in self.pairs.add(pair):
            self._end(ended)
        self._watch(pair)
        return pair

    def forward(self, pair: Pair, payload: list[memoryview], segment: int) -> None:
        """Pass a run of the pair's sender on."""
        self.pairs.ages.activity[pair.byte] |= pair.bit
        send_run(pair.to_target, _whole(payload), segment, self._most, self._counters.spliced, self._counters)

    def step(self, pair: Pair) -> int:
        """Pass answers on, up to `BATCHES_PER_STEP` batches; give how many runs it was.

        A run of several datagrams counts as two.
        """
        receive = self._receivers[pair.udp_socket.family].receive
        moved = 0
        for _ in range(BATCHES_PER_STEP):
            sock = pair.udp_socket.socket
            if sock is None:
                break
            try:
                runs, more = receive(sock.fileno())
            except OSError as error:
                # Reading it has cleared it; there may be answers behind it.
                self._counters.socket_errors += 1
                if error.errno == errno.ECONNREFUSED:
                    self._refuse(pair)
                continue
            if runs:
                self.pairs.ages.activity[pair.byte] |= pair.bit
            for _key, total, segment, payload, _tos_ttl in runs:
                send_run(pair.to_sender, _whole(payload), segment, self._most, self._counters.spliced, self._counters)
                moved += 1 if segment >= total else 2
            if not more:
                break
        return moved

    def top_up(self) -> None:
        """Fill the pools, so that the next pairs need not wait for their sockets."""
        for family, pool in self._pool.items():
            if len(pool) < POOL:
                try:
                    made = self._make_inside(family_constant(family), SOCK_DGRAM, 0, POOL - len(pool))
                except GpasstError as error:
                    log.warning("%s", error)
                    return
                pool += [RawSocket(fileno=descriptor) for descriptor in made]

    def scan(self, now: int, timeout: int) -> int:
        """End pairs that were idle for more than `timeout` seconds at `now`; give how many."""
        ended = self.pairs.scan(now, timeout)
        for pair in ended:
            self._end(pair)
        self.top_up()
        return len(ended)

    def retire(self, listener: UdpSocket) -> None:
        """End all pairs of a listener that is about to be closed."""
        for pair in [pair for pair in listener.peers.values() if isinstance(pair, Pair)]:
            self.pairs.remove(pair)
            self._end(pair)

    def close(self) -> None:
        """End all pairs and close the pools."""
        for pair in list(self.pairs):
            self.pairs.remove(pair)
            self._end(pair)
        for pool in self._pool.values():
            for sock in pool:
                sock.close()
        self._pool.clear()

    def _end(self, pair: Pair) -> None:
        self._unwatch(pair)
        pair.udp_socket.socket.close()
        pair.udp_socket.socket = None

    def _connected(self, inside: bool, family: int, route: Route) -> tuple[RawSocket, tuple[bytes, int]]:
        """Give a socket of one side, bound and connected as the route says, and what it is bound to."""
        target = socket_address(route.address, route.port, route.scope)
        for _ in range(TRIES):
            try:
                sock = self._socket(inside, family)
            except (OSError, GpasstError) as error:
                raise PacketError(Drop.NO_SOCKET) from error
            try:
                _bind(sock, family, route)
                sock.connect(target)
                name = sock.getsockname()
                local = inet_pton(family_constant(family), name[0].partition("%")[0]), int(name[1])
                if local == (route.address, route.port):
                    # By chance, the kernel gave it the port it shall talk to.
                    sock.close()
                    continue
                self._drain(sock)
            except OSError as error:
                sock.close()
                raise PacketError(Drop.UNREACHABLE) from error
            return sock, local
        raise PacketError(Drop.NO_SOCKET)

    def _socket(self, inside: bool, family: int) -> RawSocket:
        if not inside:
            return new_udp_socket(family, self._gro, packet_info=False)
        pool = self._pool[family]
        if not pool:
            self.top_up()
        if not pool:
            raise OSError(errno.EMFILE, "no socket of the namespace is left")
        return prepare(pool.pop(), family, self._gro, packet_info=False)

    def _drain(self, sock: RawSocket) -> None:
        """Drop what strangers sent to the socket while it was bound but not yet connected: from here on none comes."""
        while True:
            try:
                # The receiver's buffers hold what is being passed on; what is dropped here needs none.
                sock.recv(1)
            except OSError:
                return
            self._counters.drop(Drop.SPLICE_STRAY)

    def _refuse(self, pair: Pair) -> None:
        """Tell a pair's sender that nobody listens where its datagrams go."""
        source, port, scope = pair.sender
        addressed = pair.addressed[: len(source)]
        message = port_unreachable(source, port, addressed, pair.listener.port)
        if self._refusals.send(pair.listener.inside, message, source, scope):
            self._counters.refusals += 1


def _bind(sock: RawSocket, family: int, route: Route) -> None:
    """Bind a socket as the route says, to another port if that one is taken."""
    if not route.source and not route.source_port:
        return
    host = text(route.source) if route.source else ANY[family]
    try:
        sock.bind((host, route.source_port))
    except OSError:
        if not route.source_port:
            raise
        log.debug("splice: source port %d is taken on the other side", route.source_port)
        sock.bind((host, 0))


def _whole(payload: list[memoryview]) -> memoryview:
    """Give a run's payload in one piece; a few have two."""
    return payload[0] if len(payload) == 1 else memoryview(b"".join(payload))
