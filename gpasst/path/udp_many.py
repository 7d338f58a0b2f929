"""UDP of many flows to the guest: batches whose datagrams have many senders.

Theory of operation: a datagram that differs from the one before in its sender cannot join it, so each costs a frame of
its own. What the interpreter does for each is what counts then:

1. A socket whose batches come from many senders is received into slots with headroom (`gpasst.host.receive_headed`)
   until few senders are left. Its batch is read by column, and all peers are looked up by one `map`.
2. Sockets of mappings that are ready together (`gpasst.path.udp_ready`) give one datagram each to such a batch.
3. The headers of each peer are copied before its datagram, and the frame is written from where it lies
   (`gpasst.path.udp_slots`).
4. Several datagrams of one flow within a batch leave as superframes where the link takes these, in their order. The
   order among flows changes then, which no network promises.
5. Senders without a peer are carried behind the others, by the caller, as in any batch.

Everything else goes row by row: while the link is recorded or has weather, and a batch with datagrams that the kernel
had joined already.
"""

from __future__ import annotations

from errno import EAGAIN
from operator import ne
from typing import Any

from gpasst.host.receive import RUN_BYTES, Run
from gpasst.host.receive_headed import Columns, HeadedReceiver
from gpasst.host.ring import Ring
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.path.udp_slots import PROTOCOL, Slots, StreamSlots, TapSlots
from gpasst.udp.mapping import Peer, UdpSocket
from gpasst.udp.nat import UdpNat

MANY = 8  # changes of the sender in a batch of a socket from which on it is received with headroom
FEW = 4  # fewer datagrams in a batch, or as many in each run of it on average, and it is not any more
JOIN_FROM = 5  # datagrams of one flow in a batch that leave as superframes; these cost the kernel more than a frame

Left = list[tuple[UdpSocket, list[Run]]]
"""What a batch has left to the caller: sockets, each with runs that are valid until the next batch."""


