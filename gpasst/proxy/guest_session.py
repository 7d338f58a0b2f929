"""Who is connected: guests that come to a listening socket, one at a time, or the one whose socket was handed over.

Theory of operation (context 1.1): while a guest is connected, further connections are accepted and closed at once.
What a guest sent before it went is moved first, since its end is found by reading; so it is when the next one is there
before that has been read. Then the next one may come; or, if
there shall be one guest only, nobody is listened for any longer, and all ends.
"""

from __future__ import annotations

import logging
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK
from _socket import socket as RawSocket  # a class
from collections.abc import Callable

from gpasst.link.listener import GuestListener, peer_process, prepare_guest
from gpasst.link.stream import Stream
from gpasst.path.stream_reader import StreamReader

LAST_STEPS = 64  # to move what a guest left behind; its socket holds a few of them

log = logging.getLogger(__name__)


class GuestSession:
    """The guests of one listening socket.

    :param source: where guests connect, or a connected one.
    :param stream: what is written to a guest.
    :param downward: what is read from it.
    :param watch: begins to call back when a socket is readable.
    :param unwatch: stops that; called before the socket is closed.
    :param wake: called back when the guest's socket is readable; it calls `step`.
    :param greet: called when a guest has connected.
    :param ended: called when the last guest has gone.
    :param once: whether the first guest is the last one.
    """

    def __init__(
        self,
        source: GuestListener | RawSocket,
        stream: Stream,
        downward: StreamReader,
        watch: Callable[[RawSocket, Callable[[], None]], None],
        unwatch: Callable[[RawSocket], None],
        wake: Callable[[], None],
        greet: Callable[[], None],
        ended: Callable[[], None],
        once: bool,
    ) -> None:
        self._source = source
        self._stream = stream
        self._downward = downward
        self._watch = watch
        self._unwatch = unwatch
        self._wake = wake
        self._greet = greet
        self._ended = ended
        self._once = once

    def open(self) -> None:
        """Begin: wait for guests, or serve the one that is there.

        :raises ConfigurationError: if the socket that was handed over is not fit.
        """
        if isinstance(self._source, GuestListener):
            self._watch(self._source.socket, self._accept)
        else:
            self._connect(prepare_guest(self._source))

    def step(self) -> int:
        """Move what the guest sent; give how many frames it was."""
        try:
            return self._downward.step()
        except ConnectionError as error:
            log.info("the guest has gone: %s", error)
            if self._once:
                # Whoever came now would wait for somebody who has finished.
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

    def close(self) -> None:
        """Let go of the guest, and listen no longer."""
        self.disconnect()
        if isinstance(self._source, GuestListener):
            self._unwatch(self._source.socket)
        self._source.close()

    def _accept(self) -> None:
        assert isinstance(self._source, GuestListener)
        sock = self._source.accept()
        if sock is None:
            return
        if self._stream.socket is not None:
            self._finish(self._stream.socket)
        if self._stream.socket is not None:
            log.warning("a second guest was refused: process %d", peer_process(sock))
            sock.close()
        elif self._source.socket.fileno() < 0:
            sock.close()
        else:
            self._connect(prepare_guest(sock))

    def _finish(self, sock: RawSocket) -> None:
        """Move the rest of what the guest at `sock` sent, and let go of it, if it has gone but not been missed yet."""
        try:
            # Nothing is sent; but who has gone could not receive it.
            sock.send(b"", MSG_DONTWAIT | MSG_NOSIGNAL)
        except OSError:
            for _ in range(LAST_STEPS):
                self._wake()
                if sock is not self._stream.socket or not _readable(sock):
                    return

    def _connect(self, sock: RawSocket) -> None:
        log.info("a guest has connected: process %d", peer_process(sock))
        self._downward.connect()
        self._stream.connect(sock)
        self._watch(sock, self._wake)
        self._greet()


def _readable(sock: RawSocket) -> bool:
    """Tell whether there is data, the end of the stream, or an error to be read."""
    try:
        sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
