"""Reassembly of IP fragments from the guest.

Theory of operation: a guest fragments a datagram that exceeds the MTU of its interface, so the largest UDP datagrams
arrive in two fragments. `Reassembly` keeps fragments by (source, destination, protocol, identification) until the
datagram is complete (RFC 791, section 3.2; RFC 8200, section 4.5).

A fragment that overlaps another one (RFC 5722), ends beyond the datagram's end or the longest payload of its family, or
is not the last and has a length that is no multiple of 8, ends its datagram.

1. Fragments lie sorted by offset, so each is compared with its two neighbours alone.
2. A datagram has at most `PIECES_LIMIT` fragments. One with more ends.
3. What is held, with `PIECE_BYTES` for each fragment's objects, is at most `BYTES_LIMIT`, in at most `DATAGRAMS_LIMIT`
   datagrams. Those are evicted first whose last fragment came longest ago.
4. None is kept for longer than `LIFETIME` seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.address import V4, V6
from gpasst.packet.parse import OFFSET_UNIT, Packet
from gpasst.records import dataclass, field, replace
from gpasst.wire import IPV4_CODEC

LIFETIME = 30  # seconds; net.ipv4.ipfrag_time of Linux
DATAGRAMS_LIMIT = 64
PIECES_LIMIT = 1366  # fragments of the longest datagram with 48 bytes each: an MTU of 68, the least (RFC 791, 3.2)
PIECE_BYTES = 80  # a bytes object, an integer, and their places in two lists, in CPython
BYTES_LIMIT = 4 << 20
PAYLOAD_LIMIT = {V4: 65535 - IPV4_CODEC.size, V6: 65535}  # bytes; the total length includes IPv4's header


@dataclass(slots=True)
class _Partial:
    """An incomplete datagram.

    :ivar born: when it began, in monotonic seconds.
    :ivar offsets: of its fragments, in order.
    :ivar pieces: their payloads, in the same order.
    :ivar size: bytes of these in all.
    :ivar total: bytes of the datagram, None until its last fragment is known.
    """

    born: int
    offsets: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    total: int | None = None

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return self.size + PIECE_BYTES * len(self.pieces)

    def insert(self, start: int, piece: bytes, more: bool, limit: int) -> bool:
        """Insert a fragment; return whether it is valid.

        :param start: its offset in bytes.
        :param piece: its payload.
        :param more: whether more fragments follow.
        :param limit: bytes of the longest datagram.
        """
        end, offsets, pieces = start + len(piece), self.offsets, self.pieces
        if end > (limit if self.total is None else self.total) or start == end or len(pieces) >= PIECES_LIMIT:
            return False
        if more:
            if end % OFFSET_UNIT:
                return False
        elif self.total is not None or (pieces and offsets[-1] + len(pieces[-1]) > start):
            return False
        else:
            self.total = end
        at = bisect_left(offsets, start)
        if at and offsets[at - 1] + len(pieces[at - 1]) > start:
            return False
        if at < len(offsets) and offsets[at] < end:
            return False
        offsets.insert(at, start)
        pieces.insert(at, piece)
        self.size += len(piece)
        return True


class Reassembly:
    """The fragments of one guest.

    :ivar held: bytes of memory that they take.
    """

    def __init__(self) -> None:
        self._partial: OrderedDict[tuple[int, bytes, bytes, int, int], _Partial] = OrderedDict()
        self._evicted = 0
        self.held = 0

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, packet: Packet, now: int) -> Packet | None:
        """Keep a fragment; return the whole packet if it is complete now, else None.

        :param packet: a packet whose `fragment` is set.
        :param now: monotonic seconds.
        :raises PacketError: `Drop.FRAGMENT`, if the fragment ends its datagram.
        """
        fragment = packet.fragment
        assert fragment is not None
        key = (packet.family, packet.source, packet.destination, packet.protocol, fragment.identification)
        # It is put back as the latest, so that it is not evicted while its fragments come.
        partial = self._partial.pop(key, None) or _Partial(now)
        self.held -= partial.held
        if not partial.insert(fragment.offset, bytes(packet.payload), fragment.more, PAYLOAD_LIMIT[packet.family]):
            raise PacketError(Drop.FRAGMENT)
        if partial.size == partial.total:
            return replace(packet, payload=memoryview(b"".join(partial.pieces)), fragment=None)
        self.held += partial.held
        while self._partial and (self.held > BYTES_LIMIT or len(self._partial) >= DATAGRAMS_LIMIT):
            _, oldest = self._partial.popitem(last=False)
            self.held -= oldest.held
            self._evicted += 1
        self._partial[key] = partial
        return None

    def scan(self, now: int) -> int:
        """Drop the datagrams that have been incomplete for more than `LIFETIME`.

        :param now: monotonic seconds.
        :return: how many it were, with those that were evicted since the last scan.
        """
        stale = [key for key, partial in self._partial.items() if now - partial.born > LIFETIME]
        for key in stale:
            self.held -= self._partial.pop(key).held
        lost, self._evicted = len(stale) + self._evicted, 0
        return lost
