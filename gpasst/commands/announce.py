"""What is logged when a proxy is open: how a guest connects, its network, and what is forwarded.

Theory of operation: passt prints these facts at its start, and scripts and people look for them there; the line of the
socket is worded as passt words it. `describe` makes the lines from the options and the guest's network, so that they
say what was chosen and not only what was asked for. They come before the process leaves for the background, since its
socket may have a name that was chosen at the start.

With ``passt`` they are logged at level INFO, which ``--quiet`` excludes. ``pasta`` is mostly run for its command, whose
output they would disturb, so there the level is DEBUG.
"""

from __future__ import annotations

import ipaddress
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator

from gpasst.api.passt import Passt
from gpasst.api.pasta import Pasta
from gpasst.config import PORT_OPTIONS, Config
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.flow.record import Forward
from gpasst.host.sockets import text
from gpasst.packet.address import V4
from gpasst.values import shown

ROUTES_SHOWN = 8  # a router has thousands

log = logging.getLogger("gpasst")


def announce(proxy: Pasta | Passt, interface_name: Callable[[int], str]) -> None:
    """Log what a guest and its user have to know of an open proxy.

    :param interface_name: returns the name of the host's interface with an index, as `socket.if_indextoname` does.
    """
    level = logging.INFO if isinstance(proxy, Passt) else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    lines: list[str] = []
    if isinstance(proxy, Passt):
        lines += [f"UNIX domain socket bound at {shown(proxy.path)}"] if proxy.path else []
    elif not proxy.config.splice_only:
        lines.append(f"tap in the namespace: {shown(proxy.interface)}")
    lines += describe(proxy.config, proxy.network, interface_name, proxy.forwards)
    if isinstance(proxy, Passt) and proxy.path:
        lines += ["you can now start qemu (7.2 or later), for example with:", f"    {qemu_command(proxy)}"]
    for line in lines:
        log.log(level, "%s", line)


def qemu_command(proxy: Passt) -> str:
    """Return a command line of a shell that connects a virtual machine."""
    return shown(f"qemu-system-x86_64 {shlex.join(proxy.qemu_options)}")


def describe(
    config: Config, network: GuestNetwork, interface_name: Callable[[int], str], forwards: Iterable[Forward] = ()
) -> list[str]:
    """Return the lines about a guest's network and its forwards.

    :param config: the options.
    :param network: the guest's network.
    :param interface_name: returns the name of the host's interface with an index.
    :param forwards: the open listeners.
    """
    lines = []
    if not config.splice_only:
        families = [item for item in (network.ip4, network.ip6) if item]
        templates = [f"{_template(item, interface_name)} (IPv{item.family})" for item in families]
        lines.append(f"template interface: {', '.join(templates)}")
        lines.append(f"MAC address of the host: {network.host_mac.hex(':')}")
        for family in families:
            lines += _family(config, network, family)
        if network.search:
            lines.append(f"DNS search list: {', '.join(network.search)}")
    return [*lines, *_forwards(config), *_chosen(forwards)]


def _template(family: FamilyNetwork, interface_name: Callable[[int], str]) -> str:
    if not family.index:
        return "none, local mode"
    try:
        return shown(interface_name(family.index))
    except OSError:
        return f"number {family.index}, which is gone"


def _family(config: Config, network: GuestNetwork, family: FamilyNetwork) -> Iterator[str]:
    """Yield the lines about one family: its addresses, what leads to the host, and the services."""
    name, address = f"IPv{family.family}", family.address and text(family.address)
    gateway = text(family.gateway) if family.routed else "none"
    yield f"{name}: address {f'{address}/{family.prefix}' if address else 'link-local only'}, gateway {gateway}"
    if config.config_net:
        routes = [
            f"{route.destination or 'default'}{f'/{route.prefix}' if route.destination else ''}"
            f"{f' via {route.gateway}' if route.gateway else ''}"
            for route in network.routes
            if route.family == family.family
        ]
        more = [f"and {len(routes) - ROUTES_SHOWN} more"] if len(routes) > ROUTES_SHOWN else []
        yield f"{name} routes: {', '.join(routes[:ROUTES_SHOWN] + more) or 'none'}"
    for alias, target in (
        (family.host_loopback, "the host's loopback"),
        (family.guest_alias, "the host's own address"),
        (family.dns_forward, f"the resolver {text(family.resolver)}" if family.resolver else ""),
    ):
        if alias and target:
            yield f"{name}: {text(alias)} leads to {target}"
    yield from _services(config, family)
    if family.resolvers:
        yield f"{name} DNS: {', '.join(map(text, family.resolvers))}"


def _services(config: Config, family: FamilyNetwork) -> Iterator[str]:
    """Yield the lines about what DHCP, DHCPv6 and NDP answer."""
    if family.family == V4:
        if not config.no_dhcp and family.address:
            mask = ipaddress.ip_network((0, family.prefix)).netmask
            router = f", router {text(family.gateway)}" if family.routed else ""
            yield f"DHCP: assigns {text(family.address)}, mask {mask}{router}"
        return
    if not config.no_dhcpv6 and family.address:
        yield f"DHCPv6: assigns {text(family.address)}"
    if not (config.no_ndp or config.no_ra or config.no_icmp or config.config_net) and family.link_local:
        yield f"NDP: the router is {text(family.link_local)}"


def _forwards(config: Config) -> Iterator[str]:
    """Yield one line for each side whose ports are forwarded."""
    for side in PORT_OPTIONS.values():
        specifications = dict.fromkeys(rule.text for rule in config.port_rules[side])
        if specifications and not getattr(config, f"no_{side.protocol}"):
            where = "the namespace lead to the host" if side.inside else "the host lead to the guest"
            yield f"{side.protocol.upper()} ports of {where}: {shown('; '.join(specifications))}"


def _chosen(forwards: Iterable[Forward]) -> Iterator[str]:
    """Yield one line for each port that the kernel chose, since no specification has its number."""
    ports = {(forward.protocol, forward.inside, forward.port): forward for forward in forwards if forward.chosen}
    for (protocol, inside, port), forward in ports.items():
        side, other = ("namespace", "host") if inside else ("host", "guest")
        yield f"{protocol.upper()} port {port} of the {side} leads to port {forward.target} of the {other}"
