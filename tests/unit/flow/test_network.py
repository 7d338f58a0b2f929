"""Options laid over the facts of a host."""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.config import Config
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.flow.host_facts import guess_prefix4
from gpasst.flow.network import (
    FamilyNetwork,
    GuestNetwork,
    build_network,
)
from gpasst.flow.resolver_file import ResolverFile, parse_resolver_file
from gpasst.helper.facts import HostAddress, HostFacts, HostLink, HostRoute
from gpasst.helper.request import Route
from tests.support.addresses import ip

LO, UP, OTHER, IDLE = 1, 2, 3, 4
GLOBAL, HOST, LINK = 0, 254, 253
KERNEL, STATIC = 2, 4
TENTATIVE, DAD_FAILED, PERMANENT = 0x40, 0x08, 0x80


def link(index: int, name: str) -> HostLink:
    return {"index": index, "name": name, "mac": "02:00:00:00:00:01", "up": True, "mtu": 1500, "loopback": name == "lo"}


def address(index: int, text: str, prefix: int, scope: int = GLOBAL, flags: int = PERMANENT) -> HostAddress:
    family = 6 if ":" in text else 4
    return {"index": index, "family": family, "address": text, "prefix": prefix, "scope": scope, "flags": flags}


def route(oif: int, to: str, gateway: str | None = None, protocol: int = STATIC, metric: int = 0) -> HostRoute:
    destination, _, prefix = to.partition("/")
    default = to in ("0.0.0.0/0", "::/0")
    return {
        "family": 6 if ":" in to else 4,
        "destination": None if default else destination,
        "prefix": int(prefix),
        "gateway": gateway,
        "oif": oif,
        "metric": metric,
        "table": 254,
        "scope": GLOBAL,
        "protocol": protocol,
        "type": 1,
        "source": None,
    }


LINKS = [link(LO, "lo"), link(UP, "up0"), link(OTHER, "other0"), link(IDLE, "idle0")]
LOOPBACKS = [address(LO, "127.0.0.1", 8, HOST), address(LO, "::1", 128, HOST)]
ADDRESSES4 = [
    address(UP, "192.0.2.2", 24),
    address(UP, "192.0.2.3", 24),
    address(OTHER, "10.1.0.5", 16),
]
ADDRESSES6 = [
    address(UP, "2001:db8::7", 64, flags=TENTATIVE),
    address(UP, "2001:db8::2", 64),
    address(UP, "2001:db8:2::2", 60),
    address(UP, "2001:db8::8", 64, flags=DAD_FAILED),
    address(UP, "fe80::2", 64, LINK),
    address(OTHER, "fe80::3", 64, LINK),
]
ROUTES4 = [
    route(UP, "0.0.0.0/0", "192.0.2.1"),
    route(UP, "192.0.2.0/24", protocol=KERNEL),
    route(UP, "198.51.100.0/24", "192.0.2.254", metric=50),
    route(OTHER, "10.1.0.0/16", protocol=KERNEL),
    route(OTHER, "10.9.0.0/16", "10.1.0.1"),
]
ROUTES6 = [
    route(UP, "::/0", "fe80::1"),
    route(UP, "2001:db8::/64", protocol=KERNEL, metric=256),
    route(UP, "2001:db8:9::/48", "fe80::9", metric=1024),
]
ORDINARY: HostFacts = {
    "links": LINKS,
    "addresses": LOOPBACKS + ADDRESSES4 + ADDRESSES6,
    "routes": ROUTES4 + ROUTES6,
    "ephemeral": [32768, 60999],
}
LONELY: HostFacts = {"links": LINKS[:1], "addresses": LOOPBACKS, "routes": [], "ephemeral": [32768, 60999]}
# No default route, and none that leads out at all, for IPv6.
MIXED: HostFacts = {"links": LINKS, "addresses": LOOPBACKS + ADDRESSES4, "routes": ROUTES4, "ephemeral": [32768, 60999]}
RESOLVERS = ResolverFile(("198.51.100.53", "2001:db8:5::53", "198.51.100.54"), ("example.org", "example.net"))


