"""Sending datagrams to many peers, whose sockets differ.

Theory of operation: the payloads stand in one arena. With a ring (`gpasst.host.ring`), one system call sends up to 64
of them; without it, each takes its own. A send that the ring reports as failed is made again by itself
(`gpasst.host.send.send_one`), since its error may be an earlier datagram's. Lest it should be overtaken then, no call
has two datagrams for one peer.

Where a peer has many datagrams among them, these leave in one send with UDP_SEGMENT instead.

An entry of the ring has a socket address and nothing else, so a datagram whose send needs control messages, or whose
peer stands for a service of the program, is sent by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Final

from gpasst.counters import Counters
from gpasst.flow.sender import Sender
from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import SOCKADDR_IN6_CODEC, SOCKADDR_IN_CODEC
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import NAME_BYTES, Sends
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_slices
from gpasst.linux import AF_INET, AF_INET6
from gpasst.packet.address import IP4_BYTES, V6
from gpasst.records import dataclass, field
from gpasst.udp.mapping import Peer

GROUPED: Final = 8  # datagrams of each sender on average, from which one send for all of a sender's pays
WORTH: Final = 8  # datagrams from which a call of the ring pays

Failures = list[tuple[int, int]]
"""The row of each datagram that was not sent, and its errno."""


@dataclass(slots=True)
class Rows:
    """Datagrams that are sent together, a row each.

    :ivar peers: to whom.
    :ivar senders: how.
    :ivar places: the addresses of the payloads.
    :ivar lengths: bytes of the payloads.
    """

    peers: list[Peer] = field(default_factory=list)
    senders: list[Sender] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def part(self, start: int, end: int) -> Rows:
        """Return the rows from one to before another."""
        return Rows(self.peers[start:end], self.senders[start:end], self.places[start:end], self.lengths[start:end])

    def chosen(self, numbers: list[int]) -> Rows:
        """Return some rows."""
        return Rows(
            [self.peers[row] for row in numbers],
            [self.senders[row] for row in numbers],
            [self.places[row] for row in numbers],
            [self.lengths[row] for row in numbers],
        )


class Scatter:
    """Sends datagrams.

    :param arena: has the payloads.
    :param counters: where traffic and drops are counted.
    :param groups: whether one send may carry several datagrams of a peer.
    :param ring: makes many sends in one call; None for none.
    """

    def __init__(self, arena: Arena, counters: Counters, groups: bool, ring: Ring | None) -> None:
        self._counters = counters
        self._groups = groups
        self._arena = arena
        self._base, self._bytes = arena.address, arena.bytes
        self._sends = {} if ring is None else {family: Sends(ring, family, [arena]) for family in NAME_BYTES}

    def send(self, family: int, rows: Rows) -> Failures:
        """Send datagrams; those of one peer leave in order.

        :param family: of all, 4 or 6.
        """
        count, distinct = len(rows.peers), len(set(rows.peers))
        if self._groups and distinct * GROUPED <= count:
            return self._grouped(rows)
        if not self._sends:
            return self._each(rows, range(count))
        if distinct == count and WORTH <= count <= ENTRIES:
            return self._at_once(family, rows)
        failures: Failures = []
        for start, end in pairwise(_rounds(rows.peers)):
            if end - start < WORTH:
                failures += self._each(rows, range(start, end))
            else:
                failures += [(start + i, number) for i, number in self._at_once(family, rows.part(start, end))]
        return failures

    def payload(self, rows: Rows, row: int) -> memoryview:
        """Return the payload of a row."""
        start = rows.places[row] - self._base
        return self._bytes[start : start + rows.lengths[row]]

    def _each(self, rows: Rows, numbers: Iterable[int]) -> Failures:
        """Send some rows in a call each; see `send`."""
        tally, counters = self._counters.udp.down, self._counters
        senders = rows.senders
        failures = []
        sent = total = 0
        for row in numbers:
            sender, payload = senders[row], self.payload(rows, row)
            if not sender.control and sender.address is not None:
                try:
                    sender.socket.sendto(payload, sender.address)
                except OSError:
                    pass  # which `send_one` meets again, or it was an earlier datagram's
                else:
                    sent += 1
                    total += len(payload)
                    continue
            failure = send_one(sender, payload, tally, counters)
            if failure:
                failures.append((row, failure))
        tally.datagrams += sent
        tally.bytes += total
        return failures

    def _at_once(self, family: int, rows: Rows) -> Failures:
        """Send at most `ENTRIES` rows in one call of the ring; see `send`. No peer has two of them."""
        senders, lengths = rows.senders, rows.lengths
        names = [sender.name for sender in senders]
        if b"" in names:
            names = [
                name or name_of(peer, sender) for name, peer, sender in zip(names, rows.peers, senders, strict=True)
            ]
            if b"" in names:
                return self._in_two_ways(family, rows, names)
        sends, count = self._sends[family], len(names)
        sends.names[: NAME_BYTES[family] * count] = b"".join(names)
        sends.descriptors[:count] = array("i", [sender.descriptor for sender in senders])
        sends.addresses[:count] = array("Q", rows.places)
        sends.lengths[:count] = array("I", lengths)
        tally = self._counters.udp.down
        tally.datagrams += count
        tally.bytes += sum(lengths)
        failures: Failures = []
        for row, _ in sends.failures(count):
            tally.datagrams -= 1
            tally.bytes -= lengths[row]
            failure = send_one(senders[row], self.payload(rows, row), tally, self._counters)
            if failure:
                failures.append((row, failure))
        return failures

    def _in_two_ways(self, family: int, rows: Rows, names: list[bytes]) -> Failures:
        """Send what the ring can send in one call, and the rest one by one; see `_at_once`.

        :param names: socket addresses, empty where the ring cannot send.
        """
        able = [row for row, name in enumerate(names) if name]
        failures = self._each(rows, [row for row, name in enumerate(names) if not name])
        if able:
            failures += [(able[i], number) for i, number in self._at_once(family, rows.chosen(able))]
        return failures

    def _grouped(self, rows: Rows) -> Failures:
        """Send the datagrams of each sender in as few calls as there are lengths in a row; see `send`."""
        # A peer's sender is another one after each change of marks, so these keep the order of its datagrams.
        own: dict[Sender, list[int]] = {}
        for row, sender in enumerate(rows.senders):
            own.setdefault(sender, []).append(row)
        failures: Failures = []
        for sender, numbers in own.items():
            for length, group in groupby(numbers, rows.lengths.__getitem__):
                run = list(group)
                # An empty datagram cannot be a segment.
                most = min(SEGMENTS_PER_SEND, RUN_BYTES[V6] // length) if length else 1
                for at in range(0, len(run), most):
                    failure = self._run(sender, rows, run[at : at + most])
                    if failure:
                        failures.append((run[at], failure))
        return failures

    def _run(self, sender: Sender, rows: Rows, numbers: list[int]) -> int:
        """Send some rows of one length to one remote end; return the errno of the last refused datagram, or 0."""
        tally, counters = self._counters.udp.down, self._counters
        slices = [self.payload(rows, row) for row in numbers]
        if len(slices) == 1:
            return send_one(sender, slices[0], tally, counters)
        return send_slices(sender, slices, len(slices[0]), tally, counters)


def name_of(peer: Peer, sender: Sender) -> bytes:
    """Return the socket address that the ring sends to for a peer; empty if the ring cannot. The sender keeps it."""
    if sender.control or sender.address is None or peer.udp_socket.served:
        return b""
    address, port, scope = peer.remote
    if len(address) == IP4_BYTES:
        sender.name = SOCKADDR_IN_CODEC.pack(family=AF_INET, port=port, address=address)
    else:
        sender.name = SOCKADDR_IN6_CODEC.pack(family=AF_INET6, port=port, address=address, scope=scope)
    sender.descriptor = sender.socket.fileno()
    return sender.name


def _rounds(peers: list[Peer]) -> list[int]:
    """Return where to cut rows so that no peer stands twice in a part of at most `ENTRIES`; with both ends."""
    cuts = [0]
    seen: set[Peer] = set()
    for row, peer in enumerate(peers):
        if peer in seen or len(seen) == ENTRIES:
            cuts.append(row)
            seen.clear()
        seen.add(peer)
    return [*cuts, len(peers)]
