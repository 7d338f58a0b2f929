"""Messages with descriptors over a UNIX socket.

A message is one JSON object and any number of descriptors. It travels as one or more SOCK_SEQPACKET packets; the first
byte of each says whether another follows, and the descriptors ride on the last one. Only long messages (the routes of a
router) need more than one packet.

Requests carry a sequence number that the answer repeats. A caller that stopped waiting (a timeout, a killed greenlet)
leaves its answer behind in the socket. It may come back for it; else the next call recognises it by the number, closes
its descriptors and goes on.
For the same reason the pieces of an unfinished message are kept in the object, not on the stack.

The sockets are those of the C module, which gevent's monkey patching leaves alone: this code behaves in the same way in
patched and unpatched programs, and only the caller's `wait` knows about greenlets.

NOTE: one thread or greenlet at a time, but for `send` of a message that fits one packet, which the kernel makes atomic.
"""

from __future__ import annotations

import _socket
import errno
import json
import posix
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.linux import SCM_MAX_FD

Wait = Callable[[int], object]
"""Returns when the descriptor is readable."""

Message = dict[str, Any]

CHUNK = 32 * 1024  # bytes; far below the default send buffer of 208 KiB, so one packet always fits
LAST = b"."
MORE = b"+"
LIMIT_REMEDY = "raise the limit: ulimit -n"


class PeerEndedError(PlatformError):
    """The other end of a channel was closed before it answered."""


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Make two connected sockets fit for a `Channel`: both wait for ever.

    :raises OSError: if there are too many open files.
    """
    ends = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    for end in ends:
        # A program may have set a default (`socket.setdefaulttimeout`), which would make them not block.
        end.settimeout(None)
    return ends


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that have no owner any more.

    At once: gevent replaces `os.close` by one that closes in the loop's next turn, so that the other end of a channel
    would notice later, or never if the hub waits for that.
    """
    for descriptor in descriptors:
        posix.close(descriptor)


def adopt(descriptors: Sequence[int]) -> Channel | None:
    """Return the channel whose socket came with a request; None, and nothing stays open, if no socket did."""
    close_all(descriptors[1:])
    try:
        return Channel(_socket.socket(fileno=descriptors[0])) if descriptors else None
    except OSError:
        close_all(descriptors[:1])
        return None


def describe(error: BaseException) -> Message:
    """Return an exception as the message that `raise_error` turns back into one."""
    kind = "configuration" if isinstance(error, ConfigurationError) else "platform"
    if isinstance(error, GpasstError):
        return {"error": {"kind": kind, "message": error.message, "remedy": error.remedy}}
    return {"error": {"kind": kind, "message": f"helper: {type(error).__name__}: {error}", "remedy": ""}}


def raise_error(error: Message) -> None:
    """Raise what `describe` described.

    :raises ConfigurationError: if that is the error's kind.
    :raises PlatformError: if it is any other.
    """
    kind = ConfigurationError if error.get("kind") == "configuration" else PlatformError
    raise kind(str(error["message"]), str(error.get("remedy", "")))


