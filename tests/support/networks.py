"""A guest's network of each family, and the address rules that follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.flow.translation import Addresses
from tests.support.addresses import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    HOST_LINK_LOCAL,
    HOST_MAC,
    RESOLVER4,
    RESOLVER6,
    ip,
)

INDEX = 7  # of the host's interface that the guest's network is a copy of

NETWORK4 = FamilyNetwork(
    family=4,
    local=False,
    address=ip(GUEST4),
    prefix=24,
    gateway=ip(GATEWAY4),
    link_local=None,
    index=INDEX,
    host_loopback=ip(GATEWAY4),
    loopback_chosen=False,
    gateway_resolver=None,
    guest_alias=None,
    resolver=ip(RESOLVER4),
    dns_forward=None,
    resolvers=(),
    host_addresses=frozenset(map(ip, ("127.0.0.1", GUEST4, "192.0.2.3"))),
)
NETWORK6 = FamilyNetwork(
    family=6,
    local=False,
    address=ip(GUEST6),
    prefix=64,
    gateway=ip(GATEWAY6),
    link_local=ip(HOST_LINK_LOCAL),
    index=INDEX,
    host_loopback=ip(GATEWAY6),
    loopback_chosen=False,
    gateway_resolver=None,
    guest_alias=None,
    resolver=ip(RESOLVER6),
    dns_forward=None,
    resolvers=(),
    host_addresses=frozenset(map(ip, ("::1", GUEST6, HOST_LINK_LOCAL))),
)
NETWORKS = {4: NETWORK4, 6: NETWORK6}


def family_network(family: int, **changes: Any) -> FamilyNetwork:
    """Return the network of one family; text among `changes` is an address."""
    packed: dict[str, Any] = {name: ip(value) if isinstance(value, str) else value for name, value in changes.items()}
    return replace(NETWORKS[family], **packed)


def guest_network(
    ip4: FamilyNetwork = NETWORK4,
    ip6: FamilyNetwork = NETWORK6,
    mtu: int = 1500,
    search: tuple[str, ...] = (),
    hostname: str = "",
    fqdn: str = "",
) -> GuestNetwork:
    """Return the network of a guest whose namespace is not configured for it."""
    return GuestNetwork(
        ip4=ip4,
        ip6=ip6,
        interface="tap0",
        host_mac=HOST_MAC,
        mtu=mtu,
        search=search,
        addresses=(),
        routes=(),
        hostname=hostname,
        fqdn=fqdn,
    )


def rules(family: int, link_local: str | None = GUEST_LINK_LOCAL, **changes: Any) -> Addresses:
    """Return the rules of one family; text among `changes` is an address."""
    own = ip(link_local) if link_local and family == 6 else None
    return Addresses(family_network(family, **changes), own)
