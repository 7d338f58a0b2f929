"""Lists the sockets of a network namespace that receive what nobody asked for, in chunks with bounded stalls.

Theory of operation: a netlink socket of NETLINK_SOCK_DIAG (linux/sock_diag.h, Linux 3.3) lists the sockets of the
namespace that it was made in, wherever it is used. One request is sent for each family, and the kernel replies with
chunks of up to 32 KiB, about 260 sockets; it makes the next chunk when the previous one is received.

1. *Bounded stalls.* Before each chunk the caller's `wait` lets others run, so a stall is as long as one chunk takes, in
   the kernel and here.
2. *Known sockets cost little.* A chunk that equals one of the last scan is not parsed: requests carry no sequence
   number, so nothing in a chunk changes by itself except the queue lengths of a busy socket. In other chunks the part
   of a message from the family to the kernel's cookie identifies a socket for its lifetime. It is the key of the
   listing, and the rest is parsed only if the last scan did not have the key: inode and IPV6_V6ONLY of a bound socket
   never change.
3. *Only sockets that anyone may address are listed*: the unconnected ones of UDP (state TCP_CLOSE), and the listening
   ones of TCP (TCP_LISTEN). A connected socket receives from its peer only.

NOTE: the kernel does not lock its table between chunks. While sockets are opened and closed, a socket may be missing
from a scan: if a chunk ends within a bucket of the table and another socket leaves that bucket. The next scan has it.
NOTE: a requested port cannot be distinguished from one that the kernel chose when an unbound UDP socket first sent.
"""

from __future__ import annotations

import os
import struct
from _socket import socket as RawSocket  # a class
from typing import Final

from gpasst.errors import PlatformError
from gpasst.helper.channel import Wait
from gpasst.host.kernel_wire import (
    INET_DIAG_CODEC,
    INET_DIAG_REQUEST_CODEC,
    NLMSG_CODEC,
    NLMSG_STATUS_CODEC,
    RTATTR_CODEC,
)
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    INET_DIAG_SKV6ONLY,
    MAX_ERRNO,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    SOCK_RAW,
    TCP_CLOSE,
    TCP_LISTEN,
)
from gpasst.packet.address import IP4_BYTES, V4, V6
from gpasst.records import dataclass
from gpasst.wire import PROTOCOL_TCP, PROTOCOL_UDP

CHUNK_BYTES: Final = 32768  # the kernel makes no larger chunks (net/netlink/af_netlink.c)
ATTEMPTS: Final = 2  # at a list that changes of the table interrupted; the second one is used as it is
_PADDING: Final = 3  # bytes at most, which align messages and attributes to 4 (NLMSG_ALIGNTO, RTA_ALIGNTO)

_HEAD = NLMSG_CODEC.size
_KEY = _HEAD + INET_DIAG_CODEC.offset("family")
_KEY_END = _HEAD + INET_DIAG_CODEC.offset("expires")
_INTERFACE = INET_DIAG_CODEC.offset("interface")
_INODE = INET_DIAG_CODEC.offset("inode")

_head = NLMSG_CODEC.layout.unpack_from
_status = NLMSG_STATUS_CODEC.layout.unpack_from
_attribute = RTATTR_CODEC.layout.unpack_from
_local = INET_DIAG_CODEC.picker("family", "source_port", "source").unpack_from
_word = struct.Struct("=I").unpack_from


def _request(family: int, protocol: int, state: int) -> bytes:
    """Return the request for all sockets of `family`, AF_INET or AF_INET6, that are in a state of a protocol."""
    head = NLMSG_CODEC.pack(
        length=NLMSG_CODEC.size + INET_DIAG_REQUEST_CODEC.size,
        type=SOCK_DIAG_BY_FAMILY,
        flags=NLM_F_REQUEST | NLM_F_DUMP,
    )
    return head + INET_DIAG_REQUEST_CODEC.pack(family=family, protocol=protocol, states=1 << state)


