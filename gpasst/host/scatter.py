"""Sending datagrams to many peers, whose sockets differ.

Theory of operation: the payloads stand in one arena. With a ring (`gpasst.host.ring`), one system call makes up to 64
sends; without it, each takes its own. A send that the ring reports as failed is made again by itself
(`gpasst.host.send.send_one`), since its error may be an earlier datagram's. Lest it should be overtaken then, no call
has two sends for one peer.

Where peers have several datagrams of one length among them, these are a *run*, and leave in one send with UDP_SEGMENT.
Runs of five cost the kernel half of what their datagrams cost by themselves.

An entry of the ring is a plain send where an address is all that it needs, else a message. A datagram whose peer stands
for a service of the program is sent by itself.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, chain, groupby, pairwise, repeat, zip_longest
from typing import Final

from gpasst.counters import Counters
from gpasst.flow.sender import ControlMessage, Message, Sender
from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import CMSGHDR_CODEC, SOCKADDR_IN6_CODEC, SOCKADDR_IN_CODEC
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import CONTROL_BYTES, NAME_BYTES, Messages, Sends, target
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_slices
from gpasst.linux import AF_INET, AF_INET6, SOL_UDP, UDP_SEGMENT
from gpasst.packet.address import IP4_BYTES, V6
from gpasst.records import dataclass, field
from gpasst.udp.mapping import Peer

ROWS: Final = 512  # datagrams of one call of `Scatter.send`, at most
GROUPED: Final = 2  # datagrams of a run on average, from which runs pay
WORTH: Final = 8  # datagrams from which a call of the ring pays

_CONTROL_ALIGNMENT = 8  # bytes; CMSG_ALIGN on 64-bit Linux
_LENGTHS_KEPT: Final = 256  # of segments

Run = tuple[Peer, Sender, int, list[int]]
"""Datagrams of one length to a peer: to whom, how, bytes of each, and the addresses of their payloads."""

Refused = list[tuple[Peer, int, memoryview]]
"""Datagrams that were not sent: to whom, the errno and the payload."""


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
    :ivar groups: as above.
    """

    def __init__(self, arena: Arena, counters: Counters, groups: bool, ring: Ring | None) -> None:
        self._counters = counters
        self.groups = groups
        self._arena = arena
        self._base, self._bytes = arena.address, arena.bytes
        self._sends = {} if ring is None else {family: Sends(ring, family, [arena]) for family in NAME_BYTES}
        self._runs = {} if ring is None else {family: _RunForm(ring, family, arena, groups) for family in NAME_BYTES}

    def send(self, family: int, rows: Rows) -> Refused:
        """Send datagrams; those of one peer leave in order.

        :param family: of all, 4 or 6.
        :param rows: at most `ROWS`.
        """
        count, distinct = len(rows.peers), len(set(rows.peers))
        if distinct < count and self.groups and _kinds(rows, distinct) * GROUPED <= count:
            return self._in_runs(family, rows, distinct)
        if not self._sends:
            return self._each(rows, range(count))
        if distinct == count and WORTH <= count <= ENTRIES:
            return self._at_once(family, rows)
        refused: Refused = []
        for start, end in pairwise([*range(0, count, ENTRIES), count] if distinct == count else _rounds(rows.peers)):
            if end - start < WORTH:
                refused += self._each(rows, range(start, end))
            else:
                refused += self._at_once(family, rows.part(start, end))
        return refused

    def send_runs(self, family: int, runs: list[Run]) -> Refused:
        """Send runs of at most `most` datagrams each; no peer has two of them.

        :param family: of all, 4 or 6.
        :param runs: of at most `ROWS` datagrams.
        """
        form = self._runs.get(family)
        if form is None or len(runs) < WORTH:
            return self._each_run(runs)
        tally = self._counters.udp.down
        refused: Refused = []
        for start in range(0, len(runs), ENTRIES):
            part = runs[start : start + ENTRIES]
            messages = [sender.message or message_of(peer, sender) for peer, sender, _, _ in part]
            again = [run for run, message in zip(part, messages, strict=True) if message.descriptor < 0]
            if again:
                part = [run for run, message in zip(part, messages, strict=True) if message.descriptor >= 0]
                messages = [message for message in messages if message.descriptor >= 0]
            counts = [len(run[3]) for run in part]
            for i in form.send(part, counts, messages):
                again.append(part[i])
                counts[i] = 0
            tally.datagrams += sum(counts)
            tally.bytes += sum([count * run[2] for count, run in zip(counts, part, strict=True)])
            tally.superframes += sum([count > 1 for count in counts])
            refused += self._each_run(again)
        return refused

    def _payload(self, place: int, length: int) -> memoryview:
        start = place - self._base
        return self._bytes[start : start + length]

    def _each(self, rows: Rows, numbers: Iterable[int]) -> Refused:
        """Send some rows in a call each; see `send`."""
        tally, counters = self._counters.udp.down, self._counters
        senders, places, lengths = rows.senders, rows.places, rows.lengths
        refused: Refused = []
        sent = total = 0
        for row in numbers:
            sender, payload = senders[row], self._payload(places[row], lengths[row])
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
                refused.append((rows.peers[row], failure, payload))
        tally.datagrams += sent
        tally.bytes += total
        return refused

    def _at_once(self, family: int, rows: Rows) -> Refused:
        """Send at most `ENTRIES` rows in one call of the ring; see `send`. No peer has two of them."""
        senders, lengths, count = rows.senders, rows.lengths, len(rows.senders)
        sends = self._sends[family]
        targets = b"".join([sender.target for sender in senders])
        if not sends.aim(targets, count):
            targets = b"".join(
                [sender.target or target_of(peer, sender) for peer, sender in zip(rows.peers, senders, strict=True)]
            )
            if not sends.aim(targets, count):
                return self._in_two_ways(family, rows)
        sends.addresses[:count] = array("Q", rows.places)
        sends.lengths[:count] = array("I", lengths)
        tally = self._counters.udp.down
        tally.datagrams += count
        tally.bytes += sum(lengths)
        refused: Refused = []
        for row, _ in sends.failures(count):
            tally.datagrams -= 1
            tally.bytes -= lengths[row]
            refused += self._each(rows, [row])
        return refused

    def _in_two_ways(self, family: int, rows: Rows) -> Refused:
        """Send what needs an address only in one call, and the rest as messages; see `_at_once`."""
        plain = [row for row, sender in enumerate(rows.senders) if sender.target]
        others = rows.chosen([row for row, sender in enumerate(rows.senders) if not sender.target])
        alone = zip(others.peers, others.senders, others.lengths, ([place] for place in others.places), strict=True)
        refused = self.send_runs(family, list(alone))
        return refused + self._at_once(family, rows.chosen(plain)) if plain else refused

    def _in_runs(self, family: int, rows: Rows, distinct: int) -> Refused:
        """Send the datagrams of each sender in as few sends as there are lengths in a row; see `send`.

        :param distinct: how many peers there are.
        """
        # A peer's sender is another one after each change of marks, so these keep the order of its datagrams.
        own: dict[Sender, list[int]] = {}
        for row, sender in enumerate(rows.senders):
            own.setdefault(sender, []).append(row)
        runs: list[list[Run]] = [
            [(rows.peers[numbers[0]], sender, length, places) for length, places in _cut(rows, numbers)]
            for sender, numbers in own.items()
        ]
        if len(own) > distinct:
            return self._each_run(list(chain.from_iterable(runs)))
        levels = ([run for run in level if run] for level in zip_longest(*runs))
        return [refused for level in levels for refused in self.send_runs(family, level)]

    def _each_run(self, runs: list[Run]) -> Refused:
        """Send runs in a call each."""
        tally, counters = self._counters.udp.down, self._counters
        refused: Refused = []
        for peer, sender, length, places in runs:
            slices = [self._payload(place, length) for place in places]
            if len(slices) == 1:
                failure = send_one(sender, slices[0], tally, counters)
            else:
                failure = send_slices(sender, slices, length, tally, counters)
            if failure:
                refused.append((peer, failure, slices[0]))
        return refused


