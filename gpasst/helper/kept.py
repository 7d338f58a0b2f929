"""The caller's side of one namespace: its descriptors, and the sockets that the process which keeps it makes there.

Theory of operation: a request for sockets blocks the thread, since they come within microseconds, but for no longer
than the caller has patience: the process may be stopped, or starved by others. A request that was not answered in time
is kept in mind, and none is made beside it. When its answer has come, the next call takes the sockets, or closes them
if it wants others; so none is lost, and the process finds no more than one request when it goes on.

NOTE: a `Namespace` is used by one thread or greenlet at a time; the caller guards it if there are several. A call that
was interrupted while waiting leaves it usable.
"""

from __future__ import annotations

import os
import posix
from collections.abc import Iterable, Sequence

from gpasst.errors import PlatformError
from gpasst.helper.channel import LIMIT_REMEDY, Channel, Message, Wait, close_all
from gpasst.helper.pool import MAX_COUNT as SOCKETS_PER_MESSAGE
from gpasst.helper.request import OpenRequest, Route, to_message
from gpasst.records import asdict, dataclass

__all__ = ["ANSWER_SECONDS", "SOCKETS_PER_MESSAGE", "Copies", "LateError", "Namespace", "Tap"]

CLOSED, REOPEN = "the namespace was closed", "open another one"
ANSWER_SECONDS = 5.0  # for sockets; they take microseconds, unless the process is stopped or starved


class LateError(PlatformError):
    """The process that holds the namespace has not answered in time; its answer is taken when it is there."""

    def __init__(self) -> None:
        super().__init__(
            "the process that holds the namespace does not answer", "see whether it is stopped, or memory is short"
        )


