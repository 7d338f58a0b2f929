"""What the kernel drops of a flood before it enters the tap's queue.

Theory of operation: a flood stands in the one queue of the tap before the frames of all flows. Dropping its frames as
they are read costs 2 to 3 us each, and where the guest sends faster than that, the queue is always full and the kernel
drops frames of every flow alike. So the kernel is asked to drop most of the flood where the guest sends it: once a
second, those kinds are sampled (`gpasst.path.filter_program`) of which more than `FLOOD_PER_SECOND` frames came, and
more than twice the rate that is admitted. Where the queue was not empty once in that second, a quarter of that rate is
enough, and half of the share: a flood of several kinds is read too slowly for any of them to show. That is looked at as
soon as the queue was not empty for `gpasst.path.budget.CROWDED_SECONDS`. The sample shows whether the flood goes on.

1. UDP and TCP are sampled only where most frames of the guest belong to no known flow. Those ports of the guest pass
   whole that are forwarded or have active flows, the oldest first, but for ports that send frames of no known flow.
2. The kernel counts what it drops, in the device's own counters (``ip -s link``: TX dropped).

NOTE: a tap that outlives its owner keeps the filter, and cannot be opened again with one (tun_attach of Linux reads the
program where the former owner had it). So `close` takes it off.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from gpasst.counters import Counters
from gpasst.flow.admission import Rate
from gpasst.link.tap import Tap
from gpasst.path.backlog import Backlog
from gpasst.path.budget import UNNOTICED
from gpasst.path.filter_program import PORTS_LIMIT, SAMPLED, program
from gpasst.path.unknown import FLOW, KINDS, RATES

FLOOD_PER_SECOND = 10000  # frames of one kind
FULL_SHARE = 4  # of a kind's rate, the part that is a flood where the tap's queue was full for a second

FLOODING_SCANS = 8  # for which a port is not spared; while it is sampled, others show more
CROWD_SHARE = 128  # of what was read from a queue that is not empty, the part that is no flood

log = logging.getLogger(__name__)


class TapFilter:
    """Lets the kernel sample what a guest floods its tap with.

    :param tap: the tap.
    :param backlog: counts frames of no known flow.
    :param counters: count the frames of the guest.
    :param routers: addresses of the guest's gateway.
    :param ports: returns the guest's ports with flows that should not suffer, at most so many.
    :param emptied: returns whether the tap's queue was found empty since the last call.
    """

    def __init__(
        self,
        tap: Tap,
        backlog: Backlog,
        counters: Counters,
        routers: frozenset[bytes],
        ports: Callable[[int], Iterable[int]],
        emptied: Callable[[], bool],
    ) -> None:
        self._tap = tap
        self._backlog = backlog
        self._routers = routers
        self._ports = ports
        self._emptied = emptied
        self._counters = counters
        self._scanned = self._looked = self._now()
        self._kinds: frozenset[int] = frozenset()
        self._flooding: dict[int, int] = {}  # scans for which each of these ports is not spared
        self._program = b""
        self._usable = True

    def scan(self, now: int) -> None:
        """Sample what was flooded in the second before `now`, and nothing else."""
        del now
        fresh, read = self._since(self._scanned)
        self._scanned = self._now()
        self._flooding = {port: scans - 1 for port, scans in self._flooding.items() if scans > 1}
        full = not self._emptied()
        sent = [count * (SAMPLED if kind in self._kinds else 1) for kind, count in enumerate(fresh)]
        kinds = {kind for kind, rate in enumerate(RATES) if sent[kind] > self._limit(kind, rate, full)}
        self._sample(_flooded(kinds, sent[FLOW], read - fresh[FLOW], full))

    def look(self, seconds: float) -> None:
        """Sample what was flooded while the tap's queue was not empty once, too.

        :param seconds: how long that has been by now; 0 where it begins.
        """
        if seconds:
            fresh, read = self._since(self._looked)
            least = read // CROWD_SHARE
            kinds = {
                kind
                for kind, rate in enumerate(RATES)
                if fresh[kind] > max(least, seconds * rate.per_second / FULL_SHARE)
            }
            flooded = _flooded(kinds, fresh[FLOW], read - fresh[FLOW], full=True)
            if flooded:
                # Also where no kind is new: it may have come out which ports are not to be spared.
                self._sample(flooded | self._kinds)
        self._looked = self._now()

    def _now(self) -> tuple[list[int], int]:
        """Return how many frames of each kind have come, and how many frames in all."""
        return list(self._backlog.seen), self._counters.frames_down

    def _since(self, then: tuple[list[int], int]) -> tuple[list[int], int]:
        """Return how many have come since."""
        before, read = then
        fresh = [count - old for count, old in zip(self._backlog.seen, before, strict=True)]
        return fresh, self._counters.frames_down - read

    def _sample(self, kinds: frozenset[int]) -> None:
        self._apply(kinds, self._spared() if FLOW in kinds else [])

    def close(self) -> None:
        """Sample nothing more; more calls do nothing."""
        self._apply(frozenset(), [])
        # It refers to this one, and both would have to wait for the garbage collector.
        self._backlog.crowd.notice = UNNOTICED

    def _limit(self, kind: int, rate: Rate, full: bool) -> int:
        """Return how many frames of a kind in a second are a flood."""
        if full:
            return rate.per_second // FULL_SHARE
        return rate.per_second if kind in self._kinds else max(FLOOD_PER_SECOND, 2 * rate.per_second)

    def _spared(self) -> list[int]:
        """Return the ports whose UDP and TCP pass whole."""
        for port, looks in Counter(self._backlog.new_ports).items():
            if looks > 1:
                self._flooding[port] = FLOODING_SCANS
        return [port for port in self._ports(PORTS_LIMIT) if port not in self._flooding]

    def _apply(self, kinds: frozenset[int], ports: list[int]) -> None:
        wanted = program(kinds, ports, self._routers) if kinds else b""
        if wanted == self._program or not self._usable:
            return
        try:
            self._tap.set_filter(wanted)
        except OSError as error:
            self._usable = False
            log.info("the kernel does not sample floods: %s", error.strerror)
            return
        self._program = wanted
        if kinds != self._kinds:
            self._kinds = kinds
            names = ", ".join(KINDS[kind] for kind in sorted(kinds))
            if names:
                log.info("the guest floods: the kernel drops %d of %d frames: %s", SAMPLED - 1, SAMPLED, names)
            else:
                log.info("the guest no longer floods")


def _flooded(kinds: set[int], flows: int, others: int, full: bool) -> frozenset[int]:
    """Return those kinds, without `FLOW` if too few frames are of that.

    :param flows: how many frames of that kind were sent.
    :param others: how many others came.
    :param full: whether the tap's queue was not empty once in that time.
    """
    if flows * (2 if full else 1) <= others:
        kinds.discard(FLOW)
    return frozenset(kinds)
