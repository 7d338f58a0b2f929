"""Messages with descriptors over a UNIX socket.

A message is one JSON object and any number of descriptors. It travels as one or more SOCK_SEQPACKET
packets; the first byte of each says whether another follows, and the descriptors ride on the last one. Only
long answers (the routes of a router) need more than one packet.

Requests carry a sequence number that the answer repeats. A caller that gave up waiting (a timeout, a killed
greenlet) leaves its answer behind in the socket: the next call recognises it by the number, closes its
descriptors and goes on. For the same reason the pieces of an unfinished message are kept in the object, not
on the stack.

The sockets are those of the C module, which gevent's monkey patching leaves alone: this code behaves in the
same way in patched and unpatched programs, and only the caller's `wait` knows about greenlets.

NOTE: one thread or greenlet at a time.
"""

from __future__ import annotations

import _socket
import json
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.linux import SCM_MAX_FD

Wait = Callable[[int], object]
"""Returns when the descriptor is readable."""

Message = dict[str, Any]

CHUNK = 32 * 1024  # far below the default send buffer of 208 KiB, so one packet always fits
LAST = b"."
MORE = b"+"


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Make two connected sockets fit for a `Channel`."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors received with a message nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


def describe(error: BaseException) -> Message:
    """Give an exception as the message that `raise_error` turns back into one."""
    kind = "configuration" if isinstance(error, ConfigurationError) else "platform"
    if isinstance(error, GpasstError):
        return {"error": {"kind": kind, "message": error.message, "remedy": error.remedy}}
    return {"error": {"kind": kind, "message": f"helper: {type(error).__name__}: {error}", "remedy": ""}}


def raise_error(error: Message) -> None:
    """Raise what `describe` described."""
    kind = ConfigurationError if error.get("kind") == "configuration" else PlatformError
    raise kind(str(error["message"]), str(error.get("remedy", "")))


class Channel:
    """One end of the connection; closes its socket with `close`."""

    def __init__(self, sock: _socket.socket, peer: str = "the helper process") -> None:
        self._sock = sock
        self._peer = peer
        self._pieces: list[bytes] = []
        self._descriptors: list[int] = []
        self._sequence = 0

    def fileno(self) -> int:
        """Give the descriptor of the socket, -1 once closed."""
        return self._sock.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, waiting in the kernel while the other side's buffer is full."""
        data = json.dumps(message).encode()
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        for start in range(0, len(data), CHUNK):
            last = start + CHUNK >= len(data)
            self._sock.sendmsg(
                [LAST if last else MORE, data[start : start + CHUNK]],
                rights if last else [],
                _socket.MSG_NOSIGNAL,
            )

    def receive(self, wait: Wait | None = None) -> tuple[Message, list[int]] | None:
        """Receive a message and its descriptors; None at end of file."""
        while True:
            packet, truncated = self._packet(wait)
            if not packet:
                self._forget()
                return None
            if truncated:
                self._forget()
                raise PlatformError("too many open files", "raise the limit: ulimit -n")
            self._pieces.append(packet[1:])
            if packet[:1] == LAST:
                data, self._pieces = b"".join(self._pieces), []
                descriptors, self._descriptors = self._descriptors, []
                message: Message = json.loads(data)
                return message, descriptors

    def call(
        self, message: Message, wait: Wait | None = None, descriptors: Sequence[int] = ()
    ) -> tuple[Message, list[int]]:
        """Send a request and return its answer; raises the error the other side reports."""
        self._sequence += 1
        try:
            self.send({**message, "seq": self._sequence}, descriptors)
            while answer := self.receive(wait):
                if answer[0].get("seq") == self._sequence:
                    break
                close_all(answer[1])
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise PlatformError(f"{self._peer} ended unexpectedly", "look for its last words on standard error")
        reply, received = answer
        if "error" in reply:
            close_all(received)
            raise_error(reply["error"])
        return reply, received

    def finish(self, seconds: float, wait: Wait | None = None) -> bool:
        """Tell the other side to end and wait until it has closed its end; False when it takes longer.

        With `wait` the limit is the caller's business: a timeout on the socket would block in spite of it.
        """
        if self._sock.fileno() < 0:
            return True
        try:
            self._sock.shutdown(_socket.SHUT_WR)
            if wait is None:
                self._sock.settimeout(seconds)
            while answer := self.receive(wait):
                close_all(answer[1])
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the socket, and descriptors of an unfinished message."""
        self._forget()
        self._sock.close()

    def _packet(self, wait: Wait | None) -> tuple[bytes, bool]:
        flags = _socket.MSG_CMSG_CLOEXEC | (_socket.MSG_DONTWAIT if wait else 0)
        while True:
            try:
                data, ancillary, status, _ = self._sock.recvmsg(
                    CHUNK + 1, _socket.CMSG_SPACE(SCM_MAX_FD * array("i").itemsize), flags
                )
            except BlockingIOError:
                if wait is None:
                    raise
                wait(self._sock.fileno())
                continue
            except ConnectionResetError:
                return b"", False
            for level, kind, rights in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    received = array("i")
                    received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                    self._descriptors += received
            return data, bool(status & _socket.MSG_CTRUNC)

    def _forget(self) -> None:
        close_all(self._descriptors)
        self._descriptors, self._pieces = [], []
