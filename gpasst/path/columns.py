"""Frames of many flows, looked at as columns, and their datagrams gathered for one call.

Theory of operation: where each frame belongs to another flow than the one before, nothing joins, and what costs is the
Python around each frame. So a reader takes several frames before it carries them. Where these are of one size, or stand
in slots of one size, a field of all of them is one strided view, a *column*, and the few comparisons that make frames
ordinary (`gpasst.path.fastpath`) are made once for all: a column's bytes are those of the first frame, repeated. The
keys of all frames leave the buffer in one call, and the table of peers is asked by one `map`.

1. Frames that are not all ordinary, of one family, with one TOS and TTL and of known peers, are looked at in halves,
   and at last row by row.
2. A datagram keeps the sender that its peer had when it was looked at, so marks that change among the frames stay with
   theirs.
3. Datagrams of one flow leave in order (`gpasst.host.scatter`); those of different flows may swap places, and overtake
   frames of other kinds.
4. Among more than a few frames of one size, flows may have several. These are put together by their keys, before any
   peer is looked up, and leave in one send for each flow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from gpasst.counters import Counters
from gpasst.features import Feature
from gpasst.host.arena import Arena
from gpasst.host.ring import Ring
from gpasst.host.scatter import GROUPED, ROWS, Refused, Rows, Scatter, most
from gpasst.host.send import sender_to
from gpasst.packet.address import V4, V6
from gpasst.packet.joining import HEADERS
from gpasst.path.budget import SHALLOW
from gpasst.path.fastpath import FastPath
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.records import dataclass
from gpasst.wire import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    IPV6_VERSION,
    PROTOCOL_UDP,
    UDP4,
    UDP6,
    UDP_CODEC,
)

MOST: Final = ROWS  # frames that are carried together; one by one they take less than 2 ms
TURNS: Final = 4  # frames of a step that each were of another flow than the one before, from which this may pay
IDLE_BATCHES: Final = 16  # with little use for this, after which frames are carried one by one again
HALVED: Final = 4  # frames that are not looked at in halves, but row by row

_WORD_BYTES: Final = 2  # of a column's fields
_WORD: Final = 0xFFFF
_NIBBLE, _BYTE_BITS, _BYTE = 4, 8, 0xFF

Column = Callable[[int], bytes]
"""Returns the two bytes of each frame at an even offset from its virtio-net header, or from where that would be."""

Carry = Callable[[memoryview, int, int], object]
"""Carries one frame: the block, where the link's header of the frame begins, and bytes of both."""

Keys = Callable[[int, int], list[bytes]]
"""Returns the bytes of each frame at such an offset: the offset, and how many."""

Places = Callable[[int], list[int]]
"""Returns the addresses of the payloads of frames of a family."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields of one family's frames are, as offsets of columns."""

    family: int
    kind: int  # IP version, header length and TOS; of IPv6 with the upper bits of the flow label
    life: int  # protocol and TTL
    ip_length: int
    udp_length: int
    ip_lead: int  # bytes of a frame that the IP length does not count
    key: int
    key_bytes: int


def _layout(family: int, kind: str, life: str, ip_length: str, counted: str) -> _Layout:
    """Make a layout of names of fields; `counted` is the first one that the IP length counts."""
    at = (UDP4 if family == V4 else UDP6).offset
    key, end = at("ip.source"), at("udp.length")
    return _Layout(family, at(kind), at(life), at(ip_length), end, at(counted), key, end - key)


_V4 = _layout(V4, "ip.version", "ip.ttl", "ip.total_length", "ip.version")
_V6 = _layout(V6, "ip.version", "ip.next_header", "ip.payload_length", "udp.source")
_LAYOUTS: Final = {kind.to_bytes(2, "big"): layout for kind, layout in ((ETHERTYPE_IPV4, _V4), (ETHERTYPE_IPV6, _V6))}
_ETHERTYPE: Final = UDP4.offset("ethernet.ethertype")
_FRAGMENT: Final = UDP4.offset("ip.flags")
_UDP_LEAD: Final = {family: size - UDP_CODEC.size for family, size in HEADERS.items()}
_FRAGMENTS = int.from_bytes(IPV4_FRAGMENT_MASK.to_bytes(_WORD_BYTES, "big") * MOST, "big")
# All but the upper bits of the flow label.
_VERSIONS_CLASSES = int.from_bytes(b"\xff\xf0" * MOST, "big")