def settled(facts: HostFacts = ORDINARY, file: ResolverFile = RESOLVERS, **options: Any) -> GuestNetwork:
    return build_network(Config(**options), facts, file)


def both(network: GuestNetwork) -> tuple[FamilyNetwork, FamilyNetwork]:
    assert network.ip4 is not None
    assert network.ip6 is not None
    return network.ip4, network.ip6


def ip4_of(**options: Any) -> FamilyNetwork:
    return both(settled(**options))[0]


def ip6_of(**options: Any) -> FamilyNetwork:
    return both(settled(**options))[1]


# Templates and local mode


def test_an_ordinary_host_is_copied() -> None:
    network = settled()
    ip4, ip6 = both(network)
    assert (network.interface, network.mtu, ip4.index, ip6.index) == ("up0", 65520, UP, UP)
    assert network.host_mac == bytes.fromhex("9a559a559a55")
    assert (ip4.local, ip4.address, ip4.prefix, ip4.gateway) == (False, ip("192.0.2.2"), 24, ip("192.0.2.1"))
    assert (ip4.index, ip4.link_local, ip4.explicit) == (UP, None, False)
    assert ip4.host_addresses == frozenset(map(ip, ("127.0.0.1", "192.0.2.2", "192.0.2.3", "10.1.0.5")))
    assert (ip4.host_loopback, ip4.loopback_chosen, ip4.guest_alias) == (ip("192.0.2.1"), False, None)
    assert (ip4.resolver, ip4.dns_forward, ip4.outbound) == (ip("198.51.100.53"), None, None)
    assert (ip6.local, ip6.address, ip6.prefix, ip6.gateway) == (False, ip("2001:db8::2"), 64, ip("fe80::1"))
    assert (ip6.index, ip6.link_local) == (UP, ip("fe80::2"))
    assert (ip6.host_loopback, ip6.resolver) == (ip("fe80::1"), ip("2001:db8:5::53"))
    assert ip("fe80::3") in ip6.host_addresses


def test_all_addresses_and_routes_of_the_template_are_copied() -> None:
    network = settled()
    assert network.addresses == (
        ("192.0.2.2", 24),
        ("192.0.2.3", 24),
        ("2001:db8::2", 64),
        ("2001:db8:2::2", 60),
    )
    assert network.routes == (
        Route("198.51.100.0", 24, "192.0.2.254", 50, 4),
        Route(None, 0, "192.0.2.1", family=4),
        Route("2001:db8:9::", 48, "fe80::9", 1024, 6),
        Route(None, 0, "fe80::1", family=6),
    )


def test_a_host_without_network_gets_a_local_one() -> None:
    network = settled(LONELY, ResolverFile())
    ip4, ip6 = both(network)
    assert network.interface == "tap0"
    assert (ip4.local, ip4.address, ip4.prefix) == (True, ip("169.254.2.1"), 16)
    assert (ip4.gateway, ip4.host_loopback, ip4.index) == (ip("169.254.2.2"), ip("169.254.2.2"), 0)
    assert (ip6.local, ip6.address, ip6.prefix, ip6.index) == (True, None, 64, 0)
    assert (ip6.gateway, ip6.link_local) == (ip("fe80::1"), ip("fe80::1"))
    assert (ip4.resolver, ip6.resolver) == (None, None)
    assert network.addresses == (("169.254.2.1", 16),)
    assert network.routes == (
        Route(None, 0, "169.254.2.2", family=4),
        Route(None, 0, "fe80::1", family=6),
    )


def test_one_family_may_be_local() -> None:
    network = settled(MIXED)
    ip4, ip6 = both(network)
    assert (ip4.local, ip6.local) == (False, True)
    assert (network.interface, ip6.address, ip6.gateway) == ("up0", None, ip("fe80::1"))
    assert network.addresses == (("192.0.2.2", 24), ("192.0.2.3", 24))
    # A default route that leads nowhere would be tried first.
    assert {one.family for one in network.routes} == {4}


