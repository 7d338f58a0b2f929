"""The sockets of splice pairs, and both halves of their traffic.

Theory of operation: `gpasst.udp.pairs` has the rules. The first datagram of a sender opens its pair, without asking
another process: the socket comes from the pool of the namespace, or is made on the host. Runs then cross in one receive
and one send, as superframes where the kernel joins and splits them: from the listener to the target (`forward`), and
from the pair's socket to the sender (`step`).

The kernel reports a closed port on the pair's connected socket. The error is read there, counted, and passed on to the
sender as the ICMP error that it would have got without a proxy, where a raw socket can be had (`gpasst.host.raw`).
"""

from __future__ import annotations

import errno
import logging
import time
from _socket import inet_pton
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator, Mapping

from gpasst.counters import Counters, Drop
from gpasst.errors import GpasstError, PacketError
from gpasst.features import Feature
from gpasst.flow.sender import Sender
from gpasst.host.descriptors import Descriptors, exhausted
from gpasst.host.raw import RawSockets
from gpasst.host.receive import Receiver
from gpasst.host.send import SEGMENTS_PER_SEND, answering, send_run
from gpasst.host.socket_pool import SocketPool, datagrams, kept_ready
from gpasst.host.sockets import Bind, family_constant, new_udp_socket, prepare, socket_address, text
from gpasst.packet.address import ANY
from gpasst.packet.icmp_error import port_unreachable
from gpasst.path.budget import BATCHES_PER_STEP, STEP_SECONDS
from gpasst.udp.mapping import Listener
from gpasst.udp.pairs import Pair, Pairs, Route

TRIES = 4  # sockets tried until one does not happen to be bound to its own target
ADDRESS_BYTES = {4: 4, 6: 16}

log = logging.getLogger(__name__)


