"""The session of a stream's guest: guests that connect to a listening socket, one at a time, or a handed-over socket.

Theory of operation: while a guest is connected, further connections are accepted and closed at once. Disconnection is
detected by reading, so everything a guest sent is forwarded before it is dropped. If the next guest connects before
that, it stays pending, and the loop calls for both in turns, since both sockets stay readable. With `once` the listener
closes behind the first guest, and the session ends.

A process that connects again is the same guest, whose stream was cut (qemu: ``reconnect-ms``), and goes on with its TCP
connections. Those of another process's guest are reset before the new one is let in.

A connection that cannot be accepted for lack of descriptors or memory stays pending. The listening socket is then not
watched until the next scan, since it would be readable all the time.
"""

from __future__ import annotations

import logging
from _socket import socket as RawSocket  # a class
from collections.abc import Callable
from typing import Protocol

from gpasst.errors import ConfigurationError
from gpasst.host.descriptors import exhausted
from gpasst.link.listener import PathListener, peer_process, prepare_guest
from gpasst.link.port import TRANSIENT, LinkGone
from gpasst.link.stream import Stream
from gpasst.linux import MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK
from gpasst.path.tcp_departure import TcpDeparture

log = logging.getLogger(__name__)


class Reader(Protocol):
    """Takes what a guest sends."""

    def connect(self) -> None:
        """Begin with the first frame of a new guest."""

    def step(self) -> int:
        """Move what has arrived; return how many frames it was.

        :raises LinkGone: if the guest has gone.
        """


class GuestSession:
    """The guests of one listening socket.

    :param source: where guests connect, or a connected one.
    :param stream: writes to a guest.
    :param reader: takes what it sends.
    :param watch: begins to call back when a socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param wake: called back when the guest's socket is readable; it calls `step`.
    :param greet: called when a guest has connected.
    :param let_go: closes an idle socket; returns whether a descriptor is free then.
    :param ended: called when the last guest has gone.
    :param once: whether the first guest is the last one.
    :param departure: resets the connections of a guest that has gone; None where there are none.
    """

    def __init__(
        self,
        source: PathListener | RawSocket,
        stream: Stream,
        reader: Reader,
        watch: Callable[[RawSocket, Callable[[], None]], None],
        unwatch: Callable[[RawSocket], None],
        wake: Callable[[], None],
        greet: Callable[[], None],
        let_go: Callable[[], bool],
        ended: Callable[[], None],
        once: bool,
        departure: TcpDeparture | None = None,
    ) -> None:
        self._source = source
        self._stream = stream
        self._reader = reader
        self._watch = watch
        self._unwatch = unwatch
        self._wake = wake
        self._greet = greet
        self._ended = ended
        self._once = once
        self._let_go = let_go
        self._departure = departure
        self._process = 0  # of the last guest
        self._next: RawSocket | None = None  # of a guest that is let in when the connections of another one are reset
        self._paused = self._warned = False

    def open(self) -> None:
        """Begin: wait for guests, or serve the one that is there.

        :raises ConfigurationError: if the socket that was handed over is not fit.
        """
        if isinstance(self._source, PathListener):
            self._watch(self._source.socket, self._accept)
        else:
            self._connect(prepare_guest(self._source))

    def step(self) -> int:
        """Move what the guest sent; return how many frames it was."""
        try:
            return self._reader.step()
        except LinkGone as error:
            log.info("the guest has gone: %s", error)
            if self._once:
                # A guest that came now would wait for a session that is over.
                self.close()
                self._ended()
            else:
                self.disconnect()
            return 0

    def disconnect(self) -> None:
        """Let go of the guest, if there is one."""
        sock = self._stream.socket
        if sock is not None:
            self._unwatch(sock)
            self._stream.disconnect()
            sock.close()

    def scan(self) -> None:
        """Look at the listening socket again, if a guest had to wait; called once a second."""
        if self._paused and isinstance(self._source, PathListener):
            self._paused = False
            self._watch(self._source.socket, self._accept)

    def close(self) -> None:
        """Let go of the guest, and listen no longer."""
        self.disconnect()
        if self._next is not None:
            self._next.close()
            self._next = None
        self._paused = False
        if isinstance(self._source, PathListener):
            self._unwatch(self._source.socket)
        self._source.close()

    def _accept(self) -> None:
        assert isinstance(self._source, PathListener)
        present = self._stream.socket or self._next
        if present is not None and _gone(present) and _readable(present):
            return
        try:
            sock = self._source.accept()
        except OSError as error:
            if not exhausted(error) or not self._let_go():
                self._pause(error)
            return
        if sock is None:
            return
        if present is not None:
            log.warning("a second guest was refused: process %d", peer_process(sock))
            sock.close()
        else:
            try:
                prepare_guest(sock)
            except ConfigurationError:
                log.warning("a guest was refused: its socket cannot be prepared")
                sock.close()
            else:
                self._connect(sock)

    def _pause(self, error: OSError) -> None:
        """Look at the listening socket no more until the next scan."""
        assert isinstance(self._source, PathListener)
        if not self._warned:
            self._warned = True
            log.warning("a guest has to wait: %s", error.strerror)
        self._unwatch(self._source.socket)
        self._paused = True

    def _connect(self, sock: RawSocket) -> None:
        process = peer_process(sock)
        log.info("a guest has connected: process %d", process)
        # A process outside of this one's namespace of process IDs has the number 0, as any other there.
        same, self._process = bool(process) and process == self._process, process
        self._next = sock
        if same or self._departure is None:
            self._let_in()
        else:
            self._departure.begin(self._let_in)

    def _let_in(self) -> None:
        """Serve the guest that has connected, unless the session is over."""
        sock, self._next = self._next, None
        if sock is None:
            return
        self._reader.connect()
        self._stream.connect(sock)
        self._watch(sock, self._wake)
        self._greet()


def _gone(sock: RawSocket) -> bool:
    """Return whether the guest at a socket reads no more."""
    try:
        sock.send(b"", MSG_DONTWAIT | MSG_NOSIGNAL)
    except OSError as error:
        return error.errno not in TRANSIENT
    return False


def _readable(sock: RawSocket) -> bool:
    """Return whether there is data, the end of the stream, or an error to be read."""
    try:
        sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
