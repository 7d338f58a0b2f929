"""What a proxy shows of itself: statistics, flows, and a log of drops."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sized
from typing import NamedTuple

from gpasst.counters import IGNORED, Counters, Drop, Statistics
from gpasst.flow.record import Flow
from gpasst.host.sockets import text
from gpasst.host.tcp import local_port
from gpasst.tcp.connection import Connection
from gpasst.tcp.pairs import StreamPair
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import Pairs

DROP_LOG_SECONDS = 10  # at most one log line a reason in this time
# Every guest sends some of these by itself, so they are no cause for alarm.
QUIET_DROPS = frozenset(
    (
        Drop.ETHERTYPE,
        Drop.ICMP_TYPE,
        Drop.PROTOCOL,
        Drop.PROTOCOL_DISABLED,
        Drop.FAMILY_DISABLED,
        *IGNORED,
        Drop.SEND_FAILED,
        Drop.TCP,
        Drop.TCP_UNACCEPTABLE,
        Drop.NOT_UNICAST,
        Drop.FILTERED,
        Drop.GUEST_ERROR,
    )
)

log = logging.getLogger(__name__)


class Splices(NamedTuple):
    """The splice pairs of both protocols.

    :ivar udp: those of UDP, None where there are none.
    :ivar tcp: those of TCP.
    """

    udp: Pairs | None
    tcp: Collection[StreamPair]


def statistics(counters: Counters, nat: UdpNat, splices: Splices, connections: Sized) -> Statistics:
    """Freeze the counters, with the number of mappings, peers, pairs and TCP connections at present."""
    tables = nat.tables.values()
    return counters.snapshot(
        sum(len(table.mappings) for table in tables),
        sum(map(len, tables)),
        len(splices.udp or ()) + len(splices.tcp),
        len(connections),
    )


def flows(nat: UdpNat, splices: Splices, connections: Iterable[Connection], now: float) -> tuple[Flow, ...]:
    """List every tracked peer, splice pair and TCP connection; `now` in monotonic seconds."""
    return (
        *_peers(nat),
        *_pairs(splices.udp),
        *(_stream_pair(pair, now) for pair in splices.tcp),
        *(_connection(connection, now) for connection in connections),
    )


def _peers(nat: UdpNat) -> Iterator[Flow]:
    for table in nat.tables.values():
        for peer in table:
            yield Flow(
                protocol="udp",
                guest=(text(peer.mapping.guest), peer.mapping.port),
                shown=(text(peer.shown[0]), peer.shown[1]),
                remote=(text(peer.remote[0]), peer.remote[1]),
                port=peer.udp_socket.port,
                idle=table.idle_seconds(peer),
            )


def _pairs(pairs: Pairs | None) -> Iterator[Flow]:
    for pair in pairs or ():
        assert pairs is not None
        addressed = pair.addressed[: len(pair.source[0])]
        yield _spliced(
            "udp",
            pair.listener.inside,
            pair.source[:2],
            (addressed, pair.listener.port),
            pair.local,
            (pair.route.address, pair.route.port),
            pairs.ages.idle_seconds(pair),
        )


def _stream_pair(pair: StreamPair, now: float) -> Flow:
    addressed = pair.addressed, pair.listener.port
    idle = int(now - pair.heard)
    return _spliced(
        "tcp", pair.listener.inside, pair.source, addressed, pair.local, pair.remote, idle, pair.state.value
    )


def _spliced(
    protocol: str,
    inside: bool,
    source: tuple[bytes, int],
    addressed: tuple[bytes, int],
    local: tuple[bytes, int],
    remote: tuple[bytes, int],
    idle: int,
    state: str = "",
) -> Flow:
    """Return the record of a splice pair.

    :param inside: whether it was set up from within the namespace.
    :param source: the end of whoever set it up.
    :param addressed: what that has sent to.
    :param local: the end of the pair's own socket.
    :param remote: where that leads.
    """
    first, second, own, last = ((text(address), port) for address, port in (source, addressed, local, remote))
    if inside:
        return Flow(protocol, first, second, last, own[1], idle, spliced=True, state=state)
    return Flow(protocol, last, own, first, second[1], idle, spliced=True, state=state)


def _connection(connection: Connection, now: float) -> Flow:
    guest, shown, guest_port, port = connection.ends
    address, remote_port, _ = connection.remote
    return Flow(
        "tcp",
        (text(guest), guest_port),
        (text(shown), port),
        (text(address), remote_port),
        local_port(connection.socket),
        int(now - connection.heard),
        state=connection.state.value,
    )


class DropLog:
    """Logs drops, each reason at most once in `DROP_LOG_SECONDS`.

    :param counters: where drops are counted.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._logged: Counter[Drop] = Counter()
        self._logged_at: dict[Drop, float] = {}

    def write(self, now: float | None) -> None:
        """Log new drops.

        :param now: monotonic seconds; None logs all that was held back.
        """
        for reason, count in self._counters.drops.items():
            fresh = count - self._logged[reason]
            if fresh and (now is None or now - self._logged_at.get(reason, -DROP_LOG_SECONDS) >= DROP_LOG_SECONDS):
                level = logging.DEBUG if reason in QUIET_DROPS else logging.WARNING
                log.log(level, "dropped %d: %s", fresh, reason.value)
                self._logged[reason] = count
                if now is not None:
                    self._logged_at[reason] = now
