"""What can be asked of the helper.

These records cross the channel as JSON: `to_message` and `open_request` are each other's inverse, and
nothing else knows the field names on the wire. Addresses are text here, since they are only handed on to
netlink.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Route:
    """One route inside the namespace.

    :param destination: network address, None for the default route.
    :param prefix: length of the destination's prefix.
    :param gateway: None for a route straight to the link.
    :param metric: None leaves the choice to the kernel.
    :param family: 4 or 6.
    :param onlink: take the gateway for a neighbour without asking whether an address of the link covers it.
    """

    destination: str | None
    prefix: int
    gateway: str | None = None
    metric: int | None = None
    family: int = 4
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A namespace to create or join, and the tap device to make in it.

    :param netns: file of the network namespace to join; None creates one.
    :param userns: file of the user namespace that owns `netns`; None when it is the caller's own.
    :param netns_only: create no user namespace, or ignore `userns`.
    :param runas: user and group id to take on; root only.
    :param ifname: name of the tap device.
    :param mac: None lets the kernel choose one.
    :param mtu: 0 leaves the kernel's default.
    :param offload: let checksums and segmentation pass through the tap undone.
    :param configure: bring the link up with `addresses`, `routes` and `link_local`.
    :param up: bring the link up even without `configure`.
    :param addresses: pairs of address and prefix length.
    :param link_local: link-local address for `configure`; None derives it from the MAC address.
    :param tap: False makes no device; only `lo` is brought up.
    :param hostname: host name in a new UTS namespace.
    """

    netns: str | None = None
    userns: str | None = None
    netns_only: bool = False
    runas: tuple[int, int] | None = None
    ifname: str = "gpasst0"
    mac: str | None = None
    mtu: int = 65520
    offload: bool = True
    configure: bool = False
    up: bool = False
    addresses: tuple[tuple[str, int], ...] = ()
    routes: tuple[Route, ...] = ()
    link_local: str | None = None
    tap: bool = True
    hostname: str | None = None


def to_message(request: OpenRequest) -> dict[str, Any]:
    """Give the request as plain values for JSON."""
    return asdict(request)


def open_request(message: dict[str, Any]) -> OpenRequest:
    """Rebuild the request from what `to_message` gave, after a trip through JSON."""
    fields = dict(message)
    runas = fields["runas"]
    fields["runas"] = (runas[0], runas[1]) if runas else None
    fields["addresses"] = tuple((address, prefix) for address, prefix in fields["addresses"])
    fields["routes"] = tuple(Route(**route) for route in fields["routes"])
    return OpenRequest(**fields)
