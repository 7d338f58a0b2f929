"""What is counted: traffic, and every drop under its reason.

Nothing is lost silently: every drop is counted by `Counters.drop` under a member of `Drop`, and the same member names
the counter in `Statistics`, the log line and the assertion in a test.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from gpasst.records import dataclass, field


class Drop(Enum):
    """Why a frame or datagram was not carried. The value is the name shown to users."""

    # Members are compared by identity. The hash of `Enum` is a Python function, and half of what a drop costs.
    __hash__ = object.__hash__

    FRAME_SHORT = "frame shorter than its headers"
    ETHERTYPE = "not ARP, IPv4 or IPv6"
    FAMILY_DISABLED = "address family disabled"
    MALFORMED_ARP = "malformed ARP"
    MALFORMED_IP = "malformed IP header"
    MALFORMED_UDP = "malformed UDP header"
    MALFORMED_TCP = "malformed TCP header"
    MALFORMED_ICMP = "malformed ICMP message"
    MALFORMED_NDP = "malformed NDP message"
    MALFORMED_DHCP = "malformed DHCP message"
    MALFORMED_DHCPV6 = "malformed DHCPv6 message"
    EXCESSIVE = "DHCP or DHCPv6 message with more bytes or options than any client sends"
    FRAGMENT = "fragment that cannot be reassembled"
    FRAGMENT_TIMEOUT = "fragments whose rest never came"
    PROTOCOL = "IP protocol not carried"
    PROTOCOL_DISABLED = "protocol switched off by an option"
    TCP = "TCP segment of no connection (answered with RST)"
    TCP_UNACCEPTABLE = "TCP segment with an unacceptable sequence or acknowledgement number"
    TCP_BUDGET = "TCP data beyond what can be kept"
    TCP_CLOSED = "TCP data behind the end of its stream"
    CONNECTIONS_FULL = "TCP connection beyond what can be kept"
    NOT_UNICAST = "TCP to a multicast or broadcast address"
    ICMP_TYPE = "ICMP type not carried"
    LOOPBACK_ADDRESS = "loopback address on the tap"
    MULTICAST_SCOPE = "multicast that must not leave the guest's interface"
    UNSPECIFIED_ADDRESS = "unspecified address on the tap"
    SOURCE_PORT_ZERO = "source port 0"
    DESTINATION_PORT_ZERO = "destination port 0"
    SERVICE = "DHCP or DHCPv6 message, not served"
    LEASES = "DHCP or DHCPv6 message of a client that no address is left for"
    DISCOVERY = "neighbour or router discovery, not served"
    MEMBERSHIP = "multicast membership (IGMP, MLD)"
    HAIRPIN = "datagram to the host's port that stands for its own sender"
    NO_SOCKET = "no host socket could be made"
    SEND_FAILED = "host socket refused the datagram"
    SEND_FULL = "host socket buffer full"
    MESSAGE_SIZE = "datagram larger than the path allows"
    FILTERED = "sender not admitted by --udp-filter"
    SPLICE_ADDRESS = "address beyond loopback on a splice listener"
    SPLICE_STRAY = "datagram to a splice pair's socket before it was connected"
    NO_TAP = "traffic that needs a tap, with --splice-only"
    UNREACHABLE = "no route to the other side of a splice pair"
    NO_GUEST_ADDRESS = "guest address of this family not known yet"
    PORTS_EXHAUSTED = "no free port left to show the sender under"
    NO_GUEST = "no guest is connected"
    STREAM_FULL = "guest does not read its frames"
    FRAME_LENGTH = "frame of illegal length"
    TAP_FULL = "tap queue full"
    TAP_FAILED = "tap write failed"
    GUEST_ERROR = "ICMP error of the guest that cannot be passed on"
    ECHO_FAILED = "ping socket unavailable"
    ECHO_DUPLICATE = "repeated echo answer"
    BACKLOG = "more frames for new flows than can be kept"
    RATE = "more frames for new flows or services than are admitted in a second"
    ERROR_RATE = "more ICMP errors for the guest than are reported in a second"
    IMPAIRED = "lost by an impairment rule"
    IMPAIRED_PARTITION = "lost in a partition"
    IMPAIRED_MTU = "longer than an impairment's MTU"
    IMPAIRED_RESET = "TCP segment that an impairment answered with RST"
    IMPAIRED_UNREACHABLE = "made unreachable by an impairment"
    IMPAIRMENT_QUEUE = "queue of an impairment's rate full"
    CHECKSUM = "wrong checksum, after an impairment"
    IMPAIRMENT_FULL = "more frames held by impairments than can be kept"
    NAT_FILTERED = "not admitted by a router's NAT"
    NAT_PORTS = "no free outside port for a mapping of a router"
    SESSIONS_FULL = "more flows than a router tracks"
    FIREWALL = "refused by a router's firewall"
    HAIRPIN_OFF = "to a router's outside address from inside, without hairpinning"
    HOP_LIMIT = "TTL or hop limit used up at a router"
    NO_ROUTE = "no route at a router"
    NO_NEIGHBOUR = "next hop of a router does not answer"
    NEIGHBOUR_QUEUE = "more frames than a router keeps while its next hop is looked for"
    NOT_FORWARDED = "multicast or broadcast, which a router does not forward"
    OWN_ADDRESS = "source address that is a router's own"
    CAPTURE = "frame missing from the capture file"
    ANSWER_LATE = "answer of a service whose flow has ended"
    SOURCE_ADDRESS = "source address that belongs to another port of the switch, or to a group"
    SAME_PORT = "frame to an address behind the port that it came in by"
    LINK_DOWN = "link of the switch down"
    PORT_FULL = "port of the switch does not keep up"
    INTERNAL = "internal error"


IGNORED = frozenset((Drop.SERVICE, Drop.DISCOVERY, Drop.MEMBERSHIP, Drop.NOT_FORWARDED))
"""What kernels and address clients send by themselves in every network: no loss of anybody's, so counted apart."""


