"""The picture of a topology as text.

Theory of operation: each network is a double line downward, at which its hosts and routers hang in the order of the
file. A network that a host or router leads to hangs below that, unless it was drawn before; the first of those that
have an uplink, or are behind no router, is the root. So one topology has one picture, and the picture of a network of
any size is as wide as its longest line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gpasst.topology.records import LINK, NetworkPlan, Node, RouterPlan, Setting, Topology

Places = Mapping[tuple[str, str], tuple[str, ...]]
"""The addresses of a host or router on a network, by both names."""

BUS, TEE, END = "║", "╟── ", "╙── "
UPLINK: Final = "uplink"
WEATHER_MARK: Final = "~ "
GAP: Final = "  "  # between two facts


def roots(topology: Topology) -> list[str]:
    """Return the names of all networks, those first that a picture begins with."""
    inner = {router.inside for router in topology.routers}
    outer = [network.name for network in topology.networks if network.uplink]
    outer += [network.name for network in topology.networks if network.name not in inner]
    return list(dict.fromkeys([*outer, *(network.name for network in topology.networks)]))


def reached(topology: Topology, network: str) -> list[Node]:
    """Return what hangs at a network, in the order of the file."""
    return [node for node in topology.nodes() if network in node.networks]


def network_facts(network: NetworkPlan) -> list[str]:
    """Return what a picture says of a network beside its name."""
    facts = [network.subnet4, network.subnet6, f"mtu {network.mtu}" if network.mtu else ""]
    return [fact for fact in facts if fact]


def node_facts(node: Node) -> list[str]:
    """Return what a picture says of a host or router beside its name and addresses, line by line."""
    if isinstance(node, RouterPlan):
        return [f"router to {node.inside}", *(f"{key} {_setting(value)}" for key, value in node.settings)]
    return [
        *(["forwarding"] if node.forwarding else []),
        *(f"forward {forward}" for forward in node.forward),
        *(f"$ {command}" for command in node.run),
    ]


def draw(topology: Topology, places: Places | None = None) -> str:
    """Return the picture of a topology.

    :param places: the addresses, as far as they are known.
    """
    drawn: set[str] = set()
    lines: list[str] = []
    for name in roots(topology):
        if name not in drawn:
            lines += _network(topology, name, places or {}, drawn)
    return "\n".join(line.rstrip() for line in lines)


def _network(topology: Topology, name: str, places: Places, drawn: set[str]) -> Iterator[str]:
    """Yield the lines of a network and of all below it."""
    drawn.add(name)
    (network,) = (item for item in topology.networks if item.name == name)
    if network.uplink:
        yield UPLINK
        yield "│"
    yield GAP.join([name, *network_facts(network)])
    nodes = reached(topology, name)
    hanging = [node.name for node in nodes]
    for weather in topology.weather:
        if weather.network == name and (weather.kind != LINK or weather.place not in hanging):
            yield f"{BUS}   {WEATHER_MARK}{weather.place}: {weather.effect}"
    for node in nodes:
        last = node is nodes[-1]
        yield BUS
        first, *others = _node(topology, node, name, places, drawn)
        yield f"{END if last else TEE}{first}"
        for line in others:
            yield f"{' ' if last else BUS}   {line}"


def _node(topology: Topology, node: Node, network: str, places: Places, drawn: set[str]) -> Iterator[str]:
    """Yield the lines of a host or router, as it hangs at a network."""
    before = [name for name in node.networks if name in drawn and name != network]
    facts = [*places.get((node.name, network), ()), *(f"see {name} above" for name in before[:1])]
    yield GAP.join([node.name, *facts])
    for weather in topology.weather:
        if weather.network == network and weather.kind == LINK and weather.groups == ((node.name,),):
            yield f"{WEATHER_MARK}{weather.effect}"
    if before:
        return
    yield from node_facts(node)
    for name in node.networks:
        if name not in drawn:
            yield "│"
            yield from _network(topology, name, places, drawn)


def _setting(value: Setting) -> str:
    if isinstance(value, tuple):
        return "; ".join(value)
    return "none" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
