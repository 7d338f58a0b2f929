"""The sockets of mappings: which of them are ready, and their turns.

Theory of operation:

1. A few mappings have a watcher each, which is the shortest way of a datagram. From `ALONE` mappings on all of them
   stand in one private epoll set, level-triggered, and one watcher watches the set. So a burst of answers wakes the
   process once, and a mapping costs no watcher.
2. Up to `FEW_READY` sockets that are ready take a step of their own (`gpasst.path.udp_sockets`), with all datagrams
   that they have. More of them give one datagram each to a batch (`gpasst.path.udp_many`).
3. A socket that is ready again after such a batch may have many more, and takes a step of its own then: datagrams of
   one flow are joined there. As long as there are any to join, all take steps of their own; else nobody looks for them
   for a while. The set hands sockets out in turn, so none waits for ever.
4. What a step may end, such as the mapping that was idle longest, may be ready in the same batch. So the set's events
   are turned into sockets at once, and a socket that has been closed meanwhile is passed over. Its descriptor may be
   another one's by then.

A socket whose event is not that of a datagram, such as an error, takes a step of its own as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpasst.counters import Counters, Drop
from gpasst.host.receive import SLOTS, Run
from gpasst.host.tcp import Epoll
from gpasst.linux import EPOLLIN
from gpasst.packet.address import V4, V6
from gpasst.path.budget import STEP_SECONDS
from gpasst.path.udp_many import ManySenders
from gpasst.udp.mapping import UdpSocket

ALONE = 8  # mappings whose sockets have a watcher each
ROUNDS_UNSEARCHED = 16  # after a search for sockets with more datagrams that has found none
FEW_READY = 4  # sockets that are better served one by one, ready at the same time


class ReadyMappings:
    """Watches the sockets of mappings, and receives from those that are ready.

    :param epoll: an empty epoll set, which becomes this one's to close.
    :param watch: lets a watcher of its own wake a step of a socket when that is readable.
    :param unwatch: ends that.
    :param step: moves up to so many batches of a socket, and returns the number of runs.
    :param carry: carries runs of senders of a socket that may have no peer; returns as `step` does.
    :param many: carries batches of many senders, None where each is a row.
    :param counters: where drops and errors are counted.
    :param clock: returns seconds, for the budget of a step.
    """

    def __init__(
        self,
        epoll: Epoll,
        watch: Callable[[UdpSocket], None],
        unwatch: Callable[[UdpSocket], None],
        step: Callable[[UdpSocket, int], int],
        carry: Callable[[UdpSocket, list[Run]], int],
        many: ManySenders | None,
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._epoll = epoll
        self._watch, self._unwatch = watch, unwatch
        self._step, self._carry = step, carry
        self._many = many
        self._counters = counters
        self._clock = clock
        self._alone: set[UdpSocket] = set()
        self._by_fd: list[UdpSocket | None] = []  # a dictionary would take ten times the memory
        self._together = self._of_ipv6 = 0  # sockets in the set
        self._unsearched = 0  # rounds to go until the next search for sockets that have more
        self._joins = False  # whether the last that took steps of their own had datagrams to join

    def watch(self, udp_socket: UdpSocket) -> None:
        """Receive from a socket from now on.

        :raises OSError: if the kernel watches no more.
        """
        if not self._together and len(self._alone) < ALONE:
            self._alone.add(udp_socket)
            self._watch(udp_socket)
            return
        self._register(udp_socket)
        for other in list(self._alone):
            try:
                self._register(other)
            except OSError:
                return  # the rest keep their watchers
            self._unwatch(other)
            self._alone.remove(other)

    def unwatch(self, udp_socket: UdpSocket) -> None:
        """Stop that; called before the socket is closed."""
        if udp_socket in self._alone:
            self._alone.remove(udp_socket)
            self._unwatch(udp_socket)
            return
        assert udp_socket.socket is not None
        fd = udp_socket.socket.fileno()
        self._epoll.unregister(fd)
        self._by_fd[fd] = None
        self._together -= 1
        self._of_ipv6 -= udp_socket.family == V6

    def step(self) -> int:
        """Move datagrams from the sockets of the set, for at most `STEP_SECONDS`; return the number of runs."""
        ready, moved = self._ready()
        many = self._many
        if many is None or not many.ready or len(ready) <= FEW_READY:
            return moved + self._each(ready)
        if self._joins:
            return moved + self._joined(ready)
        deadline = self._clock() + STEP_SECONDS
        while ready:
            moved += self._round(many, ready)
            if self._unsearched:
                self._unsearched -= 1
            else:
                moved += self._search(ready)
            if len(ready) < SLOTS or self._clock() >= deadline:
                # The rest has its turn in the next step, when there may be more of it.
                break
            ready, more = self._ready()
            moved += more
        return moved

    def _search(self, sockets: list[UdpSocket]) -> int:
        """Let those sockets that are ready again take a step of their own; return the number of runs.

        Most had one more datagram, if any, where flows take turns; so it is a while until the next search.
        """
        found, moved = self._ready()
        again = set(sockets).intersection(found)
        return moved + self._joined(list(again))

    def _joined(self, sockets: list[UdpSocket]) -> int:
        """Let sockets take a step of their own, and note whether that joins datagrams; return the number of runs."""
        moved = self._each(sockets)
        self._joins = 2 * moved >= 3 * len(sockets) > 0  # a run of several counts as two
        if not self._joins:
            self._unsearched = ROUNDS_UNSEARCHED
        return moved

    def fileno(self) -> int:
        """Return the descriptor of the set."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close the set, once no socket is watched any more."""
        self._epoll.close()
        # Their owners refer back to this one, and all would have to wait for the garbage collector.
        self._watch = self._unwatch = self._step = self._carry = _nothing

    def _register(self, udp_socket: UdpSocket) -> None:
        assert udp_socket.socket is not None
        fd = udp_socket.socket.fileno()
        self._epoll.register(fd, EPOLLIN)
        if fd >= len(self._by_fd):
            self._by_fd += [None] * (fd + 1 - len(self._by_fd))
        self._by_fd[fd] = udp_socket
        self._together += 1
        self._of_ipv6 += udp_socket.family == V6

    def _ready(self) -> tuple[list[UdpSocket], int]:
        """Return sockets that have datagrams, at most `SLOTS`; and how many runs those moved that had errors."""
        found = self._epoll.poll(0, SLOTS)
        by_fd: Any = self._by_fd  # every descriptor in the set has its socket there
        ready = [by_fd[fd] for fd, event in found if event == EPOLLIN]
        if len(ready) == len(found):
            return ready, 0
        moved = self._each([by_fd[fd] for fd, event in found if event != EPOLLIN])
        return [one for one in ready if one.socket is not None], moved

    def _each(self, sockets: list[UdpSocket]) -> int:
        """Let sockets take a step each, of one batch, for at most `STEP_SECONDS`; return the number of runs."""
        moved = 0
        deadline = 0.0
        for udp_socket in sockets:
            moved += self._step(udp_socket, 1)
            if moved > SLOTS:
                now = self._clock()
                if deadline and now >= deadline:
                    break
                deadline = deadline or now + STEP_SECONDS
        return moved

    def _round(self, many: ManySenders, sockets: list[UdpSocket]) -> int:
        """Take one datagram from each of some sockets; return the number of runs."""
        if 0 < self._of_ipv6 < self._together:
            others = [one for one in sockets if one.family == V6]
            if 0 < len(others) < len(sockets):
                moved = self._turn(many, [one for one in sockets if one.family == V4])
                others = [one for one in others if one.socket is not None]
                return moved + (self._turn(many, others) if others else 0)
        return self._turn(many, sockets)

    def _turn(self, many: ManySenders, sockets: list[UdpSocket]) -> int:
        """Do so with sockets of one family."""
        moved, left, broken = many.round(sockets)
        for one, runs in left:
            moved += self._carry_left(one, runs)
        return moved + (self._each(broken) if broken else 0)

    def _carry_left(self, udp_socket: UdpSocket, runs: list[Run]) -> int:
        """Carry what a batch has left; return the number of runs."""
        if udp_socket.socket is None:
            # It has been closed to make room for the peer of another one.
            self._counters.drop(Drop.NO_SOCKET)
            return 0
        return self._carry(udp_socket, runs)


def _nothing(*_: object) -> Any:  # as each of them returns
    """Do nothing: a callback of a closed set."""
