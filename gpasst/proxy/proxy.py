"""A proxy: everything between one guest, or the hosts of a network, and the host's sockets; and what drives it.

Theory of operation: the builders (`gpasst.proxy.build`) make the parts. `Watchers` owns their watchers and greenlets,
`Timers` their deadlines, among them those of the `Scan` that ends idle mappings and splice pairs. There is one greenlet
for the tap or the guest's stream, one for each listening port and splice pair, one for all sockets of mappings, one for
echo, one for the backlog, one for timers, and one that looks at bound ports where a rule is automatic.

NOTE: a proxy lives on one hub; only that hub's thread may call it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import gevent
import gevent.event

from gpasst.config import Config, PortSide
from gpasst.counters import Statistics
from gpasst.features import Feature
from gpasst.flow.network import GuestNetwork
from gpasst.flow.record import Flow, Forward
from gpasst.helper.client import Namespace
from gpasst.host.socket_pool import PAUSE_SECONDS
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.path.budget import Turns
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tap_reader import TapReader
from gpasst.portspec import EPHEMERAL, ForwardRule
from gpasst.proxy import observe
from gpasst.proxy.base import Gateway, build_base
from gpasst.proxy.build import End, build_inside, build_link, build_recorder, build_services, build_udp, watch_listener
from gpasst.proxy.build_tcp import build_tcp, build_tcp_listeners, build_tcp_splice
from gpasst.proxy.clock import Clock
from gpasst.proxy.follower import Follower, others
from gpasst.proxy.forwarder import Added, Forwarder
from gpasst.proxy.openers import ListenerOpener, TcpListenerOpener, UdpListenerOpener
from gpasst.proxy.patience import patiently
from gpasst.proxy.scan import Scan, trim_memory
from gpasst.proxy.timers import Timers

if TYPE_CHECKING:
    from gpasst.capture.history import History
    from gpasst.flow.guests import Guests
    from gpasst.impair.log import FateLog
    from gpasst.link.impaired import Impaired
    from gpasst.link.uplink import Uplink
    from gpasst.path.uplink_reader import UplinkReader
    from gpasst.proxy.served import Served

log = logging.getLogger(__name__)


class Proxy:
    """Everything between one guest and the host's sockets.

    :param config: the options.
    :param network: the guest's network.
    :param end: the guest's end: a namespace, its tap ready (none with ``--splice-only``); or a socket where guests
        connect, or one that is connected already. None for the hosts of a network.
    :param ephemeral: first and last port that the host's kernel hands out by itself.
    :param polls: whether ``--busy-poll`` counts: not where other threads want the interpreter.
    :param history: keeps what crosses the link last, None for nothing.
    :param gateway: for the hosts of a network, what their gateway has.
    :ivar clock: the time.
    :ivar finished: set when the guest is gone for good.
    :ivar link: the guest's end, None with ``--splice-only`` and for the hosts of a network.
    :ivar recorder: records what crosses the link, None without one.
    :ivar uplink: the gateway's end of a network, None for a single guest.
    :ivar udp: the sockets of UDP.
    :ivar tcp: the connections of TCP that cross the link, None where they are not carried.
    :ivar tcp_splice: the splice pairs of TCP, None where loopback traffic crosses the link.
    :ivar splice: the splice pairs of UDP, None where loopback traffic crosses the tap.
    :ivar forwarder: the listeners of forwarded ports.
    :raises GpasstError: if a forward or the capture file cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        config: Config,
        network: GuestNetwork,
        end: End | None,
        ephemeral: tuple[int, int] = EPHEMERAL,
        polls: bool = True,
        history: History | None = None,
        gateway: Gateway | None = None,
    ) -> None:
        self.config = config
        self.network = network
        self.clock = Clock()
        self.finished = gevent.event.Event()
        namespace = end if isinstance(end, Namespace) else None
        hub = gevent.get_hub()
        self._base = base = build_base(config, network, namespace, ephemeral, hub, self.clock, polls, gateway)
        self.features, self.counters = base.features, base.counters
        self.link: Tap | Stream | None = None
        self.uplink: Uplink | None = None
        self._served: Served | None = None
        self._impaired: Impaired | None = None
        self._drop_log = observe.DropLog(base.counters)
        self._closing = ExitStack()
        self._closing.callback(self._finish)
        try:
            self._build(end, history)
            if namespace:
                # From here on others wait for it.
                namespace.patience = PAUSE_SECONDS
        except BaseException:
            self.close()
            raise

    def _build(self, end: End | None, history: History | None) -> None:
        """Make all parts, and enter what ends each of them; the last one is ended first."""
        base, config = self._base, self.config
        closing = self._closing.callback
        if base.ring:
            closing(base.ring.close)
        closing(base.watchers.close)
        closing(base.descriptors.close)
        if base.pool:
            closing(base.pool.close)
        closing(base.raw.close)
        if base.guest.many:
            from gpasst.link.uplink import Uplink

            self.uplink = Uplink(base.counters)
        else:
            self.link = build_link(base)
        link = self.uplink or self.link
        self.recorder = build_recorder(base, self.link, history) if self.link else None
        if self.recorder:
            closing(self.recorder.close)
        icmp = self._icmp = IcmpToGuest(link, base.guest, base.counters)
        handlers, router = build_services(base, link) if link else (None, None)
        self._timers = timers = Timers(base.watchers, self.clock.precise)
        closing(timers.close)
        self.tcp = build_tcp(base, link, icmp, timers) if link and not config.no_tcp else None
        if self.tcp:
            closing(self.tcp.close)
            # The loop must not look at the set any more when that is closed.
            closing(base.watchers.unwatch, self.tcp.sockets)
        self.tcp_splice = build_tcp_splice(base)
        if self.tcp_splice:
            closing(self.tcp_splice.close)
            closing(base.watchers.unwatch, self.tcp_splice)
        listeners = build_tcp_listeners(base, link, self.tcp, self.tcp_splice, timers)
        closing(listeners.close)
        self.udp, self.splice, ready = build_udp(base, link, icmp, handlers)
        closing(ready.close)
        closing(base.watchers.unwatch, ready)
        closing(self.udp.nat.close)
        if self.splice:
            closing(self.splice.close)
        step = self.udp.step
        udp_opener = UdpListenerOpener(
            self.udp.nat,
            self.splice,
            base.pool,
            lambda listener: watch_listener(base.watchers, listener, step),
            base.watchers.unwatch,
            Feature.GRO in base.features,
            config.keeps_loopback,
            inward=not config.no_splice,
        )
        openers: list[ListenerOpener] = [] if config.no_udp else [udp_opener]
        if not config.no_tcp:
            openers.append(TcpListenerOpener(listeners, self.tcp_splice, base.pool, config.keeps_loopback))
        self.forwarder = Forwarder(config, base.rules, openers, base.guest.addresses, base.pool, base.own)
        closing(self.forwarder.close)
        self._inside = None
        if link and handlers:
            self._inside = build_inside(base, link, self.udp, icmp, handlers, router, end, self.tcp, self.finished.set)
            closing(self._inside.pings.close)
            if self._inside.tap_filter:
                closing(self._inside.tap_filter.close)
        self.forwarder.open()
        if self._inside and self._inside.session:
            closing(self._inside.session.close)
            self._inside.session.open()
        self._scan = self._build_scan(timers)
        closing(self._scan.close)
        if self.forwarder.automatic:
            closing(Follower(self.forwarder, timers, base.counters).close)

    def _build_scan(self, timers: Timers) -> Scan:
        base, inside = self._base, self._inside
        tables: list[Callable[[int, int], Iterable[int]]] = [self.udp.nat.scan]
        if self.splice:
            tables.append(self.splice.scan)
        seconds: list[Callable[[int], object]] = [self.udp.scan]
        if inside:
            if isinstance(inside.reader, TapReader):
                seconds.append(inside.reader.scan)
            pings = inside.pings
            tables.append(lambda now, timeout: pings.scan(now))
            seconds += inside.dispatch.scan, inside.advertiser.scan
            if tap_filter := inside.tap_filter:
                seconds.append(tap_filter.scan)
            if session := inside.session:
                seconds.append(lambda now: session.scan())
        if tcp_splice := self.tcp_splice:
            seconds.append(lambda now: trim_memory() if tcp_splice.shrunk() else None)
        if self.uplink:
            seconds.append(self.guests.scan)
        seconds.append(self._drop_log.write)
        if pool := base.pool:
            seconds.append(lambda now: pool.refill())
        return Scan(timers, self.clock.now, self.config.udp_timeout, base.counters, tables, seconds)

    @property
    def uplink_reader(self) -> UplinkReader:
        """What takes a switch's frames for the gateway of a network."""
        from gpasst.path.uplink_reader import UplinkReader

        assert self._inside is not None
        assert isinstance(self._inside.reader, UplinkReader)
        return self._inside.reader

    @property
    def guests(self) -> Guests:
        """The hosts of a network, where the proxy is its gateway."""
        from gpasst.flow.guests import Guests

        assert isinstance(self._base.guest, Guests)
        return self._base.guest

    def forget(self, addresses: Collection[bytes]) -> None:
        """End all flows of a host of the network that has gone, while others run.

        :param addresses: its addresses, 4 or 16 bytes.
        """
        look = Turns(others).look
        for family in self.udp.nat.tables:
            for _ in self.udp.nat.end_flows(family, lambda peer: peer.mapping.guest in addresses):
                look()
        if self.tcp:
            for connection in list(self.tcp.table):
                if connection.ends[0] in addresses:
                    self.tcp.sockets.drop(connection)
                look()

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The listeners that are open."""
        return self.forwarder.listed()

    def add_forward(self, side: PortSide, rules: Iterable[ForwardRule]) -> Added:
        """Open the listeners of more rules, all or none, while others run; see `gpasst.proxy.forwarder`."""
        namespace, look = self._base.namespace, Turns(others).look
        if namespace is None:
            return self.forwarder.add(side, rules, look)
        return patiently(namespace, lambda: self.forwarder.add(side, rules, look))

    def remove_forward(self, added: Added) -> None:
        """Close the listeners that a call of `add_forward` has opened, while others run."""
        self.forwarder.remove(added, Turns(others).look)

    @property
    def served(self) -> Served:
        """The services of the program, where there is a link."""
        if self._served is None:
            from gpasst.proxy.served import Served

            link = self.uplink or self.link
            assert link is not None
            opener = self.tcp.opener if self.tcp else None
            self._served = Served(self.udp.nat, opener, link, self.counters)
            self._closing.callback(self._served.close)
        return self._served

    @property
    def handler_errors(self) -> tuple[str, ...]:
        """Text of the newest errors of services' handlers, with their tracebacks."""
        return tuple(self._served.errors) if self._served else ()

    def impaired(self) -> Impaired:
        """Return the weather of the link, where there is one; it is made when it is first asked for."""
        if self._impaired is None:
            from gpasst.proxy.build_impaired import build_impaired

            assert self.link is not None
            assert self._inside is not None
            self._impaired = build_impaired(
                self._base, self.link, self._inside.impairable, self.udp, self._icmp, self.tcp, self._timers
            )
            self._closing.callback(self._impaired.close)
        return self._impaired

    def fates(self) -> list[FateLog]:
        """Return the logs of what weather did."""
        return self._impaired.logs() if self._impaired else []

    def statistics(self) -> Statistics:
        """Freeze the counters."""
        return observe.statistics(self.counters, self.udp.nat, self._pairs(), self.tcp.table if self.tcp else ())

    def flows(self) -> tuple[Flow, ...]:
        """List every tracked peer, splice pair and TCP connection."""
        return observe.flows(self.udp.nat, self._pairs(), self.tcp.table if self.tcp else (), self.clock.precise())

    def _pairs(self) -> observe.Splices:
        return observe.Splices(
            self.splice.pairs if self.splice else None, self.tcp_splice.pairs if self.tcp_splice else ()
        )

    def scan(self, now: int) -> None:
        """End what is idle at `now`, in monotonic seconds, and log drops."""
        self._scan.whole(now)

    def close(self) -> None:
        """Stop, and close every socket and the capture file. The namespace stays its owner's. More calls do nothing."""
        self._closing.close()

    def _finish(self) -> None:
        if isinstance(self.link, Stream):
            self.link.emptied.clear()
        self._drop_log.write(None)
        self.finished.set()
