"""One end of a trunk: a connection with another switch.

Theory of operation: both ends greet (`gpasst.switch.handshake`) and announce what is behind them
(`gpasst.switch.membership`). Then the connection becomes a port of the switch, and messages among the frames announce
what changes. Until then nothing that arrives reaches the switch, and an end that does not finish its greeting in
`HANDSHAKE_SECONDS` is closed.

NOTE: ends belong to one hub; only that hub's thread may call them.
"""

from __future__ import annotations

import logging
import os
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from gpasst.counters import Drop
from gpasst.link.port import LinkGone
from gpasst.proxy.lan import Lan
from gpasst.proxy.stream_link import StreamLink
from gpasst.switch.framing import Cutter
from gpasst.switch.handshake import (
    CHALLENGE_BYTES,
    Handshake,
    Refusal,
    TrunkRefused,
    announced,
    members_message,
    names_message,
    refusal_message,
)
from gpasst.switch.membership import COOKIE_BYTES, MEMBERS_LIMIT, Cookies, Membership
from gpasst.switch.roster import Roster, macs

HANDSHAKE_SECONDS: Final = 5.0
HOSTS_LIMIT: Final = 4096
"""Hosts behind one trunk; the programs of all others find the names of all of them."""

log = logging.getLogger(__name__)


class Trunks:
    """The trunks of one network.

    :param lan: the network.
    :param hosts: returns its hosts.
    :param prefixes: those of the network, as text.
    :param common: addresses that each part of a network may have, such as that of its gateway, as text.
    :param renamed: called when there are other hosts in other parts than before.
    :ivar lan: as above.
    :ivar prefixes: as above.
    :ivar common: as above.
    :ivar renamed: as above.
    :ivar membership: which switches are behind which trunk.
    :ivar ends: all ends that are not closed.
    """

    def __init__(
        self,
        lan: Lan,
        hosts: Callable[[], Roster],
        prefixes: tuple[str, ...],
        common: frozenset[str],
        renamed: Callable[[], None],
    ) -> None:
        self.lan = lan
        self.membership: Membership[TrunkEnd] = Membership(os.urandom(COOKIE_BYTES))
        self.ends: list[TrunkEnd] = []
        self.prefixes = prefixes
        self.renamed = renamed
        self._hosts = hosts
        self.common = common
        self._announced: Roster = ()
        self._sides = 0

    def name_side(self) -> str:
        """Return a name for another side of a trunk, which is no host's."""
        self._sides += 1
        return f"trunk#{self._sides}"

    def announce(self, ends: Iterable[TrunkEnd]) -> None:
        """Announce over some trunks which switches are behind this end."""
        for end in ends:
            end.announce()

    def announce_hosts(self) -> None:
        """Announce the hosts of this switch, if they have changed."""
        hosts = self._hosts()
        if hosts != self._announced:
            self._announced = hosts
            self.pass_on(self.membership.cookie, hosts, None)

    def rosters(self, beside: TrunkEnd | None = None) -> Iterator[tuple[bytes, Roster]]:
        """Yield the cookies of all switches but those behind one end, with their hosts."""
        yield self.membership.cookie, self._hosts()
        for end in self.ends:
            if end is not beside and end.up:
                yield from end.rosters.items()

    def beyond(self) -> Roster:
        """Return the hosts of all other switches."""
        return tuple(host for end in self.ends if end.up for roster in end.rosters.values() for host in roster)

    def pass_on(self, cookie: bytes, roster: Roster, source: TrunkEnd | None) -> None:
        """Announce the hosts of a switch over every trunk but the one that it was announced by."""
        for end in list(self.ends):
            if end is not source:
                end.announce_hosts(cookie, roster)

    def collides(self, rosters: Iterable[Roster]) -> bool:
        """Return whether hosts have an address of this switch's hosts."""
        own = {address for _, addresses in self._hosts() for address in addresses} - self.common
        return any(not own.isdisjoint(addresses) for roster in rosters for _, addresses in roster)