LAN4, LAN6 = ADDRESSES4[:2], [ADDRESSES6[1], ADDRESSES6[4]]


@pytest.mark.parametrize(
    ("routes", "family", "own", "default"),
    [
        ([*ROUTES4, ROUTES6[1]], 6, ("2001:db8::2", 64), Route(None, 0, "192.0.2.1")),
        ([ROUTES4[1], *ROUTES6], 4, ("192.0.2.2", 24), Route(None, 0, "fe80::1", family=6)),
    ],
)
def test_a_family_with_a_network_alone_reaches_that(
    routes: list[HostRoute], family: int, own: tuple[str, int], default: Route
) -> None:
    network = settled({**ORDINARY, "addresses": LOOPBACKS + LAN4 + LAN6, "routes": routes})
    item = dict(zip((4, 6), both(network), strict=True))[family]
    assert (item.local, item.index, item.address, item.routed) == (False, UP, ip(own[0]), False)
    assert own in network.addresses
    assert [one for one in network.routes if one.destination is None] == [default]
    # IPv6's stand-in for the host is link-local, so every link has a route to it.
    to_host = {4: [Route("169.254.2.2", 32)], 6: []}[family]
    assert [one for one in network.routes if one.destination == "169.254.2.2"] == to_host
    assert not network.notes


def test_a_host_with_networks_alone_has_no_default_route() -> None:
    network = settled({**ORDINARY, "addresses": LOOPBACKS + LAN4 + LAN6, "routes": [ROUTES4[1], ROUTES4[2]]})
    assert {(item.local, item.routed) for item in both(network)} == {(False, False)}
    assert network.routes == (Route("198.51.100.0", 24, "192.0.2.254", 50), Route("169.254.2.2", 32))


def test_of_several_networks_the_other_familys_template_is_copied() -> None:
    addresses = [*LOOPBACKS, *ADDRESSES4, address(OTHER, "2001:db8:9::2", 64), ADDRESSES6[1]]
    network = settled({**ORDINARY, "addresses": addresses, "routes": ROUTES4})
    assert (both(network)[1].index, network.notes) == (UP, ())
    network = settled({**ORDINARY, "addresses": addresses, "routes": []})
    assert (both(network)[0].index, len(network.notes)) == (UP, 2)
    assert network.notes[0] == (
        "the host has no IPv4 default route and several networks: up0 is copied; choose with --interface"
    )


def test_an_address_of_the_users_own_reaches_the_network_too() -> None:
    network = settled({**MIXED, "routes": ROUTES4[1:3]}, ipv4_only=True, address="10.77.0.2/24")
    assert network.addresses == (("10.77.0.2", 24),)
    assert network.routes == (
        Route("192.0.2.0", 24, None, 0),
        Route("198.51.100.0", 24, "192.0.2.254", 50),
        Route("169.254.2.2", 32),
    )


def test_an_ipv6_next_hop_of_an_ipv4_route_is_the_local_gateway() -> None:
    routes = [route(UP, "0.0.0.0/0", "fe80::99"), route(UP, "198.51.100.0/24", "fe80::98")]
    network = settled({**ORDINARY, "routes": routes + ROUTES6})
    ip4, _ = both(network)
    assert (ip4.local, ip4.address, ip4.gateway, ip4.host_loopback) == (
        False,
        ip("192.0.2.2"),
        ip("169.254.2.2"),
        ip("169.254.2.2"),
    )
    assert network.routes[:2] == (Route("198.51.100.0", 24, "169.254.2.2", 0), Route(None, 0, "169.254.2.2"))


