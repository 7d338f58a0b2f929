"""The builders of a proxy: each makes one part of it from the parts below.

Theory of operation: `gpasst.proxy.base` holds what every part shares. `build_link` makes the guest's
end; `build_udp` the sockets of UDP, spliced and not; `build_inside` everything between the link and these: handlers by
protocol, the backlog, and the reader of the link. A proxy with ``--splice-only`` has no link and nothing inside.
"""

from __future__ import annotations

import logging
import time
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gpasst.features import Feature
from gpasst.flow.loopback import LoopbackTargets
from gpasst.helper.client import Namespace
from gpasst.host.receive import SLOTS, Receiver, sender_key
from gpasst.host.receive_contiguous import ContiguousReceiver
from gpasst.host.receive_framed import FramedReceiver
from gpasst.host.socket_pool import SocketPool
from gpasst.link.listener import GuestListener
from gpasst.link.port import LinkGone
from gpasst.link.recorder import Recorder
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.packet import icmp_error
from gpasst.packet.dhcp_wire import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.path.backlog import Backlog, Queue
from gpasst.path.dispatch import Dispatch, Handler
from gpasst.path.fastpath import FastPath
from gpasst.path.icmp_handler import IcmpHandler
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.ping_sockets import PingSockets
from gpasst.path.service_handlers import ServiceHandlers, disabled
from gpasst.path.stream_reader import StreamReader
from gpasst.path.tap_filter import TapFilter
from gpasst.path.tap_reader import TapReader
from gpasst.path.udp_many import ManySenders
from gpasst.path.udp_ready import ReadyMappings
from gpasst.path.udp_sockets import MappingSockets, UdpSockets
from gpasst.path.udp_splice import UdpSplice
from gpasst.proxy.advertiser import Advertiser
from gpasst.proxy.base import TSO_FAMILIES, USO_FAMILIES, Base
from gpasst.proxy.build_tcp import Tcp, epoll_set
from gpasst.proxy.guest_session import GuestSession
from gpasst.proxy.workers import READ, WRITE, Watchers
from gpasst.records import dataclass, replace
from gpasst.services import chatter, dhcpv6, ndp
from gpasst.udp.mapping import Listener, UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import Pair, Pairs
from gpasst.wire import MLD_TYPES, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP

if TYPE_CHECKING:
    from typing import TypeAlias

    from gpasst.capture.history import History
    from gpasst.link.uplink import Uplink
    from gpasst.path.uplink_reader import UplinkReader

    AnyLink: TypeAlias = Tap | Stream | Uplink

STREAM_NAME = "guest"  # in a capture, of the interface of a virtual machine, whose own name nobody knows here
ROOM = "room in the guest's socket"  # owner of the one watcher that is no socket's own

# Where the guest is: a namespace with its tap, a socket where guests connect, or a connected one.
End = Namespace | GuestListener | RawSocket

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inside:
    """The parts between the link and the sockets.

    :ivar reader: the frames of the guest.
    :ivar dispatch: frames of no known flow.
    :ivar pings: echo.
    :ivar advertiser: frames that nobody asked for.
    :ivar session: the guests of a stream, None for any other link.
    :ivar tap_filter: lets the kernel sample floods of a tap, None for any other link.
    """

    reader: TapReader | StreamReader | UplinkReader
    dispatch: Dispatch
    pings: PingSockets
    advertiser: Advertiser
    session: GuestSession | None
    tap_filter: TapFilter | None

    @property
    def impairable(self) -> TapReader | StreamReader:
        """The reader of a link that weather can stand before."""
        assert isinstance(self.reader, (TapReader, StreamReader))
        return self.reader


def build_link(base: Base) -> Tap | Stream | None:
    """Make the guest's end, None with ``--splice-only``."""
    namespace, counters, watchers = base.namespace, base.counters, base.watchers
    if namespace and namespace.tap < 0:
        return None
    if namespace:
        superframes = {
            "udp": _offloaded(base, namespace, Feature.USO, USO_FAMILIES),
            "tcp": _offloaded(base, namespace, Feature.TSO, TSO_FAMILIES),
        }
        return Tap(namespace.tap, counters, superframes)

    return Stream(
        counters,
        lambda sock, empty: watchers.watch_guarded(ROOM, sock.fileno(), empty, events=WRITE),
        lambda: watchers.unwatch(ROOM),
    )


def build_recorder(base: Base, link: Tap | Stream, history: History | None) -> Recorder:
    """Make the recorder of a link, with the capture file if there is one.

    :param history: keeps what crosses last, None for nothing.

    :raises PlatformError: if that cannot be opened.
    """
    watchers = base.watchers
    name = base.namespace.name if base.namespace else STREAM_NAME
    recorder = Recorder(link, name, time.time_ns, lambda: flush_step.ask())
    flush_step = watchers.repeat(watchers.worker(recorder.flush, conversational=False))
    if history:
        history.name = name
        recorder.add(history)
    if base.config.pcap:
        from gpasst.link.capture_file import CaptureFile

        recorder.add(CaptureFile(base.config.pcap, base.counters).interface(name))
    return recorder


