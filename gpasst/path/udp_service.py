"""UDP services of the program: callables that answer the guest's datagrams for an address, without a host socket.

Theory of operation: `gpasst.udp.nat` opens a `ServiceSocket` for each end of the guest that sends to a served address
and port. It stands in the place of a mapping's socket, so the data path finds the peer and sends to it as to any other,
and looks up nothing more. Its datagrams go to `take`, and an answer becomes one run of the same peer.

A superframe is refused as by a kernel without segmentation, so its datagrams come one by one (`gpasst.host.send`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Any

from gpasst.counters import Counters, Drop
from gpasst.flow.key import down_key
from gpasst.flow.sender import ControlMessage, SocketAddress
from gpasst.link.port import Link
from gpasst.link.stream import Stream
from gpasst.linux import SOL_UDP
from gpasst.packet.address import family_of
from gpasst.udp.mapping import ServedSocket
from gpasst.udp.nat import ServedOpener, UdpNat
from gpasst.wire import FRAME_MINIMUM_BYTES, HOP_LIMIT, STREAM_LENGTH_BYTES

End = tuple[bytes, int]
"""Address and port of the guest."""

# Takes a datagram and the guest's end that sent it; returns whether there was room for it.
Take = Callable[[bytes, End], bool]


class ServiceSocket:
    """Stands for a host socket between an end of the guest and a service (`gpasst.flow.sender.HostSocket`).

    :param take: takes what the guest sends.
    :param guest: the guest's end.
    """

    __slots__ = ("_guest", "_take")

    def __init__(self, take: Take, guest: End) -> None:
        self._take = take
        self._guest = guest

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def close(self) -> None:
        """Do nothing: there is no descriptor."""

    def sendto(self, data: memoryview, address: SocketAddress, /) -> int:
        """Hand a datagram of the guest to the service.

        :raises BlockingIOError: if it has no room for more, as a socket whose buffer is full.
        """
        if not self._take(bytes(data), self._guest):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return len(data)

    def sendmsg(
        self,
        buffers: Iterable[bytes | memoryview],
        ancdata: Iterable[ControlMessage] = (),
        flags: int = 0,
        address: SocketAddress | None = None,
        /,
    ) -> int:
        """Hand a datagram of the guest to the service, whatever its TOS and TTL.

        :raises BlockingIOError: as `sendto` does.
        :raises OSError: for a superframe.
        """
        if any(level == SOL_UDP for level, _, _ in ancdata):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.sendto(memoryview(b"".join(buffers)), ("", 0))

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """Receive nothing: nobody watches it.

        :raises BlockingIOError: always.
        """
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def serving(take: Take, port: int) -> ServedOpener:
    """Return what opens the sockets of a service.

    :param take: takes what the guest sends there.
    :param port: the service's.
    """
    return lambda guest, guest_port: ServedSocket(family_of(guest), port, ServiceSocket(take, (guest, guest_port)))


class Answers:
    """The way of answers from one served address and port.

    :param nat: the rules and tables.
    :param link: the guest's end.
    :param counters: where drops are counted.
    :param address: 4 or 16 bytes.
    :param port: the port.
    """

    def __init__(self, nat: UdpNat, link: Link, counters: Counters, address: bytes, port: int) -> None:
        self._nat = nat
        self._link = link
        self._counters = counters
        self._framed = isinstance(link, Stream)
        self._address = address
        self._port = port

    def send(self, guest: End, data: bytes) -> None:
        """Send a datagram to an end of the guest that has sent one."""
        address, port = guest
        table = self._nat.tables[family_of(address)]
        peer = table.down.get(down_key(address, self._address, port, self._port))
        if peer is None:
            self._counters.drop(Drop.ANSWER_LATE)
            return
        header = self._nat.header(peer, HOP_LIMIT)
        if header.stamp is not self._nat.guest.stamp:
            self._nat.guest.readdress(header, address)
        table.activity[peer.byte] |= peer.bit
        self._link.write_run(header, len(data), len(data), [self._laid_out(header.size, data)])
        self._link.flush()

    def _laid_out(self, headers: int, data: bytes) -> memoryview:
        """Return a datagram as the link's receiver lays it out, with room for `headers` bytes on a stream."""
        if not self._framed:
            return memoryview(data)
        gap = STREAM_LENGTH_BYTES + headers
        frame = bytearray(gap + max(len(data), FRAME_MINIMUM_BYTES - headers))
        frame[gap : gap + len(data)] = data
        return memoryview(frame)
