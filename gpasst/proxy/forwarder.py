"""The listeners of forwarded ports, on both sides: opened by rules, and kept in step with what is bound.

Theory of operation: `gpasst.flow.listeners` derives the listeners from the rules. Those of explicit rules are opened at
the start, all or none, except that a rule of ``all`` or of nothing but exclusions passes over ports that it does not
get. Those of automatic rules are compared again and again with the sockets that the kernel lists on the other side
(`gpasst.host.sock_diag`): a listener that is missing is opened, one that two lists in a row do not ask for is closed,
and one that could not be opened is tried again the next time.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from _socket import socket as RawSocket  # a class
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import groupby

from gpasst.config import Config
from gpasst.errors import GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, ListenerSpec, PortRules, automatic, explicit, target_bytes, unclaimed
from gpasst.flow.record import Forward
from gpasst.host.descriptors import reserve
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener, listener_error, new_udp_socket, prepare, stand_in
from gpasst.linux import AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_RAW
from gpasst.path.udp_splice import UdpSplice
from gpasst.portspec import CHOSEN_PORT
from gpasst.udp.mapping import Listener
from gpasst.udp.nat import UdpNat

CHOICES = 16  # ports that the kernel chooses for one rule, until one is free in all of its families
TRIED_AGAIN = 64  # listeners, at each look
SIDES = (False, True)  # listening on the host, in the namespace

log = logging.getLogger(__name__)


class FollowState:
    """The automatic listeners of one side.

    :ivar seen: keys of the last list of sockets bound on the other side.
    :ivar specs: the listeners that this list asks for.
    :ivar pending: those of them that could not be opened yet.
    :ivar missing: open listeners that the last list did not ask for.
    :ivar neighbours: keys of the last list of sockets on this side, where that matters.
    :ivar claimed: listeners whose port a program on this side has bound itself.
    """

    __slots__ = ("claimed", "missing", "neighbours", "pending", "seen", "specs")

    def __init__(self) -> None:
        self.seen: Collection[bytes] = ()
        self.specs: dict[BindAddress, ListenerSpec] = {}
        self.pending: list[ListenerSpec] = []
        self.missing: set[BindAddress] = set()
        self.neighbours: Collection[bytes] = ()
        self.claimed: set[BindAddress] = set()


class Forwarder:
    """All UDP listeners of one proxy.

    :param config: the options that say how to bind.
    :param rules: the rules.
    :param nat: the NAT that listeners on the host lead to.
    :param splice: what moves loopback traffic, None where nothing does.
    :param pool: the sockets of the namespace, None where there is none: then no rule may listen or look there.
    :param own: the proxy's own sockets.
    :param watch: begins to call back when a listener is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param gro: let the kernel join datagrams of one sender.
    :ivar automatic: whether any rule follows what is bound.
    """

    def __init__(
        self,
        config: Config,
        rules: PortRules,
        nat: UdpNat,
        splice: UdpSplice | None,
        pool: SocketPool | None,
        own: OwnSockets,
        watch: Callable[[Listener], None],
        unwatch: Callable[[Listener], None],
        gro: bool,
    ) -> None:
        self._config = config
        self._rules = rules
        # Kept, since each look needs them and `automatic` is read for each new mapping, and rules may be thousands.
        self._followers = {inside: found for inside in SIDES if (found := rules.automatic(inside))}
        self.automatic = bool(self._followers)
        self._nat = nat
        self._splice = splice
        self._pool = pool
        self._own = own
        self._watch = watch
        self._unwatch = unwatch
        self._gro = gro
        self._opened: dict[BindAddress, tuple[ListenerSpec, Listener]] = {}
        self._scanners: dict[bool, SockDiag] = {}
        self._following = {inside: FollowState() for inside in self._followers}
        self._room = 0
        self._full = False

    def listed(self) -> tuple[Forward, ...]:
        """Return a record of each open listener."""
        return tuple(
            Forward(
                spec.rule.protocol,
                bind.address,
                bind.port,
                bind.interface or None,
                spec.target,
                spec.rule.target_address,
                bind.inside,
                spec.rule.auto,
                spec.rule.first == CHOSEN_PORT,
            )
            for bind, (spec, _) in self._opened.items()
        )

    def open(self) -> None:
        """Open the listeners of explicit rules.

        :raises GpasstError: if a port of a strict rule cannot be bound, or none of the others; the caller closes.
        """
        families, lo_only = self._nat.tables, self._config.splice_only
        specs = [spec for inside in SIDES for spec in explicit(self._rules.of(inside), inside, families, lo_only)]
        self._room = descriptor_room(len(specs))
        self._expect(specs)
        failures: dict[str, list[GpasstError]] = {}
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
                    failures.setdefault(rule.text, []).append(error)
        if specs and not self._opened:
            raise next(iter(failures.values()))[0]
        for text, errors in failures.items():
            log.info("rule %s: %d ports could not be had; the first: %s", text, len(errors), errors[0].message)

    def follow(self, wait: Callable[[int], object], look: Callable[[], object]) -> None:
        """Look at what is bound on either side, and open and close listeners of automatic rules accordingly.

        :param wait: returns when a descriptor is readable.
        :param look: called behind each listener that was tried or closed, and behind each peer and splice pair that
            ended with one; lets others run now and then.
        :raises PlatformError: if the kernel does not list sockets.
        """
        closed = self._own.closed()
        # The namespace's list is needed for its own side too: what the guest binds itself comes first.
        sides = {not inside for inside in self._followers} | (self._followers.keys() & {True})
        listings = {inside: self._scanner(inside).scan(wait) for inside in sides}
        for inside, rules in self._followers.items():
            listing, neighbours = listings[not inside], listings[True] if inside else {}
            state = self._following[inside]
            changed = listing.keys() != state.seen or neighbours.keys() != state.neighbours
            if changed:
                state.seen, state.neighbours = listing.keys(), neighbours.keys()
                wanted = automatic(
                    rules,
                    inside,
                    self._nat.tables,
                    listing.values(),
                    self._config.keeps_loopback,
                    self._own.inodes,
                    self._config.splice_only,
                )
                state.specs = unclaimed(wanted, neighbours.values(), self._own.inodes)
                state.claimed = wanted.keys() - state.specs.keys()
            if changed or state.missing or state.pending:
                self._close_missing(inside, state, look)
                self._open_missing(state, changed, look)
        self._own.forget(closed)

    def _close_missing(self, inside: bool, state: FollowState, look: Callable[[], object]) -> None:
        """Close the listeners of automatic rules that two lists in a row did not ask for, or whose port is claimed."""
        current = [bind for bind, (spec, _) in self._opened.items() if spec.rule.auto and bind.inside == inside]
        # A list that was made while sockets came and went may lack one that stays, so one list is not enough.
        missing = {bind for bind in current if state.specs.get(bind) != self._opened[bind][0]}
        gone = missing & (state.missing | state.claimed)
        state.missing = missing - gone
        for bind in gone:
            self._close(bind, look)
            look()
            if bind in state.specs:
                state.pending.append(state.specs[bind])

    def _open_missing(self, state: FollowState, changed: bool, look: Callable[[], object]) -> None:
        """Open the listeners of automatic rules that are new, and try some of those that could not be opened.

        :param changed: whether the list has changed, so that there may be new ones.
        """
        # A few at a time, since what another program has bound may stay so for long.
        before = [spec for spec in state.pending if state.specs.get(spec.bind) == spec]
        again = {spec.bind for spec in before}
        fresh = [
            spec
            for bind, spec in (state.specs.items() if changed else ())
            if bind not in self._opened and bind not in again
        ]
        failed = self._open_those_that_fit(fresh + before[:TRIED_AGAIN], look)
        state.pending = before[TRIED_AGAIN:] + failed

    def close(self) -> None:
        """Close every listener; more calls do nothing."""
        for bind in list(self._opened):
            self._close(bind)
        for scanner in self._scanners.values():
            scanner.close()
        self._scanners.clear()

    def _open_those_that_fit(self, specs: list[ListenerSpec], look: Callable[[], object]) -> list[ListenerSpec]:
        """Open listeners within the limit of open files; return those that are not open now."""
        fits = max(0, self._room - len(self._opened))
        if len(specs) > fits and not self._full:
            log.warning("%d bound ports are not forwarded: too many for the limit of open files", len(specs) - fits)
        self._full = len(specs) > fits
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
                    self._close(bind)
                if not opened or choice == CHOICES - 1:
                    raise

    def _open(self, spec: ListenerSpec) -> BindAddress:
        """Open one listener; return where it is bound.

        :raises GpasstError: if it cannot be bound, or the namespace makes no sockets for its splice pairs.
        """
        bind, rule = spec.bind, spec.rule
        try:
            sock = self._socket(bind)
            port = bind_listener(sock, bind, self._config.freebind and not bind.inside, rule.auto and bind.inside)
        except OSError as error:
            raise listener_error(error, bind, rule.text) from error
        bind = replace(bind, port=port)
        splices = self._splice is not None and (bind.inside or bind.loopback)
        listener = Listener(
            bind.family,
            bind.port,
            sock,
            target=spec.target,
            target_address=target_bytes(rule),
            general=bind.everywhere,
            inside=bind.inside,
            splices=splices,
        )
        if self._splice is not None and splices:
            try:
                self._splice.listen(bind.inside, bind.family)
            except BaseException:
                sock.close()
                raise
        if not bind.inside:
            self._nat.listen(listener)
        self._own.exclude(sock)
        self._watch(listener)
        self._opened[bind] = spec, listener
        return bind

    def _socket(self, bind: BindAddress) -> RawSocket:
        """Return a prepared socket of the side and family of a listener."""
        if not bind.inside:
            sock = new_udp_socket(bind.family, self._gro, packet_info=True)
            stand_in(sock, bind.family)
            return sock
        assert self._pool is not None
        return prepare(self._pool.take(bind.family), bind.family, self._gro, packet_info=True)

    def _close(self, bind: BindAddress, look: Callable[[], object] = bool) -> None:
        """Close one listener, and end whatever passes it; where that is broken off, it can be begun again.

        :param look: called behind each peer and splice pair.
        """
        _, listener = self._opened[bind]
        self._unwatch(listener)
        if self._splice is not None:
            for _ in self._splice.retire(listener):
                look()
        if not bind.inside:
            for _ in self._nat.retire(listener):
                look()
        del self._opened[bind]
        sock = listener.socket
        assert sock is not None
        self._own.include(sock)
        sock.close()
        listener.socket = None

    def _expect(self, specs: Iterable[ListenerSpec]) -> None:
        """Announce to the pool which sockets these listeners will take."""
        if self._pool is not None:
            for family, count in Counter(spec.bind.family for spec in specs if spec.bind.inside).items():
                self._pool.expect(family, count)

    def _scanner(self, inside: bool) -> SockDiag:
        """Return what lists the sockets of one side."""
        if inside not in self._scanners:
            if inside:
                assert self._pool is not None
                netlink = self._pool.make(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
                self._scanners[inside] = SockDiag(netlink.detach())
            else:
                self._scanners[inside] = SockDiag.here()
        return self._scanners[inside]


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
