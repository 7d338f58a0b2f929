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
from collections.abc import Callable, Iterable
from typing import Final

from gpasst.counters import Drop
from gpasst.link.port import LinkGone
from gpasst.link.stream import Stream
from gpasst.link.switch_stream import StreamPort
from gpasst.proxy.lan import Lan
from gpasst.proxy.workers import WRITE
from gpasst.switch.framing import Cutter
from gpasst.switch.handshake import (
    CHALLENGE_BYTES,
    Handshake,
    Refusal,
    TrunkRefused,
    members_message,
    members_of,
    refusal_message,
)
from gpasst.switch.membership import COOKIE_BYTES, Cookies, Membership

HANDSHAKE_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Trunks:
    """The trunks of one network.

    :param lan: the network.
    :ivar lan: as above.
    :ivar membership: which switches are behind which trunk.
    """

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.membership: Membership[TrunkEnd] = Membership(os.urandom(COOKIE_BYTES))

    def announce(self, ends: Iterable[TrunkEnd]) -> None:
        """Announce over some trunks what has changed."""
        for end in ends:
            end.announce()


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
        self._trunks = trunks
        self._lan = lan
        self._changed = changed
        self._socket = sock
        self._connector = connector
        self._handshake = Handshake(connector, secret, os.urandom(CHALLENGE_BYTES))
        self._announced: Cookies | None = None
        self._cutter = Cutter(self._message, _refuse)
        self._worker = lan.watchers.worker(self._step)
        self._again = lan.watchers.repeat(self._worker)
        self._stream = Stream(
            lan.counters,
            lambda sock, empty: lan.watchers.watch(self._stream, sock.fileno(), empty, events=WRITE),
            lambda: lan.watchers.unwatch(self._stream),
            Drop.PORT_FULL,
            Drop.LINK_DOWN,
        )
        self._port = StreamPort(name, self._stream, lan.switch, self._cutter, self._again.ask, lan.counters)
        self._stream.connect(sock)
        lan.watchers.watch(self, sock.fileno(), self._worker.wake)
        self._deadline = lan.timers.at(lan.clock.precise() + HANDSHAKE_SECONDS, lambda now: self.close())
        self._send(self._handshake.begin())

    def announce(self) -> None:
        """Announce what is behind this end, if that is news to the other."""
        cookies = self._trunks.membership.announced(self)
        if cookies != self._announced and not self.closed:
            self._announced = cookies
            self._send(members_message(cookies))

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
        self._lan.switch.remove(self._port)
        self._lan.watchers.unwatch(self)
        self._lan.watchers.forget(self._again, self._worker)
        self._cutter.clear()
        self._stream.disconnect()
        self._socket.close()
        self._trunks.announce(self._trunks.membership.remove(self))
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
        frame = self._cutter.cut()
        if frame is None:
            return
        if not self.up:
            # Frames of an end that has not been let in.
            raise TrunkRefused(Refusal.PROTOCOL)
        self._lan.switch.forward(self._port, frame)
        self._port.left = True

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
        membership, cookies = self._trunks.membership, members_of(message)
        if membership.closes_loop(self, cookies):
            raise TrunkRefused(Refusal.LOOP)
        news = membership.put(self, cookies)
        if not self.up:
            self.up = True
            self._deadline.cancel()
            self._lan.switch.add(self._port)
            # The first announcement of the end that listens, so the other one comes up last; and perhaps the second one
            # of the end that connected, since other trunks may have come.
            self.announce()
            self._changed(self)
        self._trunks.announce(news)

    def _send(self, message: bytes) -> None:
        """Send a message, if there is one; what has no room ends the trunk, since the other end would miss it."""
        if message and not self._stream.write_message(message):
            self.close()


def _refuse() -> None:
    """Refuse an end that sends what has an illegal length.

    :raises TrunkRefused: always.
    """
    raise TrunkRefused(Refusal.PROTOCOL)
