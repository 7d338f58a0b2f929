"""Reassembly of IP fragments from the guest.

Theory of operation: a guest fragments a datagram that exceeds the MTU of its interface, so the largest UDP datagrams
arrive in two fragments. `Reassembly` keeps fragments by (source, destination, protocol, identification) until the
datagram is complete (RFC 791, section 3.2; RFC 8200, section 4.5).

A fragment that overlaps another one (RFC 5722), ends beyond 65535 bytes, or is not the last and has a length that is no
multiple of 8, ends its datagram.

NOTE: at most `DATAGRAMS_LIMIT` incomplete datagrams are kept, so at most 4 MiB; the oldest is evicted first. None is
kept for longer than `LIFETIME` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.parse import Packet

LIFETIME = 30  # seconds; net.ipv4.ipfrag_time of Linux
DATAGRAMS_LIMIT = 64
PAYLOAD_LIMIT = 65535  # bytes of a whole datagram
OFFSET_UNIT = 8  # bytes; all fragments but the last have a multiple of it


@dataclass(slots=True)
class _Partial:
    """An incomplete datagram: when it began, its fragments by offset, and its bytes once the last one is known."""

    born: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None


class Reassembly:
    """The fragments of one guest."""

    def __init__(self) -> None:
        self._partial: dict[tuple[int, bytes, bytes, int, int], _Partial] = {}
        self._evicted = 0

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
        partial = self._partial.get(key)
        if partial is None:
            if len(self._partial) >= DATAGRAMS_LIMIT:
                del self._partial[next(iter(self._partial))]
                self._evicted += 1
            partial = self._partial[key] = _Partial(now)
        start, end = fragment.offset, fragment.offset + len(packet.payload)
        broken = end > PAYLOAD_LIMIT or start == end or (fragment.more and end % OFFSET_UNIT != 0)
        broken = broken or any(start < other + len(piece) and other < end for other, piece in partial.pieces.items())
        if not fragment.more:
            broken = broken or partial.total is not None
            broken = broken or any(other + len(piece) > end for other, piece in partial.pieces.items())
            partial.total = end
        if broken or (partial.total is not None and end > partial.total):
            del self._partial[key]
            raise PacketError(Drop.FRAGMENT)
        partial.pieces[start] = bytes(packet.payload)
        if sum(map(len, partial.pieces.values())) != partial.total:
            return None
        del self._partial[key]
        whole = b"".join(partial.pieces[offset] for offset in sorted(partial.pieces))
        return replace(packet, payload=memoryview(whole), fragment=None)

    def scan(self, now: int) -> int:
        """Drop the datagrams that have been incomplete for more than `LIFETIME`.

        :param now: monotonic seconds.
        :return: how many it were, with those that were evicted since the last scan.
        """
        stale = [key for key, partial in self._partial.items() if now - partial.born > LIFETIME]
        for key in stale:
            del self._partial[key]
        lost, self._evicted = len(stale) + self._evicted, 0
        return lost
