"""Reading and writing network configuration with pyroute2.

Everything here acts on the network namespace of the calling thread, and opens a netlink session of its own.

Addresses are added without duplicate address detection: a tentative address cannot be used for a second or more, and
the link has exactly one guest. For the same reason the kernel's own link-local address is switched off; the one that it
would make (from the MAC address) is added by hand.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.helper.request import OpenRequest, Route
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IFA_F_NODAD,
    IFF_LOOPBACK,
    IFF_UP,
    IN6_ADDR_GEN_MODE_NONE,
    RT_SCOPE_LINK,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    RTNH_F_ONLINK,
)

if TYPE_CHECKING:
    from gpasst.helper.facts import HostAddress, HostFacts, HostLink, HostRoute

PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
FAMILIES = {AF_INET: 4, AF_INET6: 6}
NUMBERS = {4: AF_INET, 6: AF_INET6}
V6 = 6
IPV6_LINKS = "/proc/thread-self/net/if_inet6"  # missing where the kernel was booted without IPv6

TX_QUEUE_LENGTH = 10_000  # frames; the default of 1000 loses bursts while the proxy serves other sockets
LINK_LOCAL_PREFIX = 64
IPV6_MTU_MINIMUM = 1280  # bytes (RFC 8200, section 5); Linux gives a link below it no IPv6
IPV6_SWITCH = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"  # missing where the link has too small an MTU

# A wrong address, prefix, MAC or route; other errors are the machine's.
CALLERS_FAULT = frozenset(
    {errno.EINVAL, errno.EADDRNOTAVAIL, errno.EEXIST, errno.ERANGE, errno.ENETUNREACH, errno.EHOSTUNREACH}
)
CALLERS_REMEDY = "correct the option, address or route that it comes from"
KERNELS_REMEDY = "see the kernel's log, dmesg, and whether memory is short"
IPV6_REMEDY = "IPv6 may be switched off: see net.ipv6.conf.all.disable_ipv6, or leave its addresses out"
REMEDIES = {
    errno.EPERM: "name the user namespace the network namespace belongs to with --userns, or run as root",
    errno.EACCES: IPV6_REMEDY,
    errno.EOPNOTSUPP: IPV6_REMEDY,
    errno.EAFNOSUPPORT: IPV6_REMEDY,
}
# What the kernel answers when a link has no IPv6.
NO_IPV6 = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES, errno.ENODEV, errno.EINVAL})

Fields = dict[str, Any]


def facts() -> HostFacts:
    """Return links, addresses, main-table unicast routes and the ephemeral ports of the present namespace.

    For each family the default route of the lowest metric comes first.

    :raises NetlinkError: if the kernel does not list them.
    """
    with IPRoute() as ipr:
        links = [_link(message) for message in ipr.get_links()]
        addresses = [_address(message) for message in ipr.get_addr() if message["family"] in FAMILIES]
        dumped = [message for family in FAMILIES for message in ipr.get_routes(family=family, table=RT_TABLE_MAIN)]
    routes = [_route(message) for message in dumped if _wanted(message)]
    routes.sort(key=lambda route: (route["family"], route["destination"] is not None, route["metric"]))
    return {"links": links, "addresses": addresses, "routes": routes, "ephemeral": ephemeral_ports()}


def ephemeral_ports() -> list[int]:
    """Return the first and the last port that the present namespace hands out by itself.

    :raises OSError: if /proc is missing.
    """
    with open(PORT_RANGE, encoding="utf-8") as file:
        return [int(number) for number in file.read().split()]


def configure(request: OpenRequest, name: str | None, reused: bool = False) -> Fields:
    """Bring `lo` up and, when a tap device was made, set it up as asked.

    :param name: name of the device, None without one.
    :param reused: whether the device was there before, and may have what is asked for.
    :return: index, MAC address and link-local address of the device, the families that the namespace lacks, and a line
        for everything that was left out; empty without a device.
    :raises ConfigurationError: if the kernel refuses what the request names.
    :raises PlatformError: if a permission is in the way, or the kernel lacks IPv6.
    """
    with IPRoute() as ipr:
        loopback = ipr.link_lookup(ifname="lo")[0]
        _try("bring the loopback device up", lambda: ipr.link("set", index=loopback, state="up"))
        if name is None:
            return {}
        index = ipr.link_lookup(ifname=name)[0]
        _set_link(ipr, index, request)
        mac = str(ipr.get_links(index)[0].get_attr("IFLA_ADDRESS"))
        lacking: list[int] = []
        notes: list[str] = []
        if request.configure:
            has_ipv6 = _add_link_local(ipr, index, link_local_address(mac))
            for number, family in NUMBERS.items():
                if number == V6 and not has_ipv6 and number in request.optional:
                    lacking.append(number)
                    notes.append(f"the namespace goes without IPv6: {_why_no_ipv6(name)}")
                else:
                    notes += _furnish_family(ipr, index, family, request, reused)
        link_local = _read_link_local(ipr, index)
        return {"index": index, "mac": mac, "link_local": link_local, "lacking": lacking, "notes": notes}


def link_local_address(mac: str) -> str:
    """Return the link-local address with the identifier of a MAC address, six octets in hexadecimal with colons.

    RFC 4291, section 2.5.6 and appendix A.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _set_link(ipr: Any, index: int, request: OpenRequest) -> None:
    changes: Fields = {}
    if request.mac:
        changes["address"] = request.mac
    if request.mtu and request.configure:
        changes["mtu"] = request.mtu
    what = f"set up {request.ifname} with {_listed(changes) or 'its queue'}"
    _try(what, lambda: ipr.link("set", index=index, txqlen=TX_QUEUE_LENGTH, **changes))
    if request.configure and os.path.exists(IPV6_LINKS):
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]}
        try:
            ipr.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
        except NetlinkError as error:
            # Without IPv6 on the link there will be no such address anyway.
            if error.code not in NO_IPV6:
                raise PlatformError(f"cannot {what}: {os.strerror(error.code)}", _remedy(error.code)) from None
    if request.configure:
        _try(f"bring {request.ifname} up", lambda: ipr.link("set", index=index, state="up"))


