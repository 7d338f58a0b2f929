"""Writing network configuration, in messages of `gpasst.helper.rtnetlink`.

Everything here acts on the network namespace of the calling thread, and opens a netlink session of its own.

Addresses are added without duplicate address detection: a tentative address cannot be used for a second or more, and
the link has exactly one guest. For the same reason the kernel's own link-local address is switched off; the one that it
would make (from the MAC address) is added by hand.
"""

from __future__ import annotations

import _socket
import errno
import ipaddress
import os
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.helper.discovery import FAMILIES, addresses_of, parse_address, routes_of
from gpasst.helper.request import OpenRequest, Route
from gpasst.helper.rtnetlink import (
    ADDRESS,
    LINK,
    NUMBER,
    ROUTE,
    NetlinkError,
    Session,
    attribute,
    attributes,
    parse_attributes,
)
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_LOCAL,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_MTU,
    IFLA_TXQLEN,
    IN6_ADDR_GEN_MODE_NONE,
    IPV6_MIN_MTU,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    RTNLGRP_IPV6_IFADDR,
    RTPROT_STATIC,
)

NUMBERS = {4: AF_INET, 6: AF_INET6}
ADDRESS_SECONDS = 1.0  # for one step of the kernel's work queue; it takes microseconds, unless the machine is starved
MAX_PREFIX = {4: 32, 6: 128}  # bits
V6 = 6
IPV6_LINKS = "/proc/thread-self/net/if_inet6"  # missing where the kernel was booted without IPv6

TX_QUEUE_LENGTH = 10_000  # frames; the default of 1000 loses bursts while the proxy serves other sockets
LINK_LOCAL_PREFIX = 64
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


def configure(request: OpenRequest, name: str | None, reused: bool = False) -> Fields:
    """Bring `lo` up and, when a tap device was made, set it up as asked.

    :param name: name of the device, None without one.
    :param reused: whether the device was there before, and may have what is asked for.
    :return: index, MAC address and link-local address of the device, the families that the namespace lacks, and a line
        for everything that was left out; empty without a device.
    :raises ConfigurationError: if the kernel refuses what the request names.
    :raises PlatformError: if a permission is in the way, or the kernel lacks IPv6.
    """
    with Session() as session:
        loopback = _socket.if_nametoindex("lo")
        _try("bring the loopback device up", lambda: _change_link(session, loopback, up=True))
        if name is None:
            return {}
        index = _socket.if_nametoindex(name)
        _set_link(session, index, request)
        (body,) = session.request(RTM_GETLINK, LINK.pack(0, 0, index, 0, 0))
        mac = parse_attributes(body, LINK.size)[IFLA_ADDRESS].hex(":")
        lacking: list[int] = []
        notes: list[str] = []
        if request.configure:
            with Session(RTNLGRP_IPV6_IFADDR) as changes:
                has_ipv6 = _add_link_local(session, index, link_local_address(mac))
                for number, family in NUMBERS.items():
                    if number == V6 and not has_ipv6 and number in request.optional:
                        lacking.append(number)
                        notes.append(f"the namespace goes without IPv6: {_why_no_ipv6(name)}")
                    else:
                        notes += _furnish_family(session, index, family, request, reused)
                await_addresses(session, changes, index)
        link_local = _read_link_local(session, index)
        return {"index": index, "mac": mac, "link_local": link_local, "lacking": lacking, "notes": notes}


def clear(name: str, new_name: str) -> None:
    """Bring a link down and take its addresses, and give it another name; its routes go with that.

    :raises ConfigurationError: if the name is taken, or none.
    :raises PlatformError: if the kernel refuses.
    """
    with Session() as session:
        index = _socket.if_nametoindex(name)
        what = f"rename {name} to {new_name}"
        _try(f"bring {name} down", lambda: _change_link(session, index, up=False))
        for family in FAMILIES:
            for body in addresses_of(session, family):
                if parse_address(body)["index"] == index:
                    _try(f"take the addresses of {name}", partial(session.request, RTM_DELADDR, body))
        if name != new_name:
            changes = attribute(IFLA_IFNAME, new_name.encode() + b"\0")
            _try(what, lambda: _change_link(session, index, changes))