def test_an_unnumbered_interface_has_the_address_it_sends_from() -> None:
    default = route(UP, "0.0.0.0/0", "fe80::99")
    default["source"] = "203.0.113.5"
    addresses = [*LOOPBACKS, address(LO, "203.0.113.5", 32), address(LO, "203.0.113.6", 32)]
    network = settled({**ORDINARY, "addresses": addresses, "routes": [default]}, ipv4_only=True)
    assert network.ip4 is not None
    assert (network.interface, network.ip4.index, network.ip4.local) == ("up0", UP, False)
    assert network.addresses == (("203.0.113.5", 32),)


def test_a_family_is_optional_unless_the_user_chose_its_address_or_it_is_the_only_one() -> None:
    assert settled().optional == (4, 6)
    assert settled(address="10.77.0.2/24").optional == (6,)
    assert settled(gateway="fe80::7").optional == (4,)
    assert settled(ipv4_only=True).optional == ()
    without = settled().without(frozenset({6}))
    assert (without.ip4, without.ip6) == (settled().ip4, None)


def test_a_default_route_without_address_is_of_no_use() -> None:
    facts: HostFacts = {**MIXED, "routes": ROUTES4 + ROUTES6, "addresses": LOOPBACKS + ADDRESSES4 + ADDRESSES6[-2:]}
    _, ip6 = both(settled(facts))
    assert (ip6.local, ip6.gateway, ip6.index) == (True, ip("fe80::1"), 0)


def test_the_first_default_route_decides() -> None:
    other = route(OTHER, "0.0.0.0/0", "10.1.0.1")
    network = settled({**ORDINARY, "routes": [other, *ROUTES4]}, ipv4_only=True)
    assert network.interface == "other0"
    assert network.ip4 is not None
    assert (network.ip4.address, network.ip4.prefix) == (ip("10.1.0.5"), 16)
    assert network.routes == (Route("10.9.0.0", 16, "10.1.0.1", 0), Route(None, 0, "10.1.0.1"))


def test_a_family_without_any_address_is_left_out() -> None:
    facts: HostFacts = {**LONELY, "addresses": LOOPBACKS[:1]}
    network = settled(facts)
    assert network.ip4 is not None
    assert network.ip6 is None
    with pytest.raises(PlatformError) as caught:
        settled(facts, ipv6_only=True)
    assert "no IPv6 address" in caught.value.message
    assert caught.value.remedy


def test_a_family_not_asked_for_is_left_out() -> None:
    assert settled(ipv4_only=True).ip6 is None
    assert settled(ipv6_only=True).ip4 is None
    assert {one.family for one in settled(ipv6_only=True).routes} == {6}
    assert settled(ipv6_only=True).interface == "up0"


# Options


def test_an_interface_may_be_named() -> None:
    network = settled(interface="other0", ipv4_only=True)
    assert network.ip4 is not None
    assert (network.interface, network.ip4.index) == ("other0", OTHER)
    assert (network.ip4.local, network.ip4.address) == (False, ip("10.1.0.5"))
    # It has no default route, so nothing tells a gateway.
    assert network.ip4.gateway == ip("169.254.2.2")


def test_a_named_interface_without_address_is_local() -> None:
    ip4, ip6 = both(settled(interface="idle0"))
    assert (ip4.local, ip6.local) == (True, True)
    assert settled(interface="idle0").interface == "tap0"


def test_an_unknown_interface_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settled(interface="eth9")
    assert str(caught.value) == "--interface eth9 does not exist; the host has lo, up0, other0, idle0"


