"""Which listeners the forward rules ask for, and where.

Theory of operation: a rule says which ports of one side lead to the other. An explicit rule wants a listener for each
of its ports and families. An automatic one follows the sockets that are bound on the other side, address by address:

1. A socket on every address wants a listener on every address; one on a loopback address wants a listener on that same
   address only, and only where loopback addresses are kept (`udp.splice`).
2. On the host's side any other address of a guest's socket is reached through the guest's address, so it wants a
   listener like one on every address. In the namespace only loopback traffic is spliced, so it wants none.
3. The proxy's own sockets want none, so that the two directions do not follow each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from gpasst.packet.address import ANY, UNSPECIFIED, is_loopback, is_multicast, is_v4_mapped
from gpasst.portspec import ForwardRule

LOOPBACK_INTERFACE = "lo"


@dataclass(frozen=True, slots=True)
class BindAddress:
    """Where a listener is bound.

    :ivar inside: in the namespace rather than on the host.
    :ivar family: 4 or 6.
    :ivar address: its address, the unspecified one for every.
    :ivar interface: the interface it is bound to, empty for every one.
    :ivar port: its port.
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
        """Whether what is sent to a loopback address arrives here (E-14)."""
        address = ipaddress.ip_address(self.address)
        return self.interface in ("", LOOPBACK_INTERFACE) and (address.is_unspecified or address.is_loopback)


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A listener that a rule asks for.

    :ivar place: where.
    :ivar target: the port that it leads to.
    :ivar rule: the rule.
    """

    place: BindAddress
    target: int
    rule: ForwardRule


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
        """What tells it from all others."""


def explicit(
    rules: Iterable[ForwardRule], inside: bool, families: Collection[int], lo_only: bool = False
) -> Iterator[ListenerSpec]:
    """Give the listeners that rules ask for whatever is bound.

    :param rules: the rules of one side.
    :param inside: whether that side is the namespace.
    :param families: the families in use.
    :param lo_only: whether loopback traffic alone is carried.
    """
    for rule in rules:
        if rule.auto:
            continue
        for family in rule.families:
            if family in families:
                for port, target in rule.ports():
                    yield ListenerSpec(_place(rule, inside, family, port, lo_only), target, rule)


def automatic(
    rules: Iterable[ForwardRule],
    inside: bool,
    families: Collection[int],
    bound: Iterable[Bound],
    keep_loopback: bool,
    own: Collection[int],
    lo_only: bool = False,
) -> dict[BindAddress, ListenerSpec]:
    """Give the listeners that automatic rules ask for, given what is bound on the other side.

    :param rules: the rules of one side.
    :param inside: whether that side is the namespace.
    :param families: the families in use.
    :param bound: the sockets of the other side.
    :param keep_loopback: whether loopback addresses are kept from the host.
    :param own: inodes of the proxy's own sockets.
    :param lo_only: whether loopback traffic alone is carried.
    """
    following = [rule for rule in rules if rule.auto]
    wanted: dict[BindAddress, ListenerSpec] = {}
    for sock in bound:
        if sock.inode in own:
            continue
        dual = sock.address == UNSPECIFIED[6] and not sock.only6
        for family in (4, 6) if dual else (4,) if is_v4_mapped(sock.address) else (sock.family,):
            address = UNSPECIFIED[family] if dual else sock.address[-len(UNSPECIFIED[family]) :]
            if is_multicast(address):
                continue
            reached = _reached(address, family, inside, keep_loopback)
            if family not in families or reached is None:
                continue
            for rule in following:
                port = rule.listening_for(sock.port)
                if port is None or family not in rule.families:
                    continue
                place = _place(rule, inside, family, port, lo_only)
                if reached:
                    # One loopback address leads there, so it has to be a place that the rule names.
                    if not place.loopback or place.address not in (ANY[family], reached):
                        continue
                    place = BindAddress(inside, family, reached, "", port)
                wanted.setdefault(place, ListenerSpec(place, sock.port, rule))
    return wanted


def _reached(address: bytes, family: int, inside: bool, keep_loopback: bool) -> str | None:
    """Give the one address of the listening side that leads to `address`; empty for any, None if there is none."""
    if is_loopback(address):
        return str(ipaddress.ip_address(address)) if inside or keep_loopback else None
    return "" if address == UNSPECIFIED[family] or not inside else None


def _place(rule: ForwardRule, inside: bool, family: int, port: int, lo_only: bool) -> BindAddress:
    address, interface = rule.address or ANY[family], rule.interface or ""
    if not interface and rule.address is None and (inside or lo_only):
        interface = LOOPBACK_INTERFACE
    return BindAddress(inside, family, address, interface, port)


def target_bytes(rule: ForwardRule) -> bytes:
    """Give the rule's target address as 4 or 16 bytes, empty if it has none."""
    return ipaddress.ip_address(rule.target_address).packed if rule.target_address else b""
