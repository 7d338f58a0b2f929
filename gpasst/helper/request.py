"""Requests to the helper.

These records cross the channel as JSON: `to_message` and `open_request` are each other's inverse, and nothing else
knows the field names on the wire. Addresses are text here, since they are only handed on to netlink.
"""

from __future__ import annotations

from typing import Any

from gpasst.records import asdict, dataclass


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
    :param configure: bring the link up with `addresses`, `routes` and the link-local address of its MAC address.
    :param addresses: pairs of address and prefix length.
    :param tap: False makes no device; only `lo` is brought up.
    :param optional: families, of 4 and 6, whose addresses and routes are copies of the host's: what the kernel refuses
        of them is left out and reported, while every other refusal is an error.
    :param hostname: host name of a namespace that is created, empty for ``pasta-`` and the host's.
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
    addresses: tuple[tuple[str, int], ...] = ()
    routes: tuple[Route, ...] = ()
    tap: bool = True
    optional: tuple[int, ...] = ()
    hostname: str = ""

    @property
    def shares_process(self) -> bool:
        """Whether the namespace can be kept by the process that keeps others of the same caller.

        Not one of somebody else, whose user namespace is another; nor one for another user, since an identity is the
        process's.
        """
        return self.netns is None and self.runas is None


def to_message(request: OpenRequest) -> dict[str, Any]:
    """Return the request as plain values for JSON."""
    return asdict(request)


def open_request(message: dict[str, Any]) -> OpenRequest:
    """Return the request that `to_message` was called with, from its values after a trip through JSON.

    :raises KeyError: if a field is missing.
    :raises TypeError: if there is an unknown one.
    """
    fields = dict(message)
    runas = fields["runas"]
    fields["runas"] = (runas[0], runas[1]) if runas else None
    fields["addresses"] = tuple((address, prefix) for address, prefix in fields["addresses"])
    fields["optional"] = tuple(fields["optional"])
    fields["routes"] = routes(fields["routes"])
    return OpenRequest(**fields)


def routes(messages: list[dict[str, Any]]) -> tuple[Route, ...]:
    """Return the routes of which these are the fields."""
    return tuple(Route(**message) for message in messages)
