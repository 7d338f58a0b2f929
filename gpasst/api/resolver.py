"""A stub resolver for the guest, on `Connection.serve_udp` and `Connection.serve_tcp`.

Theory of operation: `gpasst.dns` has the answers. A resolver notes each query before it waits and answers, in the
greenlet of its handler, so late answers do not wait for each other. While it is open, programs that are started in a
namespace have a file of their own in the place of /etc/resolv.conf (`gpasst.helper.enter`), which names its address.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import gevent

from gpasst import dns
from gpasst.api.handle import Handle
from gpasst.dns import Query, Records, Zone
from gpasst.errors import ConfigurationError
from gpasst.flow.network import GuestNetwork
from gpasst.flow.translation import DNS_PORT
from gpasst.host.sockets import text
from gpasst.impair.quantities import parse_time
from gpasst.impair.rule import SECOND
from gpasst.packet.address import is_link_local

if TYPE_CHECKING:
    import socket

    from gpasst.api.services import Service
    from gpasst.proxy.served import DatagramHandler, PeerName, StreamHandler

DOCUMENTED = {4: "192.0.2.0/24", 6: "2001:db8::/64"}  # networks that exist nowhere (RFC 5737, RFC 3849)
HOST_NUMBERS = (53, 54)  # the second where the first is the guest's own
QUERIES_KEPT = 10_000

Delay = float | str | Callable[[Query], float | str]
Truncate = bool | Callable[[Query], bool]

_length = struct.Struct(">H")


class Resolver(Handle):
    """A resolver that answers the guest; ends with `close`, its `with` statement or the connection.

    :param network: the guest's network.
    :param serve_udp: `Connection.serve_udp`.
    :param serve_tcp: `Connection.serve_tcp`, None where the guest has no TCP.
    :param records: see `gpasst.dns.Records`.
    :param address: the address that it answers for, empty for one that exists nowhere.
    :param delay: time until each answer, in seconds or as text such as ``"20ms"``; or a function that returns that for
        a query.
    :param truncate: whether answers by UDP are cut short, so that clients ask again by TCP; or a function that returns
        that for a query.
    :param changed: called when it ends.
    :raises ConfigurationError: for records that make no sense, or an address where nothing can answer, or something
        does already.
    :raises PlatformError: if dnspython is not installed, or the machine allows no further namespace.
    :ivar address: the address.
    """

    def __init__(
        self,
        network: GuestNetwork,
        serve_udp: Callable[[str, int, DatagramHandler], Service],
        serve_tcp: Callable[[str, int, StreamHandler], Service] | None,
        records: Records,
        address: str,
        delay: Delay,
        truncate: Truncate,
        changed: Callable[[], None],
    ) -> None:
        self._zone = Zone(records)
        self._delay = delay if callable(delay) else _seconds(delay)
        self._truncate = truncate
        self._changed = changed
        self._number = 0
        self._queries: deque[Query] = deque(maxlen=QUERIES_KEPT)
        self.address = address or _address(network)
        self._services: list[Service] = []
        with ExitStack() as opening:
            self._services.append(opening.enter_context(serve_udp(self.address, DNS_PORT, self._datagram)))
            if serve_tcp is not None:
                self._services.append(opening.enter_context(serve_tcp(self.address, DNS_PORT, self._stream)))
            self._closing = opening.pop_all()
        self._open = True

    def __repr__(self) -> str:
        return f"<resolver at {self.address}>"

    @property
    def queries(self) -> tuple[Query, ...]:
        """The queries so far, oldest first; the newest 10000 are kept."""
        return tuple(self._queries)

    @property
    def errors(self) -> tuple[str, ...]:
        """Text of the newest errors of `delay` and `truncate`, with their tracebacks."""
        return tuple(error for service in self._services for error in service.errors)

    @property
    def file(self) -> str:
        """What resolv.conf(5) says of it."""
        return f"nameserver {self.address}\n"

    @property
    def open(self) -> bool:
        """Whether it answers."""
        return self._open

    def close(self) -> None:
        """Answer no more; programs that are started from now on have the host's resolver. More calls do nothing."""
        if self._open:
            self._open = False
            self._closing.close()
            self._changed()

    def _datagram(self, data: bytes, peer: PeerName) -> bytes | None:
        return self._answer(data, "udp", peer)

    def _stream(self, stream: socket.socket, peer: PeerName) -> None:
        with stream.makefile("rb") as incoming:
            while len(head := incoming.read(_length.size)) == _length.size:
                answer = self._answer(incoming.read(*_length.unpack(head)), "tcp", peer)
                if answer is not None:
                    stream.sendall(_length.pack(len(answer)) + answer)

    def _answer(self, data: bytes, transport: str, peer: PeerName) -> bytes | None:
        message = dns.parse(data)
        if message is None:
            return dns.malformed(data)
        self._number += 1
        query = Query(self._number, *dns.question(message), transport, peer)
        self._queries.append(query)
        seconds = _seconds(self._delay(query)) if callable(self._delay) else self._delay
        if seconds:
            gevent.sleep(seconds)
        response = self._zone.respond(message)
        if response is None:
            return None
        truncate = self._truncate(query) if callable(self._truncate) else self._truncate
        return dns.to_wire(response, message, transport, truncate and transport == "udp")


def _seconds(delay: float | str) -> float:
    """Return a time in seconds.

    :raises ConfigurationError: if it is none.
    """
    if not isinstance(delay, str):
        return delay
    try:
        return parse_time(delay) / SECOND
    except ConfigurationError as error:
        raise ConfigurationError(f"delay {delay}: {error.message}", error.remedy) from None


def _address(network: GuestNetwork) -> str:
    """Choose an address: one that exists nowhere, or that of a gateway where nothing leads there."""
    families = [family for family in (network.ip4, network.ip6) if family]
    family = next((family for family in families if family.routed), None)
    if family is None:
        gateway = families[0].gateway
        return f"{text(gateway)}%{network.interface}" if is_link_local(gateway) else text(gateway)
    hosts = ipaddress.ip_network(DOCUMENTED[family.family])
    return next(str(hosts[number]) for number in HOST_NUMBERS if hosts[number].packed != family.address)
