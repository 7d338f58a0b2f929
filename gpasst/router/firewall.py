"""Firewall rules of routers: text to rules, and what they say of the first packet of a flow.

Theory of operation: a rule names a direction, a protocol, ports of the destination, and addresses; the first rule that
matches decides. It is asked once for each flow: the answers of what it has let out come in by the session
(`gpasst.router.session`), and so do ICMP errors about it. Addresses are those that the inside has: a rule is asked
before NAT on the way out, and behind it on the way in.

    ACTION DIRECTION [PROTOCOL [PORTS]] [from PREFIX] [to PREFIX]

An action is ``allow``, ``drop`` (silently) or ``reject`` (with the ICMP error "administratively prohibited"), a
direction ``out`` or ``in``, a protocol ``tcp``, ``udp`` or ``icmp``, ports ``53`` or ``80,443,8000-8099``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from gpasst.errors import ConfigurationError
from gpasst.ranges import Range
from gpasst.records import dataclass
from gpasst.values import shown
from gpasst.wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP

ALLOW: Final = "allow"
DROP: Final = "drop"
REJECT: Final = "reject"

PORT_MAXIMUM: Final = 65535

_PORT: Final = re.compile("[0-9]{1,5}")

_PROTOCOLS: Final = {
    "tcp": (PROTOCOL_TCP,),
    "udp": (PROTOCOL_UDP,),
    "icmp": (PROTOCOL_ICMP, PROTOCOL_ICMPV6),
}
_FORM: Final = "write it like 'allow out tcp 80,443', 'drop in' or 'reject out udp from 10.0.0.0/24 to 192.0.2.1'"

Prefix = tuple[int, int, int]
"""Bytes of an address, its leading bits as a number, and how many bits follow them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :ivar text: as it was written.
    :ivar action: `ALLOW`, `DROP` or `REJECT`.
    :ivar outward: whether it is about flows from inside to outside.
    :ivar protocols: IP protocol numbers, empty for every protocol.
    :ivar ports: of the destination, empty for every port.
    :ivar source: of the flow, None for every address.
    :ivar destination: of the flow, None for every address.
    """

    text: str
    action: str
    outward: bool
    protocols: tuple[int, ...] = ()
    ports: tuple[Range, ...] = ()
    source: Prefix | None = None
    destination: Prefix | None = None

    def matches(self, outward: bool, protocol: int, source: bytes, destination: bytes, port: int) -> bool:
        """Return whether the rule is about a flow; see `verdict`."""
        return (
            self.outward is outward
            and (not self.protocols or protocol in self.protocols)
            and (not self.ports or any(first <= port <= last for first, last in self.ports))
            and (self.source is None or _within(source, self.source))
            and (self.destination is None or _within(destination, self.destination))
        )


def verdict(rules: tuple[Rule, ...], outward: bool, protocol: int, source: bytes, destination: bytes, port: int) -> str:
    """Return what becomes of a flow: `ALLOW`, `DROP` or `REJECT`.

    :param rules: in order.
    :param outward: whether the flow begins inside.
    :param protocol: IP protocol number.
    :param source: of its first packet, 4 or 16 bytes.
    :param destination: likewise.
    :param port: of the destination, 0 without ports.
    """
    for rule in rules:
        if rule.matches(outward, protocol, source, destination, port):
            return rule.action
    return ALLOW


def parse(text: str) -> Rule:
    """Return the rule of a text.

    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"firewall rule {shown(text)} is no text", _FORM)
    words = text.split()
    if len(words) < 2 or words[0] not in (ALLOW, DROP, REJECT) or words[1] not in ("out", "in"):  # noqa: PLR2004
        raise _wrong(text, "begins with no action and direction")
    action, direction, *rest = words
    protocols: tuple[int, ...] = ()
    ports: tuple[Range, ...] = ()
    if rest and rest[0] in _PROTOCOLS:
        name = rest.pop(0)
        protocols = _PROTOCOLS[name]
        if rest and rest[0][0].isdigit():
            if name == "icmp":
                raise _wrong(text, "has ports of icmp")
            ports = tuple(_range(text, item) for item in rest.pop(0).split(","))
    prefixes: dict[str, Prefix] = {}
    while rest:
        place = rest.pop(0)
        if place not in ("from", "to") or place in prefixes or not rest:
            raise _wrong(text, f"has {place!r} where 'from PREFIX' or 'to PREFIX' may stand once")
        prefixes[place] = _prefix(text, rest.pop(0))
    return Rule(text, action, direction == "out", protocols, ports, prefixes.get("from"), prefixes.get("to"))


def _wrong(text: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"firewall rule {shown(text)} {what}", _FORM)


def _range(text: str, item: str) -> Range:
    low, dash, high = item.partition("-")
    bounds = low, high if dash else low
    if not all(_PORT.fullmatch(bound) for bound in bounds):
        raise _wrong(text, f"has {item!r} where ports stand")
    first, last = map(int, bounds)
    if not 1 <= first <= last <= PORT_MAXIMUM:
        raise _wrong(text, f"has ports {item} that are not from 1 to {PORT_MAXIMUM}")
    return first, last


def _prefix(text: str, item: str) -> Prefix:
    try:
        network = ipaddress.ip_network(item)
    except ValueError:
        raise _wrong(text, f"has {item!r} where an address or prefix stands") from None
    host_bits = network.max_prefixlen - network.prefixlen
    return network.max_prefixlen // 8, int(network.network_address) >> host_bits, host_bits


def _within(address: bytes, prefix: Prefix) -> bool:
    size, leading, host_bits = prefix
    return len(address) == size and int.from_bytes(address, "big") >> host_bits == leading