def test_the_outbound_interface_is_the_template_of_its_family() -> None:
    network = settled(outbound_if4="other0")
    ip4, ip6 = both(network)
    assert (ip4.address, ip4.index, ip4.outbound_interface) == (ip("10.1.0.5"), OTHER, "other0")
    assert (ip6.address, ip6.index, ip6.outbound_interface) == (ip("2001:db8::2"), UP, "")
    assert network.interface == "other0"
    # Unless another one is named.
    ip4 = ip4_of(interface="up0", outbound_if4="other0")
    assert (ip4.address, ip4.index, ip4.outbound_interface) == (ip("192.0.2.2"), UP, "other0")
    # An address of the user's own needs none to be copied.
    assert ip4_of(outbound_if4="idle0", address="10.0.0.5").address == ip("10.0.0.5")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"outbound_if4": "eth9"}, "--outbound-if4 eth9 does not exist; the host has lo, up0, other0, idle0"),
        (
            {"outbound_if6": "other0"},
            "--outbound-if6 other0 has no IPv6 address; "
            "give it one, or copy another interface with --interface, or carry no IPv6",
        ),
    ],
)
def test_an_outbound_interface_that_is_of_no_use_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settled(**options)
    assert str(caught.value) == line


def test_only_one_address_is_copied_if_asked_for() -> None:
    network = settled(config_net=True, no_copy_addrs=True)
    assert network.addresses == (("192.0.2.2", 24), ("2001:db8::2", 64))
    # The route of the second one's network would go with it.
    assert Route("2001:db8::", 64, None, 256, 6) in network.routes
    assert {route.destination for route in network.routes if route.family == 4} == {"192.0.2.0", "198.51.100.0", None}
    ip4, ip6 = both(network)
    assert not ip4.explicit and not ip6.explicit


def test_only_the_default_route_is_made_if_asked_for() -> None:
    network = settled(config_net=True, no_copy_routes=True)
    assert network.routes == (Route(None, 0, "192.0.2.1"), Route(None, 0, "fe80::1", family=6))
    assert network.addresses == settled().addresses


def test_the_tap_has_the_name_asked_for() -> None:
    assert settled(ns_ifname="net0").interface == "net0"
    assert settled(LONELY, ns_ifname="net0").interface == "net0"


@pytest.mark.parametrize(
    ("options", "expected", "prefix"),
    [
        ({"address": "192.0.2.77/25"}, "192.0.2.77", 25),
        # One of the host's own keeps its prefix, any other is guessed.
        ({"address": "192.0.2.3"}, "192.0.2.3", 24),
        ({"address": "192.0.2.77"}, "192.0.2.77", 24),
        ({"address": "10.0.0.5"}, "10.0.0.5", 8),
        ({"address": "192.0.2.77", "netmask": "255.255.0.0"}, "192.0.2.77", 16),
        ({"netmask": "30"}, "192.0.2.2", 30),
    ],
)
def test_address_and_netmask(options: dict[str, Any], expected: str, prefix: int) -> None:
    network = settled(**options)
    ip4, _ = both(network)
    assert (ip4.address, ip4.prefix) == (ip(expected), prefix)
    assert ip4.explicit == ("address" in options)
    assert network.addresses[0] == (expected, prefix)
    if "address" in options:
        # What was asked for, and nothing else.
        assert [one for one in network.addresses if "." in one[0]] == [(expected, prefix)]
        assert [one for one in network.routes if one.family == 4] == [Route(None, 0, "192.0.2.1")]


@pytest.mark.parametrize(("text", "prefix"), [("2001:db8::77", 64), ("2001:db8::77/56", 56), ("2001:db8:2::2", 60)])
def test_ipv6_address(text: str, prefix: int) -> None:
    network = settled(address=text, netmask="255.0.0.0")
    _, ip6 = both(network)
    assert (ip6.address, ip6.prefix, ip6.explicit) == (ip(text.partition("/")[0]), prefix, True)
    assert both(network)[0].explicit is False


def test_an_address_without_network_is_local_still() -> None:
    network = settled(LONELY, address=["192.0.2.77/24", "2001:db8::77"])
    ip4, ip6 = both(network)
    assert (ip4.local, ip4.address, ip4.gateway) == (True, ip("192.0.2.77"), ip("169.254.2.2"))
    assert (ip6.local, ip6.address, ip6.gateway) == (True, ip("2001:db8::77"), ip("fe80::1"))
    assert network.addresses == (("192.0.2.77", 24), ("2001:db8::77", 64))


