"""The options: one frozen record, declared once, from which the command line is made too.

Theory of operation: a field's name is the long option's name with ``_`` for ``-``; its metadata is the rest of the
option. Every value is checked when the record is made, so no other room has to doubt an address, a port or a number.
Port specifications are parsed then, too, and once: `Config.port_rules` is the table that listeners come from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from gpasst.errors import ConfigurationError
from gpasst.features import ALL, NAMES, Feature
from gpasst.portspec import INTERFACE_NAME_LENGTH, ForwardRule, is_interface_name, parse
from gpasst.values import (
    NAME_MAXIMUM,
    NONE,
    check_addresses,
    check_unicast,
    is_domain,
    is_host_name,
    parse_mac,
    parse_netmask,
)

MTU_DEFAULT = 65520  # bytes; 65535 less the Ethernet header, rounded down to a multiple of 4, as in passt
MTU_MAXIMUM = 65535  # bytes
MTU_MINIMUM = 68  # bytes; RFC 791
TAP_MTU_MAXIMUM = 65521  # bytes; the tun driver's 65535 less the Ethernet header
HOST_MAC = "9a:55:9a:55:9a:55"  # constant, so that captures repeat; passt's since 2024-08
TIMEOUT_DEFAULT = 180  # seconds; as in passt
BUSY_POLL_DEFAULT = 100  # microseconds; about what waking a process costs both ways, see docs/performance.md
BUSY_POLL_MAXIMUM = 1_000_000  # microseconds
NO_FD = -1
UDP_FILTERS = ("endpoint", "address")


class PortSide(NamedTuple):
    """Where the ports of an option listen.

    :ivar protocol: the protocol's name in lower case.
    :ivar inside: in the namespace rather than on the host.
    """

    protocol: str
    inside: bool


PORT_OPTIONS = {"udp_ports": PortSide("udp", inside=False), "udp_ns": PortSide("udp", inside=True)}
"""The options that take port specifications."""


class Option(NamedTuple):
    """How a field of `Config` appears on the command line.

    :ivar help: one line for ``--help``.
    :ivar metavar: name of the value; empty for a switch.
    :ivar short: the short form, with its dash, or empty.
    :ivar group: heading under which ``--help`` lists it.
    :ivar repeat: whether it may be given more than once, each adding a value.
    :ivar mode: the only command that it is for, ``"pasta"`` or ``"passt"``; empty for both.
    """

    help: str
    metavar: str = ""
    short: str = ""
    group: str = "network"
    repeat: bool = False
    mode: str = ""


def _option(default: Any, help: str, metavar: str = "", short: str = "", group: str = "network", mode: str = "") -> Any:
    option = Option(help, metavar, short, group, repeat=isinstance(default, tuple), mode=mode)
    return field(default=default, metadata={"option": option})


def options(mode: str = "") -> dict[str, Option]:
    """Return each option of a command by its field's name, in the order of declaration.

    :param mode: the command, ``"pasta"`` or ``"passt"``; empty for both.
    """
    declared = {item.name: item.metadata["option"] for item in fields(Config) if "option" in item.metadata}
    return {name: option for name, option in declared.items() if not mode or option.mode in ("", mode)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that shapes one connection between a guest and the host.

    Every field is the option of the same name. Fields that take several values accept one string or an iterable of
    strings. Nothing given means: copy the host's own configuration, track UDP, forward nothing (on the command line:
    forward what is bound on either side).

    :ivar port_rules: the rules of all port options, parsed; those of ``all`` contain the ephemeral ports.
    :raises ConfigurationError: for a value that makes no sense, or two that contradict each other.
    """

    pid: int | None = None
    netns: str = _option(
        "", "join the network namespace at PATH, or called NAME", "PATH|NAME", group="namespace", mode="pasta"
    )
    userns: str = _option("", "join the user namespace at PATH", "PATH", group="namespace", mode="pasta")
    netns_only: bool = _option(False, "make or join no user namespace", group="namespace", mode="pasta")
    no_netns_quit: bool = _option(False, "go on when the namespace is deleted", group="namespace", mode="pasta")
    config_net: bool = _option(
        False, "configure the tap with the host's addresses and routes", group="namespace", mode="pasta"
    )
    ns_ifname: str = _option("", "name of the tap in the namespace", "NAME", "-I", group="namespace", mode="pasta")
    ns_mac_addr: str = _option("", "MAC address of the tap", "ADDR", group="namespace", mode="pasta")

    socket: str = _option(
        "", "listen for a guest at PATH [/tmp/passt_N.socket]", "PATH", "-s", group="guest", mode="passt"
    )
    fd: int = _option(
        NO_FD, "serve the guest at the other end of the connected socket FD", "FD", "-F", "guest", "passt"
    )
    one_off: bool = _option(False, "end when the first guest has gone", short="-1", group="guest", mode="passt")

    interface: str = _option("", "take addresses and routes from this interface", "NAME", "-i")
    address: tuple[str, ...] = _option((), "address of the guest, once a family", "ADDR[/LEN]", "-a")
    netmask: str = _option("", "IPv4 netmask or prefix length of the guest", "MASK", "-n")
    gateway: tuple[str, ...] = _option((), "gateway of the guest, once a family", "ADDR", "-g")
    mac_addr: str = _option(HOST_MAC, "MAC address of the host as the guest sees it", "ADDR", "-M")
    mtu: int = _option(MTU_DEFAULT, "MTU of the tap, 0 to leave it alone", "BYTES", "-m")
    ipv4_only: bool = _option(False, "carry IPv4 only", short="-4")
    ipv6_only: bool = _option(False, "carry IPv6 only", short="-6")
    outbound: tuple[str, ...] = _option((), "source address of outgoing traffic, once a family", "ADDR", "-o")
    outbound_if4: str = _option("", "interface for outgoing IPv4 traffic", "NAME")
    outbound_if6: str = _option("", "interface for outgoing IPv6 traffic", "NAME")
    no_map_gw: bool = _option(False, "the gateway's address is not the host")
    map_host_loopback: tuple[str, ...] = _option(
        (), "address that leads to the host's loopback, once a family, or none", "ADDR|none"
    )
    map_guest_addr: tuple[str, ...] = _option(
        (), "address that leads to the host's own address, once a family, or none", "ADDR|none"
    )

    dns: tuple[str, ...] = _option((), "resolvers that the guest is told", "ADDR|none", "-D", group="names")
    dns_forward: tuple[str, ...] = _option(
        (), "address that leads to the host's resolver, once a family", "ADDR", group="names"
    )
    dns_host: tuple[str, ...] = _option(
        (), "the host's resolver, once a family [first in resolv.conf]", "ADDR", group="names"
    )
    search: tuple[str, ...] = _option((), "search domains that the guest is told", "NAME|none", "-S", group="names")
    dhcp_dns: bool = _option(False, "tell the guest resolvers", group="names", mode="pasta")
    no_dhcp_dns: bool = _option(False, "do not tell the guest resolvers", group="names", mode="passt")
    dhcp_search: bool = _option(False, "tell the guest search domains", group="names", mode="pasta")
    no_dhcp_search: bool = _option(False, "do not tell the guest search domains", group="names", mode="passt")
    hostname: str = _option("", "host name that the guest is told by DHCP", "NAME", group="names")
    fqdn: str = _option("", "full domain name that the guest is told by DHCP and DHCPv6", "NAME", group="names")

    udp_ports: tuple[str, ...] = _option((), "UDP ports of the host that lead to the guest", "SPEC", "-u", "ports")
    udp_ns: tuple[str, ...] = _option(
        (), "UDP ports of the namespace's loopback that lead to the host's", "SPEC", "-U", "ports", "pasta"
    )
    no_splice: bool = _option(False, "move loopback traffic through the tap, too", group="ports", mode="pasta")
    splice_only: bool = _option(False, "make no tap; carry loopback traffic only", group="ports", mode="pasta")
    host_lo_to_ns_lo: bool = _option(
        False, "lead the host's loopback to the namespace's, not to its own address", group="ports", mode="pasta"
    )
    freebind: bool = _option(False, "forward on addresses that the host does not have yet", group="ports")
    udp_timeout: int = _option(TIMEOUT_DEFAULT, "idle seconds after which a UDP mapping ends", "SECONDS", group="ports")
    udp_filter: str = _option(
        "endpoint",
        "who may answer: endpoint (anyone) or address (whom the guest sent to)",
        "KIND",
        group="ports",
    )

    no_tcp: bool = _option(False, "ignore TCP", group="protocols")
    no_udp: bool = _option(False, "ignore UDP", group="protocols")
    no_icmp: bool = _option(False, "ignore ICMP and ICMPv6", group="protocols")
    no_ndp: bool = _option(False, "answer no neighbour discovery", group="protocols")
    no_ra: bool = _option(False, "send no router advertisements", group="protocols")
    no_dhcp: bool = _option(False, "serve no DHCP", group="protocols")
    no_dhcpv6: bool = _option(False, "serve no DHCPv6", group="protocols")

    pcap: str = _option("", "capture what crosses the tap", "FILE", "-p", group="operation")
    without: tuple[str, ...] = _option(
        (), f"do without a way to move many datagrams at once: {', '.join(NAMES)}", "FEATURE", group="operation"
    )
    busy_poll: int = _option(
        BUSY_POLL_DEFAULT,
        "look this long for more after traffic before sleeping, 0 to sleep at once",
        "MICROSECONDS",
        group="operation",
    )
    no_offload: bool = _option(False, "move every datagram on its own", group="operation")

    port_rules: Mapping[PortSide, tuple[ForwardRule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._normalise()
        self._check_conflicts()
        self._check_addresses()
        self._check_names()
        self._check_numbers()
        rules = {
            side: parse(long_option(name), getattr(self, name), side.protocol) for name, side in PORT_OPTIONS.items()
        }
        object.__setattr__(self, "port_rules", rules)
        self._check_namespace_rules()

    def _normalise(self) -> None:
        """Accept one string where several are allowed, and check the types."""
        for item in given_fields():
            value = getattr(self, item.name)
            if isinstance(item.default, tuple):
                values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
                if values is None or not all(isinstance(text, str) for text in values):
                    raise ConfigurationError(
                        f"{long_option(item.name)} takes text, not {value!r}", "give a string or several"
                    )
                object.__setattr__(self, item.name, values)
            elif item.default is not None and type(value) is not type(item.default):
                kind = type(item.default).__name__
                raise ConfigurationError(
                    f"{long_option(item.name)} takes a value of type {kind}, not {value!r}", "convert it"
                )

    def _check_conflicts(self) -> None:
        for one, other in (
            ("ipv4_only", "ipv6_only"),
            ("userns", "netns_only"),
            ("pid", "netns"),
            ("no_splice", "splice_only"),
            ("socket", "has_fd"),
            ("dhcp_dns", "no_dhcp_dns"),
            ("dhcp_search", "no_dhcp_search"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise ConfigurationError(
                    f"{long_option(one)} and {long_option(other)} exclude each other", "give only one of them"
                )

    def _check_addresses(self) -> None:
        for name in ("address", "gateway", "outbound", "dns_forward", "dns_host"):
            check_addresses(long_option(name), getattr(self, name), prefix=name == "address")
        for name in ("map_host_loopback", "map_guest_addr", "dns"):
            check_addresses(long_option(name), _without_none(getattr(self, name)))
        for value in self.dns_forward:
            if ipaddress.ip_address(value).is_loopback:
                raise ConfigurationError(
                    f"--dns-forward {value} is a loopback address",
                    "choose one that the guest sends to its gateway",
                )
        for name in ("address", "gateway", "map_host_loopback", "map_guest_addr"):
            check_unicast(long_option(name), _without_none(getattr(self, name)))
        if self.netmask:
            parse_netmask(self.netmask)
        for name in ("mac_addr", "ns_mac_addr"):
            if getattr(self, name):
                parse_mac(getattr(self, name), long_option(name))

    def _check_names(self) -> None:
        for value in _without_none(self.search):
            if not is_domain(value):
                raise ConfigurationError(
                    f"--search {value} is not a domain name", "write it like example.org, labels up to 63 bytes"
                )
        for name in ("hostname", "fqdn"):
            value = getattr(self, name)
            if value and not is_host_name(value):
                raise ConfigurationError(
                    f"{long_option(name)} {value} is not a domain name",
                    f"write it like guest.example.org, labels up to 63 bytes, {NAME_MAXIMUM} in all",
                )
        for name in ("ns_ifname", "interface", "outbound_if4", "outbound_if6"):
            value = getattr(self, name)
            if value and not is_interface_name(value):
                raise ConfigurationError(
                    f"{long_option(name)} {value} is no interface name",
                    f"use up to {INTERFACE_NAME_LENGTH} characters without blank, slash or colon",
                )

    def _check_numbers(self) -> None:
        if self.mtu and not MTU_MINIMUM <= self.mtu <= MTU_MAXIMUM:
            raise ConfigurationError(f"--mtu {self.mtu} is out of range", f"give {MTU_MINIMUM} to {MTU_MAXIMUM}, or 0")
        if self.udp_timeout < 1:
            raise ConfigurationError(f"--udp-timeout {self.udp_timeout} is too short", "give at least 1 second")
        if not 0 <= self.busy_poll <= BUSY_POLL_MAXIMUM:
            raise ConfigurationError(
                f"--busy-poll {self.busy_poll} is out of range", f"give 0 to {BUSY_POLL_MAXIMUM} microseconds"
            )
        if self.fd < NO_FD:
            raise ConfigurationError(f"--fd {self.fd} is no file descriptor", "give the number of an open one")
        if self.udp_filter not in UDP_FILTERS:
            raise ConfigurationError(f"--udp-filter {self.udp_filter} is unknown", f"give {' or '.join(UDP_FILTERS)}")
        for name in self.without:
            if name not in NAMES:
                raise ConfigurationError(f"--without {name} is unknown", f"give one of {', '.join(NAMES)}")
        if self.pid is not None and (type(self.pid) is not int or self.pid < 1):
            raise ConfigurationError(f"{self.pid} is no process ID", "give the PID of a running process")

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
        return not self.netns and self.pid is None

    @property
    def has_fd(self) -> bool:
        """Whether the guest's socket is handed over."""
        return self.fd != NO_FD

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

    def _check_namespace_rules(self) -> None:
        """Check that what listens in the namespace does so on its loopback, since nothing else is spliced."""
        for name, side in PORT_OPTIONS.items():
            rules = self.port_rules[side] if side.inside else ()
            if rules and self.no_splice:
                raise ConfigurationError(
                    f"{long_option(name)} needs splicing, which --no-splice switches off", "give only one of them"
                )
            for rule in rules:
                address = ipaddress.ip_address(rule.address or "127.0.0.1")
                if not (address.is_loopback or address.is_unspecified) or rule.interface not in (None, "lo"):
                    raise ConfigurationError(
                        f"{long_option(name)} {rule.text} is not on the namespace's loopback",
                        "name ports only, or an address like 127.0.0.53 or ::1",
                    )


def long_option(name: str) -> str:
    """Turn a field's name into the option's."""
    name = name.removeprefix("has_")
    return "PID" if name == "pid" else "--" + name.replace("_", "-")


def given_fields() -> list[Field[Any]]:
    """Return the fields that a caller sets: all but those that are derived from them."""
    return [item for item in fields(Config) if item.init]


def _without_none(values: Iterable[str]) -> list[str]:
    return [value for value in values if value != NONE]
