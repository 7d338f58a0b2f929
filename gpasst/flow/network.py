"""The guest's network: the user's options laid over the host's configuration.

Theory of operation: the helper reports facts (links, addresses, routes of the host). `build_network` chooses, for each
address family on its own, a template interface, the guest's address, its gateway and the addresses with a special
meaning. The rules are those of passt's host configuration discovery, applied to each family:

1. The template is the interface of the default route.
2. Without a default route it is an interface with an address: that of the other family's template first. The guest
   reaches the networks of that interface and has no default route, like the host.
3. Without either the family is in *local mode*: a link-local network whose gateway is the host, and nothing beyond it.

An IPv4 route may have an IPv6 next hop (RFC 5549; Linux 5.2, RTA_VIA). The guest gets an IPv4 gateway instead, since
every next hop on the link is the proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gpasst.config import Config, long_option
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.flow.host_facts import (
    LIMITED_BROADCAST,
    broadcasts,
    guess_prefix4,
    link_local_network,
    own_addresses,
)
from gpasst.flow.resolver_file import ResolverFile
from gpasst.helper.request import Route
from gpasst.linux import IFA_F_DADFAILED, IFA_F_TENTATIVE, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTPROT_KERNEL
from gpasst.packet.address import V4, V6
from gpasst.records import dataclass, replace
from gpasst.values import (
    NONE,
    behind_none,
    is_interface_name,
    of_family,
    parse_mac,
    parse_netmask,
    shown,
    split_address,
)

if TYPE_CHECKING:
    from gpasst.helper.facts import HostFacts, HostRoute

# Local mode, as in passt since 2024-11: RFC 3927 link-local addresses, and a fixed IPv6 link-local gateway.
LOCAL_ADDRESS4 = "169.254.2.1"
LOCAL_PREFIX4 = 16  # bits
LOCAL_GATEWAY = {V4: "169.254.2.2", V6: "fe80::1"}
LOCAL_INTERFACE = "tap0"
PREFIX6_DEFAULT = 64  # bits
HOST_PREFIX4 = 32  # bits
MAX_RESOLVERS = 3  # per family; MAXNS of resolv.h
UNUSABLE_FLAGS = IFA_F_DADFAILED | IFA_F_TENTATIVE


@dataclass(frozen=True, slots=True)
class FamilyNetwork:
    """One address family of the guest's network. Addresses are 4 or 16 bytes.

    :ivar family: 4 or 6.
    :ivar local: whether the family is in local mode.
    :ivar address: the guest's assigned address; None for IPv6 in local mode, where it has a link-local one only.
    :ivar prefix: length of its prefix in bits.
    :ivar gateway: the guest's gateway, or the address that stands for the host where there is no default route.
    :ivar link_local: IPv6 link-local address that stands for the host; None for IPv4.
    :ivar index: index of the host's template interface, the scope of link-local destinations; 0 in local mode.
    :ivar host_loopback: what the guest addresses to reach the host's loopback, None if nothing does.
    :ivar loopback_chosen: whether the user chose `host_loopback`.
    :ivar gateway_resolver: the host's resolver on its loopback, to which port 53 of the gateway leads then; None where
        there is none, or the user chose `host_loopback`.
    :ivar guest_alias: what the guest addresses to reach the host's address that equals its own, or None.
    :ivar resolver: the host's resolver, or None.
    :ivar dns_forward: what the guest addresses to reach `resolver`, or None.
    :ivar resolvers: the resolvers that are advertised to the guest.
    :ivar host_addresses: every address of the host.
    :ivar explicit: whether the user chose `address`; then no source address of the guest replaces it.
    :ivar outbound: source address of outgoing traffic, None for the kernel's choice.
    :ivar outbound_interface: interface of outgoing traffic, empty for the kernel's choice.
    :ivar routed: whether the guest's default route leads to `gateway`.
    """

    family: int
    local: bool
    address: bytes | None
    prefix: int
    gateway: bytes
    link_local: bytes | None
    index: int
    host_loopback: bytes | None
    loopback_chosen: bool
    gateway_resolver: bytes | None
    guest_alias: bytes | None
    resolver: bytes | None
    dns_forward: bytes | None
    resolvers: tuple[bytes, ...]
    host_addresses: frozenset[bytes]
    explicit: bool = False
    outbound: bytes | None = None
    outbound_interface: str = ""
    routed: bool = True


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """The guest's network in both families.

    :ivar ip4: IPv4, None if not carried.
    :ivar ip6: IPv6, None if not carried.
    :ivar interface: name of the tap in the namespace.
    :ivar host_mac: source of every frame towards the guest, 6 bytes.
    :ivar mtu: MTU of the tap in bytes, 0 to leave it alone.
    :ivar search: search domains that are advertised to the guest.
    :ivar addresses: (address, prefix length) pairs for the tap.
    :ivar routes: routes for the tap.
    :ivar hostname: host name of the guest in DHCP, empty for none.
    :ivar fqdn: fully qualified domain name of the guest in DHCP and DHCPv6, empty for none.
    :ivar demanded: families whose address or gateway the user chose; the others may be left out where a namespace lacks
        them.
    :ivar broadcasts: the host's IPv4 broadcast addresses, which no ICMP error may answer (RFC 1122, section 3.2.2).
    :ivar notes: lines about choices that the user may want to make otherwise.
    """

    ip4: FamilyNetwork | None
    ip6: FamilyNetwork | None
    interface: str
    host_mac: bytes
    mtu: int
    search: tuple[str, ...]
    addresses: tuple[tuple[str, int], ...]
    routes: tuple[Route, ...]
    hostname: str = ""
    fqdn: str = ""
    demanded: tuple[int, ...] = ()
    broadcasts: frozenset[bytes] = frozenset((LIMITED_BROADCAST,))
    notes: tuple[str, ...] = ()

    @property
    def optional(self) -> tuple[int, ...]:
        """The families that may be left out where a namespace lacks them; none if that leaves no other."""
        present = [item.family for item in (self.ip4, self.ip6) if item]
        return tuple(family for family in present if family not in self.demanded) if len(present) > 1 else ()

    def without(self, lacking: frozenset[int]) -> GuestNetwork:
        """Return the network without the families `lacking`, of 4 and 6."""
        return replace(self, ip4=None if V4 in lacking else self.ip4, ip6=None if V6 in lacking else self.ip6)


def build_network(
    config: Config, facts: HostFacts, resolver_file: ResolverFile, advertises: bool = False
) -> GuestNetwork:
    """Lay the options over the host's facts.

    :param config: the options.
    :param facts: links, addresses and routes, as the helper reports them.
    :param resolver_file: the host's resolver configuration.
    :param advertises: whether resolvers and search domains are advertised where no option decides: to a virtual machine
        they are, while a namespace has the host's file.
    :raises ConfigurationError: if an option names an interface that does not exist.
    :raises PlatformError: if the host has no address of any family asked for.
    """
    names = {link["index"]: link["name"] for link in facts["links"]}
    _check_interfaces(config, names.values())
    advertises_dns = config.dhcp_dns or (advertises and not config.no_dhcp_dns)
    chosen = [_Family(config, facts, resolver_file, family, advertises_dns) for family in config.families]
    usable = [item for item in chosen if item.host_addresses]
    if not usable:
        families = " or ".join(f"IPv{family}" for family in config.families)
        raise PlatformError(f"the host has no {families} address, not even loopback", "bring lo up: ip link set lo up")
    connected = [item for item in usable if not item.local]
    # A default route that leads nowhere would make programs try the wrong family first.
    for item in usable:
        item.routed = item.routed and (not item.local or not connected)
    networks = {item.family: item.network() for item in usable}
    template = names.get(connected[0].index, "") if connected else ""
    search: tuple[str, ...] = ()
    if config.dhcp_search or (advertises and not config.no_dhcp_search):
        given = [name for value in behind_none(config.search) for name in value.split()]
        search = tuple(given) if config.search else resolver_file.search
    return GuestNetwork(
        ip4=networks.get(V4),
        ip6=networks.get(V6),
        # The host's name may be one that no message can show.
        interface=config.ns_ifname or (template if is_interface_name(template) else LOCAL_INTERFACE),
        host_mac=parse_mac(config.mac_addr),
        mtu=config.mtu,
        search=search,
        addresses=tuple(address for item in usable for address in item.tap_addresses()),
        routes=tuple(route for item in usable for route in item.tap_routes()),
        hostname=config.hostname or "",
        fqdn=config.fqdn or "",
        demanded=tuple(item.family for item in usable if item.explicit or item.gateway_given),
        broadcasts=broadcasts(facts),
        notes=tuple(note for item in usable for note in item.notes),
    )


def _check_interfaces(config: Config, names: Collection[str]) -> None:
    """Check that the host has the interfaces that options name.

    :raises ConfigurationError: naming the option.
    """
    for option in ("interface", "outbound_if4", "outbound_if6"):
        name = getattr(config, option)
        if name and name not in names:
            raise ConfigurationError(
                f"{long_option(option)} {name} does not exist", f"the host has {shown(', '.join(names))}"
            )


class _Family:
    """The choices for one family, made in the order in which they depend on each other.

    :ivar host_addresses: every address of the host.
    :ivar index: index of the template interface, 0 in local mode.
    :ivar own: (address, prefix length) pairs of the template interface.
    :ivar explicit: whether the user chose the address.
    :ivar single: whether the tap gets this one only.
    :ivar local: whether the family is in local mode.
    :ivar gateway_given: whether the user chose the gateway.
    :ivar routed: whether the guest gets a default route.
    :ivar notes: see `GuestNetwork`.
    """

    def __init__(
        self, config: Config, facts: HostFacts, resolver_file: ResolverFile, family: int, advertises_dns: bool
    ) -> None:
        self.config = config
        self.family = family
        self.advertises_dns = advertises_dns
        self.nameservers = [a for a in resolver_file.nameservers if ipaddress.ip_address(a).version == family]
        addresses = [item for item in facts["addresses"] if item["family"] == family]
        self.host_addresses = frozenset(pack(item["address"]) for item in addresses)
        chosen = of_family(config.address, family)
        self.explicit = chosen is not None
        self.single = self.explicit or config.no_copy_addrs
        self.notes: list[str] = []
        usable = [a for a in addresses if not a["flags"] & UNUSABLE_FLAGS]
        addressed = {a["index"] for a in usable if a["scope"] == RT_SCOPE_UNIVERSE}
        routes = [route for route in facts["routes"] if route["family"] == family]
        self.index, default = self._template(facts, routes, addressed)
        self.own = own_addresses(usable, self.index, default)
        self.local = not self.index or not (self.own or chosen)
        if self.local:
            self.index, default = 0, None
        self.routes = [r for r in routes if r["oif"] == self.index and r["destination"] is not None]
        own_link_local = [a["address"] for a in usable if a["index"] == self.index and a["scope"] == RT_SCOPE_LINK]
        self.link_local = next(iter(own_link_local), LOCAL_GATEWAY[V6])
        gateway = of_family(config.gateway, family)
        self.gateway_given = gateway is not None
        self.gateway = gateway or (default and self._hop(default)) or LOCAL_GATEWAY[family]
        self.routed = self.local or self.gateway_given or default is not None
        self.address, self.prefix = self._address(chosen)

    def _template(self, facts: HostFacts, routes: list[HostRoute], addressed: set[int]) -> tuple[int, HostRoute | None]:
        """Return the index of the template interface, 0 for none, and its default route, None if it has none.

        :param addressed: indexes of the interfaces with an address of global scope.
        """
        defaults = [route for route in routes if route["destination"] is None]
        outbound = self._outbound_interface
        if named := self.config.interface or outbound:
            index = next(link["index"] for link in facts["links"] if link["name"] == named)
            if named == outbound and index not in addressed and not self.explicit:
                raise ConfigurationError(
                    f"--outbound-if{self.family} {named} has no IPv{self.family} address",
                    f"give it one, or copy another interface with --interface, or carry no IPv{self.family}",
                )
            return index, next((route for route in defaults if route["oif"] == index), None)
        if defaults:
            return defaults[0]["oif"], defaults[0]
        others = [route["oif"] for route in facts["routes"] if route["destination"] is None]
        links = {link["index"]: link["name"] for link in facts["links"] if link["up"] and not link["loopback"]}
        found = sorted(addressed & links.keys(), key=lambda index: (index not in others, index))
        if len(found) > 1 and found[0] not in others:
            self.notes.append(
                f"the host has no IPv{self.family} default route and several networks: "
                f"{links[found[0]]} is copied; choose with --interface"
            )
        return (found[0] if found else 0), None

    @property
    def _outbound_interface(self) -> str:
        """The interface of outgoing traffic, empty for the kernel's choice."""
        return (self.config.outbound_if4 if self.family == V4 else self.config.outbound_if6) or ""

    def _hop(self, route: HostRoute) -> str | None:
        """Return the guest's next hop for a route of the host, None for one straight to the link."""
        hop = route["gateway"]
        if hop is not None and ipaddress.ip_address(hop).version != self.family:
            return LOCAL_GATEWAY[self.family]
        return hop

    def _address(self, chosen: str | None) -> tuple[str | None, int]:
        """Return the guest's address, None if it has a link-local one only, and its prefix length."""
        if chosen is not None:
            address, prefix = split_address(chosen)
            if prefix is None:
                prefix = dict(self.own).get(address)
        elif not self.local:
            address, prefix = self.own[0]
        elif self.family == V4:
            address, prefix = LOCAL_ADDRESS4, LOCAL_PREFIX4
        else:
            return None, PREFIX6_DEFAULT
        if self.family == V6:
            return address, PREFIX6_DEFAULT if prefix is None else prefix
        if self.config.netmask:
            prefix = parse_netmask(self.config.netmask)
        return address, guess_prefix4(address, self.gateway) if prefix is None else prefix

    def network(self) -> FamilyNetwork:
        """Return the record of the family."""
        config, family = self.config, self.family
        loopback = self._alias(config.map_host_loopback, None if config.no_map_gw else self.gateway)
        loopback_chosen = of_family(config.map_host_loopback, family) is not None
        given = of_family(config.dns_host, family)
        resolvers = [given] if given else self.nameservers
        resolver = next(iter(resolvers), None)
        local = [item for item in resolvers if ipaddress.ip_address(item).is_loopback]
        outbound = of_family(config.outbound, family)
        dns_forward = of_family(config.dns_forward, family)
        return FamilyNetwork(
            family=family,
            local=self.local,
            address=pack(self.address) if self.address else None,
            prefix=self.prefix,
            gateway=pack(self.gateway),
            link_local=pack(self.link_local) if family == V6 else None,
            index=self.index,
            host_loopback=loopback,
            loopback_chosen=loopback_chosen,
            gateway_resolver=pack(local[0]) if local and not loopback_chosen else None,
            guest_alias=self._alias(config.map_guest_addr, None),
            resolver=pack(resolver) if resolver else None,
            dns_forward=pack(dns_forward) if dns_forward else None,
            resolvers=self._resolvers(loopback),
            host_addresses=self.host_addresses,
            explicit=self.explicit,
            outbound=pack(outbound) if outbound else None,
            outbound_interface=self._outbound_interface,
            routed=self.routed,
        )

    def _alias(self, values: Sequence[str], default: str | None) -> bytes | None:
        """Return the last address of this family in `values`; ``none`` takes back what came before it."""
        kept = of_family(behind_none(values), self.family)
        result = kept or (None if NONE in values else default)
        return pack(result) if result else None

    def _resolvers(self, loopback: bytes | None) -> tuple[bytes, ...]:
        kept = behind_none(self.config.dns)
        if not self.advertises_dns or (self.config.dns and not kept):
            return ()
        given = [value for value in kept if ipaddress.ip_address(value).version == self.family]
        if given:
            return tuple(pack(value) for value in given)
        shown = [loopback if ipaddress.ip_address(server).is_loopback else pack(server) for server in self.nameservers]
        # A loopback resolver can only be advertised as the address that leads to it.
        return tuple(dict.fromkeys(address for address in shown[:MAX_RESOLVERS] if address is not None))

    def tap_addresses(self) -> list[tuple[str, int]]:
        """Return the addresses for the tap: the chosen one, or all of the template interface."""
        if self.address is None:
            return []
        if self.single or self.local:
            return [(self.address, self.prefix)]
        return [(self.address, self.prefix), *self.own[1:]]

    def tap_routes(self) -> list[Route]:
        """Return the routes for the tap: those of the template interface, then the default route.

        Without a default route, the last one leads to the address that stands for the host.
        """
        copied = []
        given = self.gateway_given or self.config.no_copy_routes
        if not (given or self.local or (self.explicit and self.routed)):
            copied = [
                Route(route["destination"], route["prefix"], self._hop(route), route["metric"], self.family)
                for route in self.routes
                # The kernel makes the routes of the addresses themselves, where these are copied too.
                if (self.single or route["protocol"] != RTPROT_KERNEL) and not link_local_network(route)
            ]
        if self.routed:
            return [*copied, Route(None, 0, self.gateway, family=self.family)]
        if self.local or self.family == V6:
            return copied
        return [*copied, Route(self.gateway, HOST_PREFIX4)]


def pack(address: str) -> bytes:
    """Return the 4 or 16 bytes of the text of an IP address."""
    return ipaddress.ip_address(address).packed
