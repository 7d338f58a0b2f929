"""The forward rules of a proxy, and the listeners that they ask for.

Theory of operation: `lay_rules` lays the parsed rules of a `Config` over the ephemeral ranges of host and namespace,
once per proxy; `PortRules` is the table for every protocol and both sides. A rule leads ports of one side to the other.
An explicit rule asks for a listener for each of its ports and families (`explicit`). An automatic one follows the
sockets that are bound on the other side, address by address (`automatic`):

1. A socket on every address asks for a listener on every address; one on a loopback address for a listener on that
   address only, and only where loopback addresses are kept (`gpasst.udp.pairs`).
2. On the host any other address of a guest's socket is reached through the guest's address, so it asks for a listener
   like one on every address. In the namespace only loopback traffic is spliced, so it asks for none.
3. The proxy's own sockets ask for none, so that the two directions do not follow each other.
4. In the namespace a port that a program there has bound itself asks for none (`unclaimed`): the guest's own socket
   comes first. Linux lets a program bind beside an open listener only if both have SO_REUSEPORT, or for UDP
   SO_REUSEADDR.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from gpasst.config import Config, PortSide
from gpasst.packet.address import ANY, IP4_BYTES, UNSPECIFIED, is_loopback, is_multicast, is_v4_mapped
from gpasst.portspec import ForwardRule, lay, reverse
from gpasst.records import dataclass

LOOPBACK_INTERFACE = "lo"


class PortRules:
    """The rules of every protocol and side.

    :param table: the rules that listen on a side, in the order in which they are to be opened; a side that has none is
        missing.
    :param ephemeral: first and last ephemeral port of the host (False) and the namespace (True); a missing one has
        none.
    :ivar table: the same, with the rules that came since.
    """

    def __init__(
        self,
        table: Mapping[PortSide, tuple[ForwardRule, ...]],
        ephemeral: Mapping[bool, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        self.table = dict(table)
        self._ephemeral = ephemeral
        self._shown: dict[PortSide, dict[int, int]] = {}

    def of(self, inside: bool, protocol: str = "udp") -> tuple[ForwardRule, ...]:
        """Return the rules that listen in the namespace (`inside`) or on the host."""
        return self.table.get(PortSide(protocol, inside), ())

    def automatic(self, inside: bool, protocol: str = "udp") -> tuple[ForwardRule, ...]:
        """Return those rules of one side that follow what is bound on the other."""
        return tuple(rule for rule in self.of(inside, protocol) if rule.auto)

    @property
    def following(self) -> bool:
        """Whether any rule follows what is bound."""
        return any(rule.auto for rules in self.table.values() for rule in rules)

    def shown(self, inside: bool, protocol: str = "udp") -> Mapping[int, int]:
        """Return under which port one side knows a port of the other, where that is another number.

        :param inside: whether the namespace is the side that looks: the keys are then ports of the host.
        :return: the same object at each call, which follows the rules.
        """
        side = PortSide(protocol, inside)
        if side not in self._shown:
            self._shown[side] = reverse(self.of(inside, protocol))
        return self._shown[side]

    def lay(self, side: PortSide, rules: Iterable[ForwardRule]) -> tuple[ForwardRule, ...]:
        """Return parsed rules of one side without its ephemeral ports; none for a side that does not exist."""
        return lay(rules, self._ephemeral[side.inside]) if side.inside in self._ephemeral else ()

    def add(self, side: PortSide, rules: Iterable[ForwardRule]) -> None:
        """Enter rules behind the others of their side."""
        self._replace(side, (*self.table.get(side, ()), *rules))

    def remove(self, side: PortSide, rules: Iterable[ForwardRule]) -> None:
        """Remove rules, these very objects."""
        gone = {id(rule) for rule in rules}
        self._replace(side, tuple(rule for rule in self.table.get(side, ()) if id(rule) not in gone))

    def _replace(self, side: PortSide, rules: tuple[ForwardRule, ...]) -> None:
        self.table[side] = rules
        shown = self._shown.get(side)
        if shown is not None:
            shown.clear()
            shown.update(reverse(rules))


def lay_rules(config: Config, host: tuple[int, int], namespace: tuple[int, int] | None) -> PortRules:
    """Lay the rules of all port options over the ephemeral ranges.

    :param config: the options; a protocol that they switch off has no rules.
    :param host: first and last ephemeral port of the host.
    :param namespace: the same of the namespace, None where there is none: then no rule listens there.
    """
    laid = PortRules({}, {False: host, True: namespace} if namespace else {False: host})
    for side, rules in config.port_rules.items():
        if not getattr(config, f"no_{side.protocol}") and (found := laid.lay(side, rules)):
            laid.add(side, found)
    return laid


@dataclass(frozen=True, slots=True)
class BindAddress:
    """Where a listener is bound.

    :ivar inside: in the namespace rather than on the host.
    :ivar family: 4 or 6.
    :ivar address: its address, the unspecified one for every.
    :ivar interface: the interface it is bound to, empty for every one.
    :ivar port: its port; 0 until it is bound, where the kernel chooses one.
    """

    inside: bool
    family: int
    address: str
    interface: str
    port: int

    def __str__(self) -> str:
        interface = f"%{self.interface}" if self.interface else ""
        side = " in the namespace" if self.inside else ""
        return f"port {self.port} on {self.address}{interface}{side}"

    @property
    def everywhere(self) -> bool:
        """Whether it is every address and interface."""
        return not self.interface and self.address == ANY[self.family]

    @property
    def loopback(self) -> bool:
        """Whether datagrams to a loopback address arrive here: only where it is bound to one, or to every address."""
        address = ipaddress.ip_address(self.address)
        return self.interface in ("", LOOPBACK_INTERFACE) and (address.is_unspecified or address.is_loopback)


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A listener that a rule asks for.

    :ivar bind: where it listens.
    :ivar target: the port of the other side that it leads to.
    :ivar rule: the rule.
    """

    bind: BindAddress
    target: int
    rule: ForwardRule

    @property
    def side(self) -> PortSide:
        """Its protocol, and where it listens."""
        return PortSide(self.rule.protocol, self.bind.inside)


