"""The sockets that the proxy opens itself, which no automatic rule may follow.

Theory of operation: automatic rules follow the sockets that the kernel lists (`gpasst.host.sock_diag`), and the proxy's
own are among them. The list shows an inode for each socket. A list that is being made may still show a socket that was
closed meanwhile, so a closed one is forgotten only when the next list is complete.
"""

from __future__ import annotations

import os

from gpasst.flow.sender import HostSocket


class OwnSockets:
    """The inodes of the proxy's own sockets.

    :param tracked: whether any rule is automatic; if none is, nothing is remembered, and no system call made.
    :ivar inodes: the inodes.
    """

    def __init__(self, tracked: bool) -> None:
        self.inodes: set[int] = set()
        self._tracked = tracked
        self._closed: list[int] = []

    def exclude(self, sock: HostSocket) -> None:
        """Let no automatic rule follow a socket."""
        if self._tracked:
            self.inodes.add(os.fstat(sock.fileno()).st_ino)

    def include(self, sock: HostSocket) -> None:
        """Forget a socket that is about to be closed, once no list shows it any more."""
        if self._tracked:
            self._closed.append(os.fstat(sock.fileno()).st_ino)

    def closed(self) -> int:
        """Return how many sockets have been closed and not forgotten yet."""
        return len(self._closed)

    def forget(self, count: int) -> None:
        """Forget the first `count` closed sockets: a list has been made since."""
        self.inodes.difference_update(self._closed[:count])
        del self._closed[:count]
