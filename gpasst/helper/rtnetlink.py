"""Requests to the kernel's rtnetlink (rtnetlink(7), linux/rtnetlink.h), and its answers.

Theory of operation: a start lists links, addresses and routes, and sets up one link, in some twenty messages of three
kinds. pyroute2 knows all messages there are, and takes 85 ms to import; these take 1 ms. So this module has the frame
of a message, its attributes, and the heads of the three kinds. What is nested deeper, a route with several next hops or
with one of another family, is rare, and pyroute2 decodes it (`next_hop`).

NOTE: a `Session` belongs to the network namespace that its thread was in.
"""

from __future__ import annotations

import _socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from gpasst.errors import PlatformError
from gpasst.linux import (
    AF_NETLINK,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    NLA_TYPE_MASK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)

if TYPE_CHECKING:
    from typing_extensions import Self

HEAD: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, bits of the prefix, flags, scope, index
# struct rtmsg: family, bits of destination and source, TOS, table, protocol, scope, type, flags.
ROUTE: Final = struct.Struct("=BBBBBBBBI")
NUMBER: Final = struct.Struct("=I")  # the value of most attributes
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
_STATUS: Final = struct.Struct("=i")  # of NLMSG_ERROR and NLMSG_DONE: 0, or the negated errno
_ALIGN: Final = 4  # NLMSG_ALIGNTO, RTA_ALIGNTO

RECEIVE_BYTES: Final = 1 << 17  # the kernel makes chunks of 32 KiB, or one message of a link with many functions
ATTEMPTS: Final = 5  # at a list that changes of the table interrupt; the last one is used as it is

Attributes = dict[int, bytes]


class NetlinkError(Exception):
    """The kernel refuses a request.

    :param code: the errno.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Session:
    """A netlink socket in the network namespace of the calling thread.

    :param group: changes that it hears of (RTNLGRP_*), 0 for none; one that does makes no requests.
    :param protocol: the part of the kernel that it speaks to.
    :raises OSError: if there are too many open files, or the kernel lacks that part.
    """

    def __init__(self, group: int = 0, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = _socket.socket(AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        if group:
            # One without an address of its own hears nothing (net/netlink/af_netlink.c, do_one_broadcast).
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        # The kernel then lists what the request names, and nothing else (Linux 4.20).
        with suppress(OSError):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Make a request and return the bodies of the messages that come before its acknowledgement.

        :param kind: RTM_*, or that of another protocol.
        :param body: the head of that kind and attributes.
        :param flags: NLM_F_* beside NLM_F_REQUEST and NLM_F_ACK.
        :raises NetlinkError: if the kernel refuses.
        """
        return self._ask(kind, body, NLM_F_ACK | flags)[0]

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all messages of a list; the parameters are those of `request`.

        :raises NetlinkError: if the kernel refuses.
        """
        for _ in range(ATTEMPTS):
            bodies, whole = self._ask(kind, body, NLM_F_DUMP)
            if whole:
                break
        return bodies

    def await_change(self, seconds: float) -> bool:
        """Wait until the kernel announces a change; return whether one came within so many seconds."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            return False
        return True

    def _ask(self, kind: int, body: bytes, flags: int) -> tuple[list[bytes], bool]:
        """Return the bodies of the answers, and whether they are of one state of the table."""
        self._sequence += 1
        head = HEAD.pack(HEAD.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
        # The kernel's own address is 0.
        self._socket.sendto(head + body, (0, 0))
        found: list[bytes] = []
        whole = True
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            at = 0
            while at < len(data):
                length, answer, marks, sequence, _ = HEAD.unpack_from(data, at)
                body = data[at + HEAD.size : at + length]
                at += length + -length % _ALIGN
                if sequence != self._sequence:
                    continue  # of a list that was given up
                whole = whole and not marks & NLM_F_DUMP_INTR
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    status = _STATUS.unpack_from(body)[0] if len(body) >= _STATUS.size else 0
                    if status:
                        raise NetlinkError(-status)
                    return found, whole
                found.append(body)


def attribute(kind: int, value: bytes) -> bytes:
    """Build an attribute.

    :param kind: its number, RTA_*, IFA_* or IFLA_*.
    """
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % _ALIGN)


def attributes(kinds: Iterable[tuple[int, bytes]]) -> bytes:
    """Build several attributes from the number and value of each."""
    return b"".join(attribute(kind, value) for kind, value in kinds)


def parse_attributes(body: bytes, at: int) -> Attributes:
    """Return the values of attributes by their numbers.

    :param body: of a message of the kernel.
    :param at: offset of the first attribute.
    """
    found = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        found[kind & NLA_TYPE_MASK] = body[at + _ATTRIBUTE.size : at + length]
        at += max(length + -length % _ALIGN, _ATTRIBUTE.size)
    return found


def next_hop(body: bytes) -> tuple[str | None, int]:
    """Return gateway and index of the link of the first next hop of a route, as pyroute2 decodes it.

    :param body: of a message about a route that has RTA_MULTIPATH or RTA_VIA.
    :raises PlatformError: if pyroute2 is missing.
    """
    try:
        _without_package()
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    except ImportError as error:
        raise PlatformError(f"pyroute2 cannot be imported: {error}", "install it: pip install pyroute2") from None
    message = rtmsg(HEAD.pack(HEAD.size + len(body), 0, 0, 0, 0) + body)
    message.decode()
    hops = message.get_attr("RTA_MULTIPATH")
    hop = hops[0] if hops else message
    via = hop.get_attr("RTA_VIA")
    index: int = hop["oif"] if hops else message.get_attr("RTA_OIF")
    return hop.get_attr("RTA_GATEWAY") or (via["addr"] if via else None), index


def _without_package() -> None:
    """Let modules of pyroute2 be imported without all of its other modules.

    pyroute2 imports everything it has when any module of it is imported: 145 ms instead of 17 ms. So the package itself
    stays empty until something asks it for a name of its own.

    :raises ImportError: if pyroute2 is missing.
    """
    import importlib.util

    package = "pyroute2"
    if package in sys.modules:
        return
    found = importlib.util.find_spec(package)
    if found is None or found.loader is None:
        raise ImportError(f"No module named {package!r}")
    loader, module = found.loader, importlib.util.module_from_spec(found)
    sys.modules[package] = module

    def complete(name: str) -> Any:
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = complete
