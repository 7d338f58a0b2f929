"""Port specifications, as options take them, turned into a table of forward rules.

A specification is ``none`` or ``[PLACE/]LIST``. A LIST is comma-separated:

* ``P`` or ``P-Q``: these ports, to the same ports of the other side;
* ``P:T`` or ``P-Q:T-U``: the same, to other ports, both ranges of one width;
* ``P:ADDRESS/T`` or ``P-Q:ADDRESS/T-U``: the same, to an address of the other side;
* ``P:ADDRESS`` or ``P-Q:ADDRESS``: these ports, to the same ports of an address of the other side;
* ``0:T`` or ``0:ADDRESS/T``: a port that the kernel chooses, one number in all families of the rule;
* ``~P`` or ``~P-Q``: not these ports. Exclusions win; a list of nothing else means all but these;
* ``all`` or ``all:ADDRESS``: every port that the listening side does not hand out by itself (its ephemeral range);
* ``auto``: the ports of the list, or every port if it names none, while they are bound on the other side.

A PLACE is where to listen: ``ADDRESS``, ``ADDRESS%INTERFACE``, ``%INTERFACE``, ``*`` or ``*%INTERFACE``, with brackets
around an address where wanted. The first ``/`` ends it if what stands before is a place, so that the IPv6 target in
``5000:2001:db8::5/6000`` needs brackets, and the one in ``5000-5001:2001:db8::5/6000-6001`` does not.

Theory of operation: `parse` turns the values of one option into rules that do not contradict each other. Which ports
are ephemeral is not known yet when options are read, so ``all`` still means every port there; `lay` cuts the ephemeral
ports out when a proxy knows its host and namespace. Neither asks whether a port can be bound.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from operator import attrgetter

from gpasst.errors import ConfigurationError
from gpasst.ranges import Range, merged, without
from gpasst.records import dataclass, field, replace
from gpasst.values import check_interface, shown

LAST_PORT = 65535
ALL, AUTO = "all", "auto"
CHOSEN_PORT = 0  # stands for a port that the kernel chooses, as in bind(2)
EPHEMERAL = (49152, LAST_PORT)  # the ports that IANA calls dynamic (RFC 6335, section 6)
WILDCARDS = (None, "0.0.0.0", "::")
SYNTAX = (
    "write [ADDRESS[%INTERFACE]/]PORT[-PORT][:[ADDRESS/]PORT[-PORT]][,...], PORT:ADDRESS, 0:PORT, ~PORT[-PORT], "
    "all[:ADDRESS], auto or none"
)
PORT = f"a port from 1 to {LAST_PORT}"
PORT_OR_CHOSEN = f"{PORT}, nor 0 with a target"
# How a list begins whose first slash follows a target address.
_ITEM_WITH_TARGET = re.compile(r"(.*,)?~?[0-9-]+:", re.DOTALL)

_Key = tuple[bool, str | None, str | None, int]  # what may take ports from each other: auto, place, family


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """Ports of one side that lead to ports of the other.

    :ivar protocol: the protocol's name in lower case, such as ``"udp"``.
    :ivar address: address to bind, None for every address of the rule's families.
    :ivar interface: interface to bind to, None for every one.
    :ivar first: first port that listens, 1 to 65535; `CHOSEN_PORT` where the kernel chooses the only one.
    :ivar last: last port that listens.
    :ivar target: the other side's port for `first`; the others follow in order, up to 65535.
    :ivar strict: whether a port that cannot be bound is an error; it is unless the rule comes from ``all`` or ``auto``.
    :ivar target_address: address on the other side, None for its own address.
    :ivar auto: whether a port listens only while its target is bound on the other side.
    :ivar text: the specification that the rule comes from, for messages.
    :ivar host: addresses of the one host of a network that it leads to, where it names none; empty for a single guest.
    """

    protocol: str
    address: str | None
    interface: str | None
    first: int
    last: int
    target: int
    strict: bool = True
    target_address: str | None = None
    auto: bool = False
    text: str = field(default="", compare=False)
    host: tuple[str, ...] = ()

    def ports(self) -> Iterator[tuple[int, int]]:
        """Yield each (listening port, port on the other side) of the rule."""
        for port in range(self.first, self.last + 1):
            yield port, port - self.first + self.target

    def listening_for(self, target_port: int) -> int | None:
        """Return the port that listens for `target_port` of the other side, None if the rule has none."""
        port = target_port - self.target + self.first
        return port if self.first <= port <= self.last else None

    @property
    def families(self) -> tuple[int, ...]:
        """The address families, 4 and 6, that the rule opens listeners in."""
        address = self.address or self.target_address
        return tuple(map(_family, self.host)) or (4, 6) if address is None else (_family(address),)

    def target_in(self, family: int) -> str | None:
        """Return the address that it leads to in a family, None for the guest's own."""
        return self.target_address or next((address for address in self.host if _family(address) == family), None)

    def overlaps(self, other: ForwardRule) -> bool:
        """Return whether the kernel would refuse to bind both rules: they share a port of an address."""
        return (
            self.first != CHOSEN_PORT
            and self.first <= other.last
            and other.first <= self.last
            and self.protocol == other.protocol
            and (self.interface is None or other.interface is None or self.interface == other.interface)
            and (self.address == other.address or self.address in WILDCARDS or other.address in WILDCARDS)
            and not set(self.families).isdisjoint(other.families)
        )


