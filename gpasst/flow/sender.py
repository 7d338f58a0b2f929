"""How data leave for one remote end: a host socket, an address, and the control messages of each send.

A `Sender` is made once for each remote end and serves every send to it. Nothing here calls the socket.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from gpasst.records import dataclass

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""(address, port) of IPv4; (address, port, flow label, scope) of IPv6."""

ControlMessage = tuple[int, int, bytes]
"""(level, type, value), as `socket.sendmsg` takes it."""


class HostSocket(Protocol):
    """The calls of a socket that the data path makes; the interpreter's own class has them."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def close(self) -> None:
        """Close the socket."""

    def sendto(self, data: memoryview, address: SocketAddress, /) -> int:
        """Send one datagram."""

    def sendmsg(
        self,
        buffers: Iterable[bytes | memoryview],
        ancdata: Iterable[ControlMessage] = ...,
        flags: int = 0,
        address: SocketAddress | None = None,
        /,
    ) -> int:
        """Send one datagram or superframe, with control messages."""

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[ControlMessage], int, Any]:  # the address may be of any family
        """Receive with control messages."""


class StreamSocket(Protocol):
    """The calls of a TCP socket that the data path makes; the interpreter's own class has them."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def close(self) -> None:
        """Close the socket."""

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Send; return how many bytes the socket took."""

    def sendmsg(
        self,
        buffers: Iterable[bytes | bytearray | memoryview],
        ancdata: Iterable[ControlMessage] = ...,
        flags: int = 0,
        /,
    ) -> int:
        """Send several pieces; return how many bytes the socket took."""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive into a buffer; return how many bytes."""

    def recvmsg_into(
        self, buffers: Iterable[memoryview], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[ControlMessage], int, Any]:
        """Receive into several buffers, one behind the other."""

    def shutdown(self, how: int, /) -> None:
        """End one direction."""

    def setsockopt(self, level: int, optname: int, value: int | bytes, /) -> None:
        """Set an option."""

    def getsockopt(self, level: int, optname: int, /) -> int:
        """Return the value of an option."""

    def getsockname(self) -> Any:  # of any family
        """Return the local address."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a sender gives to a ring for a message.

    :ivar descriptor: of the socket; -1 for a sender that only its socket object serves.
    :ivar name: the address as the kernel reads it (struct sockaddr).
    :ivar control: the control messages as the kernel reads them.
    """

    descriptor: int
    name: bytes
    control: bytes


class Sender:
    """The arguments of every send to one remote end.

    :ivar socket: the socket.
    :ivar address: the remote end's address, None for a connected socket.
    :ivar control: control messages that choose the source address, TOS and TTL; empty where the kernel's choice and the
        defaults serve.
    :ivar target: what it gives to a ring for a plain send (`gpasst.host.ring_forms.target`), once it has done so; empty
        if it needs messages.
    :ivar message: what it gives to a ring for a message, once it has done so.
    """

    __slots__ = ("address", "control", "message", "socket", "target")

    def __init__(
        self,
        sock: HostSocket,
        address: SocketAddress | None = None,
        control: tuple[ControlMessage, ...] = (),
    ) -> None:
        self.socket = sock
        self.address = address
        self.control = control
        self.target = b""
        self.message: Message | None = None
