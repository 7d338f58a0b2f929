"""The port of a network that a virtual machine connects to.

Theory of operation: qemu connects to a UNIX socket, which serves one machine at a time (`gpasst.proxy.guest_session`).
Its stream is a port of the switch (`gpasst.link.switch_stream`), which stays when the machine goes.
"""

from __future__ import annotations

from gevent.event import Event

from gpasst.counters import Drop
from gpasst.link.listener import OWNER, PathListener
from gpasst.proxy.guest_session import GuestSession
from gpasst.proxy.lan import Lan
from gpasst.proxy.stream_link import StreamLink
from gpasst.switch.framing import Cutter

SCAN_SECONDS = 1.0  # after which a listening socket that had to wait is looked at again


class MachinePort:
    """A port with a virtual machine behind it.

    :param lan: the network.
    :param name: of the machine.
    :param path: of the socket that it connects to.
    :param address: the MAC address that nobody else may use, 6 bytes.
    :raises ConfigurationError: if the path is none.
    :raises PlatformError: if there cannot be a socket.
    :ivar port: the port of the switch.
    :ivar connected: set while a machine is connected.
    """

    def __init__(self, lan: Lan, name: str, path: str, address: bytes) -> None:
        self.connected = Event()
        self._closed = False
        watchers = lan.watchers
        listener = PathListener(path, "path", OWNER)
        cutter = Cutter(None, lambda: lan.counters.drop(Drop.FRAME_LENGTH))
        self._link = StreamLink(lan, name, cutter, self._step, Drop.NO_GUEST)
        self.port = self._link.port
        self._session = GuestSession(
            listener,
            self._link.stream,
            self.port,
            lambda sock, call: watchers.watch_guarded(sock, sock.fileno(), call),
            watchers.unwatch,
            self._link.wake,
            self.connected.set,
            lambda: False,
            self.connected.clear,
            once=False,
        )
        self._scan = lan.timers.every(SCAN_SECONDS, lambda now: self._session.scan())
        lan.switch.add(self.port, address)
        self._session.open()

    def close(self) -> None:
        """Cut the machine off, and listen no more; more calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._scan.cancel()
        self._session.close()
        self._link.close()

    def _step(self) -> int:
        """Forward what the machine has sent; return how many frames it was."""
        moved = self._session.step()
        if not self._link.stream.ready:
            self.connected.clear()
        return moved
