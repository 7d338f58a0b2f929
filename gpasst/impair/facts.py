"""What rules know of frames: the flow, and the run that is offered at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gpasst.records import dataclass
from gpasst.values import end_text
from gpasst.wire import TCP_CWR, TCP_FIN, TCP_PSH

TO_GUEST: Final = "guest"  # the directions of a link
TO_HOST: Final = "host"


class Place(NamedTuple):
    """Which link it is whose directions are called `TO_GUEST` and `TO_HOST`.

    :ivar owner: what puts rules in force there by its `impair`, as a test may write it.
    :ivar names: of the direction to the guest, and of that to the host: logs show them, and fates depend on them.
        Both are empty for the link of a namespace or virtual machine.
    """

    owner: str = "net"
    names: tuple[str, str] = ("", "")

    def name(self, towards: str) -> str:
        """Return the name of a direction, by what it leads to."""
        return self.names[towards == TO_HOST] or towards

    def shown(self, towards: str) -> str:
        """Return the same in words, such as ``to the guest``."""
        return self.names[towards == TO_HOST] or f"to the {towards}"


LINK: Final = Place()
"""The link of a namespace or virtual machine."""

TCP: Final = "tcp"
UDP: Final = "udp"
ICMP: Final = "icmp"  # ICMPv6 too, but for what is NDP
ARP: Final = "arp"
NDP: Final = "ndp"  # neighbour and router discovery (RFC 4861), and MLD
DHCP: Final = "dhcp"  # DHCPv6 too
OTHER: Final = "other"  # what no rule can name; `partition` alone matches it

PROTOCOLS: Final = (TCP, UDP, ICMP, ARP, NDP, DHCP)
"""The names that a rule can match."""

UNNAMED: Final = frozenset((TCP, UDP, ICMP))
"""The protocols that a rule matches which names none."""

WITH_PORTS: Final = frozenset((TCP, UDP, DHCP))

_OF_LAST: Final = TCP_FIN | TCP_PSH  # flags that the last segment of a superframe has alone (Linux, tcp_gso_segment)


@dataclass(slots=True, eq=False)
class Flow:
    """What all frames of one flow have in common, in one direction.

    An engine remembers by identity which rules may match a flow: whoever offers frames keeps one object for each flow,
    and need not keep it for ever.

    :ivar protocol: one of the names above.
    :ivar family: 4 or 6; 0 without an IP header.
    :ivar source: source address, 4 or 16 bytes; empty without an IP header.
    :ivar destination: destination address, likewise.
    :ivar sport: source port, 0 without ports.
    :ivar dport: destination port, 0 without ports.
    """

    protocol: str
    family: int = 0
    source: bytes = b""
    destination: bytes = b""
    sport: int = 0
    dport: int = 0

    def __str__(self) -> str:
        if not self.family:
            return self.protocol
        source, destination = (str(ipaddress.ip_address(packed)) for packed in (self.source, self.destination))
        return f"{self.protocol} {end_text(source, self.sport)} > {end_text(destination, self.dport)}"


@dataclass(slots=True, eq=False)
class Run:
    """One frame, or the consecutive frames of a superframe: what is offered to an engine at once.

    :ivar flow: its flow.
    :ivar item: the frames themselves, which the engine only holds and hands back.
    :ivar length: bytes of each frame but perhaps the last, from the Ethernet header on, without preamble and FCS.
    :ivar last: bytes of the last frame; 0 for `length`.
    :ivar count: frames.
    :ivar flags: TCP flags as they stand in the header (`gpasst.wire`). Of a superframe FIN and PSH belong to the last
        frame and CWR to the first, as where it is cut.
    :ivar parsed: returns the parsed frame of an index, for predicates; None where no predicate can be asked for.
    :ivar held: how many of its frames an engine holds, each double for itself.
    """

    flow: Flow
    item: Any
    length: int
    last: int = 0
    count: int = 1
    flags: int = 0
    parsed: Callable[[int], Any] | None = None
    held: int = 0

    def frame_bytes(self, first: int, stop: int) -> int:
        """Return the bytes of the frames from index `first` up to `stop`."""
        total = (stop - first) * self.length
        return total - self.length + self.last if self.last and stop == self.count else total

    def flags_of(self, index: int) -> int:
        """Return the TCP flags of the frame of an index."""
        flags = self.flags
        if index < self.count - 1:
            flags &= ~_OF_LAST
        return flags & ~TCP_CWR if index else flags
