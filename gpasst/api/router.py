"""`Router`: joins two networks in this process, with NAT and a firewall if they are asked for.

Theory of operation: a router is a port of both switches and `gpasst.router.forwarding` between them. On the inside
network it is the gateway: its hosts have their default route there. Outside it is one of the hosts: with NAT its
address stands for all of the inside, and where nothing is translated the outside network has a route back. The routes
of the inside network it announces outside as well (`gpasst.api.routing`), so routers may be chained.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpasst.api.member import Member
from gpasst.api.network_base import check_network
from gpasst.api.routing import DEFAULT, prefix_of
from gpasst.api.seed import default
from gpasst.errors import ConfigurationError
from gpasst.impair.chance import WORD_BITS, Sequence
from gpasst.packet.address import V4, V6
from gpasst.records import replace
from gpasst.router import behaviour as presets
from gpasst.router.behaviour import Behaviour, Preset, dependence
from gpasst.router.firewall import parse
from gpasst.router.forwarding import Router as Forwarding
from gpasst.router.interface import INSIDE, OUTSIDE, Interface, Routes
from gpasst.router.interface import Route as Row
from gpasst.router.lease import Lease
from gpasst.router.record import NatMapping, mappings
from gpasst.switch.plan import MAC_PREFIX
from gpasst.values import check_seed

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.helper.request import Route
    from gpasst.link.switch import Data, Port
    from gpasst.proxy.lan import Lan
    from gpasst.proxy.timers import Deadline
    from gpasst.switch.plan import HostAddresses


class Router(Member):
    """A router between two networks. It routes when this returns, and ends with `close`, its ``with`` statement, or
    either network.

    ::

        with gpasst.Network("lan") as lan, gpasst.Network("net") as net:
            home = gpasst.Router("home", inside=lan, outside=net, nat=gpasst.Router.HOME)
            laptop, server = lan.host("laptop"), net.host("server")
            laptop.run(["ping", "-c1", server.ip4], check=True)

    NAT is of IPv4; IPv6 crosses with its own addresses, if both networks have it. Parameters that are None are as in a
    preset, or else as `gpasst.router.behaviour.Behaviour` has them.

    :param name: of the router, by which hosts of both networks find it.
    :param inside: the network whose gateway it is; one that has none yet.
    :param outside: another network.
    :param nat: the mapping behaviour, ``"endpoint-independent"``, ``"address-dependent"``,
        ``"address-and-port-dependent"`` or ``"symmetric"``, which is the same; None for no NAT; or one of the presets
        `HOME`, `CORPORATE`, `CARRIER_GRADE` and `MOBILE`, or its name.
    :param filtering: the filtering behaviour, one of the first three words; None for the word of the mapping.
    :param hairpin: whether inside hosts reach each other by their outside endpoints.
    :param port_preservation: whether outside ports equal inside ports where these are free.
    :param inbound_refresh: whether packets from outside keep a mapping, too.
    :param timeout: seconds without traffic after which a UDP mapping ends.
    :param tcp_timeout: likewise of an established connection.
    :param tcp_transitory: likewise of a connection that opens or has closed.
    :param icmp_timeout: likewise of an echo exchange.
    :param firewall: rules, such as ``["allow out tcp 80,443", "reject out"]`` (`gpasst.router.firewall`).
    :param seed: of the ports that chance chooses; None for that of the inside or the outside network, of the test run,
        or a random one.
    :raises ConfigurationError: if a value makes no sense; a network is not open, or has no address left; the inside has
        a gateway already; or the networks have no family in common.
    :ivar name: as above.
    :ivar inside: as above.
    :ivar outside: as above.
    :ivar behaviour: what it does.
    """

    HOME = presets.HOME
    CORPORATE = presets.CORPORATE
    CARRIER_GRADE = presets.CARRIER_GRADE
    MOBILE = presets.MOBILE

    def __init__(
        self,
        name: str,
        *,
        inside: NetworkBase,
        outside: NetworkBase,
        nat: str | Preset | None = presets.ENDPOINT_INDEPENDENT,
        filtering: str | None = None,
        hairpin: bool | None = None,
        port_preservation: bool | None = None,
        inbound_refresh: bool | None = None,
        timeout: float | None = None,
        tcp_timeout: float | None = None,
        tcp_transitory: float | None = None,
        icmp_timeout: float | None = None,
        firewall: Iterable[str] | None = None,
        seed: int | None = None,
    ) -> None:
        changes: dict[str, Any] = {
            "hairpin": hairpin,
            "port_preservation": port_preservation,
            "inbound_refresh": inbound_refresh,
            "timeout": timeout,
            "tcp_timeout": tcp_timeout,
            "tcp_transitory": tcp_transitory,
            "icmp_timeout": icmp_timeout,
            "firewall": _rules(firewall),
        }
        check_seed(seed)
        self.name = name
        self.inside = inside
        self.outside = outside
        self.behaviour = replace(
            _behaviour(nat, filtering), **{key: value for key, value in changes.items() if value is not None}
        )
        check_network(inside)
        check_network(outside)
        chosen = next((number for number in (seed, inside.seed, outside.seed) if number is not None), None)
        self._numbers = Sequence(f"router {name}", default() if chosen is None else chosen, "ports")
        self._drawn = 0
        self._addresses: tuple[HostAddresses, ...] = ()
        self._ports: list[Port] = []
        self._forwarding: Forwarding | None = None
        self._routes = Routes()
        self._deadline: Deadline | None = None
        self._closing = ExitStack()
        if inside.here() is not outside.here():
            raise ConfigurationError(
                f"networks {inside.name} and {outside.name} are on different event loops", "open both in one thread"
            )
        if inside is outside:
            raise ConfigurationError(f"router {name} leads from {inside.name} to itself", "name two networks")
        self._open()

    def __repr__(self) -> str:
        return f"<router {self.name} from {self.inside.name} to {self.outside.name}>"

    @property
    def inside_ip4(self) -> str:
        """Its IPv4 address in the inside network, empty without IPv4."""
        return self._of(INSIDE).ip4

    @property
    def inside_ip6(self) -> str:
        """Its IPv6 address there, likewise."""
        return self._of(INSIDE).ip6

    @property
    def outside_ip4(self) -> str:
        """Its IPv4 address in the outside network, which stands for all of the inside where there is NAT."""
        return self._of(OUTSIDE).ip4

    @property
    def outside_ip6(self) -> str:
        """Its IPv6 address there."""
        return self._of(OUTSIDE).ip6

    def rebind(self) -> None:
        """End all mappings, as a router does that starts again: what an inside endpoint sends next has another port."""
        forwarding = self._running()
        self.inside.call(lambda _: forwarding.rebind())

    def mappings(self) -> tuple[NatMapping, ...]:
        """Return the NAT mappings, oldest first; none without NAT."""
        forwarding = self._running()
        nat, own = forwarding.policy.nat, forwarding.policy.outside
        if nat is None or own is None:
            return ()
        return self.inside.call(lambda lan: mappings(nat, own, lan.clock.precise()))

    def close(self) -> None:
        """Take it away. More calls do nothing."""
        self._closing.pop_all().close()

    def addresses_in(self, network: object) -> tuple[str, ...]:
        """Return its addresses in a network, as text."""
        for side, own in enumerate(self._addresses):
            if network is self._networks[side]:
                return tuple(filter(None, (own.ip4, own.ip6)))
        return ()

    def reroute(self, network: object, added: Iterable[Route], removed: Iterable[Route]) -> None:
        """Take note that routes of a network have changed."""
        if self._forwarding is None:
            return
        side = INSIDE if network is self.inside else OUTSIDE
        for route in removed:
            prefix = prefix_of(route)
            if self._is_foreign(side, route):
                self._change(self._routes.remove, prefix)
                if side == INSIDE:
                    self.outside.routing.remove(prefix)
        for route in added:
            if self._is_foreign(side, route):
                assert route.gateway is not None
                row = Row(prefix_of(route), side, ipaddress.ip_address(route.gateway).packed)
                self._change(self._routes.add, row)
                if side == INSIDE:
                    self._announce(row.prefix, route.family)

    @property
    def _networks(self) -> tuple[NetworkBase, NetworkBase]:
        return self.inside, self.outside

    def _open(self) -> None:
        inside, outside = self._networks
        if any(route.destination is None for route in inside.routes):
            raise ConfigurationError(
                f"network {inside.name} has a gateway already", f"make it the outside of router {self.name}"
            )
        own = inside.gateway
        try:
            for network in self._networks:
                network.enter(self.name, self)
                self._closing.callback(self._left, network)
            there = outside.allot()
            self._closing.callback(outside.take_back, there)
            self._closing.callback(outside.forget, there)
            self._addresses = own, there
            families = [family for family in (V4, V6) if all(_address(side, family) for side in self._addresses)]
            if not families:
                raise ConfigurationError(
                    f"networks {inside.name} and {outside.name} have no address family in common",
                    "give both a subnet4, or both a subnet6",
                )
            self._closing.callback(self._disconnect)
            inside.call(lambda lan: outside.call(lambda other: self._connect(families, lan, other)))
            for network in self._networks:
                self.reroute(network, network.routes, ())
            for family in families:
                self._enter_route(inside, DEFAULT[family], _address(own, family))
                self._announce(_subnet(inside, family), family)
            self._closing.callback(setattr, inside, "outside", None)
            inside.outside = outside
            self._closing.callback(inside.look_beyond(outside))
            if self.behaviour.mapping is None:
                self._closing.callback(outside.look_beyond(inside))
            for network in self._networks:
                network.renamed()
        except BaseException:
            self.close()
            raise

    def _left(self, network: NetworkBase) -> None:
        network.leave(self.name)
        network.renamed()

    def _connect(self, families: list[int], *lans: Lan) -> None:
        """Make the forwarder and its two ports, on the hub."""
        interfaces = [
            Interface(
                own.mac,
                network.mtu,
                {family: ipaddress.ip_address(_address(own, family)).packed for family in families},
                {family: _subnet(network, family) for family in families},
            )
            for network, own in zip(self._networks, self._addresses, strict=True)
        ]
        for side, interface in enumerate(interfaces):
            for prefix in interface.prefixes.values():
                self._routes.add(Row(prefix, side))

        def sender(side: int) -> Callable[[Data], None]:
            switch = lans[side].switch
            return lambda data: switch.forward(self._ports[side], data)

        self._forwarding = forwarding = Forwarding(
            self.behaviour,
            (interfaces[INSIDE], interfaces[OUTSIDE]),
            self._routes,
            (sender(INSIDE), sender(OUTSIDE)),
            [lan.counters for lan in lans],
            self._chance,
            self._lease,
        )
        timers, clock = lans[INSIDE].timers, lans[INSIDE].clock.precise

        def arm() -> None:
            due, deadline = forwarding.due, self._deadline
            if due is not None and (deadline is None or deadline.callback is None or deadline.when > due):
                if deadline is not None:
                    deadline.cancel()
                self._deadline = timers.at(due, expire)

        def expire(now: float) -> None:
            self._deadline = None
            forwarding.expire(now)
            arm()

        def taker(side: int) -> Callable[[Data], None]:
            def take(data: Data) -> None:
                if forwarding.receive(side, data, clock()):
                    arm()

            return take

        for side, lan in enumerate(lans):
            self._ports.append(lan.add_inner(self.name, interfaces[side].mac, taker(side)))

    def _disconnect(self) -> None:
        """Leave both switches."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            self.inside.call_open(lambda _: deadline.cancel())
        ports, self._ports = self._ports, []
        self._forwarding = None
        for network, port in zip(self._networks, ports, strict=False):
            _remove(network, port)

    def _announce(self, prefix: str, family: int) -> None:
        """Let the outside have a route to a prefix inside, unless it is translated."""
        if family == V6 or self.behaviour.mapping is None:
            self._enter_route(self.outside, prefix, _address(self._addresses[OUTSIDE], family))

    def _enter_route(self, network: NetworkBase, prefix: str, gateway: str) -> None:
        own = _subnet(network, ipaddress.ip_network(prefix).version)
        if gateway and prefix != own and network.routing.add(prefix, gateway):
            self._closing.callback(network.routing.remove, prefix)

    def _is_foreign(self, side: int, route: Route) -> bool:
        """Return whether a route leads over another router, and not back to where this one came from."""
        own = self._addresses[side]
        inner_default = side == INSIDE and route.destination is None
        return route.gateway not in (own.ip4, own.ip6, None) and not inner_default

    def _change(self, change: Callable[[Any], None], value: object) -> None:
        """Change the routing table, on the hub."""
        forwarding = self._running()

        def work(_: Lan) -> None:
            change(value)
            forwarding.forget()

        self.inside.call(work)

    def _lease(self, mac: bytes) -> Lease | None:
        """Return what an inside host gets that asks for its addresses, None for one that is configured."""
        inside = self.inside
        if mac not in inside.unconfigured:
            return None if mac.startswith(MAC_PREFIX) else Lease()
        lines = map(str.split, inside.resolver_file.splitlines())
        resolvers = (ipaddress.ip_address(line[1]) for line in lines if line[:1] == ["nameserver"])
        # The MAC address was made of it, see `gpasst.switch.plan`.
        address = mac[len(MAC_PREFIX) :] if inside.subnet4 else None
        return Lease(address, tuple(resolver.packed for resolver in resolvers if resolver.version == V4))

    def _chance(self, below: int) -> int:
        self._drawn += 1
        return self._numbers.number(self._drawn) * below >> WORD_BITS

    def _of(self, side: int) -> HostAddresses:
        self._running()
        return self._addresses[side]

    def _running(self) -> Forwarding:
        if self._forwarding is None:
            raise ConfigurationError(f"router {self.name} is closed", "use it while its networks are open")
        return self._forwarding


def _behaviour(nat: str | Preset | None, filtering: str | None) -> Behaviour:
    """Return the behaviour of a preset, or of a word for the mapping; with other filtering if there is a word.

    :raises ConfigurationError: if a word is none.
    """
    found = presets.preset(nat)
    if found is None:
        assert not isinstance(nat, Preset)
        mapping = presets.mapping(nat)
        base = Behaviour(mapping, mapping or presets.ENDPOINT_INDEPENDENT)
    else:
        base = found.behaviour
    return base if filtering is None else replace(base, filtering=dependence("filtering", filtering))


def _rules(firewall: Iterable[str] | None) -> tuple[Any, ...] | None:
    if isinstance(firewall, str):
        raise ConfigurationError(f"firewall {firewall!r} is one text", f"pass a list of rules: [{firewall!r}]")
    if firewall is not None and not isinstance(firewall, Iterable):
        raise ConfigurationError(f"firewall {firewall!r} is no list of rules", "pass texts, as ['reject in']")
    return None if firewall is None else tuple(map(parse, firewall))


def _remove(network: NetworkBase, port: Port) -> None:
    network.call_open(lambda lan: lan.remove(port))


def _address(own: HostAddresses, family: int) -> str:
    return own.ip4 if family == V4 else own.ip6


def _subnet(network: NetworkBase, family: int) -> str:
    return network.subnet4 if family == V4 else network.subnet6