class ManySenders:
    """Carries batches of many senders to the guest.

    :param nat: the rules and tables.
    :param link: the guest's end.
    :param ring: makes many calls in one, None without one.
    """

    def __init__(self, nat: UdpNat, link: Tap | Stream, ring: Ring | None = None) -> None:
        self._nat = nat
        self._link = link
        self._ring = ring
        self._slots: dict[int, Slots] = {}

    @property
    def ready(self) -> bool:
        """Whether batches may be carried as columns now."""
        return self._link.bare

    def look(self, udp_socket: UdpSocket, runs: list[Run]) -> None:
        """Receive from a socket with headroom from now on, if the senders of a batch's lone datagrams change often."""
        find = udp_socket.find
        lone = [key for key, total, segment, _, _ in runs if segment >= total and find(key) is not None]
        udp_socket.scattered = sum(map(ne, lone, lone[1:])) >= MANY and self._link.bare

    def give_back(self) -> None:
        """Give back the memory of large datagrams, which may have been few; not to be called within a step."""
        for slots in self._slots.values():
            slots.give_back()

    def receive(self, udp_socket: UdpSocket) -> tuple[list[Run], bool, int]:
        """Take the datagrams that a socket has, without waiting, and carry those that are lone and known.

        :param udp_socket: the socket, which is open.
        :return: what is left, as runs that are valid until the next call; whether there may be more; how many were
            carried.
        :raises OSError: the pending error of the socket; nothing was received then.
        """
        assert udp_socket.socket is not None
        slots = self._of(udp_socket.family)
        receiver = slots.receiver
        columns = receiver.columns(udp_socket.socket.fileno())
        count = len(columns.keys)
        more = count == receiver.slots
        if not self._link.bare or columns.segments is not None:
            udp_socket.scattered = False
            return slots.runs(columns), more, 0
        peers: list[Any] = list(map(udp_socket.others.get, columns.keys))
        if not all(peers):
            find = udp_socket.find
            peers = [find(key) if peer is None else peer for key, peer in zip(columns.keys, peers, strict=True)]
        distinct = len(set(peers))
        if count < FEW or (distinct * FEW <= count and (sum(map(ne, peers, peers[1:])) + 1) * FEW <= count):
            udp_socket.scattered = False
        left: list[Run] = []
        if not all(peers):
            left = slots.runs(columns.some([i for i, peer in enumerate(peers) if peer is None]))
            columns, peers = _known(columns, peers)
        if JOIN_FROM * distinct <= len(peers) and self._link.joins(PROTOCOL, udp_socket.family):
            columns, peers = self._join(slots, columns, peers)
        if peers:
            slots.carry(self._nat, columns, peers)
        return left, more, count - len(left)

    def round(self, sockets: list[UdpSocket]) -> tuple[int, Left, list[UdpSocket]]:
        """Take one datagram from each of some sockets of a family, and carry those that are lone and known.

        :param sockets: open sockets, at most `gpasst.host.receive.SLOTS`.
        :return: how many were carried; what is left; and the sockets that have a pending error.
        """
        slots = self._of(sockets[0].family)
        receiver = slots.receiver
        columns, failed = receiver.one_of_each([one.socket.fileno() for one in sockets])  # type: ignore[union-attr]
        broken = [sockets[i] for i, number in failed.items() if number != EAGAIN] if failed else []
        if failed:
            sockets = [sockets[i] for i in columns.slots]
        if columns.segments is not None:
            return 0, [(one, [run]) for one, run in zip(sockets, slots.runs(columns), strict=True)], broken
        peers: list[Any] = [
            one.first if key == one.first_key else one.others.get(key)
            for one, key in zip(sockets, columns.keys, strict=True)
        ]
        left: Left = []
        if not all(peers):
            unknown = [i for i, peer in enumerate(peers) if peer is None]
            runs = slots.runs(columns.some(unknown))
            left = [(sockets[i], [run]) for i, run in zip(unknown, runs, strict=True)]
            columns, peers = _known(columns, peers)
        if peers:
            slots.carry(self._nat, columns, peers)
        return len(peers), left, broken

    def _of(self, family: int) -> Slots:
        """Return the slots of a family, 4 or 6, made when they are used first."""
        found = self._slots.get(family)
        if found is None:
            receiver, link = HeadedReceiver(family, ring=self._ring), self._link
            made = TapSlots(receiver, link, self._ring) if isinstance(link, Tap) else StreamSlots(receiver, link)
            found = self._slots[family] = made
        return found

    def _join(self, slots: Slots, columns: Columns, peers: list[Peer]) -> tuple[Columns, list[Peer]]:
        """Write the datagrams of flows that have several as superframes; return the others."""
        flows: dict[Peer, list[int]] = {}
        for i, peer in enumerate(peers):
            flows.setdefault(peer, []).append(i)
        nat, receiver = self._nat, slots.receiver
        activity = nat.tables[receiver.family].activity
        lone: list[int] = []
        for peer, rows in flows.items():
            if len(rows) < JOIN_FROM:
                lone += rows
                continue
            activity[peer.byte] |= peer.bit
            for run in _joined(columns, rows, RUN_BYTES[receiver.family]):
                header = nat.header(peer, columns.tos_ttls[run[0]])
                if header.stamp is not nat.guest.stamp:
                    nat.guest.readdress(header, peer.mapping.guest)
                payload = [part for _, _, _, parts, _ in slots.runs(columns.some(run)) for part in parts]
                self._link.write_run(header, sum(map(len, payload)), columns.sizes[run[0]], payload)
        return columns.some(lone), [peers[i] for i in lone]


def _known(columns: Columns, peers: list[Any]) -> tuple[Columns, list[Peer]]:
    """Return the datagrams that have a peer."""
    known = [i for i, peer in enumerate(peers) if peer is not None]
    return columns.some(known), [peers[i] for i in known]


def _joined(columns: Columns, rows: list[int], limit: int) -> list[list[int]]:
    """Cut the datagrams of one flow, given by their indices, into runs of at most `limit` bytes."""
    runs: list[list[int]] = []
    sizes, tos_ttls = columns.sizes, columns.tos_ttls
    segment = tos_ttl = room = 0
    for i in rows:
        size = sizes[i]
        if 0 < size <= min(segment, room) and tos_ttls[i] == tos_ttl:
            runs[-1].append(i)
            room = room - size if size == segment else 0
        else:
            runs.append([i])
            segment, tos_ttl, room = size, tos_ttls[i], limit - size
    return runs
