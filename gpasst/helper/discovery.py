"""The host's links, addresses and routes, read in messages of `gpasst.helper.rtnetlink`.

Everything here reads the network namespace of the calling thread.
"""

from __future__ import annotations

import _socket
import errno
import os
from typing import TYPE_CHECKING

from gpasst.helper.rtnetlink import (
    ADDRESS,
    LINK,
    NUMBER,
    ROUTE,
    Attributes,
    NetlinkError,
    Session,
    attribute,
    next_hop,
    parse_attributes,
)
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_LOOPBACK,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_MTU,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTN_UNICAST,
)

if TYPE_CHECKING:
    from gpasst.helper.facts import HostAddress, HostFacts, HostLink, HostRoute

PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
FAMILIES = {AF_INET: 4, AF_INET6: 6}
# What the kernel answers when it has no IPv6, or no route of the table yet.
NO_TABLE = frozenset({errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


def facts() -> HostFacts:
    """Return links, addresses, main-table unicast routes and the ephemeral ports of the present namespace.

    For each family the default route of the lowest metric comes first.

    :raises NetlinkError: if the kernel does not list them.
    """
    with Session() as session:
        links = [_link(body) for body in session.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0))]
        addresses = [parse_address(body) for body in addresses_of(session) if body[0] in FAMILIES]
        dumped = [body for family in FAMILIES for body in routes_of(session, family)]
    routes = [route for body in dumped if (route := _route(body))]
    routes.sort(key=lambda route: (route["family"], route["destination"] is not None, route["metric"]))
    return {"links": links, "addresses": addresses, "routes": routes, "ephemeral": ephemeral_ports()}


def ephemeral_ports() -> list[int]:
    """Return the first and the last port that the present namespace hands out by itself.

    :raises OSError: if /proc is missing.
    """
    with open(PORT_RANGE, encoding="utf-8") as file:
        return [int(number) for number in file.read().split()]


def addresses_of(session: Session, family: int = 0) -> list[bytes]:
    """Return the messages of all addresses, or of those of one family."""
    return session.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, 0))


def routes_of(session: Session, family: int, table: int = RT_TABLE_MAIN) -> list[bytes]:
    """Return the messages of the routes of one family, mostly those of one table alone."""
    head = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        return session.dump(RTM_GETROUTE, head + attribute(RTA_TABLE, NUMBER.pack(table)))
    except NetlinkError as error:
        if error.code not in NO_TABLE:
            raise
        return []


def _number(found: Attributes, kind: int) -> int | None:
    return NUMBER.unpack_from(found[kind])[0] if kind in found else None


def _text(found: Attributes, family: int, *kinds: int) -> str | None:
    """Return the address in the first attribute of `kinds` that is there, None without any."""
    data = next((found[kind] for kind in kinds if kind in found), None)
    return None if data is None else _socket.inet_ntop(family, data)


def _link(body: bytes) -> HostLink:
    _, _, index, flags, _ = LINK.unpack_from(body)
    found = parse_attributes(body, LINK.size)
    mac = found.get(IFLA_ADDRESS)
    return {
        "index": index,
        # A name need not be UTF-8.
        "name": os.fsdecode(found[IFLA_IFNAME].rstrip(b"\0")),
        "mac": mac.hex(":") if mac else None,
        "up": bool(flags & IFF_UP),
        "mtu": _number(found, IFLA_MTU) or 0,
        "loopback": bool(flags & IFF_LOOPBACK),
    }


def parse_address(body: bytes) -> HostAddress:
    """Return an address from the body of its message."""
    family, prefix, flags, scope, index = ADDRESS.unpack_from(body)
    found = parse_attributes(body, ADDRESS.size)
    more = _number(found, IFA_FLAGS)
    return {
        "index": index,
        "family": FAMILIES[family],
        # On a point-to-point link IFA_ADDRESS is the peer.
        "address": _text(found, family, IFA_LOCAL, IFA_ADDRESS) or "",
        "prefix": prefix,
        "scope": scope,
        "flags": flags if more is None else more,
    }


def _route(body: bytes) -> HostRoute | None:
    """Return a route, None if it is not a unicast route of the main table."""
    family, bits, _, _, short, protocol, scope, kind, _ = ROUTE.unpack_from(body)
    found = parse_attributes(body, ROUTE.size)
    number = _number(found, RTA_TABLE)
    table = short if number is None else number
    if kind != RTN_UNICAST or table != RT_TABLE_MAIN:
        return None
    gateway, index = _text(found, family, RTA_GATEWAY), _number(found, RTA_OIF) or 0
    if RTA_MULTIPATH in found or RTA_VIA in found:
        gateway, index = next_hop(body)
    return {
        "family": FAMILIES[family],
        "destination": _text(found, family, RTA_DST) if bits else None,
        "prefix": bits,
        "gateway": gateway,
        "oif": index,
        "metric": _number(found, RTA_PRIORITY) or 0,
        "table": table,
        "scope": scope,
        "protocol": protocol,
        "type": kind,
        "source": _text(found, family, RTA_PREFSRC),
    }