def _furnish_family(ipr: Any, index: int, family: int, request: OpenRequest, reused: bool) -> list[str]:
    """Add the addresses and routes of one family, and return a line for each that was left out.

    :raises GpasstError: if the kernel refuses one and the family is not optional.
    """
    number = FAMILIES[family]
    actions: list[Callable[[], None]] = [
        partial(_add_address, ipr, index, text, prefix, reused)
        for text, prefix in request.addresses
        if (":" in text) == (number == V6)
    ]
    actions += [
        partial(_add_route, ipr, index, route, request, reused) for route in request.routes if route.family == number
    ]
    notes = []
    for action in actions:
        try:
            action()
        except GpasstError as error:
            if number not in request.optional:
                raise
            notes.append(f"left out in the namespace: {error.message}")
    return notes


def _why_no_ipv6(name: str) -> str:
    """Return what keeps a link from having IPv6."""
    if not os.path.exists(IPV6_LINKS):
        return "the kernel has none"
    if os.path.exists(IPV6_SWITCH.format(name)):
        return f"it is switched off there (sysctl net.ipv6.conf.{name}.disable_ipv6)"
    return f"the MTU of {name} is below {IPV6_MTU_MINIMUM}"


def _add_address(ipr: Any, index: int, text: str, prefix: int, reused: bool) -> None:
    flags = {"flags": IFA_F_NODAD} if ":" in text else {}
    family = AF_INET6 if ":" in text else AF_INET
    _try(
        f"add the address {text}/{prefix}",
        lambda: ipr.addr("add", index=index, address=text, prefixlen=prefix, family=family, **flags),
        reused,
    )


def _add_link_local(ipr: Any, index: int, text: str) -> bool:
    """Add the link-local address; return whether the link has IPv6."""
    try:
        ipr.addr("add", index=index, address=text, prefixlen=LINK_LOCAL_PREFIX, family=AF_INET6, flags=IFA_F_NODAD)
    except NetlinkError as error:
        # Without IPv6 there is nothing to add it to; a namespace for IPv4 alone is still of use.
        if error.code not in NO_IPV6 | {errno.EEXIST}:
            raise PlatformError(
                f"cannot add the address {text}: {os.strerror(error.code)}", _remedy(error.code)
            ) from None
        return bool(error.code == errno.EEXIST)
    return True


def _add_route(ipr: Any, index: int, route: Route, request: OpenRequest, reused: bool) -> None:
    destination = "default" if route.destination is None else f"{route.destination}/{route.prefix}"
    family = NUMBERS[route.family]
    fields: Fields = {"family": family, "dst": destination, "oif": index}
    if route.metric is not None:
        fields["priority"] = route.metric
    if route.gateway is None:
        fields["scope"] = RT_SCOPE_LINK if family == AF_INET else 0
    else:
        fields["gateway"] = route.gateway
        if route.onlink:
            fields["flags"] = RTNH_F_ONLINK
        elif not _covered(route.gateway, request.addresses):
            _add_host_route(ipr, index, family, route.gateway)
    via = f" via {route.gateway}" if route.gateway else ""
    # A copy of a route that the kernel has made with the address is no error.
    there = reused or route.family in request.optional
    _try(f"add the route {destination}{via}", lambda: ipr.route("add", **fields), there)


