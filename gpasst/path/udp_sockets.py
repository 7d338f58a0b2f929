"""From host sockets to the guest, and from every listener to where its datagrams go."""

from __future__ import annotations

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.host.receive import Receiver, split_key
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.packet.address import is_loopback
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.udp_splice import Splice
from gpasst.udp.mapping import Peer, UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.udp.pairs import Pair

BATCHES_PER_STEP = 4


class UdpSockets:
    """From host sockets to the guest, and from every listener to where its datagrams go.

    :param link: the guest's end, None without one.
    :param path: the guest path.
    :param splice: what moves loopback traffic, None where nothing does.
    :param receivers: the receiver of each family.
    :param counters: where traffic and drops are counted.
    """

    def __init__(
        self,
        link: Tap | Stream | None,
        path: UdpNat,
        splice: Splice | None,
        receivers: dict[int, Receiver],
        counters: Counters,
    ) -> None:
        self._link = link
        self._path = path
        self._splice = splice
        self._counters = counters
        self._notices = IcmpToGuest(link, path, counters)
        self._receivers = receivers

    def step(self, udp_socket: UdpSocket) -> int:
        """Move up to `BATCHES_PER_STEP` batches from the socket of `endpoint`; give how many runs it was.

        A run of several datagrams counts as two.
        """
        family = udp_socket.family
        receive = self._receivers[family].receive
        peers, activity = udp_socket.peers, self._path.tables[family].activity
        moved = 0
        for _ in range(BATCHES_PER_STEP):
            if udp_socket.socket is None:
                break
            try:
                runs, more = receive(udp_socket.socket.fileno())
            except OSError:
                # An error that an earlier datagram met. There may be datagrams behind it.
                if not self._notices.queued(udp_socket):
                    self._counters.socket_errors += 1
                continue
            if not runs and not moved:
                # What woke the watcher is an error that a send has come upon before.
                self._notices.queued(udp_socket)
            try:
                for key, total, segment, payload, tos_ttl in runs:
                    peer = peers.get(key)
                    if peer is None:
                        try:
                            peer = self._new(udp_socket, key)
                        except PacketError as error:
                            self._counters.drop(error.reason, -(-total // segment) if total else 1)
                            continue
                    if peer.header is None:
                        self._splice.forward(peer, payload, segment)  # type: ignore[union-attr]
                    else:
                        header = peer.header
                        activity[peer.byte] |= peer.bit
                        if tos_ttl != header.tos_ttl:
                            header.set_tos_ttl(tos_ttl)
                        self._link.write_datagrams(header, total, segment, payload)  # type: ignore[union-attr]
                    moved += 1 if segment >= total else 2
            finally:
                # Whatever happens, before the next receive: what was gathered lies in the receiver's buffers.
                if self._link is not None:
                    self._link.flush()
            if not more:
                break
        return moved

    def _new(self, udp_socket: UdpSocket, key: bytes) -> Peer | Pair:
        address, port, scope, local = split_key(udp_socket.family, key)
        if udp_socket.splices and self._splice and (udp_socket.inside or is_loopback(local[: len(address)])):
            return self._splice.open(udp_socket, key, address, port, scope, local)
        if self._link is None:
            raise PacketError(Drop.NO_TAP)
        return self._path.inbound(udp_socket, key, address, port, scope, local)
