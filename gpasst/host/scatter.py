"""Sending one datagram to each of many peers, whose sockets differ.

Theory of operation: the payloads stand in slots of one arena. With a ring (`gpasst.host.ring`), one system call sends
all of them; without it, each takes its own. A send that the ring reports as failed is made again by itself
(`gpasst.host.send.send_one`), since its error may be an earlier datagram's. Lest it should be overtaken then, no call
has two datagrams for one peer.

Where a peer has many datagrams among them, these leave in one send with UDP_SEGMENT instead.

An entry of the ring has a socket address and nothing else, so a peer whose sends need control messages, or that stands
for a service of the program, is sent to by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Final

from gpasst.counters import Counters
from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import SOCKADDR_IN6_CODEC, SOCKADDR_IN_CODEC
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import Ring
from gpasst.host.ring_forms import NAME_BYTES, Sends
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_slices, sender_to
from gpasst.linux import AF_INET, AF_INET6
from gpasst.packet.address import IP4_BYTES
from gpasst.packet.joining import HEADERS
from gpasst.udp.mapping import Peer

GROUPED: Final = 8  # datagrams of each peer on average, from which one send for all of a peer's pays

Failures = list[tuple[int, int]]
"""The index of each datagram that was not sent, and its errno."""


class Scatter:
    """Sends datagrams that stand in slots.

    :param arena: has the slots.
    :param stride: bytes from one to the next.
    :param slots: how many there are, at most `gpasst.host.ring.ENTRIES`.
    :param counters: where traffic and drops are counted.
    :param groups: whether one send may carry several datagrams of a peer.
    :param ring: makes many sends in one call; None for none.
    """

    def __init__(
        self, arena: Arena, stride: int, slots: int, counters: Counters, groups: bool, ring: Ring | None
    ) -> None:
        self._counters = counters
        self._groups = groups
        starts = range(0, slots * stride, stride)
        self._payloads = {
            family: [arena.bytes[at + head : at + stride] for at in starts] for family, head in HEADERS.items()
        }
        self._addresses = {family: arena.column(slots, stride, head) for family, head in HEADERS.items()}
        self._sends = {} if ring is None else {family: Sends(ring, family, [arena]) for family in NAME_BYTES}

    def send(self, family: int, peers: list[Peer], first: int, lengths: list[int]) -> Failures:
        """Send a datagram to each peer; one that stands there twice gets its datagrams in order.

        :param family: of all, 4 or 6.
        :param peers: whose datagrams stand in the slots from the first one on.
        :param first: the first slot.
        :param lengths: bytes of the datagrams.
        """
        count, distinct = len(peers), len(set(peers))
        if self._groups and distinct * GROUPED <= count:
            return self._grouped(family, peers, first, lengths)
        slots = range(first, first + count)
        if not self._sends or count == 1:
            return self._each(family, peers, slots, lengths)
        if distinct == count:
            return self._at_once(family, peers, slots, lengths)
        failures: Failures = []
        for start, end in pairwise(_rounds(peers)):
            part = self._at_once(family, peers[start:end], slots[start:end], lengths[start:end])
            failures += [(start + i, number) for i, number in part]
        return failures

    def payload(self, family: int, slot: int, length: int) -> memoryview:
        """Return the payload of `length` bytes of the datagram in a slot."""
        return self._payloads[family][slot][:length]

    def _each(self, family: int, peers: list[Peer], slots: Iterable[int], lengths: list[int]) -> Failures:
        """Send each datagram in a call of its own; see `send`.

        :param slots: where they stand.
        """
        counters, payloads = self._counters, self._payloads[family]
        tally = counters.udp.down
        failures = []
        sent = total = 0
        for i, (peer, slot, length) in enumerate(zip(peers, slots, lengths, strict=True)):
            sender = peer.sender or sender_to(peer)
            payload = payloads[slot][:length]
            if not sender.control and sender.address is not None:
                try:
                    sender.socket.sendto(payload, sender.address)
                except OSError:
                    pass  # which `send_one` meets again, or it was an earlier datagram's
                else:
                    sent += 1
                    total += length
                    continue
            failure = send_one(sender, payload, tally, counters)
            if failure:
                failures.append((i, failure))
        tally.datagrams += sent
        tally.bytes += total
        return failures

    def _at_once(self, family: int, peers: list[Peer], slots: Sequence[int], lengths: list[int]) -> Failures:
        """Send all datagrams in one call of the ring; see `_each`. No peer has two of them."""
        senders = [peer.sender or sender_to(peer) for peer in peers]
        names = [sender.name for sender in senders]
        if b"" in names:
            names = [name or name_of(peer) for name, peer in zip(names, peers, strict=True)]
            if b"" in names:
                return self._in_two_ways(family, peers, slots, lengths, names)
        sends, count, addresses = self._sends[family], len(peers), self._addresses[family]
        sends.names[: NAME_BYTES[family] * count] = b"".join(names)
        sends.descriptors[:count] = array("i", [sender.descriptor for sender in senders])
        sends.addresses[:count] = (
            addresses[slots.start : slots.stop]
            if isinstance(slots, range)
            else array("Q", [addresses[slot] for slot in slots])
        )
        sends.lengths[:count] = array("I", lengths)
        tally = self._counters.udp.down
        tally.datagrams += count
        tally.bytes += sum(lengths)
        failures: Failures = []
        for i, _ in sends.failures(count):
            tally.datagrams -= 1
            tally.bytes -= lengths[i]
            failure = send_one(senders[i], self.payload(family, slots[i], lengths[i]), tally, self._counters)
            if failure:
                failures.append((i, failure))
        return failures

    def _in_two_ways(
        self, family: int, peers: list[Peer], slots: Sequence[int], lengths: list[int], names: list[bytes]
    ) -> Failures:
        """Send what the ring can send in one call, and the rest one by one; see `_at_once`.

        :param names: the peers' socket addresses, empty where the ring cannot send.
        """
        failures: Failures = []
        for way, able in ((self._at_once, True), (self._each, False)):
            rows = [i for i, name in enumerate(names) if bool(name) is able]
            if rows:
                part = way(family, [peers[i] for i in rows], [slots[i] for i in rows], [lengths[i] for i in rows])
                failures += [(rows[i], number) for i, number in part]
        return failures

    def _grouped(self, family: int, peers: list[Peer], first: int, lengths: list[int]) -> Failures:
        """Send the datagrams of each peer in as few calls as there are lengths in a row; see `send`."""
        rows: dict[Peer, list[int]] = {}
        for i, peer in enumerate(peers):
            rows.setdefault(peer, []).append(i)
        counters, payloads = self._counters, self._payloads[family]
        failures: Failures = []
        for peer, own in rows.items():
            for length, group in groupby(own, lengths.__getitem__):
                run = list(group)
                slices = [payloads[first + i][:length] for i in run]
                most = min(SEGMENTS_PER_SEND, RUN_BYTES[family] // length) if length else 1
                for at in range(0, len(run), max(1, most)):
                    piece = slices[at : at + most]
                    sender = peer.sender or sender_to(peer)
                    tally = counters.udp.down
                    failure = (
                        send_slices(sender, piece, length, tally, counters)
                        if len(piece) > 1
                        else send_one(sender, piece[0], tally, counters)
                    )
                    if failure:
                        failures.append((run[at], failure))
        return failures


def name_of(peer: Peer) -> bytes:
    """Return the socket address that the ring sends to for a peer, which has a sender; empty if the ring cannot.

    The sender keeps it.
    """
    sender, sock = peer.sender, peer.udp_socket
    assert sender is not None
    if sender.control or sender.address is None or sock.served:
        return b""
    address, port, scope = peer.remote
    if len(address) == IP4_BYTES:
        sender.name = SOCKADDR_IN_CODEC.pack(family=AF_INET, port=port, address=address)
    else:
        sender.name = SOCKADDR_IN6_CODEC.pack(family=AF_INET6, port=port, address=address, scope=scope)
    sender.descriptor = sender.socket.fileno()
    return sender.name


def _rounds(peers: list[Peer]) -> list[int]:
    """Return where to cut a row of peers, so that none stands twice in a part; with both ends of the row."""
    cuts = [0]
    seen: set[Peer] = set()
    for i, peer in enumerate(peers):
        if peer in seen:
            cuts.append(i)
            seen.clear()
        seen.add(peer)
    return [*cuts, len(peers)]
