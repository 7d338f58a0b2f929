"""What the guest's network will be: the user's options laid over what the host has.

Theory of operation: the helper reports facts (links, addresses, routes of the host); `settle` chooses, for each address
family, a template interface, the guest's address, its gateway and the addresses with a special meaning. A family
without default route is settled in *local mode*: the guest gets a link-local network whose gateway is the host, and
nothing beyond it. The rules are those of passt's host configuration discovery; local mode is applied by family.

Pure: facts and text in, a frozen record out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpasst.config import Config
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper.request import Route
from gpasst.linux import IFA_F_DADFAILED, IFA_F_TENTATIVE, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTPROT_KERNEL
from gpasst.values import is_domain, of_family, parse_mac, parse_netmask, split_address

# Local mode (upstream since 2024-11): RFC 3927 link-local addresses, and a fixed IPv6 link-local gateway.
LOCAL_ADDRESS4 = "169.254.2.1"
LOCAL_PREFIX4 = 16
LOCAL_GATEWAY = {4: "169.254.2.2", 6: "fe80::1"}
LOCAL_INTERFACE = "tap0"
PREFIX6_DEFAULT = 64
MAX_RESOLVERS = 3  # per family; MAXNS of resolv.h
UNUSABLE_FLAGS = IFA_F_DADFAILED | IFA_F_TENTATIVE

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FamilyNetwork:
    """One address family of the guest's network. Addresses are 4 or 16 bytes.

    :ivar family: 4 or 6.
    :ivar local: whether the family is in local mode.
    :ivar address: the guest's assigned address; None for IPv6 in local mode, where it has a link-local one only.
    :ivar prefix: length of its prefix in bits.
    :ivar gateway: the guest's gateway.
    :ivar link_local: IPv6 link-local address that stands for the host; None for IPv4.
    :ivar index: index of the host's template interface, the scope of link-local destinations; 0 in local mode.
    :ivar host_loopback: what the guest addresses to reach the host's loopback, None if nothing does.
    :ivar gateway_resolves: whether port 53 of `host_loopback` leads to `resolver`; so unless the user chose it.
    :ivar guest_alias: what the guest addresses to reach the host's address that equals its own, or None.
    :ivar resolver: the host's resolver, or None.
    :ivar dns_forward: what the guest addresses to reach `resolver`, or None.
    :ivar resolvers: the resolvers that the guest is told.
    :ivar host_addresses: every address of the host.
    :ivar explicit: whether the user chose `address`; then no other source moves what is known of the guest.
    :ivar outbound: source address of outgoing traffic, None for the kernel's choice.
    :ivar outbound_interface: interface of outgoing traffic, empty for the kernel's choice.
    """

    family: int
    local: bool
    address: bytes | None
    prefix: int
    gateway: bytes
    link_local: bytes | None
    index: int
    host_loopback: bytes | None
    gateway_resolves: bool
    guest_alias: bytes | None
    resolver: bytes | None
    dns_forward: bytes | None
    resolvers: tuple[bytes, ...]
    host_addresses: frozenset[bytes]
    explicit: bool = False
    outbound: bytes | None = None
    outbound_interface: str = ""


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """The whole of what the guest will see.

    :ivar ip4: IPv4, None if not carried.
    :ivar ip6: IPv6, None if not carried.
    :ivar interface: name of the tap in the namespace.
    :ivar template: name of the host's interface that served as template, empty in local mode.
    :ivar host_mac: source of every frame towards the guest, 6 bytes.
    :ivar mtu: MTU of the tap in bytes, 0 to leave it alone.
    :ivar search: search domains that the guest is told.
    :ivar addresses: (address, prefix length) pairs for the tap.
    :ivar routes: routes for the tap.
    :ivar hostname: host name that the guest is told, empty for none.
    :ivar fqdn: fully qualified domain name that the guest is told, empty for none.
    """

    ip4: FamilyNetwork | None
    ip6: FamilyNetwork | None
    interface: str
    template: str
    host_mac: bytes
    mtu: int
    search: tuple[str, ...]
    addresses: tuple[tuple[str, int], ...]
    routes: tuple[Route, ...]
    hostname: str = ""
    fqdn: str = ""


@dataclass(frozen=True, slots=True)
class ResolverFile:
    """What matters of resolv.conf(5).

    :ivar nameservers: addresses in order, without scope.
    :ivar search: domains in order.
    """

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse_resolver_file(text: str) -> ResolverFile:
    """Read the ``nameserver`` and ``search`` lines of resolv.conf(5); lines that make no sense are passed over."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            try:
                nameservers.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
        elif words[0] == "search":
            search = tuple(word for word in words[1:] if is_domain(word))
    return ResolverFile(tuple(nameservers), search)


