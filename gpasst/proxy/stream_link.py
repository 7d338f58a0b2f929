"""What drives the port of a network that has a stream behind it: one greenlet for each direction."""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Drop
from gpasst.link.stream import Stream
from gpasst.link.switch_stream import StreamPort
from gpasst.proxy.lan import Lan
from gpasst.proxy.workers import WRITE
from gpasst.switch.framing import Cutter


class StreamLink:
    """A stream with its port.

    :param lan: the network.
    :param name: of the port.
    :param cutter: cuts what arrives.
    :param step: takes what has arrived, and calls `StreamPort.step`.
    :param gone: why frames are dropped while nobody is there.
    :ivar stream: writes to the peer.
    :ivar port: the port, which the owner adds to the switch.
    :ivar wake: to be called when the stream's socket is readable.
    """

    def __init__(self, lan: Lan, name: str, cutter: Cutter, step: Callable[[], int], gone: Drop) -> None:
        self._lan = lan
        watchers = lan.watchers
        self.stream = Stream(
            lan.counters,
            lambda sock, empty: watchers.watch_guarded(self.stream, sock.fileno(), empty, events=WRITE),
            lambda: watchers.unwatch(self.stream),
            Drop.PORT_FULL,
            gone,
        )
        self._reader = watchers.worker(step)
        self._sender = watchers.worker(lambda: self.port.send(), conversational=False)
        self._read_again, self._send_again = watchers.repeat(self._reader), watchers.repeat(self._sender)
        self.port = StreamPort(
            name,
            self.stream,
            lan.switch,
            cutter,
            self._read_again.ask,
            self._send_again.ask,
            gone,
            lan.counters,
        )
        self.wake = self._reader.wake

    def close(self) -> None:
        """End the port, what waits for it, and both greenlets; the owner closes the socket."""
        self._lan.switch.remove(self.port)
        self.stream.disconnect()
        self.port.send()
        self._lan.watchers.forget(self._read_again, self._reader)
        self._lan.watchers.forget(self._send_again, self._sender)