def test_a_gateway_may_be_given() -> None:
    network = settled(gateway=["192.0.2.254", "2001:db8::1"])
    ip4, ip6 = both(network)
    assert (ip4.gateway, ip4.host_loopback) == (ip("192.0.2.254"), ip("192.0.2.254"))
    assert (ip6.gateway, ip6.host_loopback, ip6.link_local) == (
        ip("2001:db8::1"),
        ip("2001:db8::1"),
        ip("fe80::2"),
    )
    assert network.routes == (Route(None, 0, "192.0.2.254"), Route(None, 0, "2001:db8::1", family=6))
    assert both(settled(LONELY, gateway="192.0.2.254"))[0].gateway == ip("192.0.2.254")


@pytest.mark.parametrize(
    ("options", "loopback4", "default4", "loopback6", "default6"),
    [
        ({"no_map_gw": True}, None, True, None, True),
        ({"map_host_loopback": "none"}, None, True, None, True),
        ({"map_host_loopback": "192.0.2.9"}, "192.0.2.9", False, "fe80::1", True),
        ({"map_host_loopback": ["192.0.2.8", "192.0.2.9"]}, "192.0.2.9", False, "fe80::1", True),
        ({"map_host_loopback": ["none", "192.0.2.9"]}, "192.0.2.9", False, None, True),
        ({"map_host_loopback": "2001:db8::9"}, "192.0.2.1", True, "2001:db8::9", False),
        ({"map_host_loopback": "192.0.2.9", "no_map_gw": True}, "192.0.2.9", False, None, True),
    ],
)
def test_what_stands_for_the_hosts_loopback(
    options: dict[str, Any], loopback4: str | None, default4: bool, loopback6: str | None, default6: bool
) -> None:
    ip4, ip6 = both(settled(**options))
    assert ip4.host_loopback == (ip(loopback4) if loopback4 else None)
    assert ip6.host_loopback == (ip(loopback6) if loopback6 else None)
    assert (not ip4.loopback_chosen, not ip6.loopback_chosen) == (default4, default6)


@pytest.mark.parametrize(
    ("nameservers", "options", "resolver"),
    [
        (("127.0.0.53",), {}, "127.0.0.53"),
        (("198.51.100.53", "127.0.0.53"), {}, "127.0.0.53"),
        (("198.51.100.53",), {}, None),
        (("127.0.0.53",), {"dns_host": "198.51.100.53"}, None),
        (("198.51.100.53",), {"dns_host": "127.0.0.9"}, "127.0.0.9"),
        (("127.0.0.53",), {"map_host_loopback": "192.0.2.9"}, None),
    ],
)
def test_the_gateway_stands_for_a_resolver_on_loopback(
    nameservers: tuple[str, ...], options: dict[str, Any], resolver: str | None
) -> None:
    ip4, ip6 = both(settled(ORDINARY, ResolverFile((*nameservers, "2001:db8:5::53")), **options))
    assert ip4.gateway_resolver == (ip(resolver) if resolver else None)
    assert ip6.gateway_resolver is None


def test_broadcast_addresses() -> None:
    point_to_point = address(OTHER, "10.7.7.1", 31)
    network = settled({**ORDINARY, "addresses": [*ORDINARY["addresses"], point_to_point]})
    assert network.broadcasts == frozenset(
        map(ip, ("255.255.255.255", "192.0.2.255", "10.1.255.255", "127.255.255.255"))
    )


