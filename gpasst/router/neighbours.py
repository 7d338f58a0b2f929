"""The neighbours of one interface of a router: which MAC address an IP address has (RFC 826, RFC 4861).

Theory of operation: a frame to an unknown neighbour is kept, and a request asks for its MAC address, three times at
most, one second apart (RFC 4861, section 10). The answer, or any request of the neighbour itself, lets the kept frames
go; without an answer they come back as undeliverable. An entry that was not confirmed for `REACHABLE` seconds stays in
use, while requests to its neighbour ask again; it ends when as many are unanswered (RFC 4861, section 7.3).

NOTE: at most `WAITING_LIMIT` neighbours are looked for at once, with `FRAMES_LIMIT` frames each. More are dropped. At
most `ENTRIES_LIMIT` neighbours are known; the one that was entered first goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gpasst.packet.address import V4, family_of
from gpasst.packet.build import with_checksum, wrap
from gpasst.records import dataclass, field
from gpasst.router.interface import Interface
from gpasst.services import arp
from gpasst.services.ndp import CHECKSUM, MULTICAST_MAC, SOLICITED_NODE
from gpasst.wire import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    NDP_LINK_ADDRESS_CODEC,
    NDP_OPTION_SOURCE_LINK_ADDRESS,
    NDP_SOLICITATION_CODEC,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMPV6,
)

REACHABLE: Final = 30.0  # seconds (RFC 4861, section 10)
RETRANSMIT: Final = 1.0  # seconds between requests (RFC 4861, section 10)
REQUESTS: Final = 3  # MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT of RFC 4861, section 10
WAITING_LIMIT: Final = 256
FRAMES_LIMIT: Final = 16
ENTRIES_LIMIT: Final = 4096

Kept = tuple[int, bytes]
"""The side that a frame came in by, and the frame from its virtio-net header on."""


@dataclass(slots=True)
class _Entry:
    """A known neighbour.

    :ivar header: the Ethernet header of frames to it.
    :ivar confirmed: when it was heard of last, in seconds.
    :ivar asked: when it was asked last, in seconds.
    :ivar requests: how many since it was heard of.
    """

    header: bytes
    confirmed: float
    asked: float = 0.0
    requests: int = 0


@dataclass(slots=True)
class _Wanted:
    """A neighbour that is looked for.

    :ivar due: when it is asked again, or given up, in seconds.
    :ivar requests: how many there were.
    :ivar frames: what waits for it.
    """

    due: float
    requests: int = 1
    frames: list[Kept] = field(default_factory=list)


class Neighbours:
    """The neighbours of one interface.

    :param interface: the interface.
    :param send: sends a frame, from its Ethernet header on.
    """

    def __init__(self, interface: Interface, send: Callable[[bytes], None]) -> None:
        self._interface = interface
        self._send = send
        self._known: dict[bytes, _Entry] = {}
        self._wanted: dict[bytes, _Wanted] = {}

    def header(self, address: bytes, now: float) -> bytes | None:
        """Return the Ethernet header of frames to a neighbour, None while it is unknown.

        :param address: 4 or 16 bytes.
        :param now: seconds.
        """
        entry = self._known.get(address)
        if entry is None:
            return None
        if now - entry.confirmed > REACHABLE and now - entry.asked >= RETRANSMIT:
            if entry.requests == REQUESTS:
                del self._known[address]
                return None
            entry.asked = now
            entry.requests += 1
            self._request(address)
        return entry.header

    def keep(self, address: bytes, kept: Kept, now: float) -> bool:
        """Keep a frame until its next hop is known, and ask for that; return False if there are too many."""
        wanted = self._wanted.get(address)
        if wanted is not None:
            if len(wanted.frames) >= FRAMES_LIMIT:
                return False
            wanted.frames.append(kept)
            return True
        if len(self._wanted) >= WAITING_LIMIT:
            return False
        self._wanted[address] = _Wanted(now + RETRANSMIT, frames=[kept])
        self._request(address)
        return True

    def learn(self, address: bytes, mac: bytes, now: float) -> list[Kept]:
        """Enter a neighbour, or confirm it; return the frames that have waited for it.

        :param address: 4 or 16 bytes.
        :param mac: 6 bytes.
        :param now: seconds.
        """
        if address not in self._known and len(self._known) >= ENTRIES_LIMIT:
            del self._known[next(iter(self._known))]
        ethertype = ETHERTYPE_IPV4 if family_of(address) == V4 else ETHERTYPE_IPV6
        header = ETHERNET_CODEC.pack(destination=mac, source=self._interface.mac, ethertype=ethertype)
        self._known[address] = _Entry(header, now)
        wanted = self._wanted.pop(address, None)
        return wanted.frames if wanted else []

    @property
    def due(self) -> float | None:
        """When `expire` has something to do, in seconds; None for never."""
        return min((wanted.due for wanted in self._wanted.values()), default=None)

    def expire(self, now: float) -> list[Kept]:
        """Ask again for neighbours that did not answer; return the frames to those that are given up."""
        lost: list[Kept] = []
        for address in [address for address, wanted in self._wanted.items() if wanted.due <= now]:
            wanted = self._wanted[address]
            if wanted.requests == REQUESTS:
                lost += self._wanted.pop(address).frames
                continue
            wanted.requests += 1
            wanted.due = now + RETRANSMIT
            self._request(address)
        return lost

    def _request(self, address: bytes) -> None:
        """Ask for the MAC address of a neighbour."""
        interface = self._interface
        own = interface.addresses[family_of(address)]
        if family_of(address) == V4:
            self._send(arp.request(interface.mac, own, address))
            return
        group = SOLICITED_NODE + address[-3:]
        message = NDP_SOLICITATION_CODEC.pack(type=NDP_TYPE_SOLICITATION, target=address) + NDP_LINK_ADDRESS_CODEC.pack(
            type=NDP_OPTION_SOURCE_LINK_ADDRESS, mac=interface.mac
        )
        complete = with_checksum(message, CHECKSUM, own, group, PROTOCOL_ICMPV6)
        self._send(wrap(MULTICAST_MAC + group[-4:], interface.mac, own, group, PROTOCOL_ICMPV6, complete))
