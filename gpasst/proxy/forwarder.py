"""The listeners of forwarded ports, on both sides: opened by rules, and kept in step with what is bound.

Theory of operation: `gpasst.flow.listeners` says which listeners are wanted. Those of explicit rules are opened at the
start, all or none, but for rules that forgive (``all`` and lists of exclusions). Those of automatic rules are looked at
again and again: the kernel lists what is bound on one side (`gpasst.host.sock_diag`), listeners that have become wanted
are opened, and those that no longer are, twice in a row, are closed. A port that cannot be had now is tried again the
next time.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from _socket import socket as RawSocket  # a class
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from gpasst.config import Config
from gpasst.errors import GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress, ListenerSpec, automatic, explicit, target_bytes
from gpasst.flow.record import Forward
from gpasst.helper.client import Namespace
from gpasst.host.sock_diag import SockDiag
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import bind_listener, listener_error, new_udp_socket, prepare, stand_in
from gpasst.linux import AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_RAW
from gpasst.path.udp_splice import Splice
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.nat import UdpNat

SPARE_DESCRIPTORS = 512  # kept free of listeners, for the tap, the helper, mappings and splice pairs
TRIED_AGAIN = 64  # listeners, at each look
OPENED_AT_ONCE = 32  # listeners opened or closed between two looks at other traffic

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FollowState:
    """What is known of one side's automatic rules.

    :ivar seen: keys of the last list of bound sockets.
    :ivar wanted: the listeners that it made wanted.
    :ivar pending: those of them that could not be had yet.
    :ivar missing: open listeners that were not wanted at the last look.
    """

    seen: Collection[bytes] = ()
    wanted: dict[BindAddress, ListenerSpec] = field(default_factory=dict)
    pending: list[ListenerSpec] = field(default_factory=list)
    missing: set[BindAddress] = field(default_factory=set)


class Forwarder:
    """All listeners of one namespace.

    :param config: the rules, and how to bind.
    :param ephemeral: ephemeral ports of the host, first and last.
    :param path: told of listeners that lead to the guest.
    :param splice: what moves loopback traffic, None where nothing does.
    :param namespace: the namespace, None where there is none: then nothing listens there, or is looked for.
    :param pool: the namespace's sockets, None where there is none.
    :param watch: begins to call back when a listener is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param gro: let the kernel join datagrams of one sender.
    :ivar automatic: whether any rule follows what is bound.
    """

    def __init__(
        self,
        config: Config,
        ephemeral: tuple[int, int],
        path: UdpNat,
        splice: Splice | None,
        namespace: Namespace | None,
        pool: SocketPool | None,
        watch: Callable[[UdpSocket], None],
        unwatch: Callable[[UdpSocket], None],
        gro: bool,
    ) -> None:
        self._config = config
        self._rules = {False: config.forward_rules(ephemeral)}
        if namespace is not None:
            self._rules[True] = config.namespace_rules(namespace.ephemeral)
        # Asked for each new mapping, and there may be thousands of rules.
        self.automatic = any(rule.auto for rules in self._rules.values() for rule in rules)
        self._path = path
        self._splice = splice
        self._pool = pool
        self._watch = watch
        self._unwatch = unwatch
        self._gro = gro
        self._opened: dict[BindAddress, tuple[ListenerSpec, UdpSocket]] = {}
        self._scanners: dict[bool, SockDiag] = {}
        self._own: set[int] = set()
        self._released: list[int] = []
        self._following = {False: FollowState(), True: FollowState()}
        self._room = 0
        self._full = False

    def listed(self) -> tuple[Forward, ...]:
        """List the open listeners."""
        return tuple(
            Forward(
                wanted.rule.protocol,
                place.address,
                place.port,
                place.interface or None,
                wanted.target,
                wanted.rule.target_address,
                place.inside,
                wanted.rule.auto,
            )
            for place, (wanted, _) in self._opened.items()
        )

    def open(self) -> None:
        """Open what explicit rules want.

        :raises GpasstError: if a port of a strict rule cannot be had, or none of the others; whoever calls closes.
        """
        families, lo_only = self._path.tables, self._config.splice_only
        wanted = [
            entry for inside, rules in self._rules.items() for entry in explicit(rules, inside, families, lo_only)
        ]
        self._room = descriptor_room(len(wanted))
        failures: dict[str, list[GpasstError]] = {}
        self._expect(wanted)
        for entry in wanted:
            try:
                self._open(entry)
            except GpasstError as error:
                if entry.rule.strict:
                    raise
                failures.setdefault(entry.rule.text, []).append(error)
        if wanted and not self._opened:
            raise next(iter(failures.values()))[0]
        for text, errors in failures.items():
            log.info("rule %s: %d ports could not be had; the first: %s", text, len(errors), errors[0].message)

    def follow(self, wait: Callable[[int], object], yield_: Callable[[], object]) -> None:
        """Look at what is bound on either side, and open and close listeners of automatic rules accordingly.

        :param wait: returns when a descriptor is readable.
        :param yield_: lets others run.
        :raises PlatformError: if the kernel does not list sockets.
        """
        released = len(self._released)
        for inside, rules in self._rules.items():
            if not any(rule.auto for rule in rules):
                continue
            listing = self._scanner(not inside).scan(wait)
            following = self._following[inside]
            fresh = listing.keys() != following.seen
            if fresh:
                following.seen = listing.keys()
                following.wanted = automatic(
                    rules,
                    inside,
                    self._path.tables,
                    listing.values(),
                    self._config.keeps_loopback,
                    self._own,
                    self._config.splice_only,
                )
            elif not following.missing and not following.pending:
                continue
            self._close_gone(inside, following, yield_)
            # What could not be had before is tried again a few at a time: it may be taken for long.
            before = [entry for entry in following.pending if following.wanted.get(entry.place) == entry]
            again = {entry.place for entry in before}
            unseen = [
                entry
                for place, entry in (following.wanted.items() if fresh else ())
                if place not in self._opened and place not in again
            ]
            failed = self._open_new(unseen + before[:TRIED_AGAIN], yield_)
            following.pending = before[TRIED_AGAIN:] + failed
        self._own.difference_update(self._released[:released])
        del self._released[:released]

    def _close_gone(self, inside: bool, following: FollowState, yield_: Callable[[], object]) -> None:
        """Close the listeners of automatic rules that are no longer wanted."""
        current = [place for place, (entry, _) in self._opened.items() if entry.rule.auto and place.inside == inside]
        # A list that was made while sockets came and go may lack one that stays, so one look is not enough.
        missing = {place for place in current if following.wanted.get(place) != self._opened[place][0]}
        gone, following.missing = missing & following.missing, missing
        following.missing = missing - gone
        for number, place in enumerate(gone):
            self._close(place)
            if place in following.wanted:
                following.pending.append(following.wanted[place])
            if number % OPENED_AT_ONCE == OPENED_AT_ONCE - 1:
                yield_()

    def exclude(self, sock: RawSocket) -> None:
        """Take note of a socket that no automatic rule shall follow."""
        self._own.add(os.fstat(sock.fileno()).st_ino)

    def include(self, sock: RawSocket) -> None:
        """Forget a socket that is about to be closed, once no list of bound sockets can have it any more."""
        self._released.append(os.fstat(sock.fileno()).st_ino)

    def close(self) -> None:
        """Close every listener."""
        for place in list(self._opened):
            self._close(place)
        for scanner in self._scanners.values():
            scanner.close()
        self._scanners.clear()

    def _open_new(self, fresh: list[ListenerSpec], yield_: Callable[[], object]) -> list[ListenerSpec]:
        """Open listeners that have become wanted; give those that cannot be had now."""
        pending: list[ListenerSpec] = []
        fits = max(0, self._room - len(self._opened))
        if len(fresh) > fits:
            if not self._full:
                log.warning("%d bound ports are not forwarded: too many for the limit of open files", len(fresh) - fits)
            pending = fresh[fits:]
        self._full = len(fresh) > fits
        self._expect(fresh[:fits])
        for number, entry in enumerate(fresh[:fits]):
            if number % OPENED_AT_ONCE == OPENED_AT_ONCE - 1:
                yield_()
            try:
                self._open(entry)
            except GpasstError as error:
                log.debug("%s", error.message)
                pending.append(entry)
        return pending

    def _open(self, wanted: ListenerSpec) -> None:
        """Open one listener.

        :raises GpasstError: if it cannot be had.
        """
        place, rule = wanted.place, wanted.rule
        try:
            if place.inside:
                assert self._pool is not None
                sock = prepare(self._pool.take(place.family), place.family, self._gro, packet_info=True)
            else:
                sock = new_udp_socket(place.family, self._gro, packet_info=True)
                stand_in(sock, place.family)
            bind_listener(sock, place, self._config.freebind and not place.inside)
        except OSError as error:
            raise listener_error(error, place, rule.text) from error
        splices = self._splice is not None and (place.inside or place.loopback)
        udp_socket = UdpSocket(
            place.family,
            place.port,
            sock,
            target=wanted.target,
            target_address=target_bytes(rule),
            general=place.everywhere,
            inside=place.inside,
            splices=splices,
        )
        if self._splice is not None and splices:
            self._splice.listen(place.inside, place.family)
        if not place.inside:
            self._path.listen(udp_socket)
        self.exclude(sock)
        self._watch(udp_socket)
        self._opened[place] = wanted, udp_socket

    def _close(self, place: BindAddress) -> None:
        """Close one listener, and end whatever passes it."""
        _, udp_socket = self._opened.pop(place)
        self._unwatch(udp_socket)
        if self._splice is not None:
            self._splice.retire(udp_socket)
        if not place.inside:
            self._path.retire(udp_socket)
        self.include(udp_socket.socket)
        udp_socket.socket.close()
        udp_socket.socket = None

    def _expect(self, wanted: Iterable[ListenerSpec]) -> None:
        """Announce to the pool which sockets these listeners will take."""
        if self._pool is not None:
            for family, count in Counter(entry.place.family for entry in wanted if entry.place.inside).items():
                self._pool.expect(family, count)

    def _scanner(self, inside: bool) -> SockDiag:
        """Give what lists the sockets of one side."""
        if inside not in self._scanners:
            if inside:
                assert self._pool is not None
                netlink = self._pool.make(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
                self._scanners[inside] = SockDiag(netlink.detach())
            else:
                self._scanners[inside] = SockDiag.here()
        return self._scanners[inside]


def descriptor_room(listeners: int) -> int:
    """Raise the soft limit of open files to the hard one, and give how many listeners may be open under it.

    :param listeners: how many are wanted at once.
    :raises PlatformError: if they do not fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return sys.maxsize
    room = max(0, hard - len(os.listdir("/proc/self/fd")) - SPARE_DESCRIPTORS)
    if listeners > room:
        raise PlatformError(
            f"forwarding needs {listeners} sockets, one a port and family, but only {room} fit the limit of {hard} "
            "open files",
            f"raise ulimit -n to {listeners + hard - room}, forward fewer ports, or one family only (-4 or -6)",
        )
    return room
