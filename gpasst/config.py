"""The options: one frozen record, declared once, from which the command line is made too.

Theory of operation: a field's name is the long option's name with ``_`` for ``-``; its metadata is the rest of the
option, with the rule of its values. `gpasst.option` holds every value against it when the record is made, so no other
room has to doubt an address, a port or a number. A value is never empty: an option that is not wanted is left out, and
its field is None then. So a script whose variable is unset gets an error, not a default that it did not ask for.
Port specifications are parsed when the record is made, too, and once: `Config.port_rules` is the table that listeners
come from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpasst.errors import ConfigurationError
from gpasst.features import ALL, NAMES, Feature
from gpasst.option import Option, check_value, declare
from gpasst.portspec import ForwardRule, parse
from gpasst.records import Field, dataclass, field, fields
from gpasst.values import (
    check_address,
    check_dns_forward,
    check_domains,
    check_guest_side_address,
    check_host_name,
    check_interface,
    check_interface_address,
    check_outbound,
    none_or,
    number,
    one_of,
    parse_mac,
    parse_netmask,
    shown,
)

MTU_DEFAULT = 65520  # bytes; 65535 less the Ethernet header, rounded down to a multiple of 4, as in passt
MTU_MAXIMUM = 65521  # bytes; the tun driver's 65535 less the Ethernet header, as in passt
MTU_MINIMUM = 68  # bytes; RFC 791
HOST_MAC = "9a:55:9a:55:9a:55"  # constant, so that captures repeat; passt's since 2024-08
TIMEOUT_DEFAULT = 180  # seconds; as in passt
BUSY_POLL_DEFAULT = 100  # microseconds; about what waking a process costs both ways, see docs/performance.md
BUSY_POLL_MAXIMUM = 1_000_000  # microseconds
UDP_FILTERS = ("endpoint", "address")


class PortSide(NamedTuple):
    """Where the ports of an option listen.

    :ivar protocol: the protocol's name in lower case.
    :ivar inside: in the namespace rather than on the host.
    """

    protocol: str
    inside: bool


PORT_OPTIONS = {
    "tcp_ports": PortSide("tcp", inside=False),
    "udp_ports": PortSide("udp", inside=False),
    "tcp_ns": PortSide("tcp", inside=True),
    "udp_ns": PortSide("udp", inside=True),
}
"""The options that take port specifications."""


def options(mode: str = "") -> dict[str, Option]:
    """Return each option of a command by its field's name, in the order of declaration.

    :param mode: the command, ``"pasta"`` or ``"passt"``; empty for both.
    """
    declared = {item.name: item.metadata["option"] for item in fields(Config) if "option" in item.metadata}
    return {name: option for name, option in declared.items() if not mode or option.mode in ("", mode)}


def check_weather(text: str) -> None:
    """Refuse what is neither a rule of weather nor a profile's name; the grammar is loaded for that."""
    from gpasst.weather import check

    check(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that shapes one connection between a guest and the host.

    Every field is the option of the same name; None is an option that is not given. Fields that take several values
    accept one string or an iterable of strings. Nothing given means: copy the host's own configuration, carry TCP and
    UDP, forward nothing (on the command line: forward what is bound on either side).

    :ivar port_rules: the rules of all port options, parsed; those of ``all`` contain the ephemeral ports.
    :raises ConfigurationError: for a value that makes no sense, or two that contradict each other.
    """

    pid: int | None = None
    netns: str | None = declare(
        None, "join the network namespace at PATH, or called NAME", "PATH|NAME", group="namespace", mode="pasta"
    )
    userns: str | None = declare(None, "join the user namespace at PATH", "PATH", group="namespace", mode="pasta")
    netns_only: bool = declare(False, "make or join no user namespace", group="namespace", mode="pasta")
    no_netns_quit: bool = declare(False, "go on when the namespace is deleted", group="namespace", mode="pasta")
    config_net: bool = declare(
        False, "configure the tap with the host's addresses and routes", group="namespace", mode="pasta"
    )
    no_copy_addrs: bool = declare(
        False, "with --config-net, give the tap one address of a family only", group="namespace", mode="pasta"
    )
    no_copy_routes: bool = declare(
        False, "with --config-net, give the tap the default route only", group="namespace", mode="pasta"
    )
    ns_ifname: str | None = declare(
        None, "name of the tap in the namespace", "NAME", "-I", group="namespace", mode="pasta", rule=check_interface
    )
    ns_mac_addr: str | None = declare(
        None, "MAC address of the tap", "ADDR", group="namespace", mode="pasta", rule=parse_mac
    )

    socket: str | None = declare(
        None,
        "listen for a guest at PATH [/tmp/passt_N.socket]",
        "PATH",
        "-s",
        group="guest",
        mode="passt",
        alias="--socket-path",
    )
    fd: int | None = declare(
        None,
        "serve the guest at the other end of the connected socket FD",
        "FD",
        "-F",
        "guest",
        "passt",
        number(0),
        int,
    )
    one_off: bool = declare(False, "end when the first guest has gone", short="-1", group="guest", mode="passt")

    interface: str | None = declare(
        None, "take addresses and routes from this interface", "NAME", "-i", rule=check_interface
    )
    address: Sequence[str] = declare(
        (), "address of the guest, once a family", "ADDR[/LEN]", "-a", rule=check_interface_address
    )
    netmask: str | None = declare(None, "IPv4 netmask or prefix length of the guest", "MASK", "-n", rule=parse_netmask)
    gateway: Sequence[str] = declare(
        (), "gateway of the guest, once a family", "ADDR", "-g", rule=check_guest_side_address
    )
    mac_addr: str = declare(HOST_MAC, "MAC address of the host as the guest sees it", "ADDR", "-M", rule=parse_mac)
    mtu: int = declare(
        MTU_DEFAULT,
        "MTU of the tap, 0 to leave it alone",
        "BYTES",
        "-m",
        rule=number(MTU_MINIMUM, MTU_MAXIMUM, "bytes", zero=True),
    )
    ipv4_only: bool = declare(False, "carry IPv4 only", short="-4")
    ipv6_only: bool = declare(False, "carry IPv6 only", short="-6")
    outbound: Sequence[str] = declare(
        (), "source address of outgoing traffic, once a family", "ADDR", "-o", rule=check_outbound
    )
    outbound_if4: str | None = declare(
        None, "interface for outgoing IPv4 traffic, whose addresses are copied", "NAME", rule=check_interface
    )
    outbound_if6: str | None = declare(
        None, "interface for outgoing IPv6 traffic, whose addresses are copied", "NAME", rule=check_interface
    )
    no_map_gw: bool = declare(False, "the gateway's address is not the host")
    map_host_loopback: Sequence[str] = declare(
        (),
        "address that leads to the host's loopback, once a family, or none",
        "ADDR|none",
        rule=none_or(check_guest_side_address),
    )
    map_guest_addr: Sequence[str] = declare(
        (),
        "address that leads to the host's own address, once a family, or none",
        "ADDR|none",
        rule=none_or(check_guest_side_address),
    )

    dns: Sequence[str] = declare(
        (), "resolvers to advertise", "ADDR|none", "-D", group="names", rule=none_or(check_address)
    )
    dns_forward: Sequence[str] = declare(
        (), "address that leads to the host's resolver, once a family", "ADDR", group="names", rule=check_dns_forward
    )
    dns_host: Sequence[str] = declare(
        (), "the host's resolver, once a family [first in resolv.conf]", "ADDR", group="names", rule=check_address
    )
    search: Sequence[str] = declare(
        (), "search domains to advertise", "NAMES|none", "-S", group="names", rule=none_or(check_domains)
    )
    dhcp_dns: bool = declare(False, "advertise resolvers", group="names", mode="pasta")
    no_dhcp_dns: bool = declare(False, "do not advertise resolvers", group="names", mode="passt")
    dhcp_search: bool = declare(False, "advertise search domains", group="names", mode="pasta")
    no_dhcp_search: bool = declare(False, "do not advertise search domains", group="names", mode="passt")
    hostname: str | None = declare(
        None, "host name of the guest, and of a new namespace", "NAME", "-H", group="names", rule=check_host_name
    )
    fqdn: str | None = declare(
        None, "full domain name of the guest, in DHCP and DHCPv6", "NAME", group="names", rule=check_host_name
    )

    tcp_ports: Sequence[str] = declare((), "TCP ports of the host that lead to the guest", "SPEC", "-t", "ports")
    udp_ports: Sequence[str] = declare((), "UDP ports of the host that lead to the guest", "SPEC", "-u", "ports")
    tcp_ns: Sequence[str] = declare(
        (), "TCP ports of the namespace's loopback that lead to the host's", "SPEC", "-T", "ports", "pasta"
    )
    udp_ns: Sequence[str] = declare(
        (), "UDP ports of the namespace's loopback that lead to the host's", "SPEC", "-U", "ports", "pasta"
    )
    no_splice: bool = declare(
        False, "move traffic of the host's loopback through the tap, too", group="ports", mode="pasta"
    )
    splice_only: bool = declare(False, "make no tap; carry loopback traffic only", group="ports", mode="pasta")
    host_lo_to_ns_lo: bool = declare(
        False, "lead the host's loopback to the namespace's, not to its own address", group="ports", mode="pasta"
    )
    freebind: bool = declare(False, "forward on addresses that the host does not have yet", group="ports")
    udp_timeout: int = declare(
        TIMEOUT_DEFAULT,
        "idle seconds after which a UDP mapping ends",
        "SECONDS",
        group="ports",
        rule=number(1, unit="seconds"),
    )
    udp_filter: str = declare(
        "endpoint",
        "who may answer: endpoint (anyone) or address (whom the guest sent to)",
        "KIND",
        group="ports",
        rule=one_of(UDP_FILTERS),
    )

    no_tcp: bool = declare(False, "ignore TCP", group="protocols")
    no_udp: bool = declare(False, "ignore UDP", group="protocols")
    no_icmp: bool = declare(False, "ignore ICMP and ICMPv6", group="protocols")
    no_ndp: bool = declare(False, "answer no neighbour discovery", group="protocols")
    no_ra: bool = declare(False, "send no router advertisements", group="protocols")
    no_dhcp: bool = declare(False, "serve no DHCP", group="protocols")
    no_dhcpv6: bool = declare(False, "serve no DHCPv6", group="protocols")

    pcap: str | None = declare(None, "capture what crosses the tap", "FILE", "-p", group="operation")
    impair: Sequence[str] = declare(
        (),
        "rule of weather, such as 'udp dport 53: delay 20ms', or a profile",
        "RULE",
        group="operation",
        rule=check_weather,
    )
    without: Sequence[str] = declare(
        (),
        f"do without a way to move many datagrams at once: {', '.join(NAMES)}",
        "FEATURE",
        group="operation",
        rule=one_of(NAMES),
    )
    busy_poll: int = declare(
        BUSY_POLL_DEFAULT,
        "look this long for more after traffic before sleeping, 0 to sleep at once",
        "MICROSECONDS",
        group="operation",
        rule=number(0, BUSY_POLL_MAXIMUM, "microseconds"),
    )
    no_offload: bool = declare(False, "move every datagram on its own", group="operation")

    port_rules: Mapping[PortSide, tuple[ForwardRule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for item in given_fields():
            if "option" in item.metadata:
                self._check_field(item, item.metadata["option"])
        if self.pid is not None and (type(self.pid) is not int or self.pid < 1):
            raise ConfigurationError(f"{self.pid} is no process ID", "give the PID of a running process")
        self._check_conflicts()
        rules = {side: parse_ports(long_option(name), getattr(self, name), side) for name, side in PORT_OPTIONS.items()}
        object.__setattr__(self, "port_rules", rules)

    def _check_field(self, item: Field[Any], option: Option) -> None:
        """Check each value of a field, and accept one string where several are allowed."""
        value, spelled = getattr(self, item.name), long_option(item.name)
        if option.repeat:
            if isinstance(value, bytes) or not isinstance(value, Iterable):
                raise ConfigurationError(f"{spelled} takes text, not {value!r}", "give a string or several")
            value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, item.name, value)
        elif value is None and item.default is None:
            return
        for one in value if option.repeat else [value]:
            check_value(spelled, option, one)

    def _check_conflicts(self) -> None:
        defaults = {item.name: item.default for item in given_fields()}
        for one, other in (
            ("ipv4_only", "ipv6_only"),
            ("userns", "netns_only"),
            ("pid", "netns"),
            ("no_splice", "splice_only"),
            ("impair", "splice_only"),
            ("no_splice", "host_lo_to_ns_lo"),
            ("ipv4_only", "outbound_if6"),
            ("ipv6_only", "outbound_if4"),
            ("socket", "fd"),
            ("dhcp_dns", "no_dhcp_dns"),
            ("dhcp_search", "no_dhcp_search"),
        ):
            if all(getattr(self, name) != defaults[name] for name in (one, other)):
                excluded = f"{long_option(one)} and {long_option(other)} exclude each other"
                raise ConfigurationError(excluded, "give only one of them")
        for name in ("no_copy_addrs", "no_copy_routes"):
            if getattr(self, name) and not self.config_net:
                about = f"{long_option(name)} is about what --config-net copies"
                raise ConfigurationError(about, "add --config-net, or leave it out")
        if self.netmask is not None and any("/" in value and ":" not in value for value in self.address):
            raise ConfigurationError(
                f"--netmask {self.netmask} and an --address with a prefix length exclude each other",
                "give only one of them",
            )
        if self.splice_only and self.pcap is not None:
            empty = f"--pcap {shown(self.pcap)} would stay empty: --splice-only makes no tap to capture from"
            raise ConfigurationError(empty, "give only one of them")
        if self.userns is not None and self.creates_namespace:
            raise ConfigurationError(
                f"--userns {shown(self.userns)} is of no use to a new network namespace, which gets a new one",
                "name the network namespace with --netns or PID, or leave --userns out",
            )

    @property
    def families(self) -> tuple[int, ...]:
        """The address families asked for: 4, 6 or both."""
        return (4,) if self.ipv4_only else (6,) if self.ipv6_only else (4, 6)

    @property
    def features(self) -> frozenset[Feature]:
        """The ways to move many datagrams at once that are wanted."""
        return frozenset() if self.no_offload else ALL - {Feature(name) for name in self.without}

    @property
    def creates_namespace(self) -> bool:
        """Whether a new network namespace is made rather than one joined."""
        return self.netns is None and self.pid is None

    @property
    def keeps_loopback(self) -> bool:
        """Whether the host's loopback leads to the namespace's loopback."""
        return self.host_lo_to_ns_lo or self.splice_only

    def check_mode(self, mode: str) -> None:
        """Refuse what belongs to the other command.

        :param mode: ``"pasta"`` or ``"passt"``.
        :raises ConfigurationError: naming the option.
        """
        mine = options(mode)
        for item in given_fields():
            if (
                item.name not in mine
                and (item.name, mode) != ("pid", "pasta")
                and getattr(self, item.name) != item.default
            ):
                raise ConfigurationError(f"{long_option(item.name)} is not an option of gpasst {mode}", "leave it out")
        for name, side in PORT_OPTIONS.items():
            if mode == "passt" and any(rule.auto for rule in self.port_rules[side]):
                raise ConfigurationError(
                    f"{long_option(name)} auto needs a namespace, whose ports can be seen",
                    "name the ports, or say all",
                )


def parse_ports(option: str, specifications: Iterable[str], side: PortSide) -> tuple[ForwardRule, ...]:
    """Turn port specifications into rules; `gpasst.portspec.parse` says in which order.

    :param option: what was given them, for messages.
    :param specifications: the specifications in the order given.
    :param side: where the ports listen.
    :raises ConfigurationError: naming the specification and what is wrong with it.
    """
    rules = parse(option, specifications, side.protocol)
    for rule in rules if side.inside else ():
        # Nothing else of the namespace is spliced.
        address = ipaddress.ip_address(rule.address or "127.0.0.1")
        if not (address.is_loopback or address.is_unspecified) or rule.interface not in (None, "lo"):
            raise ConfigurationError(
                f"{option} {rule.text} is not on the namespace's loopback",
                "name ports only, or an address like 127.0.0.53 or ::1",
            )
    return rules


def long_option(name: str) -> str:
    """Turn a field's name into the option's."""
    return "PID" if name == "pid" else "--" + name.replace("_", "-")


def given_fields() -> list[Field[Any]]:
    """Return the fields that a caller sets: all but those that are derived from them."""
    return [item for item in fields(Config) if item.init]