class _RunForm:
    """Sends up to `ENTRIES` runs in one call of a ring, a message each.

    :param ring: makes the call.
    :param family: of all, 4 or 6.
    :param arena: has the payloads.
    :param groups: whether a run may have several datagrams.
    """

    def __init__(self, ring: Ring, family: int, arena: Arena, groups: bool) -> None:
        self._form = Messages(ring, family, ROWS // ENTRIES, [arena])
        self._groups = groups
        self._alike = -1  # bytes of each datagram, if all rows are prepared for so many and nothing else

    def send(self, runs: list[Run], counts: list[int], messages: list[Message]) -> list[int]:
        """Send runs; return the indices of those that failed.

        :param counts: datagrams of each, `ROWS` at most in all.
        :param messages: those of their senders.
        """
        if not runs:
            return []
        form, count = self._form, len(runs)
        places = array("Q", chain.from_iterable([run[3] for run in runs]))
        form.bases[: len(places)] = places
        # Behind the last piece there is no place any more.
        form.vectors[:count] = array("Q", map(form.places.__getitem__, accumulate(counts[:-1], initial=0)))
        form.counts[:count] = array("Q", counts)
        form.descriptors[:count] = array("i", [message.descriptor for message in messages])
        names = b"".join([message.name for message in messages])
        form.names[: len(names)] = names
        lengths = [run[2] for run in runs]
        if lengths.count(lengths[0]) < count or any(message.control for message in messages):
            self._differ(lengths, counts, messages)
        elif lengths[0] != self._alike:
            self._be_alike(lengths[0])
        return [i for i, _ in form.failures(count)]

    def _be_alike(self, length: int) -> None:
        """Prepare all rows for datagrams of so many bytes, and no control message but the one that says so."""
        form = self._form
        self._alike = length
        control = segment_message(length) if self._groups else b""
        form.sizes[:] = array("Q", [length]) * len(form.sizes)
        form.controls[:] = control.ljust(CONTROL_BYTES, b"\0") * ENTRIES
        form.control_lengths[:] = array("Q", [len(control)]) * ENTRIES

    def _differ(self, lengths: list[int], counts: list[int], messages: list[Message]) -> None:
        """Prepare each row for datagrams of a length of its own, and control messages of its own."""
        form, count = self._form, len(lengths)
        self._alike = -1
        sizes = array("Q", chain.from_iterable(map(repeat, lengths, counts)))
        form.sizes[: len(sizes)] = sizes
        controls = [
            (segment_message(length) if own > 1 else b"") + message.control
            for length, own, message in zip(lengths, counts, messages, strict=True)
        ]
        form.control_lengths[:count] = array("Q", map(len, controls))
        form.controls[: CONTROL_BYTES * count] = b"".join([control.ljust(CONTROL_BYTES, b"\0") for control in controls])


def target_of(peer: Peer, sender: Sender) -> bytes:
    """Return what a sender gives to a ring for a plain send, and let it keep that; empty if it needs a message."""
    if sender.control or _unable(peer, sender):
        return b""
    sender.target = target(sender.socket.fileno(), _name(peer))
    return sender.target


def message_of(peer: Peer, sender: Sender) -> Message:
    """Return what a sender gives to a ring for a message, and let it keep that; without descriptor if it cannot."""
    if _unable(peer, sender):
        sender.message = Message(-1, b"", b"")
    else:
        sender.message = Message(sender.socket.fileno(), _name(peer), b"".join(map(_packed, sender.control)))
    return sender.message


def _unable(peer: Peer, sender: Sender) -> bool:
    """Return whether only the socket object of a sender serves."""
    return sender.address is None or peer.udp_socket.served


def _name(peer: Peer) -> bytes:
    """Return the address of a peer as the kernel reads it."""
    address, port, scope = peer.remote
    if len(address) == IP4_BYTES:
        return SOCKADDR_IN_CODEC.pack(family=AF_INET, port=port, address=address)
    return SOCKADDR_IN6_CODEC.pack(family=AF_INET6, port=port, address=address, scope=scope)


def _packed(message: ControlMessage) -> bytes:
    """Return a control message as the kernel reads it."""
    level, kind, value = message
    length = CMSGHDR_CODEC.size + len(value)
    return CMSGHDR_CODEC.pack(length=length, level=level, type=kind) + value + bytes(-length % _CONTROL_ALIGNMENT)


def _kinds(rows: Rows, distinct: int) -> int:
    """Return how many runs there are at least; `distinct` is the number of peers."""
    lengths = rows.lengths
    if lengths.count(lengths[0]) == len(lengths):
        return distinct
    return len(set(zip(rows.peers, lengths, strict=True)))


def most(length: int) -> int:
    """Return how many datagrams of a length a run has at most."""
    # An empty datagram cannot be a segment.
    return min(SEGMENTS_PER_SEND, RUN_BYTES[V6] // length) if length else 1


@lru_cache(_LENGTHS_KEPT)
def segment_message(length: int) -> bytes:
    """Return the control message that has a send cut into datagrams of so many bytes, as the kernel reads it."""
    return _packed((SOL_UDP, UDP_SEGMENT, struct.pack("@H", length)))


def _cut(rows: Rows, numbers: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Cut rows of one sender into runs of one length; yield that and the addresses of each."""
    for length, group in groupby(numbers, rows.lengths.__getitem__):
        places = [rows.places[row] for row in group]
        step = most(length)
        for at in range(0, len(places), step):
            yield length, places[at : at + step]


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
