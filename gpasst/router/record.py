"""NAT mappings as users see them."""

from __future__ import annotations

import ipaddress

from gpasst.records import dataclass
from gpasst.router.nat import Nat
from gpasst.router.session import Mapping
from gpasst.wire import PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP

NAMES = {PROTOCOL_UDP: "udp", PROTOCOL_TCP: "tcp", PROTOCOL_ICMP: "icmp"}


@dataclass(frozen=True, slots=True)
class NatMapping:
    """One mapping of a router's NAT (RFC 4787, section 2).

    :ivar protocol: ``"udp"``, ``"tcp"`` or ``"icmp"``.
    :ivar inside: (address, port) of the inside endpoint; the identifier of an echo in the place of the port.
    :ivar outside: (address, port) that stands for it.
    :ivar remotes: (address, port) of each remote endpoint that it has a session with.
    :ivar idle: seconds since a packet refreshed it.
    """

    protocol: str
    inside: tuple[str, int]
    outside: tuple[str, int]
    remotes: tuple[tuple[str, int], ...]
    idle: float


def mappings(nat: Nat, outside: bytes, now: float) -> tuple[NatMapping, ...]:
    """Return the mappings whose time is not over, oldest first.

    :param outside: the outside address, 4 bytes.
    :param now: seconds.
    """
    return tuple(_record(mapping, outside, now) for mapping in list(nat.mappings.values()) if nat.alive(mapping, now))


def _record(mapping: Mapping, outside: bytes, now: float) -> NatMapping:
    remotes = tuple((_text(remote), port) for _, _, _, remote, port in mapping.sessions)
    address, port = mapping.inside
    inside, own = (_text(address), port), (_text(outside), mapping.port)
    return NatMapping(NAMES[mapping.protocol], inside, own, remotes, now - mapping.last)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
