"""The listeners of forwarded ports: opened by rules, and kept in step with what is bound.

Theory of operation: `gpasst.flow.listeners` derives the listeners from the rules, and `gpasst.proxy.openers` makes them
for each protocol. Those of explicit rules are opened at the start, all or none, except that a rule of ``all`` or of
nothing but exclusions passes over ports that it does not get. Those of automatic rules are compared again and again
with the sockets that the kernel lists on the other side (`gpasst.host.sock_diag`): a listener that is missing is
opened, one that two lists in a row do not ask for is closed, and one that could not be opened is tried again the next
time.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from _socket import socket as RawSocket  # a class
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import groupby

from gpasst.config import Config, PortSide
from gpasst.errors import GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, ListenerSpec, PortRules, automatic, explicit, unclaimed
from gpasst.flow.record import Forward
from gpasst.host.descriptors import reserve
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener, listener_error
from gpasst.linux import AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_RAW
from gpasst.portspec import CHOSEN_PORT
from gpasst.proxy.openers import ListenerOpener, Release
from gpasst.records import dataclass, replace

CHOICES = 16  # ports that the kernel chooses for one rule, until one is free in all of its families
TRIED_AGAIN = 64  # listeners, at each look
SIDES = (False, True)  # listening on the host, in the namespace

log = logging.getLogger(__name__)


class FollowState:
    """The automatic listeners of one protocol on one side.

    :ivar seen: keys of the last list of sockets bound on the other side.
    :ivar specs: the listeners that this list asks for.
    :ivar pending: those of them that could not be opened yet.
    :ivar missing: open listeners that the last list did not ask for.
    :ivar neighbours: keys of the last list of sockets on this side, where that matters.
    :ivar claimed: listeners whose port a program on this side has bound itself.
    :ivar full: whether some were left out for the limit of open files.
    """

    __slots__ = ("claimed", "full", "missing", "neighbours", "pending", "seen", "specs")

    def __init__(self) -> None:
        self.seen: Collection[bytes] = ()
        self.specs: dict[BindAddress, ListenerSpec] = {}
        self.pending: list[ListenerSpec] = []
        self.missing: set[BindAddress] = set()
        self.neighbours: Collection[bytes] = ()
        self.claimed: set[BindAddress] = set()
        self.full = False


@dataclass(frozen=True, slots=True)
class Opened:
    """An open listener.

    :ivar spec: what asked for it.
    :ivar socket: its socket.
    :ivar release: ends what passes it.
    """

    spec: ListenerSpec
    socket: RawSocket
    release: Release


class Forwarder:
    """All listeners of one proxy.

    :param config: the options that say how to bind.
    :param rules: the rules.
    :param openers: makes the listeners of each protocol that is carried; rules of another protocol open none.
    :param families: the families in use, of 4 and 6.
    :param pool: the sockets of the namespace, None where there is none: then no rule may listen or look there.
    :param own: the proxy's own sockets.
    :ivar automatic: whether any rule follows what is bound.
    """

    def __init__(
        self,
        config: Config,
        rules: PortRules,
        openers: Iterable[ListenerOpener],
        families: Collection[int],
        pool: SocketPool | None,
        own: OwnSockets,
    ) -> None:
        self._config = config
        self._rules = rules
        self._openers = {opener.protocol: opener for opener in openers}
        self._families = families
        self._pool = pool
        self._own = own
        sides = [PortSide(protocol, inside) for protocol in self._openers for inside in SIDES]
        self._opened: dict[PortSide, dict[BindAddress, Opened]] = {side: {} for side in sides}
        # Kept, since each look needs them, and rules may be thousands.
        self._followers = {side: found for side in sides if (found := rules.automatic(side.inside, side.protocol))}
        self.automatic = bool(self._followers)
        self._scanners: dict[PortSide, SockDiag] = {}
        self._following = {side: FollowState() for side in self._followers}
        self._room = 0

    def listed(self) -> tuple[Forward, ...]:
        """Return a record of each open listener."""
        return tuple(
            Forward(
                side.protocol,
                bind.address,
                bind.port,
                bind.interface or None,
                opened.spec.target,
                opened.spec.rule.target_address,
                side.inside,
                opened.spec.rule.auto,
                opened.spec.rule.first == CHOSEN_PORT,
            )
            for side, listeners in self._opened.items()
            for bind, opened in listeners.items()
        )

    def open(self) -> None:
        """Open the listeners of explicit rules.

        :raises GpasstError: if a port of a strict rule cannot be bound, or none of the others; the caller closes.
        """
        families, lo_only = self._families, self._config.splice_only
        specs = [
            spec
            for inside in SIDES
            for protocol in self._openers
            for spec in explicit(self._rules.of(inside, protocol), inside, families, lo_only)
        ]
        self._room = descriptor_room(len(specs))
        self._expect(specs)
        failures: dict[tuple[str, str], list[GpasstError]] = {}
        for _, group in groupby(specs, key=lambda spec: id(spec.rule)):
            of_rule = list(group)
            rule = of_rule[0].rule
            if rule.first == CHOSEN_PORT:
                self._open_chosen(of_rule)
                continue
            for spec in of_rule:
                try:
                    self._open(spec)
                except GpasstError as error:
                    if rule.strict:
                        raise
                    failures.setdefault((rule.protocol, rule.text), []).append(error)
        for (protocol, text), errors in failures.items():
            if not any(self._opened[PortSide(protocol, inside)] for inside in SIDES):
                raise errors[0]
            log.info("rule %s: %d ports could not be had; the first: %s", text, len(errors), errors[0].message)

    def follow(self, wait: Callable[[int], object], look: Callable[[], object]) -> None:
        """Look at what is bound on either side, and open and close listeners of automatic rules accordingly.

        :param wait: returns when a descriptor is readable.
        :param look: called behind each listener that was tried or closed, and behind each peer and splice pair that
            ended with one; lets others run now and then.
        :raises PlatformError: if the kernel does not list sockets.
        """
        closed = self._own.closed()
        failures: list[PlatformError] = []
        for protocol in self._openers:
            # A kernel may list the sockets of one protocol and not of another.
            try:
                self._follow(protocol, wait, look)
            except PlatformError as error:
                failures.append(error)
        self._own.forget(closed)
        try:
            if failures:
                raise failures[0]
        finally:
            failures.clear()  # the error's traceback refers to this frame

    def _follow(self, protocol: str, wait: Callable[[int], object], look: Callable[[], object]) -> None:
        """Do what `follow` does for one protocol."""
        followers = {side: rules for side, rules in self._followers.items() if side.protocol == protocol}
        # The namespace's list is needed for its own side too: what the guest binds itself comes first.
        sides = {_other(side) for side in followers} | {side for side in followers if side.inside}
        listings = {side: self._scanner(side).scan(wait) for side in sides}
        for side, rules in followers.items():
            listing, neighbours = listings[_other(side)], listings[side] if side.inside else {}
            state = self._following[side]
            changed = listing.keys() != state.seen or neighbours.keys() != state.neighbours
            if changed:
                state.seen, state.neighbours = listing.keys(), neighbours.keys()
                wanted = automatic(
                    rules,
                    side.inside,
                    self._families,
                    listing.values(),
                    self._openers[protocol].keeps_loopback,
                    self._own.inodes,
                    self._config.splice_only,
                )
                state.specs = unclaimed(wanted, neighbours.values(), self._own.inodes)
                state.claimed = wanted.keys() - state.specs.keys()
            if changed or state.missing or state.pending:
                self._close_missing(side, state, look)
                self._open_missing(side, state, changed, look)

    def _close_missing(self, side: PortSide, state: FollowState, look: Callable[[], object]) -> None:
        """Close the listeners of automatic rules that two lists in a row did not ask for, or whose port is claimed."""
        current = {bind: item.spec for bind, item in self._opened[side].items() if item.spec.rule.auto}
        # A list that was made while sockets came and went may lack one that stays, so one list is not enough.
        missing = {bind for bind, spec in current.items() if state.specs.get(bind) != spec}
        gone = missing & (state.missing | state.claimed)
        state.missing = missing - gone
        for bind in gone:
            self._close(side, bind, look)
            look()
            if bind in state.specs:
                state.pending.append(state.specs[bind])

    def _open_missing(self, side: PortSide, state: FollowState, changed: bool, look: Callable[[], object]) -> None:
        """Open the listeners of automatic rules that are new, and try some of those that could not be opened.

        :param changed: whether the list has changed, so that there may be new ones.
        """
        # A few at a time, since what another program has bound may stay so for long.
        before = [spec for spec in state.pending if state.specs.get(spec.bind) == spec]
        again = {spec.bind for spec in before}
        fresh = [
            spec
            for bind, spec in (state.specs.items() if changed else ())
            if bind not in self._opened[side] and bind not in again
        ]
        failed = self._open_those_that_fit(state, fresh + before[:TRIED_AGAIN], look)
        state.pending = before[TRIED_AGAIN:] + failed

    def close(self) -> None:
        """Close every listener; more calls do nothing."""
        for side, listeners in self._opened.items():
            for bind in list(listeners):
                self._close(side, bind)
        for scanner in self._scanners.values():
            scanner.close()
        self._scanners.clear()

    def _open_those_that_fit(
        self, state: FollowState, specs: list[ListenerSpec], look: Callable[[], object]
    ) -> list[ListenerSpec]:
        """Open listeners within the limit of open files; return those that are not open now."""
        fits = max(0, self._room - sum(map(len, self._opened.values())))
        if len(specs) > fits and not state.full:
            log.warning("%d bound ports are not forwarded: too many for the limit of open files", len(specs) - fits)
        state.full = len(specs) > fits
        pending = specs[fits:]
        self._expect(specs[:fits])
        for spec in specs[:fits]:
            look()
            try:
                self._open(spec)
            except GpasstError as error:
                log.debug("%s", error.message)
                pending.append(spec)
        return pending

    def _open_chosen(self, specs: list[ListenerSpec]) -> None:
        """Open the listeners of a port that the kernel chooses: the same one in each family.

        :raises GpasstError: if none can be had.
        """
        side = specs[0].side
        for choice in range(CHOICES):
            opened: list[BindAddress] = []
            try:
                for spec in specs:
                    port = opened[0].port if opened else CHOSEN_PORT
                    opened.append(self._open(replace(spec, bind=replace(spec.bind, port=port))))
                return
            except PlatformError:
                # What is free in one family may be taken in the other.
                for bind in opened:
                    self._close(side, bind)
                if not opened or choice == CHOICES - 1:
                    raise

    def _open(self, spec: ListenerSpec) -> BindAddress:
        """Open one listener; return where it is bound.

        :raises GpasstError: if it cannot be bound, or the namespace makes no sockets for its splice pairs.
        """
        bind, rule = spec.bind, spec.rule
        opener = self._openers[rule.protocol]
        try:
            sock = opener.socket(bind)
            port = bind_listener(sock, bind, self._config.freebind and not bind.inside, rule.auto and bind.inside)
        except OSError as error:
            raise listener_error(error, rule.protocol, bind, rule.text) from error
        try:
            release = opener.opened(spec, port, sock)
        except BaseException:
            sock.close()
            raise
        bind = replace(bind, port=port)
        self._own.exclude(sock)
        self._opened[spec.side][bind] = Opened(spec, sock, release)
        return bind

    def _close(self, side: PortSide, bind: BindAddress, look: Callable[[], object] = bool) -> None:
        """Close one listener, and end whatever passes it; where that is broken off, it can be begun again.

        :param look: called behind each peer and splice pair.
        """
        opened = self._opened[side][bind]
        for _ in opened.release():
            look()
        del self._opened[side][bind]
        self._own.include(opened.socket)
        opened.socket.close()

    def _expect(self, specs: Iterable[ListenerSpec]) -> None:
        """Announce to the pool which sockets these listeners will take."""
        if self._pool is not None:
            inside = (spec for spec in specs if spec.bind.inside)
            kinds = Counter(self._openers[spec.rule.protocol].kind(spec.bind.family) for spec in inside)
            for kind, count in kinds.items():
                self._pool.expect(kind, count)

    def _scanner(self, side: PortSide) -> SockDiag:
        """Return what lists the sockets of one protocol on one side."""
        if side not in self._scanners:
            if side.inside:
                assert self._pool is not None
                netlink = self._pool.make(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
                self._scanners[side] = SockDiag(netlink.detach(), side.protocol)
            else:
                self._scanners[side] = SockDiag.here(side.protocol)
        return self._scanners[side]


def _other(side: PortSide) -> PortSide:
    """Return the side that the ports of `side` lead to."""
    return PortSide(side.protocol, not side.inside)


def descriptor_room(listeners: int) -> int:
    """Raise the soft limit of open files to the hard one, and return how many listeners may be open under it.

    :param listeners: how many explicit rules ask for.
    :raises PlatformError: if they do not fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return sys.maxsize
    room = max(0, hard - len(os.listdir("/proc/self/fd")) - reserve(hard))
    if listeners > room:
        raise PlatformError(
            f"forwarding needs {listeners} sockets, one a port and family, but only {room} fit the limit of {hard} "
            "open files",
            f"raise ulimit -n to {listeners + hard - room}, forward fewer ports, or one family only (-4 or -6)",
        )
    return room