def parse(option: str, specifications: Iterable[str], protocol: str) -> tuple[ForwardRule, ...]:
    """Turn the values of one port option into rules that do not contradict each other.

    The last value wins: it takes the ports that it names away from the values before it that have the same address and
    interface, and a family in common. Ports that are named win over ``all``, though, and ``auto`` takes from ``auto``
    only.

    :param option: name of the option, for messages.
    :param specifications: its values in the order given; ``none`` cancels those before it.
    :param protocol: the protocol that the option is about.
    :returns: the strict rules first, to be opened first, those of ports that the kernel chooses behind the others, lest
        it choose one of theirs, and the automatic ones last; else by place, in the order given, and by port. Those of
        ``all`` contain the ephemeral ports; see `lay`.
    :raises ConfigurationError: naming the value and what is wrong with it.
    """
    parsed: list[list[ForwardRule]] = []
    for text in specifications:
        if text == "none":
            parsed.clear()
            continue
        try:
            parsed.append(_parse_specification(text, protocol))
        except ConfigurationError as error:
            raise ConfigurationError(shown(f"{option} {text}: {error.message}"), error.remedy) from None
    rules = _in_order(_resolve(parsed), parsed)
    clash = _find_clash(rule for rule in rules if rule.strict)
    if clash:
        raise _clash_error(option, *clash)
    return tuple(rules)


def lay(rules: Iterable[ForwardRule], ephemeral: Range) -> tuple[ForwardRule, ...]:
    """Cut the ephemeral ports out of the rules of ``all``.

    :param rules: rules of one direction, as `parse` returns them.
    :param ephemeral: first and last port of the ephemeral range of the side that listens.
    :returns: the rules in the same order.
    """
    return tuple(part for rule in rules for part in ([rule] if rule.strict or rule.auto else _cut(rule, [ephemeral])))


def reverse(rules: Iterable[ForwardRule]) -> dict[int, int]:
    """Map each target port to the port that leads to it, for showing a sender under the port that others reach it by.

    A target that several ports lead to has no entry, even if one of them is the target's own number. Neither have
    ports that lead to themselves, automatic ones, nor those that the kernel chooses. The map is of ports, not of
    differences, so no sum wraps.

    :param rules: all rules of one direction.
    """
    found: dict[int, int] = {}
    ambiguous = set()
    same = []
    for rule in rules:
        if rule.auto or rule.first == CHOSEN_PORT:
            continue
        if rule.first == rule.target:
            same.append((rule.first, rule.last))
            continue
        for port, target in rule.ports():
            if found.setdefault(target, port) != port:
                ambiguous.add(target)
    # A target that leads to itself too is a stretch that nothing is left of.
    same = merged(same)
    return {
        target: port for target, port in found.items() if target not in ambiguous and any(without(target, target, same))
    }


