"""Listening sockets, to which virtual machines and other switches connect.

Theory of operation: the UNIX socket of passt mode is at the given path, or at the first free one of
/tmp/passt_1.socket to /tmp/passt_99.socket, as with passt. A path is in use if a trial connection succeeds, or fails
with another error than "no such file", "connection refused" and "permission denied". A socket file without a listener
is stale, and is replaced.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from _socket import socket as RawSocket  # a class

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.linux import (
    AF_UNIX,
    SO_PEERCRED,
    SO_RCVBUF,
    SO_RCVBUFFORCE,
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SOCK_STREAM,
    SOL_SOCKET,
    UNIX_PATH_MAX,
)

PROBED = "/tmp/passt_{}.socket"  # as passt names it, so that scripts find it
PROBES = range(1, 100)
# Errors of a trial connection to a path that is not in use.
FREE = (errno.ENOENT, errno.ECONNREFUSED, errno.EACCES)
# Options that need CAP_NET_ADMIN, those that do not, and bytes.
BUFFER_BYTES = ((SO_SNDBUFFORCE, SO_SNDBUF, 4 << 20), (SO_RCVBUFFORCE, SO_RCVBUF, 2 << 20))
PATH_BYTES = UNIX_PATH_MAX - 1
ANYBODY, OWNER = 0o777, 0o600  # permissions

_credentials = struct.Struct("@iII")  # struct ucred (linux/socket.h): process, user and group

log = logging.getLogger(__name__)


class PathListener:
    """A listening UNIX socket.

    :param path: its file.
    :param name: what names the path, in messages.
    :param mode: permissions of the file, as the process's umask leaves them.
    :param backlog: connections that may wait to be accepted.
    :ivar path: its file.
    :ivar socket: the socket.
    :raises ConfigurationError: if the path is too long, not a path, or a file that is no socket.
    :raises PlatformError: if the path is in use or cannot be made.
    """

    def __init__(self, path: str, name: str, mode: int = ANYBODY, backlog: int = 0) -> None:
        self.path = path
        check_path(path, name)
        if _in_use(path):
            raise PlatformError(f"{name} {path} is in use", "end its user, or choose another path")
        self.socket = RawSocket(AF_UNIX, SOCK_STREAM, 0)
        try:
            _remove_stale(path, name)
            self.socket.setblocking(False)
            # The file has the mode of the socket from the first moment (net/unix/af_unix.c: unix_bind_bsd).
            os.fchmod(self.socket.fileno(), mode)
            self.socket.bind(path)
            # The process may leave the directory that a relative path starts from.
            self._file = os.path.abspath(path)
            self._identity = _identity(self._file)
            self.socket.listen(backlog)
        except OSError as error:
            self.socket.close()
            raise PlatformError(f"{name} {path}: {error.strerror}", "name a file that can be made") from error
        except ConfigurationError:
            self.socket.close()
            raise

    def accept(self) -> RawSocket | None:
        """Accept a connection; see `accepted`."""
        return accepted(self.socket)

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this socket's."""
        self.socket.close()
        try:
            if _identity(self._file) == self._identity:
                os.unlink(self._file)
        except OSError as error:
            log.debug("%s is not removed by this process: %s", self.path, error.strerror)