class Gathered:
    """Datagrams of known peers, gathered until they are sent together.

    :param fastpath: the peers of the guest.
    :param icmp: reports to the guest the datagrams that the kernel refuses.
    :param counters: where traffic and drops are counted.
    :param features: the ways to move more than one datagram at once.
    :param ring: makes many sends in one call; None for none.
    :param arena: where the frames lie.
    """

    __slots__ = ("_fastpath", "_icmp", "_rows", "_scatter")

    def __init__(
        self,
        fastpath: FastPath,
        icmp: IcmpToGuest,
        counters: Counters,
        features: frozenset[Feature],
        ring: Ring | None,
        arena: Arena,
    ) -> None:
        self._fastpath = fastpath
        self._icmp = icmp
        self._scatter = Scatter(arena, counters, features >= {Feature.JOIN, Feature.GSO}, ring)
        self._rows = {V4: Rows(), V6: Rows()}

    def columns(self, sizes: list[int], column: Column, keys: Keys, places: Places) -> bool:
        """Take frames that are all ordinary, alike and of known peers; return whether they were.

        :param sizes: bytes of each, with its virtio-net header, or as if there were one.
        :param column: returns two bytes of each.
        :param keys: returns more bytes of each.
        :param places: returns the addresses of their payloads.
        """
        count = len(sizes)
        kinds = column(_ETHERTYPE)
        layout = _LAYOUTS.get(kinds[:_WORD_BYTES])
        if layout is None or kinds != kinds[:_WORD_BYTES] * count:
            return False
        tos_ttl = _tos_ttl(layout, column)
        if tos_ttl < 0 or not _lengths_agree(layout, sizes, column):
            return False
        family, found = layout.family, keys(layout.key, layout.key_bytes)
        head = HEADERS[family]
        alike = sizes.count(sizes[0]) == count
        if alike and count > SHALLOW and self._scatter.groups:
            distinct = dict.fromkeys(found)
            if len(distinct) * GROUPED <= count:
                flows: dict[bytes, list[int]] = {key: [] for key in distinct}
                for key, place in zip(found, places(family), strict=True):
                    flows[key].append(place)
                return self._runs(family, flows, sizes[0] - head, tos_ttl)
        table = self._fastpath.tables[family]
        try:
            peers = list(map(table.down.__getitem__, found))
        except KeyError:
            return False
        activity = table.activity
        for peer in peers:
            activity[peer.byte] |= peer.bit
            if peer.tos_ttl != tos_ttl:
                peer.set_tos_ttl(tos_ttl)
        rows = self._rows[family]
        rows.peers += peers
        rows.senders += [peer.sender or sender_to(peer) for peer in peers]
        rows.places += places(family)
        rows.lengths += [sizes[0] - head] * count if alike else [size - head for size in sizes]
        return True

    def _runs(self, family: int, flows: dict[bytes, list[int]], length: int, tos_ttl: int) -> bool:
        """Send datagrams of several known flows that have several each; return whether the flows are known.

        :param flows: the addresses of their payloads, by key.
        :param length: bytes of each.
        :param tos_ttl: TOS times 256 plus TTL of all.
        """
        table = self._fastpath.tables[family]
        try:
            peers = list(map(table.down.__getitem__, flows))
        except KeyError:
            return False
        self._send(family)  # what these flows may have had before
        activity, step = table.activity, most(length)
        for peer in peers:
            activity[peer.byte] |= peer.bit
            if peer.tos_ttl != tos_ttl:
                peer.set_tos_ttl(tos_ttl)
        for start in range(0, max(map(len, flows.values())), step):
            runs = [
                (peer, peer.sender or sender_to(peer), length, part)
                for peer, places in zip(peers, flows.values(), strict=True)
                if (part := places[start : start + step])
            ]
            self._report(self._scatter.send_runs(family, runs))
        return True

    def row(self, block: memoryview, at: int, size: int, base: int) -> bool:
        """Take a frame if it is an ordinary one of a known peer; return whether it was.

        :param block: where it lies.
        :param at: where its virtio-net header begins, or would.
        :param size: bytes from there to its end.
        :param base: the address of the block.
        """
        found = self._fastpath.lookup(block, at, size)
        if found is None:
            return False
        peer, start, length = found
        rows = self._rows[peer.udp_socket.family]
        rows.peers.append(peer)
        rows.senders.append(peer.sender or sender_to(peer))
        rows.places.append(base + at + start)
        rows.lengths.append(length)
        return True

    def send(self) -> None:
        """Send what was gathered."""
        for family in self._rows:
            self._send(family)

    def _send(self, family: int) -> None:
        """Send what was gathered of a family."""
        rows = self._rows[family]
        if rows.peers:
            self._rows[family] = Rows()
            self._report(self._scatter.send(family, rows))

    def _report(self, refused: Refused) -> None:
        """Report to the guest what the kernel refused."""
        for peer, failure, payload in refused:
            self._icmp.refused(peer, failure, payload)


Gather = Callable[[Arena], Gathered]
"""Makes what gathers datagrams of frames that lie in an arena."""


def _tos_ttl(layout: _Layout, column: Column) -> int:
    """Return TOS and TTL of frames, if all have the same and are UDP without options or fragments; else -1."""
    kind, life = column(layout.kind), column(layout.life)
    count = len(kind) // _WORD_BYTES
    if life != life[:_WORD_BYTES] * count:
        return -1
    if layout.family == V4:
        if (
            kind != kind[:_WORD_BYTES] * count
            or kind[0] != IPV4_VERSION_IHL
            or life[1] != PROTOCOL_UDP
            or int.from_bytes(column(_FRAGMENT), "big") & _FRAGMENTS
        ):
            return -1
        return kind[1] << _BYTE_BITS | life[0]
    first = int.from_bytes(kind[:_WORD_BYTES] * count, "big")
    if (
        (int.from_bytes(kind, "big") ^ first) & _VERSIONS_CLASSES
        or kind[0] >> _NIBBLE != IPV6_VERSION
        or life[0] != PROTOCOL_UDP
    ):
        return -1
    tos = int.from_bytes(kind[:_WORD_BYTES], "big") >> _NIBBLE & _BYTE
    return tos << _BYTE_BITS | life[1]


def _lengths_agree(layout: _Layout, sizes: list[int], column: Column) -> bool:
    """Return whether frames have the lengths that their headers say."""
    if min(sizes) < HEADERS[layout.family] or max(sizes) - layout.ip_lead > _WORD:
        return False
    return all(
        column(at) == _words(sizes, lead)
        for at, lead in ((layout.ip_length, layout.ip_lead), (layout.udp_length, _UDP_LEAD[layout.family]))
    )


def _words(sizes: list[int], lead: int) -> bytes:
    """Return sizes without their first bytes, as fields of a column."""
    count = len(sizes)
    if sizes.count(sizes[0]) == count:
        return (sizes[0] - lead).to_bytes(_WORD_BYTES, "big") * count
    return struct.pack(f">{count}H", *[size - lead for size in sizes])
