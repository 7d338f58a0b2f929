"""Port specifications, as options take them, turned into forward rules.

A specification is ``none``, ``all``, or ``[ADDRESS[%INTERFACE]/]LIST`` (also ``%INTERFACE/LIST``, ``*`` for any
address, and brackets around an IPv6 address). A LIST is comma-separated:

* ``P`` or ``P-Q``: these ports, to the same ports of the guest;
* ``P:T`` or ``P-Q:T-U``: the same, to other ports, both ranges of one width;
* ``~P`` or ``~P-Q``: not these ports. Exclusions win; a list of nothing else means all but these.

Pure: text in, rules out. Whether a port can be bound is found out by whoever binds it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpasst.errors import ConfigurationError

LAST_PORT = 65535
# `all` stops below the ports that IANA calls dynamic (RFC 6335, section 6), as in passt.
LAST_OF_ALL = 49151
INTERFACE_NAME_LENGTH = 15  # bytes; IFNAMSIZ - 1
SYNTAX = "write [ADDRESS[%INTERFACE]/]PORT[-PORT][:TARGET[-TARGET]][,...] or ~PORT[-PORT]"


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """Ports of the host that lead to ports of the guest.

    :ivar protocol: ``"udp"``.
    :ivar address: address to bind on the host, None for every address of both families.
    :ivar interface: interface to bind to, None for every one.
    :ivar first: first port on the host, 1 to 65535.
    :ivar last: last port on the host.
    :ivar target: the guest's port for `first`; the others follow in order.
    :ivar strict: whether a port that cannot be bound is an error.
    """

    protocol: str
    address: str | None
    interface: str | None
    first: int
    last: int
    target: int
    strict: bool = True

    def ports(self) -> Iterator[tuple[int, int]]:
        """Give each (host port, guest port) of the rule."""
        for port in range(self.first, self.last + 1):
            yield port, port - self.first + self.target

    @property
    def families(self) -> tuple[int, ...]:
        """The address families, 4 and 6, that the rule is for."""
        if self.address is None:
            return (4, 6)
        return (ipaddress.ip_address(self.address).version,)

    def overlaps(self, other: ForwardRule) -> bool:
        """Tell whether both rules claim one port on one address."""
        return (
            self.protocol == other.protocol
            and self.first <= other.last
            and other.first <= self.last
            and (self.address is None or other.address is None or self.address == other.address)
            and (self.interface is None or other.interface is None or self.interface == other.interface)
        )


def parse(option: str, specifications: Iterable[str], protocol: str = "udp") -> tuple[ForwardRule, ...]:
    """Turn the values of one port option into rules.

    :param option: name of the option, for messages.
    :param specifications: its values in the order given; ``none`` cancels those before it.
    :param protocol: what the rules are for.
    :raises ConfigurationError: naming the value and what is wrong with it.
    """
    rules: list[ForwardRule] = []
    for text in specifications:
        if text == "none":
            rules.clear()
        elif text == "auto":
            raise ConfigurationError(f"{option} auto is not available yet", "name the ports to forward")
        elif text == "all":
            rules.append(ForwardRule(protocol, None, None, 1, LAST_OF_ALL, 1, strict=False))
        else:
            rules.extend(_parse_list(option, text, protocol))
    for index, rule in enumerate(rules):
        for other in rules[:index]:
            if rule.overlaps(other):
                port = max(rule.first, other.first)
                raise ConfigurationError(
                    f"{option}: {protocol} port {port} is forwarded twice",
                    "give every address and port only once",
                )
    return tuple(rules)


def _parse_list(option: str, text: str, protocol: str) -> list[ForwardRule]:
    """Parse ``[ADDRESS[%INTERFACE]/]LIST``."""
    place, slash, ports = text.rpartition("/")
    address, interface = _parse_place(option, text, place) if slash else (None, None)
    excluded: set[int] = set()
    ranges: list[tuple[int, int, int]] = []
    for item in ports.split(","):
        if item.startswith("~"):
            first, last = _parse_range(option, text, item[1:])
            excluded.update(range(first, last + 1))
            continue
        source, colon, target_text = item.partition(":")
        first, last = _parse_range(option, text, source)
        target, target_last = _parse_range(option, text, target_text) if colon else (first, last)
        if target_last - target != last - first:
            raise ConfigurationError(
                f"{option} {text}: {source} and {target_text} differ in width",
                "make both ranges equally long",
            )
        ranges.append((first, last, target))
    strict = bool(ranges)
    if not ranges:
        ranges.append((1, LAST_OF_ALL, 1))
    return [
        ForwardRule(protocol, address, interface, start, end, start - first + target, strict)
        for first, last, target in ranges
        for start, end in _without(first, last, excluded)
    ]


def _parse_place(option: str, text: str, place: str) -> tuple[str | None, str | None]:
    """Parse ``ADDRESS[%INTERFACE]``, each part optional."""
    host, percent, name = place.partition("%")
    interface = name or None
    if percent and not interface:
        raise ConfigurationError(f"{option} {text}: no interface after %", SYNTAX)
    if interface and len(interface.encode()) > INTERFACE_NAME_LENGTH:
        raise ConfigurationError(f"{option} {text}: interface name {interface} is longer than 15 bytes", SYNTAX)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host in ("*", ""):
        if not host and not interface:
            raise ConfigurationError(f"{option} {text}: no address before /", SYNTAX)
        return None, interface
    try:
        return str(ipaddress.ip_address(host)), interface
    except ValueError:
        raise ConfigurationError(f"{option} {text}: {host} is not an IP address", SYNTAX) from None


def _parse_range(option: str, text: str, ports: str) -> tuple[int, int]:
    """Parse ``P`` or ``P-Q``."""
    first_text, dash, last_text = ports.partition("-")
    numbers = []
    for number in (first_text, last_text if dash else first_text):
        if not (number.isascii() and number.isdecimal()) or not 1 <= int(number) <= LAST_PORT:
            raise ConfigurationError(f"{option} {text}: {number or 'nothing'} is not a port from 1 to 65535", SYNTAX)
        numbers.append(int(number))
    first, last = numbers
    if first > last:
        raise ConfigurationError(f"{option} {text}: {ports} runs backwards", SYNTAX)
    return first, last


def _without(first: int, last: int, excluded: set[int]) -> Iterator[tuple[int, int]]:
    """Give the stretches of `first` to `last` that avoid `excluded`."""
    start = first
    for port in sorted(port for port in excluded if first <= port <= last):
        if start < port:
            yield start, port - 1
        start = port + 1
    if start <= last:
        yield start, last
