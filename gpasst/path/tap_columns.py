"""From the tap to host sockets, where many flows take turns: frames are read together and looked at as columns.

Theory of operation: where each frame belongs to another flow than the one before, nothing joins, and what costs is the
Python around each frame. So frames are read into slots of one block, all alike, and a field of all of them is one
strided view, a *column*. The few comparisons that make frames ordinary (`gpasst.path.fastpath`) are made once for all:
a column's bytes are those of the first frame, repeated. The keys of all frames leave the block in one call, and the
table of peers is asked by one `map`.

1. Frames that are not all ordinary, of one family, with one TOS and TTL and of known peers, are looked at in halves,
   and at last row by row: as single frames, in order.
2. Datagrams of one flow keep their order: one send carries several of them, or none is sent before the one before it.
   Those of different flows may swap places.
3. Frames that many of one flow stand among leave in one send for each flow (UDP_SEGMENT).

The slots are as far apart as an odd number of cache lines, since at a power of two all of them would meet in the same
few sets of the cache.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import cache
from typing import Final

from gpasst.counters import Counters
from gpasst.features import ALL, Feature
from gpasst.host.arena import Arena
from gpasst.host.ring import Ring
from gpasst.host.scatter import Scatter
from gpasst.link.tap import FRAME_BYTES
from gpasst.packet.address import V4, V6
from gpasst.packet.joining import HEADERS
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

SLOTS: Final = 64  # frames that are carried together; some 0.2 ms
_HALVED: Final = 4  # frames that are not looked at in halves, but row by row
_STRIDE: Final = FRAME_BYTES + 64  # bytes of a slot: 1027 cache lines
_HALF: Final = 2  # bytes
_NIBBLE: Final = 4  # bits
_BYTE_BITS: Final = 8
_WORD: Final = 0xFFFF
_BYTE: Final = 0xFF


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields of one family's frames are; columns are named by the half word that they begin at."""

    family: int
    kind: int  # IP version, header length and TOS; of IPv6 with the upper bits of the flow label
    life: int  # protocol and TTL
    ip_length: int
    udp_length: int
    ip_lead: int  # bytes of a frame that the IP length does not count
    key_at: int
    key_bytes: int


