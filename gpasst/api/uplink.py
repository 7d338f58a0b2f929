"""`Uplink`: the way of a network's hosts to the outside, through sockets of this process.

Theory of operation: the uplink is a proxy like that of a single namespace, whose link is a port of the network's switch
(`gpasst.link.uplink`) and whose guest is all hosts (`gpasst.flow.guests`). So a host's datagrams and connections leave
from sockets of this process, as if its programs had opened them here, and ports of two hosts do not collide. The
gateway's address leads to this machine's loopback, and on port 53 to its resolver.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gpasst.api.connection import RESOLVER_FILE, read_text, report
from gpasst.api.counted import Counted
from gpasst.api.forwards import check_protocol
from gpasst.api.handle import Handle
from gpasst.api.serving import Serving
from gpasst.config import Config, PortSide, parse_ports
from gpasst.errors import ConfigurationError
from gpasst.flow.network import build_network
from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.flow.shared_network import shared_network
from gpasst.helper.request import Route
from gpasst.host.sockets import text
from gpasst.hub import wait_read
from gpasst.link.switch import InnerPort
from gpasst.packet.address import V4, V6
from gpasst.proxy.base import Gateway
from gpasst.proxy.proxy import Proxy
from gpasst.records import replace
from gpasst.switch.plan import GATEWAY, GATEWAY_NAME, HostAddresses, Plan
from gpasst.values import shown

if TYPE_CHECKING:
    from gpasst.counters import Statistics
    from gpasst.flow.record import Flow, Forward
    from gpasst.portspec import ForwardRule
    from gpasst.proxy.forwarder import Added
    from gpasst.proxy.lan import Lan
    from gpasst.runtime import Runtime

CALL = "forward"  # in messages
LEASES_SHARE = 4  # of the addresses of a network, the part that may be leased to strangers


class HostForward(Handle):
    """Ports of this machine that lead to a host; ends with `close`, its ``with`` statement or the network.

    :ivar protocol: ``"tcp"`` or ``"udp"``.
    :ivar specification: the ports, as they were given.
    :ivar forwards: each listener; of a port that the kernel chose one for each family, with the same number.
    :ivar port: the port of the first listener.
    :ivar addresses: the host's, as text.
    """

    def __init__(
        self, uplink: Uplink, addresses: tuple[str, ...], protocol: str, specification: str, added: Added
    ) -> None:
        self.protocol = protocol
        self.specification = specification
        self.forwards: tuple[Forward, ...] = added.forwards
        self.port = added.forwards[0].port
        self.addresses = addresses
        self._uplink = uplink
        self._added: Added | None = added

    def __repr__(self) -> str:
        return f"<forward {self.protocol} {self.specification}>"

    def close(self) -> None:
        """Close the listeners, and end what passes them but for accepted connections. More calls do nothing."""
        added, self._added = self._added, None
        if added is not None:
            self._uplink.remove_forward(self, added)


class Uplink(Serving, Counted):
    """The uplink of a network, `Network.uplink`; `Network.link` takes it for the link of the gateway.

    :param plan: the addresses of the network.
    :param allot: returns the addresses of the next host.
    :param mtu: of its links, in bytes.
    :param lan: the network's parts; the calling greenlet is of their hub.
    :param here: the runtime.
    :param changed: called when programs in hosts have another resolver.
    :raises GpasstError: if the host's configuration cannot be read.
    :ivar name: of the gateway, where links are named.
    """

    mode = "network"
    name = GATEWAY_NAME

    def __init__(
        self,
        plan: Plan,
        allot: Callable[[], HostAddresses],
        mtu: int,
        lan: Lan,
        here: Runtime,
        changed: Callable[[], None],
    ) -> None:
        self.config = Config(mtu=mtu)
        self._runtime = here
        self._proxy = None
        self._lan = lan
        self._changed = changed
        self._next = allot
        self._forwards: set[HostForward] = set()
        self._leases = (plan.last - plan.first) // LEASES_SHARE
        facts = here.helper().facts(wait_read)
        outside = build_network(self.config, facts, parse_resolver_file(read_text(RESOLVER_FILE)), advertises=True)
        report(*outside.notes)
        gateway = plan.host(GATEWAY)
        prefixes = dict(gateway.prefixes)
        self._network = network = shared_network(
            outside,
            ipaddress.IPv4Interface(f"{gateway.ip4}/{prefixes[gateway.ip4]}") if gateway.ip4 else None,
            ipaddress.IPv6Interface(f"{gateway.ip6}/{prefixes[gateway.ip6]}") if gateway.ip6 else None,
            gateway.mac,
            mtu,
        )
        first, last = facts["ephemeral"]
        shares = Gateway(self._allot, lan.watchers)
        self._proxy = proxy = Proxy(self.config, network, None, (first, last), here.polls, gateway=shares)
        self._port: InnerPort | None = lan.add_inner(self.name, gateway.mac, proxy.uplink_reader.take)
        lan.switch.answered = proxy.uplink_reader.answers
        assert proxy.uplink is not None
        proxy.uplink.forward = partial(lan.switch.forward, self._port)

    def close(self) -> None:
        """Close the sockets; called on the hub. More calls do nothing."""
        proxy, self._proxy = self._proxy, None
        port, self._port = self._port, None
        self._forwards.clear()
        self._resolvers = ()
        if proxy is not None:
            proxy.close()
        if port is not None:
            self._lan.switch.answered = None
            self._lan.remove(port)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The default routes of hosts: of each family that leads anywhere."""
        families = [family for family in (self._network.ip4, self._network.ip6) if family and family.routed]
        return tuple(Route(None, 0, text(family.gateway), family=family.family) for family in families)

    @property
    def resolver_file(self) -> str:
        """The text of /etc/resolv.conf for programs in hosts, empty where this machine has no resolver."""
        if own := self._served_file():
            return own
        families = [family for family in (self._network.ip4, self._network.ip6) if family]
        lines = [f"nameserver {text(address)}" for family in families for address in family.resolvers]
        if lines and self._network.search:
            lines.append(f"search {' '.join(self._network.search)}")
        return "".join(f"{line}\n" for line in lines)

    def _resolver_changed(self) -> None:
        self._changed()

    def place(self, addresses: HostAddresses, configured: bool) -> None:
        """Take note of a host's addresses.

        :param configured: whether it has them already, and needs no router advertisement.
        """
        ip4, ip6 = _packed(addresses)
        self._call(lambda proxy: proxy.guests.place(addresses.mac, ip4, ip6, configured))

    def forget(self, addresses: HostAddresses) -> None:
        """End all flows of a host that has ended, and the forwards to it."""
        for forward in list(self._forwards):
            if not {addresses.ip4, addresses.ip6}.isdisjoint(forward.addresses):
                forward.close()
        own = [address for address in _packed(addresses) if address]
        self._call(lambda proxy: proxy.forget(own))

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The open listeners of all hosts."""
        return self._call(lambda proxy: proxy.forwards)

    def flows(self) -> tuple[Flow, ...]:
        """Return every tracked peer and connection of all hosts."""
        return self._call(lambda proxy: proxy.flows())

    def statistics(self) -> Statistics:
        """Return the counters of traffic and drops of all hosts together."""
        return self._call(lambda proxy: proxy.statistics())

    def forward(self, name: str, addresses: tuple[str, ...], protocol: str, specification: str) -> HostForward:
        """Let ports of this machine lead to a host; see `Host.forward`.

        :param name: the host's name, for messages.
        :param addresses: the host's, as text, at most one of a family.
        """
        rules = _rules(name, addresses, protocol, specification, frozenset(self._families()))
        side = PortSide(protocol, inside=False)
        added = self._call(lambda proxy: proxy.add_forward(side, rules))
        forward = HostForward(self, addresses, protocol, specification, added)
        self._forwards.add(forward)
        return forward

    def remove_forward(self, forward: HostForward, added: Added) -> None:
        """Close the listeners of a forward."""
        self._forwards.discard(forward)
        if self._proxy is not None:
            self._call(lambda proxy: proxy.remove_forward(added))

    def _allot(self, mac: bytes) -> tuple[bytes | None, bytes | None]:
        """Choose addresses for a MAC address that asks for a lease; see `gpasst.flow.guests`.

        A host can invent MAC addresses, so most addresses are left for hosts of the network.
        """
        del mac
        self._leases -= 1
        try:
            return _packed(self._next()) if self._leases >= 0 else (None, None)
        except ConfigurationError:
            return None, None

    def _families(self) -> list[int]:
        return [family.family for family in (self._network.ip4, self._network.ip6) if family]


def _packed(addresses: HostAddresses) -> tuple[bytes | None, bytes | None]:
    ip4, ip6 = (ipaddress.ip_address(own).packed if own else None for own in (addresses.ip4, addresses.ip6))
    return ip4, ip6


def _rules(
    name: str, addresses: tuple[str, ...], protocol: str, specification: str, families: frozenset[int]
) -> tuple[ForwardRule, ...]:
    """Return the rules of a forward to a host.

    :param families: those that the uplink carries.
    :raises ConfigurationError: naming what is wrong with the specification.
    """
    check_protocol(protocol)
    if not isinstance(specification, str):
        raise ConfigurationError(f"{CALL} takes text, not {specification!r}", "write ports as in '8080:80'")
    rules = parse_ports(CALL, [specification], PortSide(protocol, inside=False))
    if not rules or any(rule.auto for rule in rules):
        problem = "automatic ports" if rules else "no port"
        raise ConfigurationError(
            f"{CALL} {shown(specification)}: {problem}",
            "name the ports that are to be forwarded, as in '8080:80' or '0:80'",
        )
    own = {V6 if ":" in address else V4: address for address in addresses}
    usable = tuple(address for family, address in own.items() if family in families)
    laid = tuple(replace(rule, host=usable) for rule in rules)
    for rule in laid:
        if rule.target_address:
            raise ConfigurationError(
                f"{CALL} {shown(specification)}: {rule.target_address} is named", f"leave it out: {name} is the target"
            )
        for family in rule.families:
            if rule.target_in(family) is None:
                raise ConfigurationError(
                    f"{CALL} {shown(specification)}: {name} has no IPv{family} here", "leave out where it listens"
                )
    return laid