def test_other_special_addresses() -> None:
    options: dict[str, Any] = {
        "map_guest_addr": ["192.0.2.77", "2001:db8::77"],
        "dns_forward": ["192.0.2.53", "2001:db8::53"],
        "outbound": ["192.0.2.3", "2001:db8:2::2"],
        "interface": "up0",
        "outbound_if4": "up0",
        "outbound_if6": "other0",
    }
    ip4, ip6 = both(settled(**options))
    assert (ip4.guest_alias, ip4.dns_forward) == (ip("192.0.2.77"), ip("192.0.2.53"))
    assert (ip6.guest_alias, ip6.dns_forward) == (ip("2001:db8::77"), ip("2001:db8::53"))
    assert (ip4.outbound, ip4.outbound_interface) == (ip("192.0.2.3"), "up0")
    assert (ip6.outbound, ip6.outbound_interface) == (ip("2001:db8:2::2"), "other0")
    assert ip4_of(map_guest_addr=["192.0.2.77", "none"]).guest_alias is None


# Names


def test_the_guest_is_told_no_names_unless_asked() -> None:
    network = settled()
    ip4, ip6 = both(network)
    assert (ip4.resolvers, ip6.resolvers, network.search) == ((), (), ())


@pytest.mark.parametrize(
    ("nameservers", "options", "told4", "told6"),
    [
        (("198.51.100.53", "2001:db8:5::53"), {}, ["198.51.100.53"], ["2001:db8:5::53"]),
        (("127.0.0.53", "::1"), {}, ["192.0.2.1"], ["fe80::1"]),
        (("127.0.0.53", "198.51.100.53", "127.0.0.54"), {}, ["192.0.2.1", "198.51.100.53"], []),
        (("127.0.0.53", "198.51.100.53"), {"no_map_gw": True}, ["198.51.100.53"], []),
        (("127.0.0.53",), {"map_host_loopback": "192.0.2.9"}, ["192.0.2.9"], []),
        (("192.0.2.60", "192.0.2.61", "192.0.2.62", "192.0.2.63"), {}, ["192.0.2.60", "192.0.2.61", "192.0.2.62"], []),
        (("198.51.100.53",), {"dns": ["127.0.0.53", "2001:db8::5"]}, ["127.0.0.53"], ["2001:db8::5"]),
        (("198.51.100.53", "2001:db8:5::53"), {"dns": "192.0.2.5"}, ["192.0.2.5"], ["2001:db8:5::53"]),
        (("198.51.100.53", "2001:db8:5::53"), {"dns": "none"}, [], []),
        (("198.51.100.53", "2001:db8:5::53"), {"dns": ["192.0.2.5", "none"]}, [], []),
        (("198.51.100.53",), {"dns": ["192.0.2.4", "none", "192.0.2.5"]}, ["192.0.2.5"], []),
        ((), {}, [], []),
    ],
)
def test_resolvers_that_the_guest_is_told(
    nameservers: tuple[str, ...], options: dict[str, Any], told4: list[str], told6: list[str]
) -> None:
    ip4, ip6 = both(settled(ORDINARY, ResolverFile(nameservers), dhcp_dns=True, **options))
    assert ip4.resolvers == tuple(map(ip, told4))
    assert ip6.resolvers == tuple(map(ip, told6))
    assert both(settled(ORDINARY, ResolverFile(nameservers), **options))[0].resolvers == ()


def test_a_mode_that_tells_by_default() -> None:
    def reported(**options: Any) -> tuple[bool, bool, bool]:
        network = build_network(Config(**options), ORDINARY, RESOLVERS, advertises=True)
        ip4, ip6 = both(network)
        return bool(ip4.resolvers), bool(ip6.resolvers), bool(network.search)

    assert reported() == (True, True, True)
    assert reported(no_dhcp_dns=True) == (False, False, True)
    assert reported(no_dhcp_search=True) == (True, True, False)
    assert reported(dns="none", search="none") == (False, False, False)
    # These ask for what is so anyway.
    assert reported(dhcp_dns=True, dhcp_search=True) == (True, True, True)
    assert settled(no_dhcp_dns=True, no_dhcp_search=True) == settled()


def test_the_guests_own_names() -> None:
    assert (settled().hostname, settled().fqdn) == ("", "")
    network = settled(hostname="guest", fqdn="guest.example.org")
    assert (network.hostname, network.fqdn) == ("guest", "guest.example.org")