def build_network(config: Config, facts: Facts, resolver_file: ResolverFile, advertises: bool = False) -> GuestNetwork:
    """Lay the options over the host's facts.

    :param config: what the user asked for.
    :param facts: links, addresses and routes, as the helper reports them.
    :param resolver_file: the host's resolver configuration.
    :param advertises: whether the guest is told resolvers and search domains where no option decides; a virtual machine
        is, a namespace has the host's file.
    :raises ConfigurationError: if an option names an interface that does not exist.
    :raises PlatformError: if the host has no address of any family asked for.
    """
    names = {link["index"]: link["name"] for link in facts["links"]}
    if config.interface and config.interface not in names.values():
        raise ConfigurationError(
            f"--interface {config.interface} does not exist", f"the host has {', '.join(names.values())}"
        )
    advertises_dns = config.dhcp_dns or (advertises and not config.no_dhcp_dns)
    settled = [_Family(config, facts, resolver_file, family, advertises_dns) for family in config.families]
    usable = [family for family in settled if family.host_addresses]
    if not usable:
        wanted = " or ".join(f"IPv{family}" for family in config.families)
        raise PlatformError(f"the host has no {wanted} address, not even loopback", "bring lo up: ip link set lo up")
    found = {item.family: item.network() for item in usable}
    connected = [item for item in usable if not item.local]
    template = names.get(connected[0].index, "") if connected else ""
    addresses = [address for item in usable for address in item.tap_addresses()]
    # A default route that leads nowhere would make programs try the wrong family first.
    routes = [route for item in (connected or usable) for route in item.tap_routes()]
    search: tuple[str, ...] = ()
    if config.dhcp_search or (advertises and not config.no_dhcp_search):
        search = config.search or resolver_file.search
        search = () if "none" in search else search
    return GuestNetwork(
        ip4=found.get(4),
        ip6=found.get(6),
        interface=config.ns_ifname or template or LOCAL_INTERFACE,
        template=template,
        host_mac=parse_mac(config.mac_addr, "--mac-addr"),
        mtu=config.mtu,
        search=search,
        addresses=tuple(addresses),
        routes=tuple(routes),
        hostname=config.hostname,
        fqdn=config.fqdn,
    )


