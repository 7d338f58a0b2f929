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
from _socket import socket as RawSocket  # a class
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count, groupby

from gpasst.config import Config, PortSide
from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, ListenerSpec, PortRules, automatic, explicit, unclaimed
from gpasst.flow.record import Forward
from gpasst.host.descriptors import descriptor_room
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener, listener_error
from gpasst.linux import AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_RAW
from gpasst.portspec import CHOSEN_PORT, ForwardRule
from gpasst.proxy.follow_state import FollowState
from gpasst.proxy.openers import ListenerOpener, Release
from gpasst.records import dataclass, replace

CHOICES = 16  # ports that the kernel chooses for one rule, until one is free in all of its families
TRIED_AGAIN = 64  # listeners, at each look
SIDES = (False, True)  # listening on the host, in the namespace

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Added:
    """Listeners that came while the proxy ran.

    :ivar side: where they listen.
    :ivar rules: what asked for them.
    :ivar forwards: a record of each.
    """

    side: PortSide
    rules: tuple[ForwardRule, ...]
    forwards: tuple[Forward, ...]


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
        self._closed = False

    def listed(self) -> tuple[Forward, ...]:
        """Return a record of each open listener."""
        return tuple(self._record(side, bind) for side, listeners in self._opened.items() for bind in listeners)

    def _record(self, side: PortSide, bind: BindAddress) -> Forward:
        spec = self._opened[side][bind].spec
        return Forward(
            side.protocol,
            bind.address,
            bind.port,
            bind.interface or None,
            spec.target,
            spec.rule.target_in(bind.family),
            side.inside,
            spec.rule.auto,
            spec.rule.first == CHOSEN_PORT,
        )

    def open(self) -> None:
        """Open the listeners of explicit rules.

        :raises GpasstError: if a port of a strict rule cannot be bound, or none of the others; the caller closes.
        """
        specs = [
            spec
            for inside in SIDES
            for protocol in self._openers
            for spec in self._explicit(PortSide(protocol, inside), self._rules.of(inside, protocol))
        ]
        self._room = descriptor_room(len(specs))
        self._open_all(specs, {side: [] for side in self._opened}, bool)

    def add(self, side: PortSide, rules: Iterable[ForwardRule], look: Callable[[], object]) -> Added:
        """Open the listeners of more explicit rules; all or none, as at the start.

        :param side: where they listen.
        :param rules: the rules, parsed.
        :param look: called behind each listener; lets others run now and then.
        :raises ConfigurationError: if they ask for no listener here, or `close` was called meanwhile.
        :raises GpasstError: if a port of a strict rule cannot be bound, or none of the others.
        """
        laid = self._rules.lay(side, rules)
        specs = list(self._explicit(side, laid))
        if not specs:
            raise ConfigurationError("no port is left to forward", "name ports of an address family that is in use")
        descriptor_room(len(specs))
        opened: dict[PortSide, list[BindAddress]] = {side: []}
        try:
            self._open_all(specs, opened, lambda: self._turn(look))
        except BaseException:
            for bind in opened[side]:
                self._close(side, bind)
            raise
        self._rules.add(side, laid)
        return Added(side, laid, tuple(self._record(side, bind) for bind in opened[side]))

    def remove(self, added: Added, look: Callable[[], object]) -> None:
        """Close the listeners that a call of `add` has opened, and end what passes them.

        :param look: called behind each peer and splice pair; lets others run now and then.
        :raises ConfigurationError: if `close` was called meanwhile.
        """
        self._rules.remove(added.side, added.rules)
        rules = {id(rule) for rule in added.rules}
        for bind in [bind for bind, opened in self._opened[added.side].items() if id(opened.spec.rule) in rules]:
            self._close(added.side, bind, lambda: self._turn(look))
            self._turn(look)

    def _turn(self, look: Callable[[], object]) -> None:
        look()
        if self._closed:
            raise ConfigurationError(
                "the network was closed meanwhile", "let its forwards come and go while it is open"
            )

    def _explicit(self, side: PortSide, rules: Iterable[ForwardRule]) -> Iterator[ListenerSpec]:
        return explicit(rules, side.inside, self._families, self._config.splice_only)

    def _open_all(
        self, specs: list[ListenerSpec], opened: Mapping[PortSide, list[BindAddress]], look: Callable[[], object]
    ) -> None:
        """Open the listeners of explicit rules, and enter each in `opened` when it is open.

        :raises GpasstError: as `open` does.
        """
        self._expect(specs)
        failures: dict[tuple[str, str], list[GpasstError]] = {}
        for _, group in groupby(specs, key=lambda spec: id(spec.rule)):
            of_rule = list(group)
            rule = of_rule[0].rule
            if rule.first == CHOSEN_PORT:
                opened[of_rule[0].side].extend(self._open_chosen(of_rule))
                look()
                continue
            for spec in of_rule:
                try:
                    opened[spec.side].append(self._open(spec))
                except GpasstError as error:
                    if rule.strict:
                        raise
                    failures.setdefault((rule.protocol, rule.text), []).append(error)
                look()
        for (protocol, text), errors in failures.items():
            if not any(binds for side, binds in opened.items() if side.protocol == protocol):
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
        self._closed = True
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

    def _open_chosen(self, specs: list[ListenerSpec]) -> list[BindAddress]:
        """Open the listeners of a port that the kernel chooses: the same one in each family; return where they are.

        :raises GpasstError: if none can be had.
        """
        side = specs[0].side
        for choice in count(1):
            opened: list[BindAddress] = []
            try:
                for spec in specs:
                    port = opened[0].port if opened else CHOSEN_PORT
                    opened.append(self._open(replace(spec, bind=replace(spec.bind, port=port))))
                return opened
            except PlatformError:
                # What is free in one family may be taken in the other.
                for bind in opened:
                    self._close(side, bind)
                if not opened or choice == CHOICES:
                    raise
        raise AssertionError  # for type checkers: count() has no end

    def _open(self, spec: ListenerSpec) -> BindAddress:
        """Open one listener; return where it is bound.

        :raises GpasstError: if it cannot be bound, or the namespace makes no sockets for its splice pairs.
        """
        bind, rule, opener = spec.bind, spec.rule, self._openers[spec.rule.protocol]
        try:
            sock = opener.socket(bind)
            by = self._pool.bind if bind.inside and self._pool is not None else RawSocket.bind
            port = bind_listener(sock, bind, self._config.freebind and not bind.inside, rule.auto and bind.inside, by)
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
        opened = self._opened[side].get(bind)
        if opened is None:
            return
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
