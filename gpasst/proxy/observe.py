"""What a proxy shows of itself: statistics, flows, and a log of drops."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sized

from gpasst.counters import IGNORED, Counters, Drop, Statistics
from gpasst.flow.record import Flow
from gpasst.host.sockets import text
from gpasst.host.tcp import local_port
from gpasst.path.udp_splice import UdpSplice
from gpasst.tcp.connection import Connection
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import Pair

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


def statistics(counters: Counters, nat: UdpNat, splice: UdpSplice | None, connections: Sized) -> Statistics:
    """Freeze the counters, with the number of mappings, peers, pairs and TCP connections at present."""
    tables = nat.tables.values()
    pairs = len(splice.pairs) if splice else 0
    return counters.snapshot(
        sum(len(table.mappings) for table in tables), sum(map(len, tables)), pairs, len(connections)
    )


def flows(nat: UdpNat, splice: UdpSplice | None, connections: Iterable[Connection], now: float) -> tuple[Flow, ...]:
    """List every tracked peer, splice pair and TCP connection; `now` in monotonic seconds."""
    return (*_peers(nat), *_pairs(splice), *(_connection(connection, now) for connection in connections))


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


def _pairs(splice: UdpSplice | None) -> Iterator[Flow]:
    for pair in splice.pairs if splice else ():
        assert splice is not None
        yield _pair(pair, splice.pairs.ages.idle_seconds(pair))


def _pair(pair: Pair, idle: int) -> Flow:
    source = text(pair.source[0]), pair.source[1]
    addressed = text(pair.addressed[: len(pair.source[0])]), pair.listener.port
    target, local = (text(pair.route.address), pair.route.port), (text(pair.local[0]), pair.local[1])
    if pair.listener.inside:
        return Flow("udp", source, addressed, target, local[1], idle, spliced=True)
    return Flow("udp", target, local, source, addressed[1], idle, spliced=True)


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