@dataclass(frozen=True, slots=True)
class Tap:
    """A further tap device in a namespace.

    :ivar descriptor: the caller's own, not blocking.
    :ivar name: of the device inside; `index` and `mac` are its, too.
    :ivar offloads: what the kernel may leave undone, as of `Namespace`.
    :ivar notes: a line for everything of the request that was left out.
    """

    descriptor: int
    name: str
    index: int
    mac: bytes
    offloads: frozenset[str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of the descriptors of a namespace, for a program that joins it; see `Namespace`."""

    netns: int
    userns: int | None = None
    uts: int | None = None
    ipc: int | None = None

    def close(self) -> None:
        """Close them."""
        close_all(fd for fd in (self.netns, self.userns, self.uts, self.ipc) if fd is not None)


class Namespace:
    """A namespace, and the descriptors that belong to it; a process of the helper keeps it and makes sockets there.

    :ivar patience: seconds that `sockets` blocks the thread for one answer.
    :ivar tap: descriptor of the tap device, -1 without one; non-blocking.
    :ivar netns: descriptor of the network namespace; `userns`, `uts` and `ipc` likewise, None where the
        namespace is the caller's own.
    :ivar name: name of the tap device inside; empty without one, like `index` (0), `mac` and `link_local`.
    :ivar offloads: what the kernel may leave undone: "csum", "tso4", "tso6", "uso4", "uso6".
    :ivar ephemeral: first and last port that the kernel hands out by itself inside.
    :ivar pid: the process that keeps it, maybe others too.
    :ivar lacking: optional families, of 4 and 6, that it does not have.
    :ivar notes: a line for everything of the request that was left out.
    """

    __slots__ = (
        "_changing",
        "_channel",
        "_late",
        "ephemeral",
        "index",
        "ipc",
        "lacking",
        "link_local",
        "mac",
        "name",
        "netns",
        "notes",
        "offloads",
        "patience",
        "pid",
        "tap",
        "userns",
        "uts",
    )

    def __init__(self, reply: Message, descriptors: dict[str, int], channel: Channel) -> None:
        self._channel = channel
        channel.peer = "the process that holds the namespace"
        self.patience = ANSWER_SECONDS
        # Family, type and protocol of sockets that were asked for and had not come in time, and the request's number.
        # None instead of these for any other request.
        self._late: tuple[tuple[int, int, int] | None, int] | None = None
        # Whether a change awaits its answer, while others of the hub may want sockets.
        self._changing = False
        self.tap: int = descriptors.get("tap", -1)
        self.netns: int = descriptors["netns"]
        self.userns: int | None = descriptors.get("userns")
        self.uts: int | None = descriptors.get("uts")
        self.ipc: int | None = descriptors.get("ipc")
        self.name: str = reply["name"] or ""
        self.index: int = reply.get("index", 0)
        self.mac: bytes = bytes.fromhex(reply.get("mac", "").replace(":", ""))
        self.link_local: str | None = reply.get("link_local")
        self.offloads: frozenset[str] = frozenset(reply["offloads"])
        self.ephemeral: tuple[int, int] = (reply["ephemeral"][0], reply["ephemeral"][1])
        self.pid: int = reply["pid"]
        self.lacking: frozenset[int] = frozenset(reply.get("lacking", ()))
        self.notes: tuple[str, ...] = tuple(reply.get("notes", ()))

    def sockets(self, family: int, type: int, proto: int = 0, count: int = 1, wait: Wait | None = None) -> list[int]:
        """Make sockets in the namespace; the descriptors are the caller's to close.

        :param wait: returns when a descriptor is readable; without it the thread blocks, for `patience` at most.
        :raises LateError: if the answer has not come by then. While it has not, every call raises this at once.
        :raises PlatformError: if the kernel refuses one, there are too many open files, or the process that keeps the
            namespace has ended.
        """
        self._check_open()
        kind = int(family), int(type), proto
        made = self._overdue(kind, wait)
        try:
            while len(made) < count:
                now = min(count - len(made), SOCKETS_PER_MESSAGE)
                request = {"do": "sockets", "family": kind[0], "type": kind[1], "proto": proto, "count": now}
                number = self._channel.ask(request)
                try:
                    made += self._channel.answer(number, wait, None if wait else self.patience)[1]
                except TimeoutError:
                    self._late = kind, number
                    raise LateError from None
        except BaseException:
            close_all(made)
            raise
        close_all(made[count:])
        return made[:count]

    def bind(self, descriptor: int, address: Sequence[str | int]) -> None:
        """Bind a socket of the namespace where this process may not: to a port that takes CAP_NET_BIND_SERVICE.

        :param descriptor: of the socket, which stays the caller's.
        :param address: as `socket.socket.bind` takes it.
        :raises OSError: if the kernel refuses.
        :raises LateError: if it is not known in time; so does a call while another one is late.
        :raises PlatformError: if the process that keeps the namespace has ended.
        """
        self._check_open()
        self._overdue(None, None)
        number = self._channel.ask({"do": "bind", "address": address}, (descriptor,))
        try:
            reply, _ = self._channel.answer(number, seconds=self.patience)
        except TimeoutError:
            self._late = None, number
            raise LateError from None
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))

    def confine(self, wait: Wait | None = None) -> None:
        """Have the process that keeps the namespace enter a sandbox, when it has no other one to set up."""
        self._change({"do": "confine"}, wait)

    def doors(self, wait: Wait | None = None) -> dict[str, str]:
        """Return paths by which any process of this user can enter the namespace, as long as it is open.

        :return: by the names of /proc/PID/ns; those that are the caller's own are missing.
        :raises LateError: if another change or sockets are on their way.
        :raises PlatformError: if there are too many open files, or the process that keeps the namespace has ended.
        """
        own = {"user": self.userns, "net": self.netns, "uts": self.uts, "ipc": self.ipc}
        groups = [group for group, descriptor in own.items() if descriptor is not None]
        reply, _ = self._change({"do": "doors", "groups": groups}, wait)
        doors: dict[str, str] = reply["doors"]
        return doors

    def attach(self, request: OpenRequest, wait: Wait | None = None) -> Tap:
        """Make a further tap in a namespace that was made, and configure it as the request says.

        :raises ConfigurationError: if the request names what the kernel refuses, or a device that is there.
        :raises LateError: if another change or sockets are on their way; so do the other changes.
        :raises PlatformError: if a permission or a limit is in the way, or the process that keeps the namespace has
            ended.
        """
        reply, (descriptor,) = self._change({"do": "attach", "request": to_message(request)}, wait)
        return Tap(
            descriptor,
            reply["name"],
            reply["index"],
            bytes.fromhex(reply["mac"].replace(":", "")),
            frozenset(reply["offloads"]),
            tuple(reply["notes"]),
        )

    def change(self, name: str, request: OpenRequest, wait: Wait | None = None) -> tuple[str, ...]:
        """Take the addresses and routes of a tap, and configure it as the request says; its link is down meanwhile.

        Frames that were on their way out are lost. The descriptor stays; nobody may read from it meanwhile.

        :param name: of the device; that in the request is its next one.
        :return: a line for everything of the request that was left out.
        :raises ConfigurationError: if the request names what the kernel refuses; the link is unusable then.
        """
        reply, _ = self._change({"do": "change", "name": name, "request": to_message(request)}, wait)
        return tuple(reply["notes"])

    def detach(self, name: str, wait: Wait | None = None) -> None:
        """Let a tap go, if there is one; it is gone when the caller's descriptor is closed as well.

        :param name: of the device.
        """
        self._change({"do": "detach", "name": name}, wait)

    def route(self, name: str, added: Iterable[Route], removed: Iterable[Route] = (), wait: Wait | None = None) -> None:
        """Change the routes of a device; one that is there already stays, and one that has gone is no error.

        :param name: of the device.
        :raises ConfigurationError: if the kernel refuses what a route names.
        """
        message = {
            "do": "route",
            "name": name,
            "added": list(map(asdict, added)),
            "removed": list(map(asdict, removed)),
        }
        self._change(message, wait)

    def forward(self, wait: Wait | None = None) -> None:
        """Let the kernel forward packets between the links of the namespace."""
        self._change({"do": "forward"}, wait)

    def abort_connections(self, wait: Wait | None = None) -> None:
        """End every TCP socket in the namespace, whoever has it, as a power failure does.

        :raises PlatformError: if the kernel cannot.
        """
        self._change({"do": "abort"}, wait)

    def delete_at_end(self, path: str, wait: Wait | None = None) -> None:
        """Have a file deleted when the namespace ends, even if this process is killed; it may be gone by then."""
        self._change({"do": "delete", "path": path}, wait)

    def copies(self) -> Copies:
        """Return copies of the descriptors, the caller's to close; another thread may close this one meanwhile.

        :raises PlatformError: if it was closed, or there are too many open files.
        """
        made: dict[str, int] = {}
        try:
            for name in ("netns", "userns", "uts", "ipc"):
                descriptor = getattr(self, name)
                if descriptor is not None:
                    made[name] = posix.dup(descriptor)
            # `close` makes it so before it closes any, so what was copied until now is what it was.
            if self.netns < 0:
                raise PlatformError(CLOSED, REOPEN)
        except BaseException as error:
            close_all(made.values())
            if isinstance(error, OSError):
                self._check_open()
                raise PlatformError(f"cannot copy a descriptor: {error.strerror}", LIMIT_REMEDY) from None
            raise
        return Copies(**made)

    def _change(self, message: Message, wait: Wait | None) -> tuple[Message, list[int]]:
        self._check_open()
        self._overdue(None, None)
        self._changing = True
        try:
            return self._channel.answer(self._channel.ask(message), wait)
        finally:
            self._changing = False

    def _check_open(self) -> None:
        if self._channel.fileno() < 0:
            raise PlatformError(CLOSED, REOPEN)

    def fileno(self) -> int:
        """Return the descriptor that is readable when an answer has come late, -1 once closed."""
        return self._channel.fileno()

    def _overdue(self, kind: tuple[int, int, int] | None, wait: Wait | None) -> list[int]:
        """Return the sockets of an answer that came late, if they are of the wanted kind; others are closed.

        :raises LateError: if it has not come yet, or a change has not been answered.
        """
        if self._changing:
            raise LateError
        if self._late is None:
            return []
        known, number = self._late
        try:
            _, received = self._channel.answer(number, wait, None if wait else 0)
        except TimeoutError:
            raise LateError from None
        except PlatformError:
            received = []  # whatever is in the way is in that of the next request too
        self._late = None
        if known == kind:
            return received
        close_all(received)
        return []

    def close(self) -> None:
        """Close every descriptor. More calls do nothing.

        The process that keeps the namespace notices. It holds the last descriptor of the tap of a namespace that was
        made, since closing that blocks for up to 40 ms in the kernel; so such a tap vanishes somewhat later. The tap in
        a joined namespace is gone when this returns.
        """
        if self._channel.fileno() < 0:
            return
        descriptors = self.tap, self.netns, self.userns, self.uts, self.ipc
        self.tap = self.netns = -1
        self.userns = self.uts = self.ipc = None
        close_all([fd for fd in descriptors if fd is not None and fd >= 0])
        self._channel.close()

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
