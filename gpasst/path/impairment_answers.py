"""What rules of weather do beside the link: resets, ICMP errors to either side, and rebindings.

Theory of operation: a lost frame is answered as the network in the proxy's place would.

* *Reset*: both ends of the connection see a RST. A SYN of the guest, which has opened nothing yet, is answered alone.
* *Unreachable*, *too big*: the sender gets the ICMP error. The guest is sent it over the link. A sender on the host's
  side of a datagram gets it through a raw socket, which takes CAP_NET_RAW there (`gpasst.path.icmp_to_sender`). For a
  segment to the guest the proxy is the sender: it has smaller segments from then on, and a connection that the guest
  has not answered yet is reset.
* *Rebind*: the host's socket of a UDP mapping is exchanged for one at another port, as by a NAT that has restarted. The
  guest's end stays as it is; what still comes to the old port is answered by the host's kernel. A forwarded port is
  fixed, so a mapping behind one keeps it. A TCP connection cannot go on from another port, and the remote end of a real
  one would answer with RST: it is reset on both sides.

Answers are not subject to rules. They are given in a turn of their own, since a frame to the guest is lost while the
steps that wrote it are still at work.
"""

from __future__ import annotations

from gpasst.counters import Counters
from gpasst.errors import PacketError
from gpasst.flow.answers import answerable, problem_of
from gpasst.flow.guest import Guest
from gpasst.flow.key import down_key
from gpasst.impair.action import Answer
from gpasst.impair.facts import TCP, UDP, Flow
from gpasst.link.port import Link
from gpasst.packet.address import is_multicast
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, Reported
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.tcp_sockets import TcpSockets
from gpasst.tcp.connection import Connection
from gpasst.tcp.reset import reset, reset_instead
from gpasst.tcp.segment import parse
from gpasst.tcp.table import ConnectionTable
from gpasst.udp.nat import UdpNat
from gpasst.wire import ETHERNET_CODEC, PROTOCOL_TCP


class ImpairmentAnswers:
    """Answers the senders of lost frames (`gpasst.link.impaired.Answers`).

    :param link: the link, undiverted while this is called.
    :param guest: the guest.
    :param nat: the mappings of UDP.
    :param icmp: reports errors to the guest.
    :param to_sender: reports errors to senders on the host's side.
    :param tcp: the connections of TCP, what ends them, and what lets them have smaller segments; None where TCP is not
        carried.
    :param counters: where answers that cannot be given are counted.
    """

    def __init__(
        self,
        link: Link,
        guest: Guest,
        nat: UdpNat,
        icmp: IcmpToGuest,
        to_sender: IcmpToSender,
        tcp: tuple[ConnectionTable, TcpSockets, TcpFrames] | None,
        counters: Counters,
    ) -> None:
        self._link = link
        self._guest = guest
        self._nat = nat
        self._icmp = icmp
        self._to_sender = to_sender
        self._tcp = tcp
        self._counters = counters

    def answer(self, kind: Answer, flow: Flow, to_guest: bool, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost; see `gpasst.link.impaired.Answers.answer`."""
        try:
            if kind is Answer.RESET:
                self._reset(flow, to_guest, frame)
            elif flow.family:
                self._report(problem_of(kind, flow.family, mtu), flow, to_guest, frame)
        except PacketError as error:
            self._counters.drop(error.reason)

    def rebind(self, flow: Flow, to_guest: bool) -> None:
        """Let the host's end of a flow have another port from now on."""
        if flow.protocol == TCP:
            if found := self._connection(flow, to_guest):
                connection, sockets = found
                sockets.end(connection)
        elif flow.protocol == UDP and flow.family in self._nat.tables:
            peer = self._nat.tables[flow.family].down.get(_key(flow, to_guest))
            try:
                if peer is not None:
                    self._nat.rebind(peer.mapping)
            except PacketError as error:
                self._counters.drop(error.reason)

    def _connection(self, flow: Flow, to_guest: bool) -> tuple[Connection, TcpSockets] | None:
        """Return the connection of a flow, and what ends it; None if there is none."""
        if self._tcp is None:
            return None
        table, sockets, _ = self._tcp
        connection = table.by_key.get(_key(flow, to_guest))
        return (connection, sockets) if connection is not None else None

    def _reset(self, flow: Flow, to_guest: bool, frame: bytes) -> None:
        """Reset the connection of a segment on both sides, or answer a segment of none.

        :raises PacketError: if the segment is malformed.
        """
        if flow.protocol != TCP:
            return
        if found := self._connection(flow, to_guest):
            connection, sockets = found
            sockets.drop(connection)
        make = reset_instead if to_guest else reset
        answer = make(parse_ip(memoryview(frame)), self._guest.mac, self._guest.network.host_mac)
        if answer is not None:
            self._link.write_frame(answer)

    def _report(self, problem: Problem, flow: Flow, to_guest: bool, frame: bytes) -> None:
        """Report a problem to the sender of a frame.

        :raises PacketError: if that cannot be.
        """
        packet = parse_ip(memoryview(frame))
        if is_multicast(packet.destination) or packet.destination in self._guest.network.broadcasts:
            return
        if not answerable(flow, packet):
            return
        if not to_guest:
            closed = problem == CLOSED_PORT[flow.family]
            offender = packet.destination if closed else self._icmp.shown(flow.family, b"")
            self._icmp.report(problem, offender, packet.source, frame[ETHERNET_CODEC.size :])
        elif flow.protocol == UDP:
            peer = self._nat.tables[flow.family].down.get(_key(flow, to_guest))
            if peer is not None:
                _, _, data = parse_udp(packet.payload)
                self._to_sender.report(peer, problem, bytes(data))
        elif flow.protocol == TCP:
            self._segment(problem, flow, packet.payload)

    def _segment(self, problem: Problem, flow: Flow, payload: memoryview) -> None:
        """Do what follows from a problem of a segment that the proxy sent to the guest.

        :raises PacketError: if nothing may follow from it.
        """
        if self._tcp is None:
            return
        table, sockets, frames = self._tcp
        connection = table.by_key.get(_key(flow, True))
        if connection is None:
            return
        if problem.parameter:
            ends = flow.source, flow.destination, flow.sport, flow.dport
            frames.too_big(Reported(problem, *ends, b"", PROTOCOL_TCP, parse(payload).sequence))
        elif not connection.established:
            sockets.end(connection)


def _key(flow: Flow, to_guest: bool) -> bytes:
    """Return the key under which both directions of a flow are known."""
    if to_guest:
        return down_key(flow.destination, flow.source, flow.dport, flow.sport)
    return down_key(flow.source, flow.destination, flow.sport, flow.dport)