def _resolve(parsed: list[list[ForwardRule]]) -> list[ForwardRule]:
    """Cut the rules of all specifications so that of one place and family each port is left to one of them."""
    taken: dict[_Key, list[Range]] = {}
    kept = []
    # Whoever wins comes first: strict before forgiving, late before early.
    for strict in (True, False):
        for group in reversed(parsed):
            claims: dict[_Key, list[Range]] = {}
            for rule in group:
                if rule.strict != strict:
                    continue
                pieces = [rule]
                for family in rule.families:
                    key = rule.auto, rule.address, rule.interface, family
                    pieces = [part for piece in pieces for part in _cut(piece, taken.get(key, []))]
                    if rule.first != CHOSEN_PORT:
                        claims.setdefault(key, []).append((rule.first, rule.last))
                kept += pieces
            for key, ranges in claims.items():
                taken[key] = merged(taken.get(key, []) + ranges)
    return kept


def _in_order(rules: list[ForwardRule], parsed: list[list[ForwardRule]]) -> list[ForwardRule]:
    """Sort rules as `parse` returns them."""
    mentioned = dict.fromkeys((rule.address, rule.interface) for group in parsed for rule in group)
    places = {place: index for index, place in enumerate(mentioned)}
    return sorted(
        rules,
        key=lambda rule: (
            not rule.strict,
            rule.auto,
            rule.first == CHOSEN_PORT,
            places[rule.address, rule.interface],
            rule.first,
            rule.families,
        ),
    )


def _find_clash(rules: Iterable[ForwardRule]) -> tuple[ForwardRule, ForwardRule] | None:
    """Return two rules that overlap, the one with the higher port first, or None."""
    active: list[ForwardRule] = []
    for rule in sorted(rules, key=attrgetter("first")):
        active = [other for other in active if other.last >= rule.first]
        for other in active:
            if rule.overlaps(other):
                return rule, other
        active.append(rule)
    return None


def _clash_error(option: str, rule: ForwardRule, other: ForwardRule) -> ConfigurationError:
    narrow = other if rule.address in WILDCARDS else rule
    last = min(rule.last, other.last)
    ports = f"{rule.first}-{last}" if last > rule.first else str(last)
    return ConfigurationError(
        f"{option} {rule.text}: {rule.protocol} port {rule.first} on {narrow.address or 'every address'} "
        f"is forwarded twice, by {other.text} too",
        f"add ~{ports} to one of them",
    )


def _parse_specification(text: str, protocol: str) -> list[ForwardRule]:
    """Parse ``[PLACE/]LIST``; explicit ports and ``all`` may still overlap."""
    address, interface, ports = _split(text)
    items = ports.split(",")
    every = [item for item in items if item == ALL or item.startswith(f"{ALL}:")]
    auto = AUTO in items
    if len(every) > 1 or items.count(AUTO) > 1:
        raise ConfigurationError(f"{' and '.join(every) if len(every) > 1 else AUTO} in one list", "give it once")
    whole = ForwardRule(protocol, address, interface, 1, LAST_PORT, 1, strict=False, auto=auto, text=text)
    excluded = merged(_parse_range(item[1:]) for item in items if item.startswith("~"))
    named = [_parse_item(item, whole) for item in items if item not in (*every, AUTO) and not item.startswith("~")]
    clash = _find_clash(named)
    if clash:
        raise ConfigurationError(f"port {clash[0].first} is given twice", "give every port only once")
    rules = [part for rule in named for part in _cut(rule, excluded)]
    if not named or (every and not auto):
        _, colon, target = (every or [ALL])[0].partition(":")
        rules += _cut(_towards(whole, target if colon else None), excluded)
    return rules