def _offloaded(base: Base, namespace: Namespace, feature: Feature, names: Mapping[int, str]) -> frozenset[int]:
    """Return the families whose superframes the tap takes."""
    if feature not in base.features:
        return frozenset()
    return frozenset(family for family, name in names.items() if name in namespace.offloads)


def build_udp(
    base: Base,
    link: AnyLink | None,
    icmp: IcmpToGuest,
    handlers: ServiceHandlers | None,
) -> tuple[UdpSockets, UdpSplice | None, ReadyMappings]:
    """Make the sockets of UDP.

    :param handlers: the services that answer on ports of their own, None without a link.
    """
    config, watchers, features = base.config, base.watchers, base.features
    slots = SLOTS if Feature.BATCH in features else 1
    kind = FramedReceiver if isinstance(link, Stream) else ContiguousReceiver
    receivers: dict[int, Receiver] = {family: kind(family, slots) for family in base.guest.addresses}
    splice = None
    if base.targets and base.pool and not config.no_udp:
        splice = _build_splice(base, base.targets, base.pool, receivers)

    def watch(udp_socket: UdpSocket) -> None:
        assert udp_socket.socket is not None
        base.own.exclude(udp_socket.socket)
        ready.watch(udp_socket)

    def unwatch(udp_socket: UdpSocket) -> None:
        assert udp_socket.socket is not None
        ready.unwatch(udp_socket)
        base.own.include(udp_socket.socket)

    services = {(4, DHCP_SERVER_PORT): handlers.dhcp, (6, DHCPV6_SERVER_PORT): handlers.dhcpv6} if handlers else {}
    opener = MappingSockets(base.guest, Feature.GRO in features, watch, unwatch, base.descriptors)
    nat = UdpNat(base.guest, opener, sender_key, config.udp_filter == "address", base.clock.now())
    many = ManySenders(nat, link, base.ring) if isinstance(link, (Tap, Stream)) else None
    udp = UdpSockets(
        nat,
        link,
        icmp,
        splice,
        receivers,
        services,
        base.counters,
        features,
        carried=not config.no_udp,
        many=many,
    )
    alone = watchers.worker(udp.step)
    ready = ReadyMappings(
        epoll_set(),
        lambda udp_socket: watchers.watch(udp_socket, udp_socket.socket.fileno(), alone.wake, udp_socket),  # type: ignore[union-attr]
        watchers.unwatch,
        udp.step,
        udp.carry_unknown,
        many,
        base.counters,
    )
    watchers.watch(ready, ready.fileno(), watchers.worker(ready.step).wake)
    base.descriptors.add(nat)
    return udp, splice, ready


def watch_listener(watchers: Watchers, listener: Listener, step: Callable[[UdpSocket], int]) -> None:
    """Call `step` with a listener, in a worker of its own, whenever its socket is readable."""
    assert listener.socket is not None
    watchers.watch_alone(listener, listener.socket.fileno(), step)


def _build_splice(base: Base, targets: LoopbackTargets, pool: SocketPool, receivers: dict[int, Receiver]) -> UdpSplice:
    watchers = base.watchers
    pairs = Pairs(
        targets,
        base.rules.shown(inside=True),
        base.rules.shown(inside=False),
        base.clock.now(),
    )

    def watch(pair: Pair, step: Callable[[Pair], int]) -> None:
        assert pair.socket is not None
        watchers.watch_alone(pair, pair.socket.fileno(), step)

    splice = UdpSplice(
        pairs, pool, watch, watchers.unwatch, base.raw, receivers, base.counters, base.features, base.descriptors
    )
    base.descriptors.add(splice)
    return splice


def build_services(base: Base, link: AnyLink) -> tuple[ServiceHandlers, ndp.Router | None]:
    """Make the handlers of services, and the router that is advertised, None if none is."""
    config, network = base.config, base.guest.network
    advertises = not (config.no_ra or config.config_net)
    unasked = advertises and network.ip6 is not None
    if network.ip6 and base.guest.many:
        # The prefix is that of the gateway. Most hosts are configured already, so only who asks gets an answer.
        network, unasked = replace(network, ip6=replace(network.ip6, address=network.ip6.gateway)), False
    router = None if config.no_ndp or config.no_icmp else ndp.Router(network, advertises, network.mtu)
    identifier = dhcpv6.duid(network.host_mac, int(time.time()) - dhcpv6.EPOCH)
    server = None if config.no_dhcpv6 else dhcpv6.Server(network, identifier)
    handlers = ServiceHandlers(link, base.guest, router, not config.no_dhcp, server)
    return handlers, router if unasked else None


