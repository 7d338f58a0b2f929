"""The two ends of a router: what an interface is, and which of them a packet leaves by."""

from __future__ import annotations

import ipaddress
from typing import Final

from gpasst.packet.address import V4, V6, family_of
from gpasst.records import dataclass

INSIDE: Final = 0
OUTSIDE: Final = 1

_UNIVERSAL: Final = 0x02  # of the first byte of a MAC address, inverted in an interface identifier (RFC 4291, 2.5.1)
_LINK_LOCAL: Final = bytes.fromhex("fe80000000000000")
_OUI_BYTES: Final = 3
_POINT_TO_POINT: Final = 2  # addresses, none of which is a broadcast address (RFC 3021)


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a router.

    :ivar mac: 6 bytes.
    :ivar mtu: bytes of the longest packet.
    :ivar addresses: its address by family; a family that it lacks is not there.
    :ivar prefixes: the prefix of its network by family, such as ``10.77.1.0/24``.
    """

    mac: bytes
    mtu: int
    addresses: dict[int, bytes]
    prefixes: dict[int, str]

    @property
    def broadcast(self) -> bytes | None:
        """The directed broadcast address of its IPv4 network, None without one (RFC 919; RFC 3021)."""
        network = ipaddress.ip_network(self.prefixes[V4]) if V4 in self.prefixes else None
        return network.broadcast_address.packed if network and network.num_addresses > _POINT_TO_POINT else None

    @property
    def link_local(self) -> bytes:
        """The IPv6 link-local address, with the interface identifier of its MAC address (RFC 4291, appendix A)."""
        first = bytes((self.mac[0] ^ _UNIVERSAL,))
        return _LINK_LOCAL + first + self.mac[1:_OUI_BYTES] + b"\xff\xfe" + self.mac[_OUI_BYTES:]


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to the addresses of a prefix go.

    :ivar prefix: the prefix, such as ``10.77.1.0/24``.
    :ivar side: `INSIDE` or `OUTSIDE`.
    :ivar next_hop: 4 or 16 bytes; None for the destination itself.
    """

    prefix: str
    side: int
    next_hop: bytes | None = None


class Routes:
    """A routing table: the longest prefix that contains a destination decides."""

    def __init__(self) -> None:
        self._rows: dict[int, list[tuple[int, int, Route]]] = {V4: [], V6: []}

    def add(self, route: Route) -> None:
        """Enter a route; the one of the same prefix goes."""
        self.remove(route.prefix)
        network = ipaddress.ip_network(route.prefix)
        host_bits = network.max_prefixlen - network.prefixlen
        rows = self._rows[network.version]
        rows.append((host_bits, int(network.network_address) >> host_bits, route))
        rows.sort(key=lambda row: row[0])

    def remove(self, prefix: str) -> None:
        """Remove the route of a prefix, if there is one."""
        for rows in self._rows.values():
            rows[:] = [row for row in rows if row[2].prefix != prefix]

    def find(self, destination: bytes) -> tuple[int, bytes] | None:
        """Return the side and the next hop of a destination of 4 or 16 bytes; None without a route."""
        number = int.from_bytes(destination, "big")
        for host_bits, leading, route in self._rows[family_of(destination)]:
            if number >> host_bits == leading:
                return route.side, route.next_hop or destination
        return None