class _Family:
    """The choices for one family, made in the order in which they depend on each other."""

    def __init__(
        self, config: Config, facts: Facts, resolver_file: ResolverFile, family: int, advertises_dns: bool
    ) -> None:
        self.config = config
        self.family = family
        self.advertises_dns = advertises_dns
        self.nameservers = [a for a in resolver_file.nameservers if ipaddress.ip_address(a).version == family]
        addresses = [item for item in facts["addresses"] if item["family"] == family]
        self.host_addresses = frozenset(pack(item["address"]) for item in addresses)
        routes = [route for route in facts["routes"] if route["family"] == family]
        default = next((route for route in routes if route["destination"] is None), None)
        self.index = 0
        if config.interface:
            self.index = next(link["index"] for link in facts["links"] if link["name"] == config.interface)
            default = next((r for r in routes if r["destination"] is None and r["oif"] == self.index), None)
        elif default:
            self.index = default["oif"]
        own = [item for item in addresses if item["index"] == self.index and not item["flags"] & UNUSABLE_FLAGS]
        self.own = [(a["address"], a["prefix"]) for a in own if a["scope"] == RT_SCOPE_UNIVERSE]
        link_local = next((a["address"] for a in own if a["scope"] == RT_SCOPE_LINK), None)
        chosen = of_family(config.address, family)
        self.explicit = chosen is not None
        self.local = not self.index or not (self.own or chosen)
        if self.local:
            self.index = 0
        self.routes = [r for r in routes if r["oif"] == self.index and r["destination"] is not None]
        self.default = default
        gateway = of_family(config.gateway, family)
        self.gateway_given = gateway is not None
        self.gateway = gateway or (default or {}).get("gateway") or LOCAL_GATEWAY[family]
        if self.local and not self.gateway_given:
            self.gateway = LOCAL_GATEWAY[family]
        self.link_local = (link_local if not self.local else None) or LOCAL_GATEWAY[6]
        self.address, self.prefix = self._address(chosen)

    def _address(self, chosen: str | None) -> tuple[str | None, int]:
        if chosen is not None:
            address, prefix = split_address(chosen)
            if prefix is None:
                prefix = dict(self.own).get(address)
        elif not self.local:
            address, prefix = self.own[0]
        elif self.family == 4:
            address, prefix = LOCAL_ADDRESS4, LOCAL_PREFIX4
        else:
            return None, PREFIX6_DEFAULT
        if self.family == 6:
            return address, PREFIX6_DEFAULT if prefix is None else prefix
        if self.config.netmask:
            prefix = parse_netmask(self.config.netmask)
        return address, guess_prefix4(address, self.gateway) if prefix is None else prefix

    def network(self) -> FamilyNetwork:
        """Give the record."""
        config, family = self.config, self.family
        loopback = self._alias(config.map_host_loopback, None if config.no_map_gw else self.gateway)
        resolver = of_family(config.dns_host, family) or next(iter(self.nameservers), None)
        outbound = of_family(config.outbound, family)
        dns_forward = of_family(config.dns_forward, family)
        return FamilyNetwork(
            family=family,
            local=self.local,
            address=pack(self.address) if self.address else None,
            prefix=self.prefix,
            gateway=pack(self.gateway),
            link_local=pack(self.link_local) if family == 6 else None,
            index=self.index,
            host_loopback=loopback,
            gateway_resolves=of_family(config.map_host_loopback, family) is None,
            guest_alias=self._alias(config.map_guest_addr, None),
            resolver=pack(resolver) if resolver else None,
            dns_forward=pack(dns_forward) if dns_forward else None,
            resolvers=self._resolvers(loopback),
            host_addresses=self.host_addresses,
            explicit=self.explicit,
            outbound=pack(outbound) if outbound else None,
            outbound_interface=config.outbound_if4 if family == 4 else config.outbound_if6,
        )

    def _alias(self, values: Sequence[str], default: str | None) -> bytes | None:
        """Give the last address of this family in `values`; a ``none`` takes back what came before it."""
        result = default
        for value in values:
            if value == "none":
                result = None
            elif ipaddress.ip_address(value).version == self.family:
                result = value
        return pack(result) if result else None

    def _resolvers(self, loopback: bytes | None) -> tuple[bytes, ...]:
        if not self.advertises_dns or "none" in self.config.dns:
            return ()
        given = [value for value in self.config.dns if ipaddress.ip_address(value).version == self.family]
        if given:
            return tuple(pack(value) for value in given)
        shown = [loopback if ipaddress.ip_address(server).is_loopback else pack(server) for server in self.nameservers]
        # A loopback resolver can only be told as the address that leads to it.
        return tuple(dict.fromkeys(address for address in shown[:MAX_RESOLVERS] if address is not None))

    def tap_addresses(self) -> list[tuple[str, int]]:
        """Give the addresses for the tap: the chosen one, or all of the template interface."""
        if self.address is None:
            return []
        if self.explicit or self.local:
            return [(self.address, self.prefix)]
        return [(self.address, self.prefix), *self.own[1:]]

    def tap_routes(self) -> list[Route]:
        """Give the routes for the tap: the template interface's own, then the default route."""
        copied = []
        if not self.explicit and not self.gateway_given and not self.local:
            copied = [
                Route(route["destination"], route["prefix"], route["gateway"], route["metric"], self.family)
                for route in self.routes
                # The kernel makes the routes of the addresses themselves.
                if route["protocol"] != RTPROT_KERNEL
            ]
        return [*copied, Route(None, 0, self.gateway, family=self.family)]


def pack(address: str) -> bytes:
    """Turn the text of an IP address into its 4 or 16 bytes."""
    return ipaddress.ip_address(address).packed


def guess_prefix4(address: str, gateway: str) -> int:
    """Guess an IPv4 prefix length: by address class, then shortened until the gateway is inside, if any length does."""
    first = pack(address)[0]
    prefix = 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32
    for shorter in range(prefix, 0, -1):
        if ipaddress.ip_address(gateway) in ipaddress.ip_network(f"{address}/{shorter}", strict=False):
            return shorter
    return prefix
