"""The addresses that the parts of a topology have when they are opened in the order of the file."""

from __future__ import annotations

from itertools import count

from gpasst.switch.plan import GATEWAY, Network4, Network6, Plan, chosen
from gpasst.topology.records import Topology

Places = dict[tuple[str, str], tuple[str, ...]]
"""The addresses of a host or router on a network, by both names."""


def prefixes(topology: Topology) -> dict[str, Plan]:
    """Return the prefixes of each network, as `gpasst.Network` chooses them where none are named."""
    numbers = count()
    found = {}
    for network in topology.networks:
        subnets = network.subnet4, network.subnet6
        own4, own6 = chosen(next(numbers)) if None in subnets else ("", "")
        subnet4, subnet6 = subnets
        found[network.name] = Plan(own4 if subnet4 is None else subnet4, own6 if subnet6 is None else subnet6)
    return found


def overlap(one: Network4 | Network6, other: Network4 | Network6) -> bool:
    """Return whether two prefixes of one family have an address in common."""
    return one.version == other.version and one.overlaps(other)


def places(topology: Topology) -> Places:
    """Return the addresses of all hosts and routers."""
    plans = prefixes(topology)
    numbers = {name: count(plan.first) for name, plan in plans.items()}
    inner = {(router.name, router.inside) for router in topology.routers}
    found = {}
    for node in topology.nodes():
        for name in node.networks:
            number = GATEWAY if (node.name, name) in inner else next(numbers[name])
            found[node.name, name] = tuple(address for address, _ in plans[name].host(number).prefixes)
    return found