class UdpSplice:
    """All splice pairs of one namespace, with their sockets.

    :param pairs: the rules.
    :param pool: the sockets of the namespace.
    :param watch: begins to call a step with a pair when the pair's socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param raw: sends ICMP errors about closed ports.
    :param receivers: the receiver of each family.
    :param counters: where traffic and drops are counted.
    :param features: the ways to move more than one datagram at once.
    :param descriptors: closes idle sockets near the limit of open files.
    :param clock: returns seconds, for the budget of a step.
    :ivar pairs: the rules and tables.
    """

    def __init__(
        self,
        pairs: Pairs,
        pool: SocketPool,
        watch: Callable[[Pair, Callable[[Pair], int]], None],
        unwatch: Callable[[Pair], None],
        raw: RawSockets,
        receivers: Mapping[int, Receiver],
        counters: Counters,
        features: frozenset[Feature],
        descriptors: Descriptors,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pairs = pairs
        self._pool = pool
        self._watch = watch
        self._unwatch = unwatch
        self._raw = raw
        self._receivers = receivers
        self._counters = counters
        self._gro = Feature.GRO in features
        self._most = SEGMENTS_PER_SEND if Feature.GSO in features else 1
        self._descriptors = descriptors
        self._clock = clock

    def listen(self, inside: bool, family: int) -> None:
        """Get ready for pairs of senders on one side: sockets in the pool, a raw socket for their errors.

        :raises GpasstError: if the namespace makes no sockets.
        """
        if not inside:
            self._pool.keep(datagrams(family), kept_ready(self._descriptors.line))
        self._raw.open(inside, family)

    def open(self, listener: Listener, key: bytes, source: bytes, port: int, scope: int, addressed: bytes) -> Pair:
        """Set up the pair of a new sender.

        :param listener: the listener it sent to.
        :param key: its raw sender key there.
        :param source: its address.
        :param port: its port.
        :param scope: interface index of a link-local address, else 0.
        :param addressed: the address it sent to, as the key holds it.
        :raises PacketError: if its datagram must be dropped.
        """
        family = listener.family
        route = self.pairs.route(listener, source, port, addressed[: ADDRESS_BYTES[family]])
        sock, local = self._connected(not listener.inside, family, route)
        # Before the pair is entered, lest it should be the one to go.
        sock = self._descriptors.settle(sock)
        assert listener.socket is not None
        to_sender = answering(listener.socket, source, port, scope, addressed)
        pair = Pair(listener, key, (source, port, scope), addressed, route, sock, local, Sender(sock), to_sender)
        for ended in self.pairs.add(pair):
            self._end(ended)
        self._watch(pair, self.step)
        return pair

    def forward(self, pair: Pair, payload: list[memoryview], segment: int) -> None:
        """Pass a run of the pair's sender on."""
        self.pairs.ages.activity[pair.byte] |= pair.bit
        send_run(pair.to_target, _whole(payload), segment, self._most, self._counters.udp.spliced, self._counters)

    def step(self, pair: Pair) -> int:
        """Pass answers on, up to `BATCHES_PER_STEP` batches and for at most `STEP_SECONDS`.

        :return: runs moved; a run of several datagrams counts as two.
        """
        receive = self._receivers[pair.listener.family].receive
        moved = 0
        deadline = 0.0
        for _ in range(BATCHES_PER_STEP):
            sock = pair.socket
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
                send_run(
                    pair.to_sender, _whole(payload), segment, self._most, self._counters.udp.spliced, self._counters
                )
                moved += 1 if segment >= total else 2
            if not more:
                break
            now = self._clock()
            if deadline and now >= deadline:
                break
            deadline = deadline or now + STEP_SECONDS
        return moved

    def scan(self, now: int, timeout: int) -> Iterator[int]:
        """End pairs that were idle for more than `timeout` seconds at `now`.

        :return: how many ended in each piece of bounded work.
        """
        for ended in self.pairs.scan(now, timeout):
            for pair in ended:
                self._end(pair)
            yield len(ended)

    def held(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def let_go(self) -> bool:
        """End the pair that was idle longest; return whether there was one."""
        if not len(self.pairs):
            return False
        pair = self.pairs.ages.oldest()
        self.pairs.remove(pair)
        self._end(pair)
        return True

    def retire(self, listener: Listener) -> Iterator[None]:
        """End all pairs of a listener that is about to be closed; the caller receives from it no more.

        :return: yields after each pair.
        """
        for pair in list(self.pairs.of(listener).values()):
            if pair.socket is not None:  # it has not ended in between
                self.pairs.remove(pair)
                self._end(pair)
                yield

    def close(self) -> None:
        """End all pairs."""
        for pair in list(self.pairs):
            self.pairs.remove(pair)
            self._end(pair)

    def _end(self, pair: Pair) -> None:
        sock = pair.socket
        if sock is not None:
            self._unwatch(pair)
            sock.close()
            pair.socket = None

    def _connected(self, inside: bool, family: int, route: Route) -> tuple[RawSocket, tuple[bytes, int]]:
        """Return a socket of one side, bound and connected as the route says, and its local (address, port)."""
        target = socket_address(route.address, route.port, route.scope)
        for _ in range(TRIES):
            try:
                sock = self._socket(inside, family)
            except (OSError, GpasstError) as error:
                if exhausted(error) and self._descriptors.let_go():
                    continue
                raise PacketError(Drop.NO_SOCKET) from error
            try:
                _bind(sock, family, route, self._pool.bind if inside else RawSocket.bind)
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
        if inside:
            return prepare(self._pool.take(datagrams(family)), family, self._gro, packet_info=False)
        return new_udp_socket(family, self._gro, packet_info=False)

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
        source, port, scope = pair.source
        addressed = pair.addressed[: len(source)]
        message = port_unreachable(source, port, addressed, pair.listener.port)
        if self._raw.send(pair.listener.inside, message, source, scope):
            self._counters.refusals += 1


def _bind(sock: RawSocket, family: int, route: Route, bind: Bind = RawSocket.bind) -> None:
    """Bind a socket as the route says, to another port if that one is taken."""
    if not route.source and not route.source_port:
        return
    host = text(route.source) if route.source else ANY[family]
    try:
        bind(sock, (host, route.source_port))
    except OSError:
        if not route.source_port:
            raise
        log.debug("splice: source port %d is taken on the other side", route.source_port)
        sock.bind((host, 0))


def _whole(payload: list[memoryview]) -> memoryview:
    """Return a run's payload in one piece; a few have two."""
    return payload[0] if len(payload) == 1 else memoryview(b"".join(payload))
