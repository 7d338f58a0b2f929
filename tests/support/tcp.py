"""The parts of TCP between a link and sockets, with an epoll set that reports what a test says."""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Counters
from gpasst.flow.guest import Guest
from gpasst.host.descriptors import Descriptors
from gpasst.host.peek import TapPeeker
from gpasst.link.port import Link
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_opener import TcpOpener
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.path.tcp_writer import TcpWriter
from gpasst.tcp.table import ConnectionTable

LIMITS = {4: 1460, 6: 1440}  # bytes of the largest segment


class Ready:
    """An epoll set that reports what a test says.

    :ivar events: (descriptor, events) to report next.
    :ivar watched: descriptors in the set.
    """

    def __init__(self) -> None:
        self.events: list[tuple[int, int]] = []
        self.watched: set[int] = set()

    def fileno(self) -> int:
        return -1

    def register(self, fd: int, eventmask: int, /) -> None:
        self.watched.add(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self.watched.clear()


class TcpBench:
    """Everything between a guest's frames and sockets.

    :param link: the guest's end.
    :param guest: the guest.
    :param counters: all counters.
    :param clock: returns seconds.
    :ivar asked: how often a step was asked for.
    """

    def __init__(self, link: Link, guest: Guest, counters: Counters, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.ready = Ready()
        self.table = ConnectionTable()
        self.asked = 0
        self.sockets = TcpSockets(
            TcpWriter(link, guest, TapPeeker(), True),
            self.table,
            self.ready,
            counters,
            lambda connection, number: self.opener.failed(connection, number),
            self._ask,
            lambda when, callback: None,
            lambda connection, now: None,
            clock,
        )
        icmp = IcmpToGuest(link, guest, counters)
        self.opener = TcpOpener(
            guest, self.table, self.sockets, icmp, Descriptors(), LIMITS, True, lambda key: 0, counters, clock
        )
        self.frames = TcpFrames(self.table, self.sockets, self.opener, link, guest, counters)

    def _ask(self) -> None:
        self.asked += 1