WEATHER = frozenset(
    (
        Drop.IMPAIRED,
        Drop.IMPAIRED_PARTITION,
        Drop.IMPAIRED_MTU,
        Drop.IMPAIRED_RESET,
        Drop.IMPAIRED_UNREACHABLE,
        Drop.IMPAIRMENT_QUEUE,
        Drop.CHECKSUM,
    )
)
"""What rules of weather have taken away, as they were asked to."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of one proxy's counters.

    :ivar datagrams_up: UDP datagrams written to the tap; a superframe counts each of its segments.
    :ivar datagrams_down: UDP datagrams sent from host sockets for the guest, counted likewise.
    :ivar datagrams_spliced: UDP datagrams passed on by splice pairs, in either direction.
    :ivar bytes_up: UDP payload bytes written to the tap.
    :ivar bytes_down: UDP payload bytes sent from host sockets.
    :ivar bytes_spliced: UDP payload bytes passed on by splice pairs.
    :ivar superframes_up: tap writes that carried more than one datagram.
    :ivar superframes_down: socket sends that carried more than one datagram.
    :ivar superframes_spliced: sends of splice pairs that carried more than one datagram.
    :ivar segments_up: TCP segments written to the tap, those without data too; a superframe counts each segment.
    :ivar segments_down: frames with TCP data from the guest; a superframe counts once.
    :ivar tcp_bytes_up: TCP payload bytes written to the tap, repeated ones included.
    :ivar tcp_bytes_down: TCP payload bytes that host sockets took.
    :ivar tcp_bytes_spliced: TCP payload bytes passed on by splice pairs, in either direction.
    :ivar tcp_superframes_up: tap writes that carried more than one segment.
    :ivar connections: TCP connections that cross the link, tracked now.
    :ivar frames_up: frames written by the services (ARP, NDP, echo, RST).
    :ivar frames_down: frames read from the tap.
    :ivar socket_errors: errors read from sockets' queues, for example refused peers.
    :ivar refusals: errors of splice pairs that were reported to the sender as ICMP would, and their connections that
        the other side has refused.
    :ivar errors_up: ICMP errors reported to the guest, because its datagrams or echo requests met them.
    :ivar errors_down: ICMP errors of the guest that were passed on to the senders of its datagrams.
    :ivar mappings: guest endpoints tracked now.
    :ivar peers: peers tracked now, over all mappings.
    :ivar pairs: splice pairs tracked now.
    :ivar expired: mappings and splice pairs closed for being idle, since start.
    :ivar drops: how often each `Drop` happened, by its value; reasons that never happened are absent.
    :ivar ignored: likewise for what guests send by themselves and nobody misses (`IGNORED`), which is not in `drops`.
    """

    datagrams_up: int
    datagrams_down: int
    datagrams_spliced: int
    bytes_up: int
    bytes_down: int
    bytes_spliced: int
    superframes_up: int
    superframes_down: int
    superframes_spliced: int
    segments_up: int
    segments_down: int
    tcp_bytes_up: int
    tcp_bytes_down: int
    tcp_bytes_spliced: int
    tcp_superframes_up: int
    connections: int
    frames_up: int
    frames_down: int
    socket_errors: int
    refusals: int
    errors_up: int
    errors_down: int
    mappings: int
    peers: int
    pairs: int
    expired: int
    drops: dict[str, int]
    ignored: dict[str, int]