def build_inside(
    base: Base,
    link: AnyLink,
    udp: UdpSockets,
    icmp: IcmpToGuest,
    handlers: ServiceHandlers,
    router: ndp.Router | None,
    end: End | None,
    tcp: Tcp | None,
    ended: Callable[[], None],
) -> Inside:
    """Make everything between the link and the sockets.

    :param tcp: the connections, None where TCP is not carried.
    :param ended: called when the guest is gone for good.
    """
    config, counters, watchers = base.config, base.counters, base.watchers
    pings = PingSockets(
        link,
        base.guest,
        icmp,
        counters,
        lambda flow: watchers.watch(flow, flow.socket.fileno(), echoes.wake, flow),
        watchers.unwatch,
        base.clock.now,
        base.descriptors,
    )
    base.descriptors.add(pings)
    echoes = watchers.worker(pings.step, conversational=False)
    table = _handlers(base, udp, pings, handlers, tcp)
    dispatch = Dispatch(base.guest, handlers.arp, table, counters, base.clock.now, link)
    fastpath = FastPath({} if config.no_udp else udp.nat.tables, tcp.table.by_key if tcp else None)
    frames = tcp.frames if tcp else None
    knows = fastpath.knows

    def known(frame: bytes) -> bool:
        return knows(frame) or (frames is not None and frames.knows(frame))

    routers = base.guest.routers

    def queue() -> Queue:
        backlog = Backlog(dispatch.frame, known, lambda: step.ask(), counters, routers=routers, link=link)
        run = link.gathering(backlog.step) if isinstance(link, Stream) else backlog.step
        step = watchers.repeat(watchers.worker(run, conversational=False))
        return Queue(backlog, step.ask)

    advertiser = Advertiser(link, base.guest, router, counters, base.clock.now)
    session = tap_filter = None
    reader: TapReader | StreamReader | UplinkReader
    if isinstance(link, Tap):
        backlog, _ = queue()

        def ports(limit: int) -> list[int]:
            found = list(udp.nat.active_ports(limit // 2))
            return found + (tcp.table.ports(limit - len(found)) if tcp else [])

        reader = tap_reader = TapReader(
            link, fastpath, udp, icmp, backlog, counters, base.features, tcp=frames, ring=base.ring
        )
        tap_filter = TapFilter(link, backlog, counters, routers, ports, tap_reader.emptied)
        backlog.crowd.notice = tap_filter.look
        _watch_tap(watchers, link, tap_reader, ended)
    elif isinstance(link, Stream):
        assert isinstance(end, (GuestListener, RawSocket))
        backlog, _ = queue()
        reader = stream_reader = StreamReader(
            link,
            fastpath,
            icmp,
            backlog,
            lambda: session_step.ask(),
            counters,
            base.features,
            tcp=frames,
            ring=base.ring,
        )
        session = GuestSession(
            end,
            link,
            stream_reader,
            lambda sock, callback: watchers.watch_guarded(sock, sock.fileno(), callback),
            watchers.unwatch,
            lambda: worker.wake(),
            advertiser.greet,
            base.descriptors.let_go,
            ended,
            config.one_off or not isinstance(end, GuestListener),
            tcp.departure if tcp else None,
        )
        worker = watchers.worker(link.gathering(session.step))
        session_step = watchers.repeat(worker)
    else:
        from gpasst.flow.guests import Guests
        from gpasst.path.uplink_reader import UplinkReader

        assert isinstance(base.guest, Guests)
        mac, placed = base.guest.network.host_mac, base.guest.placed
        reader = UplinkReader(mac, routers, fastpath, udp, queue, placed, counters, frames)
        base.guest.ask = advertiser.ask
    return Inside(reader, dispatch, pings, advertiser, session, tap_filter)


def _handlers(
    base: Base, udp: UdpSockets, pings: PingSockets, services: ServiceHandlers, tcp: Tcp | None
) -> dict[tuple[int, int], Handler]:
    """Make the table of handlers by family and IP protocol."""
    config = base.config
    echo: Handler = disabled if config.no_icmp else pings.request
    segments: Handler = tcp.frames.outbound if tcp else disabled
    by_type: dict[int, dict[int, Handler]] = {4: {}, 6: dict.fromkeys(ndp.TYPES, services.ndp)}
    by_type[6].update(dict.fromkeys(MLD_TYPES, chatter.membership))
    if not config.no_icmp and (tcp or not config.no_udp):
        too_big = tcp.frames.too_big if tcp else None
        to_sender = IcmpToSender(base.raw, udp.nat.tables, base.counters, too_big)
        for family, types in icmp_error.TYPES.items():
            by_type[family].update(dict.fromkeys(types, to_sender.take))
    return {
        (4, chatter.PROTOCOL_IGMP): chatter.membership,
        (4, PROTOCOL_UDP): udp.outbound,
        (6, PROTOCOL_UDP): udp.outbound,
        (4, PROTOCOL_TCP): segments,
        (6, PROTOCOL_TCP): segments,
        (4, PROTOCOL_ICMP): IcmpHandler(by_type[4], echo).handle,
        (6, PROTOCOL_ICMPV6): IcmpHandler(by_type[6], echo).handle,
    }


def _watch_tap(watchers: Watchers, tap: Tap, reader: TapReader, ended: Callable[[], None]) -> None:
    def step() -> int:
        try:
            return reader.step()
        except LinkGone as error:
            # The device went away, with its namespace or by somebody's hand.
            log.info("the tap ended: %s", error)
            watchers.unwatch(tap)
            ended()
            return 0

    watchers.watch(tap, tap.fd, watchers.worker(step).wake, events=READ)
