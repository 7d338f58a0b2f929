"""The host's ping sockets: one for each echo flow of the guest.

Theory of operation: an echo flow is a guest address, an identifier and the address asked, as the guest sees it. Its
socket is bound to the guest's identifier if that is free. In replies the identifier is restored, and they come from the
address that was asked. An error that a request met reaches the guest as one about its own request. A flow ends after
`IDLE_SECONDS` without a request.

NOTE: ping sockets need net.ipv4.ping_group_range to include a group of the process.
"""

from __future__ import annotations

import logging
import os
from _socket import socket as RawSocket  # a class
from collections import OrderedDict
from collections.abc import Callable, Iterator

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.host.descriptors import Descriptors
from gpasst.host.error_queue import read_errors
from gpasst.host.send import answering, send_one
from gpasst.host.sockets import ping_socket
from gpasst.link.port import Link
from gpasst.packet.address import family_of
from gpasst.packet.icmp_error import Problem, expired, quoted_echo
from gpasst.packet.parse import Packet
from gpasst.packet.refusal import refusal
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.records import dataclass
from gpasst.services import echo

IDLE_SECONDS = 60  # as in passt (icmp.c: ICMP_ECHO_TIMEOUT)
FLOWS_LIMIT = 1024
MESSAGE_BYTES = 65535
REPLIES_PER_STEP = 64

log = logging.getLogger(__name__)

Key = tuple[bytes, bytes, int]


@dataclass(slots=True, eq=False)
class EchoFlow:
    """One flow of echo messages.

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
    """All echo flows of one guest.

    :param link: where replies are written.
    :param guest: the guest.
    :param icmp: reports errors to the guest.
    :param counters: where traffic and drops are counted.
    :param watch: begins to call `step` when a flow's socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param now: returns monotonic seconds.
    :param descriptors: closes idle sockets near the limit of open files.
    """

    def __init__(
        self,
        link: Link,
        guest: Guest,
        icmp: IcmpToGuest,
        counters: Counters,
        watch: Callable[[EchoFlow], None],
        unwatch: Callable[[EchoFlow], None],
        now: Callable[[], int],
        descriptors: Descriptors,
    ) -> None:
        self._descriptors = descriptors
        self._link = link
        self._guest = guest
        self._icmp = icmp
        self._counters = counters
        self._watch = watch
        self._unwatch = unwatch
        self._now = now
        # The longest idle one first.
        self._flows: OrderedDict[Key, EchoFlow] = OrderedDict()
        self._warned = False

    def request(self, packet: Packet) -> None:
        """Pass on an echo request of the guest.

        :raises PacketError: if it is no echo request, or cannot be passed on.
        """
        request = echo.parse_request(packet)
        addresses = self._guest.addresses[packet.family]
        addresses.learn(packet.source)
        target = addresses.to_host(packet.destination, 0)
        key = (packet.source, packet.destination, request.identifier)
        flow = self._flows.get(key) or self._open(packet.family, key)
        flow.last = self._now()
        self._flows.move_to_end(key)
        flow.target, flow.hop_limit = target.address, packet.hop_limit
        sender = answering(flow.socket, target.address, 0, target.scope, tos_ttl=packet.tos_ttl)
        failure = send_one(sender, memoryview(request.message), self._counters.icmp.down, self._counters)
        problem = refusal(failure).problem(packet.family) if failure else None
        if problem is not None and target.address not in self._guest.network.broadcasts:
            self._report(flow, problem, b"", request.message)

    def step(self, flow: EchoFlow) -> None:
        """Pass replies on, up to `REPLIES_PER_STEP`."""
        guest, source, identifier = flow.key
        answered = False
        for _ in range(REPLIES_PER_STEP):
            try:
                message = flow.socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                if not answered:
                    # The watcher was woken by an error that a send has cleared before.
                    self._errors(flow)
                return
            except OSError:
                if not self._errors(flow):
                    self._counters.socket_errors += 1
                return
            answered = True
            sequence = echo.sequence_of(message)
            if sequence == flow.answered:
                self._counters.drop(Drop.ECHO_DUPLICATE)
                continue
            flow.answered = sequence
            self._link.write_frame(
                echo.reply(message, identifier, source, guest, self._guest.mac_of(guest), self._guest.network.host_mac)
            )

    def _errors(self, flow: EchoFlow) -> int:
        """Report the errors that requests met; return how many it was."""
        errors = read_errors(flow.socket, family_of(flow.target))
        self._counters.socket_errors += len(errors)
        for error in errors:
            if error.problem is not None:
                self._report(flow, error.problem, error.offender, error.payload)
        return len(errors)

    def _report(self, flow: EchoFlow, problem: Problem, offender: bytes, request: bytes) -> None:
        """Report to the guest the error that a request met.

        :param offender: the node that reported it, as the host sees it; empty for the host itself.
        :param request: the start of the request.
        """
        guest, asked, identifier = flow.key
        family = family_of(guest)
        hop_limit = 1 if expired(family, problem) else flow.hop_limit
        try:
            shown = asked if offender == flow.target else self._icmp.shown(family, offender)
            quoted = quoted_echo(guest, asked, request, identifier, hop_limit)
        except PacketError as error:
            self._counters.drop(error.reason)
            return
        self._icmp.report(problem, shown, guest, quoted)

    def scan(self, now: int) -> Iterator[int]:
        """End flows that have been idle for too long.

        :return: 0 after each: echo flows are not counted among what expires.
        """
        while self._flows and now - next(iter(self._flows.values())).last > IDLE_SECONDS:
            self.let_go()
            yield 0

    def held(self) -> int:
        """Return the number of flows."""
        return len(self._flows)

    def let_go(self) -> bool:
        """End the flow that was idle longest; return whether there was one."""
        if not self._flows:
            return False
        self._close(next(iter(self._flows.values())))
        return True

    def close(self) -> None:
        """End all flows."""
        for flow in list(self._flows.values()):
            self._close(flow)

    def _open(self, family: int, key: Key) -> EchoFlow:
        if len(self._flows) >= FLOWS_LIMIT:
            self.let_go()
        try:
            sock = self._descriptors.make(lambda: ping_socket(family, key[2]))
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
        # Before it is entered, lest it should be the one to go.
        sock = self._descriptors.settle(sock)
        flow = self._flows[key] = EchoFlow(key, sock, self._now())
        self._watch(flow)
        return flow

    def _close(self, flow: EchoFlow) -> None:
        del self._flows[flow.key]
        self._unwatch(flow)
        flow.socket.close()