class Channel:
    """One end of the connection; closes its socket with `close`.

    :param sock: the socket, owned from now on.
    :ivar peer: the process at the other end, as error lines name it.
    """

    def __init__(self, sock: _socket.socket, peer: str = "the helper process") -> None:
        self._sock = sock
        self.peer = peer
        self._pieces: list[bytes] = []
        self._descriptors: list[int] = []
        self._sequence = 0

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 once closed."""
        return self._sock.fileno()

    def detach(self) -> int:
        """Return the descriptor of the socket, which is the caller's from now on."""
        self._forget()
        return self._sock.detach()

    def limit(self, seconds: float | None) -> None:
        """Bound how long one packet may take, in either direction; None waits for ever.

        NOTE: the descriptor is not blocking while there is a bound, in other processes that share it, too.
        """
        self._sock.settimeout(seconds)

    def connected(self) -> bool:
        """Return whether the other end is open; neither side may have sent anything."""
        try:
            return bool(self._sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, waiting in the kernel while the other side's buffer is full.

        :raises BrokenPipeError: if the other end is closed.
        :raises TimeoutError: if a bound was set by `limit` and is over.
        """
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
        """Receive a message and its descriptors; None at end of file.

        :raises PlatformError: if there are too many open files to take the descriptors, or what came is no message.
        :raises TimeoutError: if a bound was set by `limit` and is over.
        """
        while True:
            packet, truncated = self._packet(wait)
            if not packet:
                self._forget()
                return None
            if truncated:
                self._forget()
                raise PlatformError("too many open files", LIMIT_REMEDY)
            self._pieces.append(packet[1:])
            if packet[:1] == LAST:
                data, self._pieces = b"".join(self._pieces), []
                descriptors, self._descriptors = self._descriptors, []
                return self._message(data, descriptors), descriptors

    def arrivals(self) -> Iterator[tuple[Message, list[int]]]:
        """Receive messages until end of file, but those whose descriptors exceed the limit of open files.

        The kernel has closed these, and by that their other ends. Neither want of memory for one message ends anything,
        nor what is none.
        """
        while True:
            try:
                arrived = self.receive()
            except PlatformError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    raise
                continue
            if arrived is None:
                return
            yield arrived

    def call(
        self, message: Message, wait: Wait | None = None, descriptors: Sequence[int] = ()
    ) -> tuple[Message, list[int]]:
        """Send a request and return its answer, and the descriptors that came with it.

        :raises GpasstError: the error that the other side reports.
        :raises PeerEndedError: if the other side ended before it answered.
        """
        return self.answer(self.ask(message, descriptors), wait)

    def ask(self, message: Message, descriptors: Sequence[int] = ()) -> int:
        """Send a request and return its number, for `answer`.

        :raises PeerEndedError: if the other side has ended.
        """
        self._sequence += 1
        try:
            self.send({**message, "seq": self._sequence}, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None
        return self._sequence

    def answer(self, number: int, wait: Wait | None = None, seconds: float | None = None) -> tuple[Message, list[int]]:
        """Return the answer to a request, and the descriptors that came with it; those to others are closed.

        :param number: what `ask` returned.
        :param seconds: how long to wait in the kernel, 0 for not at all, None for as long as it takes.
        :raises TimeoutError: if it has not come; it may be asked for again.
        :raises GpasstError: the error that the other side reports.
        :raises PeerEndedError: if the other side ended before it answered.
        """
        if seconds is not None:
            self._sock.settimeout(seconds)
        try:
            while answer := self.receive(wait):
                if answer[0].get("seq") == number:
                    break
                close_all(answer[1])
        except BlockingIOError as error:
            raise TimeoutError from error
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        finally:
            if seconds is not None:
                self._sock.settimeout(None)
        if answer is None:
            raise self._ended()
        reply, received = answer
        if "error" in reply:
            close_all(received)
            raise_error(reply["error"])
        return reply, received

    def finish(self, seconds: float, wait: Wait | None = None) -> bool:
        """Send an end of file and wait until the other side has closed its end; False when it takes longer.

        With `wait` the limit is the caller's business: a timeout on the socket would block in spite of it.

        :param seconds: the limit without `wait`.
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
        """Close the socket, and descriptors of an unfinished message. More calls do nothing."""
        self._forget()
        self._sock.close()

    def _message(self, data: bytes, descriptors: list[int]) -> Message:
        """Return the message of its bytes; `descriptors` are closed if it is none.

        :raises PlatformError: in that case.
        """
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            close_all(descriptors)
            raise PlatformError(f"{self.peer} sent what is no message", "report this, with what was done before")
        return message

    def _ended(self) -> PeerEndedError:
        return PeerEndedError(f"{self.peer} ended unexpectedly", "look for its last words on standard error")

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