class GuestListener(PathListener):
    """The listening socket of passt mode.

    :param path: its file; empty for the first free one of those that passt tries.
    :raises ConfigurationError: see `PathListener`.
    :raises PlatformError: likewise.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path or _first_free(), "--socket")


class PortListener:
    """A listening TCP socket.

    :param family: AF_INET or AF_INET6.
    :param address: where it listens: numeric host and port, as of `socket.socket.bind`; port 0 for one that is free.
    :param name: what names the address, in messages.
    :param backlog: connections that may wait to be accepted.
    :ivar socket: the socket.
    :raises PlatformError: if it cannot listen there.
    """

    def __init__(self, family: int, address: tuple[str, int], name: str, backlog: int) -> None:
        self.socket = RawSocket(family, SOCK_STREAM, 0)
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen(backlog)
        except OSError as error:
            self.socket.close()
            host, port = address
            raise PlatformError(f"{name} {host} port {port}: {error.strerror}", "choose another address") from error

    def accept(self) -> RawSocket | None:
        """Accept a connection; see `accepted`."""
        return accepted(self.socket)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()


def accepted(listener: RawSocket) -> RawSocket | None:
    """Accept a connection and return its socket, None if no connection is pending any more.

    :raises OSError: if there is one, and this process cannot take it now (no descriptor, no memory): it stays
        pending, and the listening socket readable.
    """
    try:
        # The C class has no public accept: socket.accept itself calls this method.
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    except (BlockingIOError, ConnectionAbortedError, InterruptedError):
        return None
    return RawSocket(fileno=descriptor)


def check_path(path: str, name: str) -> None:
    """Check the path of a UNIX socket.

    :param name: what names it, in messages.
    :raises ConfigurationError: if it is too long, or not a path.
    """
    if not path or "\0" in path:
        raise ConfigurationError(f"{name} {path!r} is not the path of a file", "name a file that can be made")
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ConfigurationError(f"{name} {path} is longer than {PATH_BYTES} bytes", "choose a shorter path")


def prepare_guest(sock: RawSocket) -> RawSocket:
    """Make a guest's socket non-blocking with large buffers, as far as permitted, and return it.

    :raises ConfigurationError: if it is not a connected stream socket.
    """
    try:
        if sock.type != SOCK_STREAM:
            raise OSError
        sock.getpeername()  # fails if the socket is not connected
        for forced, plain, size in BUFFER_BYTES:
            try:
                sock.setsockopt(SOL_SOCKET, forced, size)
            except OSError:
                sock.setsockopt(SOL_SOCKET, plain, size)
        sock.setblocking(False)
    except OSError:
        raise ConfigurationError(
            f"--fd {sock.fileno()} is not a connected stream socket", "pass one end of a socket pair"
        ) from None
    return sock


def peer_process(sock: RawSocket) -> int:
    """Return the process ID of the peer of a connection, 0 if unknown."""
    try:
        return _peer(sock)[0]
    except OSError:
        return 0


def peer_user(sock: RawSocket) -> int:
    """Return the user ID of the peer of a connection over a UNIX socket: where it listens, of whoever began to.

    :raises OSError: if the kernel does not know it.
    """
    return _peer(sock)[1]


def _peer(sock: RawSocket) -> tuple[int, int, int]:
    process, user, group = _credentials.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _credentials.size))
    return process, user, group


def _first_free() -> str:
    """Return the first path of `PROBED` that is free.

    :raises PlatformError: if all are in use.
    """
    for number in PROBES:
        path = PROBED.format(number)
        if not _in_use(path) and _removable(path):
            return path
    raise PlatformError("no free path among /tmp/passt_1.socket to /tmp/passt_99.socket", "name one with --socket")


def _in_use(path: str) -> bool:
    """Return whether a trial connection shows that something listens at `path`."""
    probe = RawSocket(AF_UNIX, SOCK_STREAM, 0)
    try:
        probe.setblocking(False)
        return probe.connect_ex(path) not in FREE
    finally:
        probe.close()


def _removable(path: str) -> bool:
    """Return whether there is no file at `path`, or a socket that this user may remove."""
    try:
        found = os.lstat(path)
    except OSError:
        return True
    return stat.S_ISSOCK(found.st_mode) and (found.st_uid == os.geteuid() or os.geteuid() == 0)


def _remove_stale(path: str, name: str) -> None:
    """Remove the socket file at `path`, if there is one.

    :raises ConfigurationError: if the file is no socket.
    :raises OSError: if it cannot be removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{name} {path} exists and is no socket", "choose another path")
    os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    """Return device and inode of the file at `path`."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino
