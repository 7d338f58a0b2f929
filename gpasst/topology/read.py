"""Network files: their text to a topology, or to the one line that refuses it.

A file has tables ``[network.NAME]``, ``[host.NAME]``, ``[router.NAME]`` and ``[[weather]]`` (docs/network-files.md).
Values are checked by the rules of whoever takes them where these are pure; and what tables demand of each other is
checked here, so that what is wrong with a file shows before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any, Final

from gpasst.config import MTU_DEFAULT, MTU_MINIMUM
from gpasst.errors import ConfigurationError
from gpasst.linux import IPV6_MIN_MTU
from gpasst.records import replace
from gpasst.switch.plan import GATEWAY_NAME, LOCAL_NAMES, Plan, chosen
from gpasst.topology import readers
from gpasst.topology.addresses import overlap, prefixes
from gpasst.topology.records import (
    BETWEEN,
    LINK,
    PARTITION,
    HostPlan,
    NetworkPlan,
    RouterPlan,
    Setting,
    Topology,
    WeatherPlan,
)
from gpasst.topology.source import Source, Table
from gpasst.values import SEED_MAXIMUM, check_host_name, check_interface, number, shown, similar

NETWORK, HOST, ROUTER, WEATHER = "network", "host", "router", "weather"
KINDS: Final = (NETWORK, HOST, ROUTER, WEATHER)
NETWORKS_MAXIMUM: Final = 200
# Parameters of `gpasst.Router` beside its networks.
ROUTER_FLAGS: Final = ("hairpin", "port_preservation", "inbound_refresh")
ROUTER_TIMES: Final = ("timeout", "tcp_timeout", "tcp_transitory", "icmp_timeout")


def read(text: str) -> Topology:
    """Return the topology of a network file.

    :param text: the file, in TOML.
    :raises ConfigurationError: naming line and table, what is wrong there, and the remedy.
    """
    source = Source(text)
    for kind in source.values:
        if kind not in KINDS:
            found = Table(source, (kind,), {})
            raise found.fault("", "is no table of a network file", f"{similar(kind, KINDS)}use {', '.join(KINDS)}")
    networks = tuple(_network(name, table) for name, table in _tables(source, NETWORK))
    if not networks:
        raise ConfigurationError("the file has no network", "add a table like [network.lan]")
    if len(networks) > NETWORKS_MAXIMUM:
        raise ConfigurationError(f"the file has {len(networks)} networks", f"{NETWORKS_MAXIMUM} are the most")
    topology = Topology(networks)
    topology = replace(topology, hosts=tuple(_host(topology, name, table) for name, table in _tables(source, HOST)))
    for name, table in _tables(source, ROUTER):
        topology = replace(topology, routers=(*topology.routers, _router(topology, name, table)))
    _check_room(topology, source)
    entries = source.values.get(WEATHER, [])
    if not isinstance(entries, list):
        raise Table(source, (WEATHER,), {}).fault("", "is one table", "write [[weather]], which there may be many of")
    tables = [Table(source, (WEATHER,), values, index) for index, values in enumerate(entries)]
    return replace(topology, weather=tuple(_weather(topology, table) for table in tables))


def _tables(source: Source, kind: str) -> list[tuple[str, Table]]:
    """Return the tables ``[kind.NAME]``, by their names."""
    values = source.values.get(kind, {})
    if not isinstance(values, dict):
        raise Table(source, (kind,), {}).fault("", "has no names", f"write a table like [{kind}.NAME]")
    return [(name, Table(source, (kind, name), inner)) for name, inner in values.items()]


def _network(name: str, table: Table) -> NetworkPlan:
    _check_name(table, name, check_interface)
    network = NetworkPlan(
        name,
        table.take("subnet4", readers.subnet, None),
        table.take("subnet6", readers.subnet, None),
        table.take("mtu", readers.whole(number(MTU_MINIMUM, MTU_DEFAULT, "bytes")), None),
        table.take("seed", readers.whole(number(0, SEED_MAXIMUM)), None),
        table.take("uplink", readers.flag, False),
        table.take("capture", readers.text, ""),
    )
    table.end()
    if network.mtu is not None and network.mtu < IPV6_MIN_MTU:
        if network.subnet6:
            fault = f"mtu = {network.mtu}: is too small for IPv6"
            raise table.fault("mtu", fault, f"give {IPV6_MIN_MTU} or more, or no subnet6")
        network = replace(network, subnet6="")
    own4, own6 = chosen(0)
    subnet4, subnet6 = network.subnet4, network.subnet6
    for key, subnets in (
        ("subnet4", (subnet4 or own4, own6)),
        ("subnet6", (own4, subnet6 or own6)),
        ("", (own4 if subnet4 is None else subnet4, own6 if subnet6 is None else subnet6)),
    ):
        try:
            Plan(*subnets)
        except ConfigurationError as error:
            raise table.fault(key, error.message, error.remedy) from None
    return network


def _host(topology: Topology, name: str, table: Table) -> HostPlan:
    _check_name(table, name, check_host_name)
    known = [network.name for network in topology.networks]
    networks = _in_networks(table, known)
    host = HostPlan(
        name,
        networks,
        table.take("forwarding", readers.flag, False),
        table.take("run", readers.commands, ()),
        table.take("wait_bound", readers.listed(readers.port), ()),
        table.take("forward", readers.listed(readers.forward), ()),
    )
    table.end()
    _check_place(topology, name, networks, table)
    if host.forwarding and len(networks) == 1:
        raise table.fault("forwarding", "forwards between networks, and is in one", "add another one to networks")
    if host.wait_bound and not host.run:
        raise table.fault("wait_bound", "waits for a port, and runs nothing that binds it", "add run")
    if host.forward and not any(network.uplink for network in topology.networks if network.name in networks):
        raise table.fault(
            "forward", "has no uplink, through which forwards lead", f"add uplink = true to [network.{networks[0]}]"
        )
    return host


def _in_networks(table: Table, known: list[str]) -> tuple[str, ...]:
    """Return the networks of a host; of the only one no name is needed."""
    read = readers.listed(readers.member(known, "network"))
    if len(known) == 1:
        return table.take("networks", read, (known[0],))
    return table.need("networks", read, f'["{known[0]}"]')


def _router(topology: Topology, name: str, table: Table) -> RouterPlan:
    _check_name(table, name, check_host_name)
    if name in [host.name for host in topology.hosts]:
        raise table.fault("", f"has the name of a host, [host.{name}]", "choose another one")
    member = readers.member([network.name for network in topology.networks], "network")
    inside = table.need("inside", member, f'"{topology.networks[0].name}"')
    outside = table.need("outside", member, f'"{topology.networks[-1].name}"')
    if inside == outside:
        raise table.fault("outside", f"leads from {inside} to itself", "name two networks")
    reading: dict[str, Callable[[Any], Setting]] = {
        "nat": readers.nat,
        "filtering": readers.filtering,
        **dict.fromkeys(ROUTER_FLAGS, readers.flag),
        **dict.fromkeys(ROUTER_TIMES, readers.seconds),
        "firewall": readers.firewall,
        "seed": readers.whole(number(0, SEED_MAXIMUM)),
    }
    given = [key for key in reading if table.has(key)]
    values = {key: table.take(key, reader, None) for key, reader in reading.items()}
    table.end()
    router = RouterPlan(name, inside, outside, tuple((key, values[key]) for key in given))
    _check_place(topology, name, router.networks, table)
    if inside in [network.name for network in topology.networks if network.uplink]:
        raise table.fault(
            "inside", f"is the gateway of {inside}, which is its uplink already", "exchange both networks"
        )
    if inside in [other.inside for other in topology.routers]:
        raise table.fault(
            "inside", f"is the gateway of {inside}, which has another router", "give it a network of its own"
        )
    return router


def _weather(topology: Topology, table: Table) -> WeatherPlan:
    known = [network.name for network in topology.networks]
    member = readers.member(known, "network")
    network = known[0] if len(known) == 1 else ""
    network = table.take("network", member, network) if network else table.need("network", member, f'"{known[0]}"')
    named = [node.name for node in topology.nodes() if network in node.networks]
    named += [GATEWAY_NAME for other in topology.networks if other.name == network and other.uplink]
    on_it = readers.member(named, f"host of {network}")
    kinds: dict[str, tuple[tuple[str, ...], ...]] = {
        BETWEEN: table.take(BETWEEN, readers.pair(on_it), ()),
        LINK: table.take(LINK, lambda value: ((on_it(value),),), ()),
        PARTITION: table.take(PARTITION, readers.groups(on_it), ()),
    }
    given = [kind for kind, groups in kinds.items() if groups]
    if len(given) != 1:
        raise table.fault("", f"has {len(given)} of between, link and partition", "give one of them")
    (kind,) = given
    start = table.take("from", readers.time, 0)
    until = table.take("until", readers.time, None)
    if until is not None and until <= start:
        raise table.fault("until", "until is no later than from", "give a later time")
    one_way = table.take("one_way", readers.flag, False)
    if one_way and kind != BETWEEN:
        raise table.fault(
            "one_way", f"one_way is about between, not {kind}", 'leave it out; a rule may begin with "to guest:"'
        )
    rules: tuple[str, ...] = table.take("rule", readers.rules, ())
    if rules and kind == PARTITION:
        raise table.fault("rule", "has both partition, which loses every frame, and rule", "leave rule out")
    if not rules and kind != PARTITION:
        raise table.fault("", "rule is missing", 'write it like rule = "delay 20ms"')
    table.end()
    return WeatherPlan(network, kind, kinds[kind], rules, one_way, start, until)


def _check_place(topology: Topology, name: str, networks: Iterable[str], table: Table) -> None:
    """Refuse a host or router on two networks of one prefix, or with a name that leads elsewhere."""
    if name in LOCAL_NAMES:
        raise table.fault("", "has a name that each host has for itself", "choose another one")
    for network in topology.networks:
        if network.uplink and network.name in networks and name == GATEWAY_NAME:
            raise table.fault("", f"has the name of the uplink of {network.name}", "choose another one")
    plans = prefixes(topology)
    for first, second in combinations(networks, 2):
        for one, other in ((plans[first].ip4, plans[second].ip4), (plans[first].ip6, plans[second].ip6)):
            if one and other and overlap(one, other):
                raise table.fault(
                    "",
                    f"is in {first} and {second}, whose prefixes {one} and {other} overlap",
                    f"give [network.{second}] another one",
                )


def _check_room(topology: Topology, source: Source) -> None:
    """Refuse more hosts on a network than its prefixes have addresses for."""
    for name, plan in prefixes(topology).items():
        used = sum(name == router.outside for router in topology.routers)
        used += sum(name in host.networks for host in topology.hosts)
        if used > (room := plan.last - plan.first + 1):
            fault = f"has {used} hosts and routers, and addresses for {room}"
            raise Table(source, (NETWORK, name), {}).fault("", fault, "give a shorter prefix as subnet4")


def _check_name(table: Table, name: str, rule: Callable[[str], object]) -> None:
    try:
        rule(name)
    except ConfigurationError as error:
        raise table.fault("", f"{shown(name)} {error.message}", error.remedy) from None
