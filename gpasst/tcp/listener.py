"""The listening socket of a forwarded TCP port, as the pure rooms see it."""

from __future__ import annotations

from gpasst.flow.sender import HostSocket
from gpasst.records import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class TcpListener:
    """A listening socket; its owner opens and closes it.

    :ivar family: 4 or 6.
    :ivar port: the local port.
    :ivar target: the port that it leads to.
    :ivar target_address: the address that it leads to, 4 or 16 bytes; empty for the guest's own.
    :ivar inside: whether it listens in the namespace rather than on the host.
    :ivar socket: the socket; nothing in this room calls it.
    """

    family: int
    port: int
    target: int
    target_address: bytes
    inside: bool
    socket: HostSocket
