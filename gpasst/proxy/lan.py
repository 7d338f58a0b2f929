"""One network of namespaces on its hub: the switch, and what drives it.

Theory of operation: there is one greenlet for each port, which wakes when frames can be read there; one keeps time for
everything that is due later. `Lan` owns all of it, but not the taps, which belong to their hosts.

On any hub it looks for more for a moment in a conversation: an exchange of two hosts wakes this process twice,
which takes longer than all else about it.

NOTE: a network lives on one hub; only that hub's thread may call it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from gpasst.config import BUSY_POLL_DEFAULT
from gpasst.counters import Counters, NetworkStatistics, PortStatistics
from gpasst.host.descriptors import raise_limit
from gpasst.link.port import LinkGone
from gpasst.link.recorder import Recorder
from gpasst.link.switch import InnerPort, Port, Switch, Way
from gpasst.link.switch_tap import TapPort
from gpasst.proxy.base import MICROSECONDS
from gpasst.proxy.clock import Clock
from gpasst.proxy.timers import Timers
from gpasst.proxy.workers import Repeat, Watchers

if TYPE_CHECKING:
    from gpasst.capture.history import History
    from gpasst.impair.log import FateLog
    from gpasst.link.switch_weather import SwitchWeather

log = logging.getLogger(__name__)


class Lan:
    """A network.

    :param name: its name.
    :param history: keeps what crosses its links last, None for nothing.
    :ivar name: as above.
    :ivar clock: the time.
    :ivar counters: what is counted.
    :ivar switch: the switch.
    :ivar watchers: owner of every watcher and greenlet.
    :ivar timers: its deadlines.
    :ivar recorder: records what crosses its links.
    """

    def __init__(self, name: str, history: History | None = None) -> None:
        raise_limit()  # each host takes six descriptors
        self.name = name
        self.clock = Clock()
        self.counters = Counters()
        self.switch = Switch(self.counters)
        self.watchers = Watchers(gevent.get_hub(), self.counters, BUSY_POLL_DEFAULT / MICROSECONDS)
        self.timers = Timers(self.watchers, self.clock.precise)
        self._repeats: dict[Port, Repeat] = {}
        self._weather: SwitchWeather | None = None
        self.recorder = Recorder(self.switch, name, time.time_ns, lambda: flush.ask())
        flush = self.watchers.repeat(self.watchers.worker(self.recorder.flush, conversational=False))
        if history is not None:
            history.name = name
            self.recorder.add(history)

    def add_tap(self, name: str, fd: int, address: bytes) -> TapPort:
        """Add the port of a host.

        :param name: of the host.
        :param fd: its tap, whose owner closes it after `remove`.
        :param address: its MAC address, 6 bytes.
        """
        port = TapPort(name, fd, self.switch, self.counters)
        self.switch.add(port, address)
        self.watchers.watch_alone(port, fd, self._step)
        return port

    def add_inner(self, name: str, address: bytes | None, take: Way) -> InnerPort:
        """Add the port of a part of this process.

        :param name: of that part.
        :param address: its MAC address, 6 bytes; None for one that has none of its own.
        :param take: takes each frame or superframe, behind its virtio-net header; valid during the call. It answers by
            `Switch.forward`.
        """
        port = InnerPort(name, take, lambda: repeat.ask(), self.counters)
        worker = self.watchers.worker(port.step, conversational=False)
        repeat = self._repeats[port] = self.watchers.repeat(worker)
        self.switch.add(port, address)
        return port

    def set_link(self, port: TapPort, up: bool) -> None:
        """Cut the link of a host, or mend it."""
        port.set_link(up)
        self.switch.reset()

    def remove(self, port: Port) -> None:
        """Remove a port; more calls do nothing."""
        self.switch.remove(port)
        self.watchers.unwatch(port)
        self._repeats.pop(port, None)

    def weather(self) -> SwitchWeather:
        """Return the weather between its hosts; it is made when it is first asked for."""
        if self._weather is None:
            from gpasst.proxy.build_switch_weather import build_switch_weather

            self._weather = build_switch_weather(self.switch, self.counters, self.timers, self.watchers.failures)
        return self._weather

    def fates(self) -> list[FateLog]:
        """Return the logs of what weather did."""
        return self._weather.logs() if self._weather else []

    def unread(self) -> bool:
        """Return whether a host has sent what has not been read."""
        return any(port.unread() for port in self.switch.ports)

    def statistics(self) -> NetworkStatistics:
        """Freeze the counters."""
        ports = {port.name: PortStatistics(port.received, port.sent) for port in self.switch.ports}
        return NetworkStatistics(ports, *self.counters.dropped())

    def close(self) -> None:
        """Stop; more calls do nothing."""
        if self._weather is not None:
            self._weather.close()
        self.recorder.close()
        for port in list(self.switch.ports):
            self.remove(port)
        self.timers.close()
        self.watchers.close()

    def _step(self, port: TapPort) -> int:
        try:
            moved = port.step()
        except LinkGone as error:
            log.info("%s: the tap of %s ended: %s", self.name, port.name, error)
            self.remove(port)
            return 0
        if port.rest:
            self.watchers.rest(port)
            self.timers.at(self.timers.clock() + port.rest, lambda _: self.watchers.resume(port))
        return moved
