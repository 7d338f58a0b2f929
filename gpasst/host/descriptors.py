"""The limit of open files, and what gives way near it.

Theory of operation: the kernel hands out the lowest free descriptor (POSIX), so the number of a new socket is the least
number of files that are open. Where it reaches `Descriptors.line`, the holder of most sockets closes the one that was
idle longest, and the new one moves to the number that this left free; so the next one to come above the line finds all
below it open again. What may not give way (forwards, services, the guest's connection, the pool) takes the numbers
above the line. This counts every descriptor of the process, whoever opened it, and costs no system call below the line.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import sys
from _socket import socket as RawSocket  # a class
from collections.abc import Callable
from typing import Protocol, TypeVar

from gpasst.errors import PacketError, PlatformError
from gpasst.flow.sender import HostSocket

RESERVE = 512  # descriptors above the line: for the tap, the helper, listeners and the pool
RESERVE_SHARE = 4  # of a small limit, the part that is reserved at most

Socket = TypeVar("Socket", bound=HostSocket)
Made = TypeVar("Made")

log = logging.getLogger(__name__)


class Holder(Protocol):
    """Has sockets that it can do without."""

    def held(self) -> int:
        """Return the number of these sockets."""

    def let_go(self) -> bool:
        """Close the socket that was idle longest, with its flows; return whether a descriptor is free then."""


def reserve(limit: int) -> int:
    """Return how many of `limit` descriptors mappings and splice pairs leave free."""
    return min(RESERVE, limit // RESERVE_SHARE)


def exhausted(error: BaseException | None) -> bool:
    """Return whether an error says that the process, or the system, has no descriptor left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class Descriptors:
    """The open files of this process.

    :param limit: how many may be open; None for the hard limit, to which `gpasst.proxy.forwarder` raises the soft one.
    :ivar line: the number from which on a new socket makes an idle one go.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.line = sys.maxsize if limit == resource.RLIM_INFINITY else limit - reserve(limit)
        self._holders: list[Holder] = []
        self._warned = False

    def add(self, holder: Holder) -> None:
        """Let a holder give way from now on."""
        self._holders.append(holder)

    def make(self, opened: Callable[[], Made]) -> Made:
        """Return what `opened` returns, which opens a descriptor; where none is left, an idle socket goes first.

        :raises OSError: as `opened` does, and so any `PacketError` that an `OSError` caused.
        """
        try:
            return opened()
        except (OSError, PacketError) as error:
            if not (exhausted(error) or exhausted(error.__cause__)) or not self.let_go():
                raise
        return opened()

    def settle(self, sock: Socket) -> Socket | RawSocket:
        """Make room for a new socket of a holder; return the socket that takes its place, closed if it is another."""
        if sock.fileno() < self.line or not self.let_go():
            return sock
        try:
            moved = RawSocket(fileno=os.dup(sock.fileno()))
        except OSError:
            return sock  # another took what was free, and this one keeps a number above the line
        moved.setblocking(False)
        sock.close()
        return moved

    def let_go(self) -> bool:
        """Close the longest idle socket of the holder of most; return whether a descriptor is free then."""
        if not self._warned:
            self._warned = True
            log.warning("the limit of open files is near: what was idle longest ends first; raise ulimit -n")
        holder = max(self._holders, key=lambda holder: holder.held(), default=None)
        return holder is not None and holder.held() > 0 and holder.let_go()

    def close(self) -> None:
        """Let nobody give way any more."""
        self._holders.clear()


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def descriptor_room(listeners: int) -> int:
    """Raise the soft limit of open files to the hard one, and return how many listeners may be open under it.

    :param listeners: how many explicit rules ask for.
    :raises PlatformError: if they do not fit.
    """
    hard = raise_limit()
    if hard == resource.RLIM_INFINITY:
        return sys.maxsize
    room = max(0, hard - len(os.listdir("/proc/self/fd")) - reserve(hard))
    if listeners > room:
        raise PlatformError(
            f"forwarding needs {listeners} sockets, one a port and family, but only {room} fit the limit of {hard} "
            "open files",
            f"raise ulimit -n to {listeners + hard - room}, forward fewer ports, or one family only (-4 or -6)",
        )
    return room