@dataclass(frozen=True, slots=True)
class PortStatistics:
    """The frames of one host in a network; a superframe counts once.

    :ivar received: frames that came from the host.
    :ivar sent: frames that were handed over to it.
    """

    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """A snapshot of one network's counters.

    :ivar ports: by the name of each host, and of whatever else is connected.
    :ivar drops: how often each `Drop` happened, by its value; reasons that never happened are absent.
    :ivar ignored: likewise for what nobody misses (`IGNORED`).
    """

    ports: dict[str, PortStatistics]
    drops: dict[str, int]
    ignored: dict[str, int]


@dataclass(slots=True)
class Tally:
    """Traffic in one direction.

    :ivar datagrams: datagrams or segments; a superframe counts each of its segments.
    :ivar bytes: their payload.
    :ivar superframes: writes or sends that carried more than one datagram.
    """

    datagrams: int = 0
    bytes: int = 0
    superframes: int = 0


@dataclass(slots=True)
class Traffic:
    """Traffic of one protocol.

    :ivar up: to the guest.
    :ivar down: from the guest.
    :ivar spliced: past the link, in either direction.
    """

    up: Tally = field(default_factory=Tally)
    down: Tally = field(default_factory=Tally)
    spliced: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class Counters:
    """The live counters, written by the data path.

    :ivar udp: traffic of UDP.
    :ivar tcp: traffic of TCP.
    :ivar icmp: echo messages of ICMP and ICMPv6.
    :ivar traffic: traffic by the name of the protocol, of which a flow and the headers of a run have one.
    """

    udp: Traffic = field(default_factory=Traffic)
    tcp: Traffic = field(default_factory=Traffic)
    icmp: Traffic = field(default_factory=Traffic)
    traffic: dict[str, Traffic] = field(init=False)
    frames_up: int = 0
    frames_down: int = 0
    socket_errors: int = 0
    refusals: int = 0
    errors_up: int = 0
    errors_down: int = 0
    expired: int = 0
    drops: Counter[Drop] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.traffic = {"udp": self.udp, "tcp": self.tcp, "icmp": self.icmp}

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count `count` datagrams or frames dropped for `reason`."""
        self.drops[reason] += count

    def snapshot(self, mappings: int, peers: int, pairs: int, connections: int) -> Statistics:
        """Freeze the counters, with the present number of `mappings`, `peers`, splice `pairs` and TCP `connections`."""
        drops, ignored = self.dropped()
        return Statistics(
            datagrams_up=self.udp.up.datagrams,
            datagrams_down=self.udp.down.datagrams,
            datagrams_spliced=self.udp.spliced.datagrams,
            bytes_up=self.udp.up.bytes,
            bytes_down=self.udp.down.bytes,
            bytes_spliced=self.udp.spliced.bytes,
            superframes_up=self.udp.up.superframes,
            superframes_down=self.udp.down.superframes,
            superframes_spliced=self.udp.spliced.superframes,
            segments_up=self.tcp.up.datagrams,
            segments_down=self.tcp.down.datagrams,
            tcp_bytes_up=self.tcp.up.bytes,
            tcp_bytes_down=self.tcp.down.bytes,
            tcp_bytes_spliced=self.tcp.spliced.bytes,
            tcp_superframes_up=self.tcp.up.superframes,
            connections=connections,
            frames_up=self.frames_up,
            frames_down=self.frames_down,
            socket_errors=self.socket_errors,
            refusals=self.refusals,
            errors_up=self.errors_up,
            errors_down=self.errors_down,
            mappings=mappings,
            peers=peers,
            pairs=pairs,
            expired=self.expired,
            drops=drops,
            ignored=ignored,
        )

    def dropped(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return what was dropped, by its reason, and apart from it what nobody misses."""
        ignored = {reason.value: count for reason, count in self.drops.items() if reason in IGNORED}
        return {reason.value: count for reason, count in self.drops.items() if reason not in IGNORED}, ignored