class TrunkEnd:
    """A connection with another switch.

    :param trunks: the trunks of this switch.
    :param name: of its port.
    :param sock: the connection, not blocking.
    :param connector: whether this side connected.
    :param secret: what both sides share; may be empty.
    :param changed: called when the trunk comes up, and when it has ended.
    :ivar up: whether it carries frames.
    :ivar closed: whether it has ended.
    :ivar refusal: why, if one side has refused it.
    :ivar rosters: the hosts of the switches behind it, by their cookies.
    """

    def __init__(
        self,
        trunks: Trunks,
        name: str,
        sock: RawSocket,
        connector: bool,
        secret: bytes,
        changed: Callable[[TrunkEnd], None],
    ) -> None:
        lan = trunks.lan
        self.up = self.closed = False
        self.refusal: TrunkRefused | None = None
        self.rosters: dict[bytes, Roster] = {}
        self._hosts = 0  # in them
        self._macs: dict[bytes, frozenset[bytes]] = {}  # theirs, by cookies likewise
        self._pinned: frozenset[bytes] = frozenset()
        self._trunks = trunks
        self._lan = lan
        self._changed = changed
        self._socket = sock
        self._connector = connector
        self._handshake = Handshake(connector, secret, os.urandom(CHALLENGE_BYTES), trunks.prefixes)
        self._announced: Cookies | None = None
        self._cutter = Cutter(self._message, _refuse)
        self._link = StreamLink(lan, name, self._cutter, self._step, Drop.LINK_DOWN)
        self._port, self._stream = self._link.port, self._link.stream
        self._port.beyond = True
        self._stream.connect(sock)
        lan.watchers.watch(self, sock.fileno(), self._link.wake)
        self._deadline = lan.timers.at(lan.clock.precise() + HANDSHAKE_SECONDS, lambda now: self.close())
        trunks.ends.append(self)
        self._send(self._handshake.begin())

    def announce(self) -> None:
        """Announce which switches are behind this end, if that is news to the other."""
        cookies = self._trunks.membership.announced(self)
        if cookies == self._announced or self.closed:
            return
        if self._announced is None:
            for cookie, roster in self._trunks.rosters(self):
                self._send(names_message(cookie, roster))
        self._announced = cookies
        self._send(members_message(cookies))

    def announce_hosts(self, cookie: bytes, roster: Roster) -> None:
        """Announce the hosts of a switch."""
        if self._announced is not None and not self.closed:
            self._send(names_message(cookie, roster))

    def close(self, refusal: TrunkRefused | None = None) -> None:
        """Close the connection; more calls do nothing.

        :param refusal: why, where one side refuses the other.
        """
        if self.closed:
            return
        if refusal is not None and refusal.ours:
            self._stream.write_message(refusal_message(refusal.reason))
        self.closed, self.up, self.refusal = True, False, refusal
        self._deadline.cancel()
        self._lan.watchers.unwatch(self)
        self._cutter.clear()
        self._link.close()
        self._socket.close()
        self._trunks.ends.remove(self)
        self._trunks.announce(self._trunks.membership.remove(self))
        if self.rosters:
            self._trunks.renamed()
        self._changed(self)

    def _step(self) -> int:
        """Take what has arrived; return how many frames it was."""
        try:
            if not self.up:
                self._greet()
            return self._port.step() if self.up else 0
        except TrunkRefused as refusal:
            self.close(refusal)
        except LinkGone as error:
            log.info("%s: the other end has gone: %s", self._port.name, error)
            self.close()
        return 0

    def _greet(self) -> None:
        """Take the messages that have arrived, until the trunk is up.

        :raises TrunkRefused: if one side refuses the other.
        :raises LinkGone: if the other side has gone.
        """
        self._port.receive()
        while not self.up and (frame := self._cutter.cut()) is not None:
            if frame:
                # Frames of an end that has not been let in.
                raise TrunkRefused(Refusal.PROTOCOL)
        self._port.left = self.up

    def _message(self, message: bytes) -> None:
        """Take a message of the other end.

        :raises TrunkRefused: if one side refuses the other.
        """
        if self.closed:
            return
        if not self._handshake.done:
            self._send(self._handshake.take(message))
            if self._handshake.done and self._connector:
                self.announce()
            return
        news = announced(message)
        if isinstance(news, frozenset):
            self._take_members(news)
        else:
            self._take_hosts(*news)

    def _take_members(self, cookies: Cookies) -> None:
        """Take note of the switches behind the other end.

        :raises TrunkRefused: if they are known already, or have hosts with the same addresses.
        """
        trunks = self._trunks
        if trunks.membership.closes_loop(self, cookies):
            raise TrunkRefused(Refusal.LOOP)
        self.rosters = {cookie: roster for cookie, roster in self.rosters.items() if cookie in cookies}
        self._macs = {cookie: known for cookie, known in self._macs.items() if cookie in cookies}
        self._hosts = sum(map(len, self.rosters.values()))
        if trunks.collides(self.rosters.values()):
            raise TrunkRefused(Refusal.ADDRESSES)
        news = trunks.membership.put(self, cookies)
        if not self.up:
            self.up = True
            self._deadline.cancel()
            self._lan.switch.add(self._port)
            for cookie, roster in self.rosters.items():
                trunks.pass_on(cookie, roster, self)
            # The first announcement of the end that listens, so the other one comes up last; and perhaps the second one
            # of the end that connected, since other trunks may have come.
            self.announce()
            self._changed(self)
        self._pin()
        trunks.announce(news)
        trunks.renamed()

    def _take_hosts(self, cookie: bytes, roster: Roster) -> None:
        """Take note of the hosts of a switch behind the other end.

        :raises TrunkRefused: if it is this one; there are too many switches or hosts; or some have the same addresses.
        """
        trunks = self._trunks
        self._hosts += len(roster) - len(self.rosters.get(cookie, ()))
        self.rosters[cookie] = roster
        self._macs[cookie] = macs(roster, trunks.common)
        if cookie == trunks.membership.cookie:
            raise TrunkRefused(Refusal.LOOP)
        if len(self.rosters) > MEMBERS_LIMIT or self._hosts > HOSTS_LIMIT:
            raise TrunkRefused(Refusal.PROTOCOL)
        if self.up:
            if trunks.collides((roster,)):
                raise TrunkRefused(Refusal.ADDRESSES)
            self._pin()
            trunks.pass_on(cookie, roster, self)
            trunks.renamed()

    def _pin(self) -> None:
        """Let the addresses of the hosts behind this end lead here, whoever else claims them."""
        if self.closed:
            return
        table, port = self._lan.switch.table, self._port
        wanted = frozenset[bytes]().union(*self._macs.values())
        for mac in self._pinned - wanted:
            table.unpin(mac, port)
        # What is pinned elsewhere is another host's, or will be announced anew when the trunk there has ended.
        free = {mac for mac in wanted - self._pinned if not table.is_pinned(mac)}
        for mac in free:
            table.pin(mac, port)
        self._pinned = (self._pinned & wanted) | free

    def _send(self, message: bytes) -> None:
        """Send a message, if there is one; what has no room ends the trunk, since the other end would miss it."""
        if message and not self._stream.write_message(message):
            self.close()


def _refuse() -> None:
    """Refuse an end that sends what has an illegal length.

    :raises TrunkRefused: always.
    """
    raise TrunkRefused(Refusal.PROTOCOL)
