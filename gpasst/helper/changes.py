"""Changes of a namespace that is kept: further taps, other addresses on one, forwarding, the end of its connections.

Theory of operation: everything here happens in the thread that keeps the namespace, and so inside it. The caller has a
descriptor of each tap, and this side another one, for the reason that `gpasst.helper.kept` names.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import IPPROTO_TCP
from collections.abc import Iterable
from contextlib import suppress

from gpasst.errors import PlatformError
from gpasst.helper import netlink, pool
from gpasst.helper.channel import Message, close_all, describe
from gpasst.helper.discovery import FAMILIES
from gpasst.helper.request import OpenRequest, open_request, routes
from gpasst.helper.rtnetlink import NetlinkError, Session
from gpasst.helper.tap import attach, open_tun
from gpasst.linux import NETLINK_SOCK_DIAG, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY

# struct inet_diag_req_v2 (linux/inet_diag.h): family, protocol, states as bits, identity of one socket.
DIAG_REQUEST = struct.Struct("=BBxxI48s")
DIAG_IDENTITY = slice(4, 52)  # in struct inet_diag_msg
ALL_STATES = 0xFFF
DISCARDED_BYTES = 64  # of a frame that is taken to be forgotten; more than its virtio-net header
FORWARDING = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")


class Taps:
    """The taps of the namespace of the calling thread, and files that end with it, however the caller ends.

    A door is a descriptor of the namespace in this process, by whose path others can enter it.

    :param first: descriptors of those that are there already, by the names of their devices.
    """

    def __init__(self, first: dict[str, int]) -> None:
        self._taps = first
        self._doors: dict[str, int] = {}
        self.files: list[str] = []

    @property
    def descriptors(self) -> Iterable[int]:
        """One descriptor of each tap, and those of the doors."""
        return (*self._taps.values(), *self._doors.values())

    def close(self) -> None:
        """Delete the files, and close the descriptors here; a tap goes with its last one, in up to 40 ms."""
        for path in self.files:
            with suppress(OSError):
                os.unlink(path)
        descriptors = self.descriptors
        self._taps, self._doors = {}, {}
        close_all(descriptors)

    def answer(self, message: Message) -> tuple[Message, list[int]]:
        """Do what a request says, and return the answer and the descriptors that go with it; they stay open here."""
        try:
            if message["do"] == "detach":
                # There is none if the caller gave up a request that was refused afterwards.
                tap = self._taps.pop(message["name"], None)
                close_all([] if tap is None else [tap])
                return {}, []
            if message["do"] == "delete":
                if pool.wanted:
                    raise PlatformError("a caller in a sandbox names no file", "name it before")
                self.files.append(message["path"])
                return {}, []
            if message["do"] == "doors":
                return {"doors": self._open_doors(message["groups"])}, []
            if message["do"] == "route":
                netlink.change_routes(message["name"], *(routes(message[kind]) for kind in ("added", "removed")))
                return {}, []
            if message["do"] in PLAIN:
                PLAIN[message["do"]]()
                return {}, []
            request = open_request(message["request"])
            if message["do"] == "attach":
                return self._attach(request)
            return self._change(message["name"], request), []
        except Exception as error:
            return describe(error), []

    def _open_doors(self, groups: Iterable[str]) -> dict[str, str]:
        """Return paths of the namespaces of the calling thread, by which others of its user can enter them.

        :param groups: which of them, as in /proc/PID/ns.
        """
        for group in groups:
            if group not in self._doors:
                self._doors[group] = os.open(f"/proc/thread-self/ns/{group}", os.O_RDONLY | os.O_CLOEXEC)
        return {group: f"/proc/{os.getpid()}/fd/{descriptor}" for group, descriptor in self._doors.items()}

    def _attach(self, request: OpenRequest) -> tuple[Message, list[int]]:
        descriptor = open_tun()
        try:
            made = attach(descriptor, request.ifname, request.offload)
            fields = netlink.configure(request, made.name)
        except BaseException:
            os.close(descriptor)
            raise
        self._taps[made.name] = descriptor
        return {"name": made.name, "offloads": made.offloads, **fields}, [descriptor]

    def _change(self, name: str, request: OpenRequest) -> Message:
        tap = self._taps.pop(name)
        self._taps[request.ifname] = tap
        netlink.clear(name, request.ifname)
        _drain(tap)
        return netlink.configure(request, request.ifname)


def abort_connections() -> None:
    """End every TCP socket of the namespace of the calling thread, without a word to its peer if the link is down.

    What a program that was killed leaves behind would send its FIN again when the link is up.

    :raises PlatformError: if the kernel cannot (CONFIG_INET_DIAG_DESTROY).
    """
    try:
        with Session(protocol=NETLINK_SOCK_DIAG) as session:
            for family in FAMILIES:
                for body in session.dump(SOCK_DIAG_BY_FAMILY, DIAG_REQUEST.pack(family, IPPROTO_TCP, ALL_STATES, b"")):
                    identity = body[DIAG_IDENTITY]
                    try:
                        session.request(SOCK_DESTROY, DIAG_REQUEST.pack(family, IPPROTO_TCP, ALL_STATES, identity))
                    except NetlinkError as error:
                        if error.code != errno.ENOENT:
                            raise
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno or errno.EIO
        raise PlatformError(
            f"the kernel does not end TCP connections: {os.strerror(code)}",
            "use one with CONFIG_INET_DIAG_DESTROY, and load tcp_diag: modprobe tcp_diag",
        ) from None


def _drain(tap: int) -> None:
    """Take what the namespace has sent through a tap with the addresses that it had before."""
    try:
        while os.read(tap, DISCARDED_BYTES):
            pass
    except BlockingIOError:
        return


def forward() -> None:
    """Let the kernel forward packets between the links of the namespace, of each family that it has.

    :raises PlatformError: if it refuses.
    """
    for path in FORWARDING:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("1")
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError as error:
            raise PlatformError(
                f"cannot switch forwarding on: {path}: {error.strerror}",
                "make it writable: mount /proc/sys read-write in the container",
            ) from None


PLAIN = {"forward": forward, "abort": abort_connections}
"""What is done without further words."""