def _split(text: str) -> tuple[str | None, str | None, str]:
    """Split a specification into address, interface and list."""
    place, slash, ports = text.partition("/")
    if not slash:
        return None, None, text
    try:
        address, interface = _parse_place(place)
    except ConfigurationError:
        if _ITEM_WITH_TARGET.match(place):
            return None, None, text
        raise
    return address, interface, ports


def _parse_place(place: str) -> tuple[str | None, str | None]:
    """Parse what stands before the slash, into address and interface."""
    if place.startswith("[") and place.endswith("]"):
        host, percent, interface = place[:-1].partition("%")
        host += "]"
    else:
        host, percent, interface = place.partition("%")
    if percent:
        try:
            check_interface(interface)
        except ConfigurationError as error:
            raise ConfigurationError(f"{interface or 'nothing'} {error.message}", error.remedy) from None
    if host == "*" or (percent and not host):
        return None, interface or None
    return _parse_address(host), interface or None


def _parse_item(item: str, whole: ForwardRule) -> ForwardRule:
    """Parse ``P-Q[:[ADDRESS/]T-U]`` or ``0:[ADDRESS/]T``, as that part of `whole`."""
    source, colon, destination = item.partition(":")
    chosen = source == str(CHOSEN_PORT)
    if chosen and not colon:
        raise ConfigurationError("port 0 lacks a target", "write 0:PORT; the kernel chooses the port that leads there")
    if chosen and whole.auto:
        raise ConfigurationError("0 and auto in one list", "write 0:PORT without auto, or name the port that listens")
    # A range has no port that the kernel chooses.
    alone = "-" not in source
    first, last = (CHOSEN_PORT, CHOSEN_PORT) if chosen else _parse_range(source, PORT_OR_CHOSEN if alone else PORT)
    rule = replace(whole, first=first, last=last, target=first, strict=not whole.auto)
    if not colon:
        return rule
    host, slash, ports = destination.rpartition("/")
    if not slash and _address(destination):
        if chosen:
            raise ConfigurationError(f"0:{destination} lacks a port", f"write 0:{destination}/PORT")
        return _towards(rule, destination)
    target, target_last = _parse_range(ports)
    if target_last - target != last - first:
        raise ConfigurationError(f"{source} and {ports} differ in width", "make both ranges equally long")
    return _towards(replace(rule, target=target), host if slash else None)


def _towards(rule: ForwardRule, target: str | None) -> ForwardRule:
    """Return `rule` with a target address, unless there is none.

    :raises ConfigurationError: if it is malformed, or of another family than the address that listens.
    """
    if target is None:
        return rule
    address = _parse_address(target)
    if rule.address and _family(address) != _family(rule.address):
        raise ConfigurationError(
            f"{rule.address} and {address} are of different families", "give two IPv4 or two IPv6 addresses"
        )
    return replace(rule, target_address=address)


def _parse_range(ports: str, accepted: str = PORT) -> Range:
    """Parse ``P`` or ``P-Q``.

    :param accepted: what each is, for messages.
    """
    first, dash, last = ports.partition("-")
    numbers = first, last if dash else first
    for number in numbers:
        if not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= LAST_PORT:
            raise ConfigurationError(f"{number or 'nothing'} is not {accepted}", SYNTAX)
    if int(numbers[0]) > int(numbers[1]):
        raise ConfigurationError(f"{ports} runs backwards", "give the lower port first")
    return int(numbers[0]), int(numbers[1])


def _parse_address(text: str) -> str:
    """Parse an address with or without brackets."""
    address = _address(text)
    if address is None:
        raise ConfigurationError(f"{text or 'nothing'} is not an IP address", SYNTAX)
    return address


def _address(text: str) -> str | None:
    """Return the canonical spelling of an address with or without brackets, None if it is none."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        # The module takes a scope, too, which is an interface here.
        return None if "%" in text else str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _cut(rule: ForwardRule, holes: list[Range]) -> list[ForwardRule]:
    """Return the parts of `rule` outside of `holes`, which are as `merged` returns them."""
    return [
        replace(rule, first=first, last=last, target=rule.target + first - rule.first)
        for first, last in without(rule.first, rule.last, holes)
    ]
