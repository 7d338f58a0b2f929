"""The wiring: rules, sockets and tap of one guest, and the greenlets that drive them.

Theory of operation:

1. Every descriptor has one persistent, level-triggered watcher. Its callback switches to a greenlet, which moves a
   bounded batch and switches back to the hub; nothing on the data path waits, sleeps or makes an object per datagram.
2. There is one greenlet for the tap, one for each listening port and splice pair (made when it first has something to
   do, since an unused greenlet costs forty times its watcher), one for all sockets of mappings, one that scans once a
   second, and one that follows bound ports where a rule is automatic.
3. What goes wrong in one step is logged and counted, and the greenlet goes on.

NOTE: a proxy lives on one hub; only its owner's thread may call it.
"""

from __future__ import annotations

import ctypes
import logging
import random
import time
from _socket import socket as RawSocket  # a class
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
from gevent.socket import wait_read

from gpasst.config import Config
from gpasst.counters import Counters, Drop, Statistics
from gpasst.errors import GpasstError, PlatformError
from gpasst.features import Feature
from gpasst.flow.listeners import lay_rules
from gpasst.flow.network import GuestNetwork, pack
from gpasst.flow.record import Flow, Forward
from gpasst.helper.client import Namespace
from gpasst.host.raw import RawSockets
from gpasst.host.receive import SLOTS, Receiver, sender_key
from gpasst.host.receive_contiguous import ContiguousReceiver
from gpasst.host.receive_framed import FramedReceiver
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import open_own, supported, text
from gpasst.link.capture import Capture
from gpasst.link.listener import GuestListener
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.packet.address import BROADCAST_MAC
from gpasst.path.dispatch import Dispatch, Services
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.ping_sockets import EchoFlow, PingSockets
from gpasst.path.stream_reader import StreamReader
from gpasst.path.tap_reader import TapReader
from gpasst.path.udp_sockets import UdpSockets
from gpasst.path.udp_splice import Splice
from gpasst.portspec import EPHEMERAL
from gpasst.proxy.forwarder import Forwarder
from gpasst.proxy.guest_session import GuestSession
from gpasst.proxy.workers import Poller, Worker
from gpasst.services import arp, dhcpv6, ndp
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import Pair, Pairs

SCAN_SECONDS = 1  # TIMER_INTERVAL of the seed
DROP_LOG_SECONDS = 10  # at most one log line a reason in this time
FOLLOW_SECONDS = 0.5  # between two looks at what is bound, so that a new port is forwarded within a second
TRIMMED = 256  # how many must end at once to make it worth giving their memory back; that takes about a millisecond
READ, WRITE = 1, 2  # event masks of the loop

log = logging.getLogger(__name__)


