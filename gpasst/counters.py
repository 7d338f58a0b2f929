"""What is counted: traffic, and every drop under its reason.

Nothing is lost silently: whoever drops calls `Counters.drop` with a member of `Drop`, and the same member names the
counter in `Statistics`, the log line and the assertion in a test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class Drop(Enum):
    """Why a frame or datagram was not carried. The value is the name shown to users."""

    FRAME_SHORT = "frame shorter than its headers"
    ETHERTYPE = "not ARP, IPv4 or IPv6"
    FAMILY_DISABLED = "address family disabled"
    MALFORMED_ARP = "malformed ARP"
    MALFORMED_IP = "malformed IP header"
    MALFORMED_UDP = "malformed UDP header"
    MALFORMED_TCP = "malformed TCP header"
    MALFORMED_ICMP = "malformed ICMP message"
    MALFORMED_NDP = "malformed NDP message"
    FRAGMENT = "fragment that cannot be reassembled"
    FRAGMENT_TIMEOUT = "fragments whose rest never came"
    PROTOCOL = "IP protocol not carried"
    PROTOCOL_DISABLED = "protocol switched off by an option"
    TCP = "TCP segment (answered with RST)"
    ICMP_TYPE = "ICMP type not carried"
    LOOPBACK_ADDRESS = "loopback address on the tap"
    UNSPECIFIED_ADDRESS = "unspecified address on the tap"
    SOURCE_PORT_ZERO = "UDP source port 0"
    DESTINATION_PORT_ZERO = "UDP destination port 0"
    SERVICE = "DHCP or DHCPv6 message, not served"
    REFLECTION = "datagram to the host's port that stands for its own sender"
    NO_SOCKET = "no host socket could be made"
    SEND_FAILED = "host socket refused the datagram"
    SEND_FULL = "host socket buffer full"
    MESSAGE_SIZE = "datagram larger than the path allows"
    FILTERED = "sender not admitted by --udp-filter"
    NO_GUEST_ADDRESS = "guest address of this family not known yet"
    PORTS_EXHAUSTED = "no free port left to show the sender under"
    TAP_FULL = "tap queue full"
    TAP_FAILED = "tap write failed"
    ECHO_FAILED = "ping socket unavailable"
    ECHO_DUPLICATE = "repeated echo answer"
    INTERNAL = "internal error"


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of one proxy's counters.

    :ivar datagrams_up: UDP datagrams written to the tap; a superframe counts each of its segments.
    :ivar datagrams_down: UDP datagrams sent from host sockets, counted likewise.
    :ivar bytes_up: UDP payload bytes written to the tap.
    :ivar bytes_down: UDP payload bytes sent from host sockets.
    :ivar superframes_up: tap writes that carried more than one datagram.
    :ivar superframes_down: socket sends that carried more than one datagram.
    :ivar frames_up: frames written by the services (ARP, NDP, echo, RST).
    :ivar frames_down: frames read from the tap.
    :ivar socket_errors: errors read from host sockets' queues, for example refused peers.
    :ivar mappings: guest endpoints tracked now.
    :ivar peers: peers tracked now, over all mappings.
    :ivar expired: mappings closed for being idle, since start.
    :ivar drops: how often each `Drop` happened, by its value; reasons that never happened are absent.
    """

    datagrams_up: int
    datagrams_down: int
    bytes_up: int
    bytes_down: int
    superframes_up: int
    superframes_down: int
    frames_up: int
    frames_down: int
    socket_errors: int
    mappings: int
    peers: int
    expired: int
    drops: dict[str, int]


@dataclass(slots=True)
class Counters:
    """The live counters, written by the data path."""

    datagrams_up: int = 0
    datagrams_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    superframes_up: int = 0
    superframes_down: int = 0
    frames_up: int = 0
    frames_down: int = 0
    socket_errors: int = 0
    expired: int = 0
    drops: Counter[Drop] = field(default_factory=Counter)

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count `count` datagrams or frames dropped for `reason`."""
        self.drops[reason] += count

    def snapshot(self, mappings: int, peers: int) -> Statistics:
        """Freeze the counters, with the present number of `mappings` and `peers`."""
        return Statistics(
            datagrams_up=self.datagrams_up,
            datagrams_down=self.datagrams_down,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            superframes_up=self.superframes_up,
            superframes_down=self.superframes_down,
            frames_up=self.frames_up,
            frames_down=self.frames_down,
            socket_errors=self.socket_errors,
            mappings=mappings,
            peers=peers,
            expired=self.expired,
            drops={reason.value: count for reason, count in self.drops.items()},
        )
