"""The host's configuration as `gpasst.helper.netlink` lists it: the fields of the answer to a request for facts.

These are types alone, of what arrives as JSON: whoever imports them does so for the type checker.
"""

from __future__ import annotations

from typing import TypedDict


class HostLink(TypedDict):
    """A link: its index, its name, its MAC address if it has one, and its MTU in bytes."""

    index: int
    name: str
    mac: str | None
    up: bool
    mtu: int
    loopback: bool


class HostAddress(TypedDict):
    """An address of a link: family 4 or 6, the address as text, bits of its prefix, RT_SCOPE_*, IFA_F_*."""

    index: int
    family: int
    address: str
    prefix: int
    scope: int
    flags: int


class HostRoute(TypedDict):
    """A unicast route of the main table: family 4 or 6, destination (None for the default route) and bits of its
    prefix, gateway (None for a neighbour), index of the link, metric, RT_TABLE_*, RT_SCOPE_*, RTPROT_*, RTN_*, and
    the preferred source address.
    """

    family: int
    destination: str | None
    prefix: int
    gateway: str | None
    oif: int
    metric: int
    table: int
    scope: int
    protocol: int
    type: int
    source: str | None


class HostFacts(TypedDict):
    """Links, addresses, routes, and the first and last ephemeral port.

    For each family the default route of the lowest metric comes first.
    """

    links: list[HostLink]
    addresses: list[HostAddress]
    routes: list[HostRoute]
    ephemeral: list[int]
