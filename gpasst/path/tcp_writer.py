"""Segments for the guest: data of sockets, acknowledgements and resets, written to the link.

Theory of operation: data is peeked from a connection's socket in the layout that the link wants (`gpasst.host.peek`)
and written as one run; what is gathered refers to the peeker's buffers, so `flush` comes before these are used again.
While the link is full nothing is peeked, and connections wait until it takes more.

Headers are kept for the `HEADERS` connections that got theirs last. They take a quarter of the memory of an idle
connection, and 2 us to be made anew.
"""

from __future__ import annotations

from collections import deque

from gpasst.flow.guest import Guest
from gpasst.flow.sender import StreamSocket
from gpasst.host.peek import RUNS, Peeker
from gpasst.link.port import Link
from gpasst.tcp.connection import Connection
from gpasst.tcp.header import Header
from gpasst.tcp.segment import SEQUENCE_MASK
from gpasst.wire import TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST

HEADERS = 1024  # connections whose headers are kept


class TcpWriter:
    """Writes the segments of all connections.

    :param link: the guest's end.
    :param guest: the guest.
    :param peeker: peeks at sockets as the link wants it.
    :param peek_offset: whether sockets know what was peeked before.
    :ivar waiting: connections that wait for the link to take more.
    """

    def __init__(self, link: Link, guest: Guest, peeker: Peeker, peek_offset: bool) -> None:
        self._link = link
        self._guest = guest
        self._peeker = peeker
        self.peek_offset = peek_offset
        self.waiting: dict[Connection, None] = {}  # in order, each once
        self._recent: deque[Connection] = deque()

    def send(self, connection: Connection, sock: StreamSocket, now: float) -> tuple[bool, bool]:
        """Send what the socket has, at most `RUNS` superframes.

        :return: whether anything was sent, and whether there may be more to send at once.
        :raises OSError: if the connection has failed.
        """
        sender, header, link, peeker = connection.sender, self._header(connection), self._link, self._peeker
        sent = False
        for _ in range(RUNS):
            room = sender.room()
            if not room:
                sender.blocked = True
                return sent, False
            if peeker.full:
                link.flush()
                peeker.start()
            if link.full:
                self.waiting[connection] = None
                return sent, False
            try:
                count, payload = peeker.peek(
                    sock, header.family, sender.mss, room, 0 if self.peek_offset else sender.in_flight
                )
            except BlockingIOError:
                sender.blocked = False
                return sent, False
            if not count:
                sender.blocked = False
                if connection.finished(now):
                    self.segment(connection, TCP_FIN | TCP_ACK, back=1)
                    sent = True
                return sent, False
            sequence, acknowledged, window = connection.numbers()
            header.prepare(sequence, acknowledged, TCP_ACK | TCP_PSH, window)
            link.write_run(header, count, sender.mss, [payload])
            sender.sent(count, now)
            sent = True
            if count < room and not sender.ended and count % sender.mss:
                # That was all. What comes later is an event of its own.
                sender.blocked = False
                return sent, False
        return sent, True

    def segment(self, connection: Connection, flags: int, back: int = 0) -> None:
        """Send a segment without data.

        :param back: how far its sequence number is before the next one.
        """
        header = self._header(connection)
        sequence, acknowledged, window = connection.numbers()
        header.prepare((sequence - back) & SEQUENCE_MASK, acknowledged, flags, window)
        self._link.write_bare(header)

    def synchronise(self, connection: Connection, now: float) -> None:
        """Send the SYN of a connection."""
        self._header(connection)
        self._link.write_frame(connection.synchronise(now))

    def refuse(self, connection: Connection) -> None:
        """Send the RST that answers the segment at hand."""
        header = self._header(connection)
        header.prepare(connection.refused, 0, TCP_RST, 0)
        self._link.write_bare(header)

    def reset(self, connection: Connection) -> None:
        """Send the RST that ends a connection."""
        sequence, acknowledged = connection.reset()
        header = self._header(connection)
        header.prepare(sequence, acknowledged, TCP_RST | TCP_ACK, 0)
        self._link.write_bare(header)

    def _header(self, connection: Connection) -> Header:
        """Return the headers of a connection's segments, to the guest's present MAC address."""
        header, guest = connection.header, self._guest
        if header is None:
            header = connection.header = Header(
                guest.mac_of(connection.ends[0]), guest.network.host_mac, connection.key
            )
            recent = self._recent
            recent.append(connection)
            if len(recent) > HEADERS:
                recent.popleft().header = None
        elif header.stamp is not guest.stamp:
            guest.readdress(header, connection.ends[0])
        return header

    def flush(self) -> None:
        """Let the link send what was gathered, and use the buffers anew."""
        self._link.flush()
        self._peeker.start()
