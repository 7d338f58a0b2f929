"""The host's ping sockets: one for each exchange of echo requests that the guest has under way.

Theory of operation: an exchange is a guest address, an identifier and the address asked, as the guest sees it. Its
socket is bound to the guest's identifier if that is free; the identifier is restored in answers, which come from the
address that was asked. An error that a request met reaches the guest as one about its own request. An exchange ends
after `IDLE_SECONDS` without a request (context 5).

NOTE: ping sockets need net.ipv4.ping_group_range to include a group of the process.
"""

from __future__ import annotations

import logging
import os
from _socket import socket as RawSocket  # a class
from collections.abc import Callable
from dataclasses import dataclass

from gpasst.counters import Counters, Drop, Tally
from gpasst.errors import PacketError
from gpasst.host.error_queue import read_errors
from gpasst.host.send import answering, send_one
from gpasst.host.sockets import ping_socket
from gpasst.packet.icmp_error import REFUSED, Problem, expired, quoted_echo
from gpasst.packet.parse import Packet
from gpasst.path.dispatch import Link
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.services import echo
from gpasst.udp.nat import UdpNat

IDLE_SECONDS = 60  # seed
EXCHANGES_LIMIT = 1024
MESSAGE_BYTES = 65535

log = logging.getLogger(__name__)

Key = tuple[bytes, bytes, int]


@dataclass(slots=True, eq=False)
class EchoFlow:
    """One exchange of echo messages.

    :ivar key: guest address, address asked, identifier.
    :ivar socket: the ping socket.
    :ivar last: when the guest last asked, in monotonic seconds.
    :ivar target: the address asked as the host sees it.
    :ivar hop_limit: TTL or hop limit of the last request.
    :ivar answered: sequence number of the last answer.
    """

    key: Key
    socket: RawSocket
    last: int
    target: bytes = b""
    hop_limit: int = 0
    answered: int | None = None


class PingSockets:
    """All echo exchanges of one guest.

    :param link: where answers go.
    :param path: knows the addresses.
    :param counters: where drops are counted.
    :param watch: begins to call back when a socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param now: gives monotonic seconds.
    """

    def __init__(
        self,
        link: Link,
        path: UdpNat,
        counters: Counters,
        watch: Callable[[EchoFlow], None],
        unwatch: Callable[[EchoFlow], None],
        now: Callable[[], int],
    ) -> None:
        self._link = link
        self._path = path
        self._counters = counters
        self._watch = watch
        self._unwatch = unwatch
        self._now = now
        self._notices = IcmpToGuest(link, path, counters)
        self._sent = Tally()
        self._exchanges: dict[Key, EchoFlow] = {}
        self._warned = False

    def request(self, packet: Packet) -> None:
        """Pass on an echo request of the guest.

        :raises PacketError: if it is no echo request, or cannot be passed on.
        """
        request = echo.parse_request(packet)
        addresses = self._path.addresses[packet.family]
        addresses.learn(packet.source)
        target = addresses.to_host(packet.destination, 0)
        key = (packet.source, packet.destination, request.identifier)
        exchange = self._exchanges.get(key) or self._open(packet.family, key)
        exchange.last = self._now()
        exchange.target, exchange.hop_limit = target.address, packet.hop_limit
        sender = answering(exchange.socket, target.address, 0, target.scope, tos_ttl=packet.tos_ttl)
        failure = send_one(sender, memoryview(request.message), self._sent, self._counters)
        problem = REFUSED.get((packet.family, failure))
        if problem is not None:
            self._tell(exchange, problem, b"", request.message)

    def step(self, exchange: EchoFlow) -> None:
        """Pass on what has been answered."""
        source, identifier = exchange.key[1], exchange.key[2]
        answered = False
        while True:
            try:
                message = exchange.socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                if not answered:
                    # What woke the watcher is an error that a send has come upon before.
                    self._errors(exchange)
                return
            except OSError:
                if not self._errors(exchange):
                    self._counters.socket_errors += 1
                return
            answered = True
            sequence = echo.sequence_of(message)
            if sequence == exchange.answered:
                self._counters.drop(Drop.ECHO_DUPLICATE)
                continue
            exchange.answered = sequence
            path = self._path
            self._link.write_frame(
                echo.reply(message, identifier, source, exchange.key[0], path.guest_mac, path.network.host_mac)
            )

    def _errors(self, exchange: EchoFlow) -> int:
        """Pass on the errors that requests met; give how many it was."""
        errors = read_errors(exchange.socket, 4 if len(exchange.target) == 4 else 6)
        self._counters.socket_errors += len(errors)
        for error in errors:
            if error.problem is not None:
                self._tell(exchange, error.problem, error.offender, error.payload)
        return len(errors)

    def _tell(self, exchange: EchoFlow, problem: Problem, offender: bytes, request: bytes) -> None:
        """Tell the guest what a request met.

        :param offender: who reported it, as the host sees it; empty for the host itself.
        :param request: the start of the request.
        """
        guest, asked, identifier = exchange.key
        family = 4 if len(guest) == 4 else 6
        hop_limit = 1 if expired(family, problem) else exchange.hop_limit
        try:
            shown = asked if offender == exchange.target else self._notices.shown(family, offender)
            quoted = quoted_echo(guest, asked, request, identifier, hop_limit)
        except PacketError as error:
            self._counters.drop(error.reason)
            return
        self._notices.tell(problem, shown, guest, quoted)

    def scan(self, now: int) -> None:
        """End exchanges that have been idle for too long."""
        for exchange in [e for e in self._exchanges.values() if now - e.last > IDLE_SECONDS]:
            self._close(exchange)

    def close(self) -> None:
        """End all exchanges."""
        for exchange in list(self._exchanges.values()):
            self._close(exchange)

    def _open(self, family: int, key: Key) -> EchoFlow:
        if len(self._exchanges) >= EXCHANGES_LIMIT:
            self._close(next(iter(self._exchanges.values())))
        try:
            sock = ping_socket(family, key[2])
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "the guest cannot ping: %s; allow it with: sysctl net.ipv4.ping_group_range='%d %d'",
                    error.strerror,
                    os.getegid(),
                    os.getegid(),
                )
            raise PacketError(Drop.ECHO_FAILED) from error
        exchange = self._exchanges[key] = EchoFlow(key, sock, self._now())
        self._watch(exchange)
        return exchange

    def _close(self, exchange: EchoFlow) -> None:
        del self._exchanges[exchange.key]
        self._unwatch(exchange)
        exchange.socket.close()
