"""What all parts of a proxy share, made before any of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpasst.config import Config
from gpasst.counters import Counters
from gpasst.features import Feature
from gpasst.flow.guest import Guest
from gpasst.flow.listeners import PortRules, lay_rules
from gpasst.flow.loopback import LoopbackTargets
from gpasst.flow.network import GuestNetwork, pack
from gpasst.helper.client import Namespace
from gpasst.host.descriptors import Descriptors
from gpasst.host.own_sockets import OwnSockets
from gpasst.host.raw import RawSockets
from gpasst.host.ring_forms import open_ring
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import supported
from gpasst.host.tcp import lacking
from gpasst.proxy.clock import Clock
from gpasst.proxy.workers import Watchers
from gpasst.records import dataclass

if TYPE_CHECKING:
    from gpasst.flow.guests import Allot
    from gpasst.host.ring import Ring

MICROSECONDS = 1_000_000
USO_FAMILIES = {4: "uso4", 6: "uso6"}  # names of the tap's offloads
TSO_FAMILIES = {4: "tso4", 6: "tso6"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a proxy has that is the gateway of a network, in the place of a guest's end.

    :ivar allot: chooses addresses for leases.
    :ivar watchers: those of the network.
    """

    allot: Allot
    watchers: Watchers


@dataclass(frozen=True, slots=True)
class Base:
    """The parts that all others share.

    :ivar config: the options.
    :ivar namespace: the guest's namespace, None for a virtual machine and for the hosts of a network.
    :ivar targets: where loopback traffic leads, None for a virtual machine.
    :ivar rules: the forward rules.
    :ivar guest: the guest.
    :ivar counters: all counters.
    :ivar features: the ways to move more than one datagram at once that are wanted and supported.
    :ivar ring: makes many calls in one, None without `Feature.RING`.
    :ivar watchers: owner of every watcher and greenlet.
    :ivar pool: sockets of the namespace, None without one.
    :ivar raw: raw sockets of both sides.
    :ivar own: the proxy's own sockets.
    :ivar descriptors: the limit of open files, and what gives way near it.
    :ivar clock: the time.
    """

    config: Config
    namespace: Namespace | None
    targets: LoopbackTargets | None
    rules: PortRules
    guest: Guest
    counters: Counters
    features: frozenset[Feature]
    ring: Ring | None
    watchers: Watchers
    pool: SocketPool | None
    raw: RawSockets
    own: OwnSockets
    descriptors: Descriptors
    clock: Clock


def build_base(
    config: Config,
    network: GuestNetwork,
    namespace: Namespace | None,
    ephemeral: tuple[int, int],
    hub: object,
    clock: Clock,
    polls: bool,
    gateway: Gateway | None = None,
) -> Base:
    """Make the shared parts; the parameters are those of `gpasst.proxy.proxy.Proxy`."""
    features = (config.features & supported()) - lacking()
    if namespace and namespace.tap >= 0:
        lacks = {Feature.USO: USO_FAMILIES[4], Feature.TSO: TSO_FAMILIES[4]}
        features -= {feature for feature, name in lacks.items() if name not in namespace.offloads}
    counters = Counters()
    link_local = pack(namespace.link_local) if namespace and namespace.link_local else None
    rules = lay_rules(config, ephemeral, namespace.ephemeral if namespace else None)
    pool = SocketPool(namespace.sockets, namespace.bind) if namespace else None
    if gateway:
        from gpasst.flow.guests import Guests

        guest: Guest = Guests(network, gateway.allot)
    else:
        guest = Guest(network, namespace.mac if namespace else None, link_local)
    targets = None
    if namespace:
        targets = LoopbackTargets(guest.addresses, config.keeps_loopback, namespace.index, inward=not config.no_splice)
    busy_poll = config.busy_poll / MICROSECONDS if polls else 0.0
    watchers = Watchers(hub, counters, busy_poll, gateway.watchers if gateway else None)
    # The last part, since nobody would close it if another one failed.
    ring = _open_ring() if Feature.RING in features else None
    if ring is None:
        features -= {Feature.RING}
    missing = config.features - features
    if missing:
        log.info("not supported by this kernel: %s", ", ".join(sorted(feature.value for feature in missing)))
    return Base(
        config,
        namespace,
        targets,
        rules,
        guest,
        counters,
        features,
        ring,
        watchers,
        pool,
        RawSockets(pool),
        OwnSockets(rules.following),
        Descriptors(),
        clock,
    )


def _open_ring() -> Ring | None:
    """Open the ring of the proxy; return None where there is none to be had."""
    try:
        return open_ring()
    except OSError as error:
        log.debug("no io_uring: %s", error.strerror)
        return None