def test_the_hosts_resolver_is_the_first_or_the_one_given() -> None:
    assert both(settled(file=ResolverFile(("127.0.0.53", "192.0.2.53"))))[0].resolver == ip("127.0.0.53")
    assert ip4_of(dns_host="203.0.113.5").resolver == ip("203.0.113.5")
    assert ip6_of(dns_host="203.0.113.5").resolver == ip("2001:db8:5::53")
    # What the guest is told does not change where its queries go.
    assert ip4_of(dns="203.0.113.5").resolver == ip("198.51.100.53")


@pytest.mark.parametrize(
    ("options", "search"),
    [
        ({}, ()),
        ({"dhcp_search": True}, ("example.org", "example.net")),
        ({"dhcp_search": True, "search": "a.example"}, ("a.example",)),
        ({"dhcp_search": True, "search": "none"}, ()),
        ({"search": "a.example"}, ()),
        (
            {"dhcp_search": True, "search": ["a.example  b.example", "c.example"]},
            ("a.example", "b.example", "c.example"),
        ),
        ({"dhcp_search": True, "search": ["a.example", "none"]}, ()),
        ({"dhcp_search": True, "search": ["none", "a.example"]}, ("a.example",)),
    ],
)
def test_search_domains(options: dict[str, Any], search: tuple[str, ...]) -> None:
    assert settled(**options).search == search


@pytest.mark.parametrize(
    ("text", "nameservers", "search"),
    [
        ("", (), ()),
        ("nameserver 192.0.2.53\nnameserver 2001:DB8::53\n", ("192.0.2.53", "2001:db8::53"), ()),
        ("nameserver fe80::1%eth0", ("fe80::1",), ()),
        ("nameserver\t192.0.2.53 # first", ("192.0.2.53",), ()),
        ("  nameserver 192.0.2.53", ("192.0.2.53",), ()),
        ("#nameserver 192.0.2.53\n; nameserver 192.0.2.54\nnameserver", (), ()),
        ("nameserver resolver.example\nnameserver 192.0.2.53", ("192.0.2.53",), ()),
        ("search a.example b.example\nsearch c.example", (), ("c.example",)),
        ("search .\n", (), ()),
        (f"search a.example {'x' * 64} b..c", (), ("a.example",)),
        ("options edns0\ndomain a.example\nnameserver 192.0.2.53\r\n", ("192.0.2.53",), ()),
    ],
)
def test_resolver_files(text: str, nameservers: tuple[str, ...], search: tuple[str, ...]) -> None:
    assert parse_resolver_file(text) == ResolverFile(nameservers, search)


@pytest.mark.parametrize(
    ("address", "gateway", "prefix"),
    [
        ("10.0.0.5", "10.255.0.1", 8),
        ("127.0.0.5", "127.0.0.1", 8),
        ("128.0.0.5", "128.0.9.1", 16),
        ("172.16.0.5", "172.16.9.1", 16),
        ("192.0.2.5", "192.0.2.1", 24),
        ("224.0.0.5", "224.0.0.5", 32),
        ("224.0.0.5", "224.0.0.4", 31),
        # Shortened until the gateway is inside, if some length does that.
        ("192.0.2.5", "192.0.3.1", 23),
        ("10.0.0.5", "11.0.0.1", 7),
        ("10.0.0.5", "192.0.2.1", 8),
        ("192.0.2.5", "10.0.0.1", 24),
    ],
)
def test_guessed_prefixes(address: str, gateway: str, prefix: int) -> None:
    assert guess_prefix4(address, gateway) == prefix


def test_a_name_that_is_not_utf_8_is_not_copied() -> None:
    named: HostFacts = {**ORDINARY, "links": [{**link, "name": f"{link['name']}\udcff"} for link in LINKS]}
    assert settled(named).interface == "tap0"
    with pytest.raises(ConfigurationError) as caught:
        settled(named, interface="other")
    assert str(caught.value).isprintable()
