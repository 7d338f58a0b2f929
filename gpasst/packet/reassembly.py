"""IP fragments from the guest, put together again.

Theory of operation: a guest fragments what exceeds the MTU of its tap, so the largest UDP datagrams arrive in two
pieces. `Reassembly` keeps pieces by (source, destination, protocol, identification) until they are whole (RFC 791,
section 3.2; RFC 8200, section 4.5).

1. Pieces that overlap end the datagram (RFC 5722), as do pieces beyond 65535 bytes and middle pieces of a length that
   is no multiple of 8.
2. NOTE: at most `DATAGRAMS_LIMIT` incomplete datagrams are kept, so at most 4 MiB; the oldest goes first. None is kept
   for longer than `LIFETIME` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.parse import Packet

LIFETIME = 30  # seconds; ipfrag_time of Linux
DATAGRAMS_LIMIT = 64
PAYLOAD_LIMIT = 65535  # bytes


@dataclass(slots=True)
class _Partial:
    born: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None


class Reassembly:
    """The fragments of one guest."""

    def __init__(self) -> None:
        self._partial: dict[tuple[int, bytes, bytes, int, int], _Partial] = {}
        self._pushed_out = 0

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, packet: Packet, now: int) -> Packet | None:
        """Take a fragment; give the whole packet if this was its last missing piece.

        :param packet: a packet whose `fragment` is set.
        :param now: monotonic seconds.
        :raises PacketError: if the fragment, and with it its datagram, must be dropped.
        """
        fragment = packet.fragment
        assert fragment is not None
        key = (packet.family, packet.source, packet.destination, packet.protocol, fragment.identification)
        partial = self._partial.get(key)
        if partial is None:
            if len(self._partial) >= DATAGRAMS_LIMIT:
                del self._partial[next(iter(self._partial))]
                self._pushed_out += 1
            partial = self._partial[key] = _Partial(now)
        start, end = fragment.offset, fragment.offset + len(packet.payload)
        broken = end > PAYLOAD_LIMIT or start == end or (fragment.more and end % 8 != 0)
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
        """Forget datagrams that stayed incomplete for `LIFETIME` at `now`.

        :return: how many, and with them those that had to make room since the last scan.
        """
        stale = [key for key, partial in self._partial.items() if now - partial.born > LIFETIME]
        for key in stale:
            del self._partial[key]
        lost, self._pushed_out = len(stale) + self._pushed_out, 0
        return lost
