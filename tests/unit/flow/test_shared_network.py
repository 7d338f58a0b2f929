"""The network behind a gateway: a subnet of its own, with the host's way to the outside."""

from __future__ import annotations

import ipaddress

from gpasst.flow.shared_network import shared_network
from tests.support.addresses import RESOLVER4, ip
from tests.support.networks import INDEX, NETWORK4, family_network, guest_network

MAC = b"\x02\x67\x0a\x4d\x00\x01"
GATEWAY4, GATEWAY6 = ipaddress.IPv4Interface("10.77.0.1/24"), ipaddress.IPv6Interface("fd77::1/64")


def test_the_gateway_stands_for_the_host_and_its_resolver() -> None:
    network = shared_network(guest_network(), GATEWAY4, GATEWAY6, MAC, 1400)
    assert (network.host_mac, network.mtu) == (MAC, 1400)
    assert (network.addresses, network.routes) == ((), ())
    for family, gateway in ((network.ip4, "10.77.0.1"), (network.ip6, "fd77::1")):
        assert family
        assert family.address is None
        assert family.gateway == family.host_loopback == family.dns_forward == ip(gateway)
        assert family.resolvers == (ip(gateway),)
        assert family.index == INDEX
    assert network.ip4 and network.ip6
    assert (network.ip4.prefix, network.ip6.prefix) == (24, 64)
    assert network.ip4.resolver == ip(RESOLVER4)
    assert (network.ip4.link_local, network.ip6.link_local) == (None, ip("fe80::1"))


def test_without_a_resolver_none_is_advertised() -> None:
    network = shared_network(guest_network(ip4=family_network(4, resolver=None)), GATEWAY4, None, MAC, 1500)
    assert network.ip4
    assert (network.ip4.dns_forward, network.ip4.resolvers) == (None, ())


def test_a_family_that_either_lacks_is_not_carried() -> None:
    assert shared_network(guest_network(), GATEWAY4, None, MAC, 1500).ip6 is None
    lacking = guest_network().without(frozenset((4,)))
    assert shared_network(lacking, GATEWAY4, GATEWAY6, MAC, 1500).ip4 is None


def test_a_family_that_leads_nowhere_has_no_default_route() -> None:
    local = guest_network(ip4=family_network(4, routed=False))
    network = shared_network(local, GATEWAY4, GATEWAY6, MAC, 1500)
    assert network.ip4 and network.ip6
    assert (network.ip4.routed, network.ip6.routed) == (False, True)
    assert NETWORK4.routed