class Bound(Protocol):
    """A bound socket, as `gpasst.host.sock_diag` lists it."""

    @property
    def family(self) -> int:
        """4 or 6."""

    @property
    def address(self) -> bytes:
        """Its address, 4 or 16 bytes."""

    @property
    def port(self) -> int:
        """Its port."""

    @property
    def only6(self) -> bool:
        """Whether one on every IPv6 address takes no IPv4."""

    @property
    def inode(self) -> int:
        """The number that no other socket has."""


def explicit(
    rules: Iterable[ForwardRule], inside: bool, families: Collection[int], lo_only: bool = False
) -> Iterator[ListenerSpec]:
    """Yield the listeners that rules ask for whatever is bound.

    :param rules: the rules of one side.
    :param inside: whether that side is the namespace.
    :param families: the families in use, of 4 and 6.
    :param lo_only: whether loopback traffic alone is carried.
    """
    for rule in rules:
        if rule.auto:
            continue
        for family in rule.families:
            if family in families:
                for port, target in rule.ports():
                    yield ListenerSpec(_bind_address(rule, inside, family, port, lo_only), target, rule)


def automatic(
    rules: Iterable[ForwardRule],
    inside: bool,
    families: Collection[int],
    bound: Iterable[Bound],
    keep_loopback: bool,
    own: Collection[int],
    lo_only: bool = False,
) -> dict[BindAddress, ListenerSpec]:
    """Return the listeners that automatic rules ask for while these sockets are bound on the other side.

    :param rules: the automatic rules of one side; of two that ask for the same place the first counts.
    :param inside: whether that side is the namespace.
    :param families: the families in use, of 4 and 6.
    :param bound: the sockets of the other side.
    :param keep_loopback: whether loopback addresses are kept from the host.
    :param own: inodes of the proxy's own sockets.
    :param lo_only: whether loopback traffic alone is carried.
    """
    specs: dict[BindAddress, ListenerSpec] = {}
    for sock in bound:
        if sock.inode in own:
            continue
        for family, address in _addresses(sock):
            reached = _reached(address, family, inside, keep_loopback)
            if family not in families or reached is None or is_multicast(address):
                continue
            for rule in rules:
                port = rule.listening_for(sock.port)
                if port is None or family not in rule.families:
                    continue
                bind = _bind_address(rule, inside, family, port, lo_only)
                if reached:
                    # One loopback address leads there, so it has to be a place that the rule names.
                    if not bind.loopback or bind.address not in (ANY[family], reached):
                        continue
                    bind = BindAddress(inside, family, reached, "", port)
                specs.setdefault(bind, ListenerSpec(bind, sock.port, rule))
    return specs


def unclaimed(
    specs: Mapping[BindAddress, ListenerSpec], bound: Iterable[Bound], own: Collection[int]
) -> dict[BindAddress, ListenerSpec]:
    """Return those listeners whose port no program on their own side has bound.

    :param specs: the listeners of one side.
    :param bound: the sockets of that side.
    :param own: inodes of the proxy's own sockets.
    """
    claims: dict[tuple[int, int], set[str]] = {}
    for sock in bound:
        if sock.inode not in own:
            for family, address in _addresses(sock):
                claims.setdefault((family, sock.port), set()).add(str(ipaddress.ip_address(address)))

    def claimed(bind: BindAddress) -> bool:
        found = claims.get((bind.family, bind.port), set())
        return bool(found) and (
            bind.address == ANY[bind.family] or not found.isdisjoint((bind.address, ANY[bind.family]))
        )

    return {bind: spec for bind, spec in specs.items() if not claimed(bind)}


def target_bytes(rule: ForwardRule, family: int) -> bytes:
    """Return the address that a rule leads to in a family, 4 or 16 bytes; empty for the guest's own."""
    address = rule.target_in(family)
    return ipaddress.ip_address(address).packed if address else b""


def _addresses(sock: Bound) -> tuple[tuple[int, bytes], ...]:
    """Return the (family, address) pairs that a socket receives at: an IPv6 one may take IPv4, too."""
    if sock.address == UNSPECIFIED[6] and not sock.only6:
        return tuple(UNSPECIFIED.items())
    if is_v4_mapped(sock.address):
        return ((4, sock.address[-IP4_BYTES:]),)
    return ((sock.family, sock.address),)


def _reached(address: bytes, family: int, inside: bool, keep_loopback: bool) -> str | None:
    """Return the only address of the listening side that leads to `address`; empty for any, None if there is none."""
    if is_loopback(address):
        return str(ipaddress.ip_address(address)) if inside or keep_loopback else None
    return "" if address == UNSPECIFIED[family] or not inside else None


def _bind_address(rule: ForwardRule, inside: bool, family: int, port: int, lo_only: bool) -> BindAddress:
    address, interface = rule.address or ANY[family], rule.interface or ""
    if not interface and rule.address is None and (inside or lo_only):
        interface = LOOPBACK_INTERFACE
    return BindAddress(inside, family, address, interface, port)
