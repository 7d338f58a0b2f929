"""The routes of a network beside those of its own prefixes: to its gateway, and to networks behind routers.

Theory of operation: a route is one of the network, so every member has it: a host that opens later gets it with its
interface, one that is there gets it now, and a router enters it in its own table (`Member.reroute`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpasst.api.member import Member
from gpasst.helper.request import Route

if TYPE_CHECKING:
    from gpasst.api.handle import Handle

DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
"""The prefix of every address, by family."""


class Routing:
    """The routes of one network.

    :param network: the network.
    :param members: what it has, by name.
    :param ending: returns whether all of them end now, so that none has to know.
    """

    def __init__(self, network: object, members: dict[str, Handle], ending: Callable[[], bool]) -> None:
        self._network = network
        self._members = members
        self._ending = ending
        self._routes: dict[str, Route] = {}

    @property
    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return tuple(self._routes.values())

    def add(self, prefix: str, gateway: str) -> bool:
        """Enter a route; return False if there is one of that prefix already.

        :param prefix: such as ``"10.77.1.0/24"``; one of `DEFAULT` for every other address.
        :param gateway: address of the router, in this network.
        """
        if prefix in self._routes:
            return False
        network = ipaddress.ip_network(prefix)
        everything = prefix == DEFAULT[network.version]
        destination = None if everything else str(network.network_address)
        route = self._routes[prefix] = Route(destination, network.prefixlen, gateway, family=network.version)
        self._announce((route,), ())
        return True

    def remove(self, prefix: str) -> None:
        """Remove a route; more calls do nothing."""
        route = self._routes.pop(prefix, None)
        if route is not None:
            self._announce((), (route,))

    def _announce(self, added: tuple[Route, ...], removed: tuple[Route, ...]) -> None:
        for member in [] if self._ending() else list(self._members.values()):
            if isinstance(member, Member):
                member.reroute(self._network, added, removed)


def prefix_of(route: Route) -> str:
    """Return the prefix of a route."""
    return f"{route.destination}/{route.prefix}" if route.destination else DEFAULT[route.family]
