"""The networks of a topology, opened.

Theory of operation: parts are opened in the order of the file: networks, then hosts, then routers, so that addresses
are those that the picture shows. All of it is entered into one exit stack, which closes it in the reverse order, also
what was opened before an error. An error names the table of the file that it came of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from gpasst.api.host import Host
from gpasst.api.network import Network
from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.topology.addresses import Places
from gpasst.topology.records import BETWEEN, PARTITION, HostPlan, NetworkPlan, RouterPlan, Topology, WeatherPlan

if TYPE_CHECKING:
    from gpasst.api.impairments import Impairment
    from gpasst.api.network_sections import Partition
    from gpasst.api.router import Router


class Parts:
    """Open networks, hosts and routers.

    :param stack: what closes them.
    :ivar networks: by their names; so are `hosts` and `routers`.
    :ivar ports: the text and the first port of this machine of each forward, by the name of its host.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.networks: dict[str, Network] = {}
        self.hosts: dict[str, Host] = {}
        self.routers: dict[str, Router] = {}
        self.ports: dict[str, list[tuple[str, int]]] = {}

    def open(self, topology: Topology, stopped: Callable[[], bool]) -> None:
        """Open all parts of a topology, unless it is stopped meanwhile.

        :param stopped: returns whether it is.
        :raises GpasstError: if something is in the way.
        """
        for network in topology.networks:
            with _blamed(f"[network.{network.name}]"):
                self.networks[network.name] = self._network(network)
        for host in topology.hosts:
            if stopped():
                return
            with _blamed(f"[host.{host.name}]"):
                self.hosts[host.name] = self._host(host)
        for router in topology.routers:
            with _blamed(f"[router.{router.name}]"):
                self.routers[router.name] = self._router(router)
        for weather in topology.weather:
            if weather.start:
                # What is wrong with it shows now, and not in the midst of a test.
                self.begin(weather).remove()

    def begin(self, plan: WeatherPlan) -> Impairment | Partition:
        """Put weather in force; return what ends it.

        :raises GpasstError: if its rules make no sense there.
        """
        network = self.networks[plan.network]
        with _blamed(f"[[weather]] {plan.place}"):
            if plan.kind == PARTITION:
                return network.partition(*plan.groups)
            first, *others = (name for group in plan.groups for name in group)
            if plan.kind == BETWEEN:
                return network.between(first, *others).impair(plan.rules, one_way=plan.one_way)
            return network.link(first).impair(plan.rules)

    def places(self) -> Places:
        """Return the addresses of all hosts and routers."""
        members = {**self.hosts, **self.routers}
        found = {
            (name, on): member.addresses_in(network)
            for name, member in members.items()
            for on, network in self.networks.items()
        }
        return {place: addresses for place, addresses in found.items() if addresses}

    def _network(self, plan: NetworkPlan) -> Network:
        given: dict[str, Any] = {} if plan.mtu is None else {"mtu": plan.mtu}
        network = self._stack.enter_context(
            Network(
                plan.name,
                subnet4=plan.subnet4,
                subnet6=plan.subnet6,
                seed=plan.seed,
                uplink=plan.uplink,
                **given,
            )
        )
        if plan.capture:
            self._stack.enter_context(network.capture(plan.capture))
        return network

    def _host(self, plan: HostPlan) -> Host:
        first, *others = (self.networks[name] for name in plan.networks)
        host = first.host(plan.name, forwarding=plan.forwarding)
        for network in others:
            network.join(host)
        for forward in plan.forward:
            opened = host.forward(forward.protocol, forward.ports)
            self.ports.setdefault(plan.name, []).append((str(forward), opened.port))
        return host

    def _router(self, plan: RouterPlan) -> Router:
        from gpasst.api.router import Router

        settings: dict[str, Any] = dict(plan.settings)
        inside, outside = self.networks[plan.inside], self.networks[plan.outside]
        return self._stack.enter_context(Router(plan.name, inside=inside, outside=outside, **settings))


@contextmanager
def _blamed(table: str) -> Iterator[None]:
    """Put the table of the file before an error."""
    try:
        yield
    except (ConfigurationError, PlatformError) as error:
        blamed: GpasstError = type(error)(f"{table} {error.message}", error.remedy)
        raise blamed from None