def _add_host_route(ipr: Any, index: int, family: int, gateway: str) -> None:
    length, scope = (32, RT_SCOPE_LINK) if family == AF_INET else (128, 0)
    # "replace", since several routes may share the gateway.
    _try(
        f"add the route to the gateway {gateway}",
        lambda: ipr.route("replace", family=family, dst=f"{gateway}/{length}", oif=index, scope=scope),
    )


def _covered(gateway: str, addresses: tuple[tuple[str, int], ...]) -> bool:
    address = ipaddress.ip_address(gateway)
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        return True
    return any(address in ipaddress.ip_network(f"{text}/{prefix}", strict=False) for text, prefix in addresses)


def _read_link_local(ipr: Any, index: int) -> str | None:
    for message in ipr.get_addr(family=AF_INET6, index=index):
        if message["index"] == index and message["scope"] == RT_SCOPE_LINK:
            return str(message.get_attr("IFA_ADDRESS"))
    return None


def _try(what: str, action: Callable[[], object], may_exist: bool = False) -> None:
    """Run an action on the kernel's configuration.

    :param what: the action in words.
    :param may_exist: whether the outcome may be there already.
    :raises ConfigurationError: if the request is at fault.
    :raises PlatformError: if the machine is.
    """
    try:
        action()
    except NetlinkError as error:
        if may_exist and error.code == errno.EEXIST:
            return
        message = f"cannot {what}: {os.strerror(error.code)}"
        if error.code in CALLERS_FAULT:
            raise ConfigurationError(message, CALLERS_REMEDY) from None
        raise PlatformError(message, _remedy(error.code)) from None
    except (ValueError, TypeError, OSError) as error:
        # pyroute2 found an address or a number that cannot be encoded.
        raise ConfigurationError(f"cannot {what}: {error}", CALLERS_REMEDY) from None


def _remedy(code: int) -> str:
    """Return the remedy for an errno of the kernel that the caller has not caused."""
    return REMEDIES.get(code, KERNELS_REMEDY)


def _listed(changes: Fields) -> str:
    return ", ".join(f"{key} {value}" for key, value in changes.items())


def _link(message: Any) -> HostLink:
    return {
        "index": message["index"],
        # The name is bytes if it is not UTF-8.
        "name": os.fsdecode(message.get_attr("IFLA_IFNAME")),
        "mac": message.get_attr("IFLA_ADDRESS"),
        "up": bool(message["flags"] & IFF_UP),
        "mtu": message.get_attr("IFLA_MTU"),
        "loopback": bool(message["flags"] & IFF_LOOPBACK),
    }


def _address(message: Any) -> HostAddress:
    flags = message.get_attr("IFA_FLAGS")
    return {
        "index": message["index"],
        "family": FAMILIES[message["family"]],
        # On a point-to-point link IFA_ADDRESS is the peer.
        "address": message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
        "prefix": message["prefixlen"],
        "scope": message["scope"],
        "flags": message["flags"] if flags is None else flags,
    }


def _wanted(message: Any) -> bool:
    return message["type"] == RTN_UNICAST and _table(message) == RT_TABLE_MAIN


def _table(message: Any) -> int:
    table = message.get_attr("RTA_TABLE")
    return int(message["table"] if table is None else table)


def _route(message: Any) -> HostRoute:
    hops = message.get_attr("RTA_MULTIPATH")
    hop = hops[0] if hops else message
    via = hop.get_attr("RTA_VIA")
    return {
        "family": FAMILIES[message["family"]],
        "destination": message.get_attr("RTA_DST") if message["dst_len"] else None,
        "prefix": message["dst_len"],
        "gateway": hop.get_attr("RTA_GATEWAY") or (via["addr"] if via else None),
        "oif": hop["oif"] if hops else message.get_attr("RTA_OIF"),
        "metric": message.get_attr("RTA_PRIORITY") or 0,
        "table": _table(message),
        "scope": message["scope"],
        "protocol": message["proto"],
        "type": message["type"],
        "source": message.get_attr("RTA_PREFSRC"),
    }