def link_local_address(mac: str) -> str:
    """Return the link-local address with the identifier of a MAC address, six octets in hexadecimal with colons.

    RFC 4291, section 2.5.6 and appendix A.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _change_link(session: Session, index: int, changes: bytes = b"", up: bool | None = None) -> None:
    """Change attributes of a link.

    :param up: bring it up or down; None for neither.
    :raises NetlinkError: if the kernel refuses.
    """
    changed = 0 if up is None else IFF_UP
    session.request(RTM_NEWLINK, LINK.pack(0, 0, index, IFF_UP if up else 0, changed) + changes)


def _set_link(session: Session, index: int, request: OpenRequest) -> None:
    changes = [(IFLA_TXQLEN, NUMBER.pack(TX_QUEUE_LENGTH))]
    words = []
    if request.mac:
        changes.append((IFLA_ADDRESS, bytes.fromhex(request.mac.replace(":", ""))))
        words.append(f"address {request.mac}")
    if request.mtu and request.configure:
        changes.append((IFLA_MTU, NUMBER.pack(request.mtu)))
        words.append(f"mtu {request.mtu}")
    what = f"set up {request.ifname} with {', '.join(words) or 'its queue'}"
    _try(what, lambda: _change_link(session, index, attributes(changes)))
    if request.configure and os.path.exists(IPV6_LINKS):
        mode = attribute(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,))))
        try:
            _change_link(session, index, attribute(IFLA_AF_SPEC, mode))
        except NetlinkError as error:
            # Without IPv6 on the link there will be no such address anyway.
            if error.code not in NO_IPV6:
                raise PlatformError(f"cannot {what}: {os.strerror(error.code)}", _remedy(error.code)) from None
    if request.configure:
        _try(f"bring {request.ifname} up", lambda: _change_link(session, index, up=True))


def _furnish_family(session: Session, index: int, family: int, request: OpenRequest, reused: bool) -> list[str]:
    """Add the addresses and routes of one family, and return a line for each that was left out.

    :raises GpasstError: if the kernel refuses one and the family is not optional.
    """
    number = FAMILIES[family]
    actions: list[Callable[[], None]] = [
        partial(_add_address, session, index, text, prefix, reused)
        for text, prefix in request.addresses
        if (":" in text) == (number == V6)
    ]
    actions += [
        partial(_add_route, session, index, route, request, reused)
        for route in request.routes
        if route.family == number
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
    return f"the MTU of {name} is below {IPV6_MIN_MTU}"


def _new_address(session: Session, index: int, text: str, prefix: int) -> None:
    """Add an address.

    :raises NetlinkError: if the kernel refuses.
    :raises OSError: if the text is no address.
    :raises struct.error: if the prefix is none.
    """
    family, flags = (AF_INET6, IFA_F_NODAD) if ":" in text else (AF_INET, 0)
    address = _socket.inet_pton(family, text)
    body = ADDRESS.pack(family, prefix, flags, RT_SCOPE_UNIVERSE, index)
    body += attributes([(IFA_LOCAL, address), (IFA_ADDRESS, address)])
    session.request(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)


def _add_address(session: Session, index: int, text: str, prefix: int, reused: bool) -> None:
    _try(f"add the address {text}/{prefix}", lambda: _new_address(session, index, text, prefix), reused)


def _add_link_local(session: Session, index: int, text: str) -> bool:
    """Add the link-local address; return whether the link has IPv6."""
    try:
        _new_address(session, index, text, LINK_LOCAL_PREFIX)
    except NetlinkError as error:
        # Without IPv6 there is nothing to add it to; a namespace for IPv4 alone is still of use.
        if error.code not in NO_IPV6 | {errno.EEXIST}:
            raise PlatformError(
                f"cannot add the address {text}: {os.strerror(error.code)}", _remedy(error.code)
            ) from None
        return bool(error.code == errno.EEXIST)
    return True


def _add_route(session: Session, index: int, route: Route, request: OpenRequest, reused: bool) -> None:
    destination = "default" if route.destination is None else f"{route.destination}/{route.prefix}"
    if route.gateway and not route.onlink and not _covered(route.gateway, request.addresses):
        length = MAX_PREFIX[route.family]
        direct = Route(route.gateway, length, family=route.family)
        # Replaced, since several routes may share the gateway.
        _try(
            f"add the route to the gateway {route.gateway}",
            lambda: _change_route(session, RTM_NEWROUTE, index, direct, NLM_F_CREATE | NLM_F_REPLACE),
        )
    via = f" via {route.gateway}" if route.gateway else ""
    # A copy of a route that the kernel has made with the address is no error.
    there = reused or route.family in request.optional
    action = partial(_change_route, session, RTM_NEWROUTE, index, route, NLM_F_CREATE | NLM_F_EXCL)
    _try(f"add the route {destination}{via}", action, there)


def change_routes(name: str, added: Iterable[Route], removed: Iterable[Route]) -> None:
    """Change the routes of a link; one that is there already stays, and one that has gone is no error.

    :param name: of the device.
    :raises ConfigurationError: if the kernel refuses what a route names.
    :raises PlatformError: if a permission is in the way.
    """
    index = _socket.if_nametoindex(name)
    with Session() as session:
        for route in removed:
            try:
                _change_route(session, RTM_DELROUTE, index, route, 0)
            except NetlinkError as error:
                if error.code != errno.ESRCH:
                    raise PlatformError(
                        f"cannot remove a route: {os.strerror(error.code)}", _remedy(error.code)
                    ) from None
        for route in added:
            action = partial(_change_route, session, RTM_NEWROUTE, index, route, NLM_F_CREATE | NLM_F_EXCL)
            _try(f"add the route {route.destination or 'default'} via {route.gateway}", action, may_exist=True)


def _change_route(session: Session, kind: int, index: int, route: Route, flags: int) -> None:
    """Add a route to the main table, or remove it.

    :param kind: RTM_NEWROUTE or RTM_DELROUTE.
    :param flags: NLM_F_*: what becomes of one that is there.
    :raises NetlinkError: if the kernel refuses.
    :raises OSError: if a text is no address.
    :raises struct.error: if the metric or the prefix is none.
    """
    family = NUMBERS[route.family]
    found = [(RTA_OIF, NUMBER.pack(index))]
    if route.destination is not None:
        found.append((RTA_DST, _socket.inet_pton(family, route.destination)))
    if route.gateway is not None:
        found.append((RTA_GATEWAY, _socket.inet_pton(family, route.gateway)))
    if route.metric is not None:
        found.append((RTA_PRIORITY, NUMBER.pack(route.metric)))
    bits = 0 if route.destination is None else route.prefix
    scope = RT_SCOPE_LINK if route.gateway is None and family == AF_INET else RT_SCOPE_UNIVERSE
    marks = RTNH_F_ONLINK if route.gateway and route.onlink else 0
    head = ROUTE.pack(family, bits, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, marks)
    session.request(kind, head + attributes(found), flags)


def _covered(gateway: str, addresses: tuple[tuple[str, int], ...]) -> bool:
    address = ipaddress.ip_address(gateway)
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        return True
    return any(address in _network(text, prefix) for text, prefix in addresses)


@lru_cache(maxsize=1024)  # asked for each route of a host, of which there may be thousands
def _network(address: str, prefix: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{address}/{prefix}", strict=False)


def await_addresses(session: Session, changes: Session, index: int) -> None:
    """Return when the IPv6 addresses of a link can be used.

    Also without duplicate address detection the kernel leaves it to a work queue to make the route of an address
    (net/ipv6/addrconf.c, addrconf_dad_begin), and what is sent there before that is lost. The address itself shows no
    difference. It is announced at that moment, and the route is not.

    :param session: makes the requests.
    :param changes: hears of changes of IPv6 addresses since before they were added.
    :param index: of the link.
    """
    found = [body for body in addresses_of(session, AF_INET6) if parse_address(body)["index"] == index]
    wanted = {parse_attributes(body, ADDRESS.size)[IFA_ADDRESS] for body in found}

    def lacking() -> bool:
        routes = routes_of(session, AF_INET6, RT_TABLE_LOCAL)
        return not wanted <= {parse_attributes(body, ROUTE.size).get(RTA_DST) for body in routes}

    while lacking() and changes.await_change(ADDRESS_SECONDS):
        # It waits for the lock under which the queue works, which makes the route right after the announcement.
        _change_link(session, index, up=True)


def _read_link_local(session: Session, index: int) -> str | None:
    for body in addresses_of(session, AF_INET6):
        address = parse_address(body)
        if (address["family"], address["index"], address["scope"]) == (V6, index, RT_SCOPE_LINK):
            return address["address"]
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
    except (ValueError, TypeError, OSError, struct.error) as error:
        # An address or a number that cannot be encoded.
        raise ConfigurationError(f"cannot {what}: {error}", CALLERS_REMEDY) from None


def _remedy(code: int) -> str:
    """Return the remedy for an errno of the kernel that the caller has not caused."""
    return REMEDIES.get(code, KERNELS_REMEDY)
