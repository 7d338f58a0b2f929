"""The builders of TCP: connections that cross the link with their sockets and deadlines, splice pairs, listeners."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpasst.errors import PlatformError
from gpasst.features import Feature
from gpasst.host.peek import Peeker, StreamPeeker, TapPeeker
from gpasst.host.tcp import Epoll
from gpasst.hub import original
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tcp_accept import TcpListeners
from gpasst.path.tcp_deadlines import TcpDeadlines
from gpasst.path.tcp_departure import TcpDeparture
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.path.tcp_splice import TcpSplice
from gpasst.path.tcp_writer import TcpWriter
from gpasst.proxy.base import Base
from gpasst.proxy.timers import Timers
from gpasst.records import dataclass
from gpasst.tcp.isn import SECRET_BYTES, keyed_hash
from gpasst.tcp.segment import TCP_BYTES
from gpasst.tcp.table import ConnectionTable

MTU_DEFAULT = 65520  # bytes; the largest that a frame's length on a stream leaves room for, in whole words
IP_BYTES = {4: 20, 6: 40}  # of a header without options


if TYPE_CHECKING:
    from gpasst.link.uplink import Uplink


@dataclass(frozen=True, slots=True)
class Tcp:
    """The parts of TCP that lead to the link.

    :ivar table: the connections.
    :ivar sockets: does their work.
    :ivar opener: opens them.
    :ivar frames: takes the guest's segments.
    :ivar deadlines: looks at each connection when its time has come.
    :ivar departure: resets the connections of a guest that has gone.
    """

    table: ConnectionTable
    sockets: TcpSockets
    opener: TcpOpener
    frames: TcpFrames
    deadlines: TcpDeadlines
    departure: TcpDeparture

    def close(self) -> None:
        """End every connection; more calls do nothing."""
        self.deadlines.close()
        self.sockets.close()


def build_tcp(base: Base, link: Tap | Stream | Uplink, icmp: IcmpToGuest, timers: Timers) -> Tcp:
    """Make the parts of TCP that lead to the link."""
    watchers, guest, counters, clock = base.watchers, base.guest, base.counters, base.clock.precise
    table = ConnectionTable()
    peek_offset = Feature.PEEK in base.features
    epoll = epoll_set()
    peeker: Peeker = StreamPeeker() if isinstance(link, Stream) else TapPeeker()
    deadlines = TcpDeadlines(timers.at, lambda *work: sockets.mark(*work), lambda: sockets.ask())
    sockets = TcpSockets(
        TcpWriter(link, guest, peeker, peek_offset),
        table,
        epoll,
        counters,
        lambda connection, number: opener.failed(connection, number),
        lambda: again.ask(),
        timers.at,
        deadlines.arm,
        clock,
    )
    worker = watchers.worker(sockets.step)
    again = watchers.repeat(worker)
    watchers.watch(sockets, epoll.fileno(), worker.wake)
    mtu = guest.network.mtu or MTU_DEFAULT
    limits = {family: min(mtu, MTU_DEFAULT) - size - TCP_BYTES for family, size in IP_BYTES.items()}
    hashed = keyed_hash(os.urandom(SECRET_BYTES))
    opener = TcpOpener(guest, table, sockets, icmp, base.descriptors, limits, peek_offset, hashed, counters, clock)
    base.descriptors.add(opener)
    if isinstance(link, Stream):
        link.emptied.append(sockets.resume)
    frames = TcpFrames(table, sockets, opener, link, guest, counters)
    departure = TcpDeparture(table, sockets.drop, lambda: departing.ask())
    departing = watchers.repeat(watchers.worker(departure.step, conversational=False))
    return Tcp(table, sockets, opener, frames, deadlines, departure)


def build_tcp_splice(base: Base) -> TcpSplice | None:
    """Make the splice pairs, None where loopback traffic crosses the link."""
    if not base.targets or not base.pool or base.config.no_tcp:
        return None
    watchers = base.watchers
    epoll = epoll_set()
    splice = TcpSplice(
        base.targets,
        base.pool,
        epoll,
        base.descriptors,
        base.counters,
        watchers.lone,
        lambda: again.ask(),
        watchers.conversed,
        base.clock.precise,
    )
    again = watchers.repeat(splice)
    watchers.watch(splice, epoll.fileno(), splice.wake)
    base.descriptors.add(splice)
    return splice


def build_tcp_listeners(
    base: Base, link: Tap | Stream | Uplink | None, tcp: Tcp | None, splice: TcpSplice | None, timers: Timers
) -> TcpListeners:
    """Make what accepts the clients of forwarded ports."""
    watchers = base.watchers
    return TcpListeners(
        link,
        tcp.opener if tcp else None,
        splice,
        base.descriptors,
        base.counters,
        lambda listener, step: watchers.watch_alone(listener, listener.socket.fileno(), step),
        watchers.unwatch,
        lambda seconds, callback: timers.at(timers.clock() + seconds, callback),
    )


def epoll_set() -> Epoll:
    """Make an epoll set.

    :raises PlatformError: if there are too many open files.
    """
    # A program that is monkey-patched has no epoll any more, since it could block the hub; this one never waits.
    try:
        epoll: Epoll = original("select", "epoll")()
    except OSError as error:
        raise PlatformError(f"no epoll set: {error.strerror}", "raise ulimit -n") from error
    return epoll
