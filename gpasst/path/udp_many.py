"""UDP of many flows to the guest: batches whose datagrams have many senders.

Theory of operation: a datagram that differs from the one before in its sender cannot join it, so each costs a frame of
its own. What the interpreter does for each is what counts then:

1. A listener whose batches come from many senders receives into slots with headroom (`gpasst.host.receive_headed`)
   until few senders are left. Its batch is read by column, and all peers are looked up by one `map`.
2. The headers of each peer are copied before its datagram, and the frame is written from where it lies.
3. Several datagrams of one flow within a batch leave as superframes where the link takes these, in their order. The
   order among flows changes then, which no network promises.
4. Senders without a peer are carried behind the others, by the caller, as in any batch.

Everything else goes row by row: while the link is recorded or has weather, and what the kernel had joined already.
"""

from __future__ import annotations

from operator import ne
from typing import Any

from gpasst.host.receive import RUN_BYTES, Run
from gpasst.host.receive_headed import HeadedReceiver
from gpasst.link.tap import Tap
from gpasst.udp.header import Header
from gpasst.udp.mapping import Peer, UdpSocket
from gpasst.udp.nat import UdpNat

MANY = 8  # changes of the sender in a batch of a socket from which on it is received with headroom
FEW = 4  # datagrams in each run of a batch, on average, from which on it is not any more
JOIN_FROM = 5  # datagrams of one flow in a batch that leave as superframes; these cost the kernel more than a frame

PROTOCOL = Header.protocol


class ManySenders:
    """Carries batches of many senders to the guest.

    :param nat: the rules and tables.
    :param tap: the guest's end.
    """

    def __init__(self, nat: UdpNat, tap: Tap) -> None:
        self._nat = nat
        self._tap = tap
        self._receivers: dict[int, HeadedReceiver] = {}

    def look(self, udp_socket: UdpSocket, runs: list[Run]) -> None:
        """Receive from a socket with headroom from now on, if the senders of a batch's lone datagrams change often."""
        find = udp_socket.find
        lone = [key for key, total, segment, _, _ in runs if segment >= total and find(key) is not None]
        udp_socket.scattered = sum(map(ne, lone, lone[1:])) >= MANY and self._tap.bare

    def receive(self, udp_socket: UdpSocket) -> tuple[list[Run], bool, int]:
        """Take the datagrams that a socket has, without waiting, and carry those that are lone and known.

        :param udp_socket: the socket, which is open.
        :return: what is left, as runs that are valid until the next call; whether there may be more; how many were
            carried.
        :raises OSError: the pending error of the socket; nothing was received then.
        """
        assert udp_socket.socket is not None
        receiver = self._receivers.get(udp_socket.family)
        if receiver is None:
            receiver = self._receivers[udp_socket.family] = HeadedReceiver(udp_socket.family)
        columns = receiver.columns(udp_socket.socket.fileno())
        count = len(columns.keys)
        more = count == receiver.slots
        if not self._tap.bare or columns.segments is not None:
            udp_socket.scattered = False
            return receiver.runs(columns, range(count)), more, 0
        peers: list[Any] = list(map(udp_socket.others.get, columns.keys))
        if None in peers:
            peers = list(map(udp_socket.find, columns.keys))
        distinct = len(set(peers))
        if distinct * FEW <= count and (sum(map(ne, peers, peers[1:])) + 1) * FEW <= count:
            udp_socket.scattered = False
        sizes, tos_ttls, frames = columns.sizes, columns.tos_ttls, receiver.frames
        left: list[Run] = []
        if None in peers:
            left = receiver.runs(columns, [i for i, peer in enumerate(peers) if peer is None])
            known = [i for i, peer in enumerate(peers) if peer is not None]
            peers, sizes = [peers[i] for i in known], [sizes[i] for i in known]
            tos_ttls, frames = [tos_ttls[i] for i in known], [frames[i] for i in known]
        if JOIN_FROM * distinct <= len(peers) and self._tap.joins(PROTOCOL, udp_socket.family):
            peers, sizes, tos_ttls, frames = self._join(receiver, peers, sizes, tos_ttls, frames)
        self._carry(receiver, peers, sizes, tos_ttls, frames)
        return left, more, count - len(left)

    def _carry(
        self,
        receiver: HeadedReceiver,
        peers: list[Peer],
        sizes: list[int],
        tos_ttls: list[int],
        frames: list[memoryview],
    ) -> None:
        """Write a frame for each datagram of known peers.

        :param sizes: payload bytes of each.
        :param tos_ttls: their TOS and TTL.
        :param frames: their slots.
        """
        nat, guest, head = self._nat, self._nat.guest, receiver.headroom
        activity, stamp = nat.tables[receiver.family].activity, guest.stamp
        for peer, size, tos_ttl, frame in zip(peers, sizes, tos_ttls, frames, strict=False):
            header = peer.header
            activity[peer.byte] |= peer.bit
            if tos_ttl != header.tos_ttl:
                header = nat.header(peer, tos_ttl)
            if header.stamp is not stamp:
                guest.readdress(header, peer.mapping.guest)
            frame[:head] = header.buffer if header.total == size == header.segment else header.fill(size, size)
        self._tap.write_each(PROTOCOL, head, frames, sizes)

    def _join(
        self,
        receiver: HeadedReceiver,
        peers: list[Peer],
        sizes: list[int],
        tos_ttls: list[int],
        frames: list[memoryview],
    ) -> tuple[list[Peer], list[int], list[int], list[memoryview]]:
        """Write the datagrams of flows that have several of one size as superframes; return the others.

        The parameters are those of `_carry`.
        """
        flows: dict[Peer, list[int]] = {}
        for i, peer in enumerate(peers):
            flows.setdefault(peer, []).append(i)
        head, limit = receiver.headroom, RUN_BYTES[receiver.family]
        lone: list[int] = []
        for peer, rows in flows.items():
            if len(rows) < JOIN_FROM:
                lone += rows
                continue
            self._nat.tables[receiver.family].activity[peer.byte] |= peer.bit
            start = 0
            while start < len(rows):
                first = rows[start]
                segment, tos_ttl = sizes[first], tos_ttls[first]
                total, end = segment, start + 1
                while end < len(rows) and total + segment <= limit and tos_ttls[rows[end]] == tos_ttl:
                    size = sizes[rows[end]]
                    if not 0 < size <= segment:
                        break
                    total += size
                    end += 1
                    if size < segment:
                        break
                payload = [frames[i][head : head + sizes[i]] for i in rows[start:end]]
                header = self._nat.header(peer, tos_ttl)
                if header.stamp is not self._nat.guest.stamp:
                    self._nat.guest.readdress(header, peer.mapping.guest)
                self._tap.write_run(header, total, segment, payload)
                start = end
        return (
            [peers[i] for i in lone],
            [sizes[i] for i in lone],
            [tos_ttls[i] for i in lone],
            [frames[i] for i in lone],
        )