_REQUESTS = {
    name: tuple(_request(family, protocol, state) for family in (AF_INET, AF_INET6))
    for name, protocol, state in (("udp", PROTOCOL_UDP, TCP_CLOSE), ("tcp", PROTOCOL_TCP, TCP_LISTEN))
}


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket that anyone may address.

    :ivar family: 4 or 6.
    :ivar address: its local address, 4 or 16 bytes, all zero for any; an IPv6 socket that is bound to an IPv4 address
        has an IPv4-mapped one (::ffff:192.0.2.1).
    :ivar port: 1 to 65535.
    :ivar only6: whether IPV6_V6ONLY is set; False for IPv4.
    :ivar interface: index of the device that it is bound to, 0 without one.
    :ivar inode: what /proc/PID/fd shows as ``socket:[inode]``; 0 for the kernel's own sockets.
    """

    family: int
    address: bytes
    port: int
    only6: bool
    interface: int
    inode: int


Listing = dict[bytes, BoundSocket]
"""Sockets by a key that no other socket of the namespace ever has, nor the same socket under another address."""

_Chunk = tuple[Listing, int, bool]


class SockDiag:
    """Lists the sockets of one protocol, in the namespace that a netlink socket was made in.

    One thread or greenlet at a time may scan. A scan that was abandoned (by an exception of `wait`) leaves this usable.

    :param descriptor: a socket of AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG; it becomes non-blocking, and is closed by
        `close`.
    :param protocol: ``"udp"`` or ``"tcp"``.
    :ivar protocol: the same.
    """

    def __init__(self, descriptor: int, protocol: str) -> None:
        self._sock = RawSocket(fileno=descriptor)
        self._sock.setblocking(False)
        self.protocol = protocol
        self._known: Listing = {}
        self._chunks: dict[bytes, _Chunk] = {}

    @classmethod
    def here(cls, protocol: str) -> SockDiag:
        """Make one for the namespace of the calling thread.

        :param protocol: ``"udp"`` or ``"tcp"``.
        :raises PlatformError: if the kernel refuses the netlink socket.
        """
        try:
            return cls(RawSocket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG).detach(), protocol)
        except OSError as error:
            raise _refused(error, protocol) from error

    def scan(self, wait: Wait) -> Listing:
        """List the sockets of both families.

        :param wait: called with the netlink socket's descriptor before each chunk; returns when that is readable.
        :return: a new dictionary. A socket of the last scan has the same key and is the same object, so two listings
            are compared by their keys.
        :raises PlatformError: if the kernel refuses (as it does without its module udp_diag, or tcp_diag), or its
            reply is malformed.
        """
        found: Listing = {}
        chunks: dict[bytes, _Chunk] = {}
        try:
            for request in _REQUESTS[self.protocol]:
                for _ in range(ATTEMPTS):
                    if not self._list(request, found, chunks, wait):
                        break
        except OSError as error:
            raise _refused(error, self.protocol) from error
        except struct.error as error:
            raise _malformed() from error
        self._known, self._chunks = found, chunks
        return found

    def close(self) -> None:
        """Close the netlink socket; more calls do nothing."""
        self._sock.close()

    def _list(self, request: bytes, found: Listing, chunks: dict[bytes, _Chunk], wait: Wait) -> bool:
        """Add the reply to one request to `found` and `chunks`; return whether changes of the table interrupted it."""
        sock = self._sock
        try:
            # The rest of an abandoned scan; until it is received the kernel accepts no request.
            while sock.recv(CHUNK_BYTES):
                pass
        except BlockingIOError:
            pass
        sock.send(request)
        every_flag = 0
        while True:
            wait(sock.fileno())
            data = sock.recv(CHUNK_BYTES)
            chunk = chunks[data] = self._chunks.get(data) or self._parse(data)
            sockets, flags, last = chunk
            found.update(sockets)
            every_flag |= flags
            if last:
                return bool(every_flag & NLM_F_DUMP_INTR)

    def _parse(self, data: bytes) -> _Chunk:
        """Return the sockets of a chunk, the flags of its messages, and whether it is the last one."""
        known = self._known.get
        found: Listing = {}
        every_flag = 0
        at, end = 0, len(data)
        while True:  # a chunk without any message is malformed
            length, kind, flags, _, _ = _head(data, at)
            if not _HEAD <= length <= end - at:
                raise _malformed()
            every_flag |= flags
            if kind == SOCK_DIAG_BY_FAMILY:
                key = data[at + _KEY : at + _KEY_END]
                found[key] = known(key) or _decode(data[at + _HEAD : at + length])
            elif kind in (NLMSG_DONE, NLMSG_ERROR):
                (status,) = _status(data[at : at + length], _HEAD)
                if -MAX_ERRNO <= status < 0:
                    raise OSError(-status, os.strerror(-status))
                if status or kind == NLMSG_ERROR:
                    raise _malformed()
                return found, every_flag, True
            at += length + _PADDING & ~_PADDING
            if at >= end:
                return found, every_flag, False


def _decode(message: bytes) -> BoundSocket:
    """Parse one socket.

    :raises struct.error: if the message is too short.
    """
    family, port, address = _local(message)
    (interface,) = _word(message, _INTERFACE)
    (inode,) = _word(message, _INODE)
    if family == AF_INET:
        return BoundSocket(V4, address[:IP4_BYTES], port, False, interface, inode)
    return BoundSocket(V6, address, port, _only6(message), interface, inode)


def _only6(message: bytes) -> bool:
    """Return whether IPV6_V6ONLY is among the attributes of a socket, and set."""
    at = INET_DIAG_CODEC.size
    while at < len(message):
        length, kind = _attribute(message, at)
        if length < RTATTR_CODEC.size:
            raise _malformed()
        if kind == INET_DIAG_SKV6ONLY:
            return any(message[at + RTATTR_CODEC.size : at + length])
        at += length + _PADDING & ~_PADDING
    return False


def _refused(error: OSError, protocol: str) -> PlatformError:
    return PlatformError(
        f"the kernel does not list its {protocol.upper()} sockets: {error.strerror}",
        f"load its module: modprobe {protocol}_diag; or name the ports to forward",
    )


def _malformed() -> PlatformError:
    return PlatformError("the kernel's list of sockets cannot be understood", "name the ports to forward")