class Proxy:
    """Everything between one guest and the host's sockets.

    :param config: what the user asked for.
    :param network: what the guest will see.
    :param end: the guest's end: a namespace, its tap ready (none with ``--splice-only``); or a socket where guests
        connect, or one that is connected already.
    :param ephemeral: first and last port that the host's kernel hands out by itself.
    :param clock: gives monotonic seconds.
    :param polls: whether ``--busy-poll`` counts: not where other threads want the interpreter.
    :raises GpasstError: if a forward or the capture file cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        config: Config,
        network: GuestNetwork,
        end: Namespace | GuestListener | RawSocket,
        ephemeral: tuple[int, int] = EPHEMERAL,
        clock: Callable[[], float] = time.monotonic,
        polls: bool = True,
    ) -> None:
        self.config = config
        self.network = network
        self.counters = Counters()
        self.finished = gevent.event.Event()
        self._clock = clock
        self._hub = gevent.get_hub()
        self._watchers: dict[Any, Any] = {}
        # Of listeners and splice pairs, which have one each.
        self._workers: dict[Any, Worker] = {}
        self._greenlets: list[gevent.Greenlet] = []
        self._logged: Counter[Drop] = Counter()
        self._logged_at: dict[Drop, float] = {}
        namespace = end if isinstance(end, Namespace) else None
        features = config.features & supported()
        if namespace and namespace.tap >= 0 and "uso4" not in namespace.offloads:
            features -= {Feature.USO}
        missing = config.features - features
        if missing:
            log.info("not supported by this kernel: %s", ", ".join(sorted(feature.value for feature in missing)))
        self.features = features
        self._poller = Poller(self._hub, config.busy_poll / 1_000_000) if config.busy_poll and polls else None
        self._after = self._poller.single if self._poller else None
        link_local = pack(namespace.link_local) if namespace and namespace.link_local else None
        self.path = UdpNat(
            network,
            self._open_socket,
            self._close_socket,
            sender_key,
            namespace.mac or None if namespace else None,
            link_local,
            filtered=config.udp_filter == "address",
            now=self._now(),
        )
        self._refusals = RawSockets(namespace.sockets if namespace else None)
        self._pool = SocketPool(namespace.sockets) if namespace else None
        self._capture: Capture | None = None
        self._link: Tap | Stream | None = None
        self._guests: GuestSession | None = None
        self._splice: Splice | None = None
        if namespace is None or namespace.tap >= 0:
            self._open_link(end)
        rules = lay_rules(config, ephemeral, namespace.ephemeral if namespace else None)
        slots = SLOTS if Feature.BATCH in features else 1
        kind = FramedReceiver if isinstance(self._link, Stream) else ContiguousReceiver
        receivers: dict[int, Receiver] = {family: kind(family, slots) for family in self.path.tables}
        if namespace and not config.no_udp and not config.no_splice:
            pairs = Pairs(
                self.path.addresses,
                config.keeps_loopback,
                namespace.index,
                rules.shown(inside=True),
                rules.shown(inside=False),
                self._now(),
            )
            self._splice = Splice(
                pairs,
                namespace.sockets,
                self._watch_pair,
                self._unwatch,
                self._refusals,
                receivers,
                self.counters,
                features,
            )
        self._upward = UdpSockets(self._link, self.path, self._splice, receivers, self.counters)
        self._mappings = Worker(self._hub, self._upward.step, self.counters, self._after)
        self._forwards = Forwarder(
            config,
            rules,
            self.path,
            self._splice,
            self._pool,
            self._watch_listener,
            self._unwatch,
            Feature.GRO in features,
        )
        try:
            self._forwards.open()
            if self._guests:
                self._guests.open()
        except GpasstError:
            self.close()
            raise
        if isinstance(self._link, Tap):
            worker = Worker(self._hub, self._step_tap, self.counters, self._after)
            self._watch(self._link, self._link.fd, worker.wake)
        self._greenlets.append(gevent.spawn(self._scan_forever))
        if self._forwards.automatic:
            self._greenlets.append(gevent.spawn(self._follow_forever))

    def _open_link(self, end: Namespace | GuestListener | RawSocket) -> None:
        """Set up everything between the guest's frames and the host's sockets."""
        config, features, counters = self.config, self.features, self.counters
        self._capture = Capture(config.pcap, time.time_ns) if config.pcap else None
        link: Tap | Stream
        if isinstance(end, Namespace):
            families = frozenset(family for family in (4, 6) if f"uso{family}" in end.offloads)
            link = Tap(end.tap, counters, families if Feature.USO in features else frozenset(), self._capture)
        else:
            link = Stream(counters, self._await_room, self._stop_awaiting, self._capture)
        self._link = link
        self._pings = PingSockets(link, self.path, counters, self._watch_exchange, self._unwatch, self._now)
        self._echoes = Worker(self._hub, self._pings.step, counters)
        advertises = not (config.no_ra or config.config_net)
        router = None if config.no_ndp or config.no_icmp else ndp.Router(self.network, advertises, config.mtu)
        self._router = router if self.network.ip6 and advertises else None
        self._schedule = ndp.Schedule(self._now(), random.uniform)
        identifier = dhcpv6.duid(self.network.host_mac, int(time.time()) - dhcpv6.EPOCH)
        services = Services(
            router,
            None if config.no_dhcp else self.network,
            None if config.no_dhcpv6 else dhcpv6.Server(self.network, identifier),
            None if config.no_icmp else self._pings.request,
            not config.no_tcp,
            not config.no_udp,
            None if config.no_icmp or config.no_udp else IcmpToSender(self._refusals, self.path, counters).take,
        )
        self._dispatch = Dispatch(link, self.path, services, counters, self._now)
        if isinstance(link, Tap):
            self._downward = TapReader(link, self.path, self._dispatch, counters, features)
        elif not isinstance(end, Namespace):
            downward = StreamReader(link, self.path, self._dispatch, counters, features)
            worker = Worker(self._hub, self._step_guest, counters, self._after)
            self._guests = GuestSession(
                end,
                link,
                downward,
                lambda sock, call: self._watch(sock, sock.fileno(), call),
                self._unwatch,
                worker.wake,
                self._greet,
                self.finished.set,
                config.one_off or not isinstance(end, GuestListener),
            )

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The listeners that are open."""
        return self._forwards.listed()

    def statistics(self) -> Statistics:
        """Freeze the counters."""
        tables = self.path.tables.values()
        pairs = len(self._splice.pairs) if self._splice else 0
        return self.counters.snapshot(sum(len(table.mappings) for table in tables), sum(map(len, tables)), pairs)

    def flows(self) -> tuple[Flow, ...]:
        """List every tracked peer and splice pair."""
        peers = (
            Flow(
                "udp",
                (text(peer.mapping.guest), peer.mapping.port),
                (text(peer.shown[0]), peer.shown[1]),
                (text(peer.remote[0]), peer.remote[1]),
                peer.udp_socket.port,
                table.idle_seconds(peer),
            )
            for table in self.path.tables.values()
            for peer in table
        )
        return (*peers, *map(self._pair_flow, self._splice.pairs if self._splice else ()))

    def _pair_flow(self, pair: Pair) -> Flow:
        assert self._splice is not None
        idle = self._splice.pairs.ages.idle_seconds(pair)
        sender = text(pair.sender[0]), pair.sender[1]
        addressed = text(pair.addressed[: len(pair.sender[0])]), pair.listener.port
        target, local = (text(pair.route.address), pair.route.port), (text(pair.local[0]), pair.local[1])
        if pair.listener.inside:
            return Flow("udp", sender, addressed, target, local[1], idle, spliced=True)
        return Flow("udp", target, local, sender, addressed[1], idle, spliced=True)

    def scan(self, now: int) -> None:
        """Let go of what is idle at `now`, in monotonic seconds, and log what was dropped; called once a second."""
        timeout = self.config.udp_timeout
        ended = self.path.scan(now, timeout)
        if self._splice:
            ended += self._splice.scan(now, timeout)
        self.counters.expired += ended
        if ended:
            log.debug("%d mappings or splice pairs expired", ended)
        if ended >= TRIMMED:
            trim_memory()
        if self._link:
            self._dispatch.scan(now)
            self._pings.scan(now)
            # Before the guest has spoken its end may be down; and when it comes up it asks by itself.
            if self._router and self._link.ready and self.counters.frames_down and self._schedule.due(now):
                self._link.write_frame(ndp.unsolicited(self._router))
        self._log_drops(now)

    def follow(self) -> None:
        """Bring the listeners of automatic rules in step with what is bound now; called twice a second.

        :raises PlatformError: if the kernel does not list sockets.
        """
        self._forwards.follow(wait_read, gevent.idle)

    def close(self) -> None:
        """Stop, and close every socket and the capture file. The namespace stays its owner's."""
        for greenlet_ in self._greenlets:
            greenlet_.kill()
        self._forwards.close()
        if self._pool:
            self._pool.close()
        if self._splice:
            self._splice.close()
        self._refusals.close()
        if self._link:
            self._pings.close()
        if self._guests:
            self._guests.close()
        self.path.close()
        for watcher in self._watchers.values():
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        if self._poller:
            self._poller.close()
        self._log_drops(None)
        if self._capture is not None and self._link is not None:
            self._capture.close()
            self._link.capture = self._capture = None
        self.finished.set()

    def _now(self) -> int:
        return int(self._clock())

    def _scan_forever(self) -> None:
        while True:
            gevent.sleep(SCAN_SECONDS)
            try:
                self.scan(self._now())
            except Exception:
                self.counters.drop(Drop.INTERNAL)
                log.exception("internal error while scanning")

    def _follow_forever(self) -> None:
        while True:
            try:
                self.follow()
            except PlatformError as error:
                log.warning("ports are not forwarded automatically: %s", error)
                return
            except Exception:
                self.counters.drop(Drop.INTERNAL)
                log.exception("internal error while looking for bound ports")
            gevent.sleep(FOLLOW_SECONDS)

    def _step_guest(self) -> int:
        assert self._guests is not None
        return self._guests.step()

    def _greet(self) -> None:
        """Ask the guest who it is, so that it is reached before it speaks, and tell it who its router is."""
        assert self._link is not None
        network = self.network
        self.path.learn_mac(BROADCAST_MAC)
        if network.ip4 and network.ip4.address:
            self._link.write_frame(arp.request(network.host_mac, network.ip4.gateway, network.ip4.address))
        if network.ip6 and network.ip6.address:
            self._link.write_frame(ndp.solicitation(network, network.ip6.address))
        self._schedule = ndp.Schedule(self._now(), random.uniform)

    def _await_room(self, sock: RawSocket) -> None:
        assert isinstance(self._link, Stream)
        self._watchers[self._await_room] = watcher = self._hub.loop.io(sock.fileno(), WRITE)
        watcher.start(self._link.empty)

    def _stop_awaiting(self) -> None:
        self._unwatch(self._await_room)

    def _step_tap(self) -> int:
        try:
            return self._downward.step()
        except OSError as error:
            # The device went away, with its namespace or by somebody's hand.
            log.info("the tap ended: %s", error.strerror)
            self._unwatch(self._link)
            self.finished.set()
            return 0

    def _open_socket(self, family: int, port: int) -> UdpSocket:
        network = self.network.ip4 if family == 4 else self.network.ip6
        assert network is not None
        udp_socket = open_own(network, port, Feature.GRO in self.features)
        if port and udp_socket.port != port:
            log.info("IPv%d source port %d is taken on the host; port changed to %d", family, port, udp_socket.port)
        if self._forwards.automatic:
            self._forwards.exclude(udp_socket.socket)
        self._watch(udp_socket, udp_socket.socket.fileno(), self._mappings.wake, udp_socket)
        return udp_socket

    def _close_socket(self, udp_socket: UdpSocket) -> None:
        self._unwatch(udp_socket)
        if self._forwards.automatic:
            self._forwards.include(udp_socket.socket)
        udp_socket.socket.close()
        udp_socket.socket = None

    def _watch_listener(self, udp_socket: UdpSocket) -> None:
        worker = self._workers[udp_socket] = Worker(self._hub, self._upward.step, self.counters, self._after)
        self._watch(udp_socket, udp_socket.socket.fileno(), worker.wake, udp_socket)

    def _watch_pair(self, pair: Pair) -> None:
        assert self._splice is not None
        worker = self._workers[pair] = Worker(self._hub, self._splice.step, self.counters, self._after)
        self._watch(pair, pair.udp_socket.socket.fileno(), worker.wake, pair)

    def _watch_exchange(self, exchange: EchoFlow) -> None:
        self._watch(exchange, exchange.socket.fileno(), self._echoes.wake, exchange)

    def _watch(self, owner: Any, fd: int, callback: Callable[..., None], *args: Any) -> None:
        watcher = self._hub.loop.io(fd, READ)
        watcher.start(callback, *args)
        self._watchers[owner] = watcher

    def _unwatch(self, owner: Any) -> None:
        watcher = self._watchers.pop(owner, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()
        worker = self._workers.pop(owner, None)
        if worker is not None:
            worker.close()

    def _log_drops(self, now: int | None) -> None:
        """Log new drops, each reason at most once in `DROP_LOG_SECONDS`; all of them if `now` is None."""
        for reason, count in self.counters.drops.items():
            fresh = count - self._logged[reason]
            if fresh and (now is None or now - self._logged_at.get(reason, -DROP_LOG_SECONDS) >= DROP_LOG_SECONDS):
                log.log(QUIET_DROPS.get(reason, logging.WARNING), "dropped %d: %s", fresh, reason.value)
                self._logged[reason] = count
                if now is not None:
                    self._logged_at[reason] = now


# What every guest sends by itself is no cause for alarm.
QUIET_DROPS = dict.fromkeys(
    (
        Drop.ETHERTYPE,
        Drop.ICMP_TYPE,
        Drop.PROTOCOL,
        Drop.PROTOCOL_DISABLED,
        Drop.FAMILY_DISABLED,
        Drop.SERVICE,
        Drop.SEND_FAILED,
        Drop.TCP,
        Drop.FILTERED,
        Drop.GUEST_ERROR,
    ),
    logging.DEBUG,
)


def trim_memory() -> None:
    """Give free memory back to the kernel, where the C library can (malloc_trim of glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