def _layout(family: int, kind: str, life: str, ip_length: str, counted: str) -> _Layout:
    """Make a layout of names of fields; `counted` is the first one that the IP length counts."""
    whole = UDP4 if family == V4 else UDP6
    start = whole.offset("ip.source")
    size = whole.offset("udp.length") - start
    kind_at, life_at, ip_at, udp_at = (whole.offset(name) // _HALF for name in (kind, life, ip_length, "udp.length"))
    return _Layout(family, kind_at, life_at, ip_at, udp_at, whole.offset(counted), start, size)


_V4 = _layout(V4, "ip.version", "ip.ttl", "ip.total_length", "ip.version")
_V6 = _layout(V6, "ip.version", "ip.next_header", "ip.payload_length", "udp.source")
_ETHERTYPE: Final = UDP4.offset("ethernet.ethertype") // _HALF
_FRAGMENT: Final = UDP4.offset("ip.flags") // _HALF
_KINDS: Final = {kind.to_bytes(2, "big"): layout for kind, layout in ((ETHERTYPE_IPV4, _V4), (ETHERTYPE_IPV6, _V6))}
_UDP_LEAD = {family: size - UDP_CODEC.size for family, size in HEADERS.items()}
# The type of a superframe is the second byte of a frame. The flow label's upper bits end the kind of IPv6.
_GSO_TYPES = int.from_bytes(b"\x00\xff" * SLOTS, "big")
_FRAGMENTS = int.from_bytes(IPV4_FRAGMENT_MASK.to_bytes(2, "big") * SLOTS, "big")
_VERSION_CLASS = int.from_bytes(b"\xff\xf0" * SLOTS, "big")

Row = Callable[[memoryview, int, int], None]
"""Carries one frame of any kind: the block, where its virtio-net header begins, and bytes of both."""


class TapColumns:
    """Reads and carries frames of many flows.

    :param fastpath: the peers of the guest.
    :param icmp: reports to the guest the datagrams that the kernel refuses.
    :param counters: where traffic is counted.
    :param features: the ways to move more than one datagram at once.
    :param ring: makes many sends in one call; None for none.
    :ivar idle: steps in a row that had little use for columns.
    """

    def __init__(
        self,
        fastpath: FastPath,
        icmp: IcmpToGuest,
        counters: Counters,
        features: frozenset[Feature] = ALL,
        ring: Ring | None = None,
    ) -> None:
        self._tables = fastpath.tables
        self._icmp = icmp
        self._counters = counters
        arena = Arena(SLOTS * _STRIDE)
        self._block = arena.bytes
        self._halves = self._block.cast("H")
        self._vectors = [[self._block[at : at + FRAME_BYTES]] for at in range(0, SLOTS * _STRIDE, _STRIDE)]
        self._scatter = Scatter(arena, _STRIDE, SLOTS, counters, features >= {Feature.JOIN, Feature.GSO}, ring)
        self._found = 0  # frames of the step that were carried as columns
        self.idle = 0

    def step(self, fd: int, row: Row) -> tuple[int, OSError | None]:
        """Read frames of a tap until there are none or all slots are full, and carry them.

        :param fd: the tap, not blocking.
        :param row: carries a frame that is not ordinary, or stands among such.
        :return: how many it was, and the error that ended the reading; None where slots are full.
        """
        sizes: list[int] = []
        add, readv = sizes.append, os.readv
        failure = None
        try:
            for vector in self._vectors:
                add(readv(fd, vector))
        except OSError as error:
            failure = error
        count = len(sizes)
        self._counters.frames_down += count
        self._found = 0
        if count:
            self._carry(0, sizes, row)
        self.idle = 0 if 2 * self._found > count > 1 else self.idle + 1
        return count, failure

    def _carry(self, first: int, sizes: list[int], row: Row) -> None:
        """Carry frames.

        :param first: the slot of the first one.
        :param sizes: bytes of each.
        :param row: as for `step`.
        """
        count = len(sizes)
        if count > 1 and self._columns(first, sizes):
            return
        if count > _HALVED:
            self._carry(first, sizes[: count // 2], row)
            self._carry(first + count // 2, sizes[count // 2 :], row)
            return
        block = self._block
        for at, size in zip(range(first * _STRIDE, (first + count) * _STRIDE, _STRIDE), sizes, strict=True):
            row(block, at, size)

    def _columns(self, first: int, sizes: list[int]) -> bool:
        """Carry frames that are all ordinary, alike and of known peers; return whether they were. See `_carry`."""
        count = len(sizes)
        halves, step = self._halves, _STRIDE // _HALF
        start, end = first * step, (first + count) * step

        def column(at: int) -> bytes:
            return halves[start + at : end : step].tobytes()

        kinds = column(_ETHERTYPE)
        layout = _KINDS.get(kinds[:_HALF])
        if layout is None or kinds != kinds[:_HALF] * count or int.from_bytes(column(0), "big") & _GSO_TYPES:
            return False
        tos_ttl = _tos_ttl(layout, column)
        family = layout.family
        if tos_ttl < 0 or not _lengths_agree(layout, sizes, column):
            return False
        table = self._tables[family]
        keys = _keys(layout, count).unpack_from(self._block, first * _STRIDE + layout.key_at)
        try:
            peers = list(map(table.down.__getitem__, keys))
        except KeyError:
            return False
        activity = table.activity
        for peer in peers:
            activity[peer.byte] |= peer.bit
            if peer.tos_ttl != tos_ttl:
                peer.set_tos_ttl(tos_ttl)
        head = HEADERS[family]
        alike = sizes.count(sizes[0]) == count
        lengths = [sizes[0] - head] * count if alike else [size - head for size in sizes]
        scatter = self._scatter
        for i, failure in scatter.send(family, peers, first, lengths):
            self._icmp.refused(peers[i], failure, scatter.payload(family, first + i, lengths[i]))
        self._found += count
        return True


@cache
def _keys(layout: _Layout, count: int) -> struct.Struct:
    """Return what reads the keys of so many frames, from the first one's on."""
    size = layout.key_bytes
    return struct.Struct(f"{size}s" + f"{_STRIDE - size}x{size}s" * (count - 1))


def _tos_ttl(layout: _Layout, column: Callable[[int], bytes]) -> int:
    """Return TOS and TTL of frames that are UDP and have neither options nor fragments, if all have the same; else -1.

    :param column: returns the bytes of a column.
    """
    kind, life = column(layout.kind), column(layout.life)
    count = len(kind) // _HALF
    if life != life[:_HALF] * count:
        return -1
    if layout.family == V4:
        if (
            kind != kind[:_HALF] * count
            or kind[0] != IPV4_VERSION_IHL
            or life[1] != PROTOCOL_UDP
            or int.from_bytes(column(_FRAGMENT), "big") & _FRAGMENTS
        ):
            return -1
        return kind[1] << _BYTE_BITS | life[0]
    first = int.from_bytes(kind[:_HALF] * count, "big") & _VERSION_CLASS
    if (
        int.from_bytes(kind, "big") & _VERSION_CLASS != first
        or kind[0] >> _NIBBLE != IPV6_VERSION
        or life[0] != PROTOCOL_UDP
    ):
        return -1
    tos = int.from_bytes(kind[:_HALF], "big") >> _NIBBLE & _BYTE
    return tos << _BYTE_BITS | life[1]


def _lengths_agree(layout: _Layout, sizes: list[int], column: Callable[[int], bytes]) -> bool:
    """Return whether the frames have the lengths that their headers say.

    :param sizes: bytes of each, with its virtio-net header.
    :param column: returns the bytes of a column.
    """
    if min(sizes) < HEADERS[layout.family] or max(sizes) - layout.ip_lead > _WORD:
        return False
    return all(
        column(at) == _words(sizes, lead)
        for at, lead in ((layout.ip_length, layout.ip_lead), (layout.udp_length, _UDP_LEAD[layout.family]))
    )


def _words(sizes: list[int], lead: int) -> bytes:
    """Return sizes without their first bytes, as half words of a header."""
    count = len(sizes)
    if sizes.count(sizes[0]) == count:
        return (sizes[0] - lead).to_bytes(_HALF, "big") * count
    return struct.pack(f">{count}H", *[size - lead for size in sizes])
