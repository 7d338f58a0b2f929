"""Sends ICMP errors to senders through raw sockets, in the namespace or on the host.

Theory of operation: an error leaves from the address that the sender had sent to. The namespace's owner may open raw
sockets there; on the host they need CAP_NET_RAW. Without one the error cannot be sent, and the caller counts it. A
socket that is not permitted, or of a protocol that the kernel lacks, is not tried again; after any other failure (no
descriptor, no memory) the next error tries.
"""

from __future__ import annotations

import errno
import logging
from _socket import socket as RawSocket  # a class

from gpasst.errors import GpasstError
from gpasst.host.send import answering
from gpasst.host.socket_pool import SocketPool
from gpasst.host.sockets import family_constant
from gpasst.linux import ICMP_FILTER, ICMPV6_FILTER, IPPROTO_ICMP, IPPROTO_ICMPV6, SOCK_RAW, SOL_RAW
from gpasst.packet.address import V4, family_of

log = logging.getLogger(__name__)

# Filters with a bit for each type (struct icmp_filter: types 0 to 31; struct icmp6_filter: types 0 to 255).
_ALL_TYPES4 = b"\xff" * 4
_ALL_TYPES6 = b"\xff" * 32
# Answers to the request for a socket that will be the same next time.
_FOR_GOOD = frozenset((errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT))


class RawSockets:
    """Raw sockets of both sides; each is opened when it is needed.

    :param pool: the sockets of the namespace, None without one.
    """

    def __init__(self, pool: SocketPool | None) -> None:
        self._pool = pool
        self._raw: dict[tuple[bool, int], RawSocket | None] = {}  # None where it can never be had
        self._reported: set[tuple[bool, int]] = set()

    def open(self, inside: bool, family: int) -> None:
        """Open the raw socket of one side and family, if it is not open, and may be had.

        :param inside: in the namespace rather than on the host.
        :param family: 4 or 6.
        """
        side = inside, family
        if side in self._raw:
            return
        try:
            self._raw[side] = self._raw_socket(inside, family)
        except (OSError, GpasstError) as error:
            if isinstance(error, OSError) and error.errno in _FOR_GOOD:
                self._raw[side] = None
            if side not in self._reported:
                self._reported.add(side)
                log.debug("IPv%d errors for senders are only counted: %s", family, error)

    def send(self, inside: bool, built: bytes, target: bytes, scope: int = 0, local: bytes = b"") -> bool:
        """Send an error; return whether it was sent.

        :param inside: whether the sender is in the namespace.
        :param built: the error as `gpasst.packet.icmp_error.message` builds it.
        :param target: address of the sender, 4 or 16 bytes.
        :param scope: interface index of a link-local target, else 0.
        :param local: the address that it had sent to, as in a raw sender key; empty for the kernel's choice.
        """
        family = family_of(target)
        self.open(inside, family)
        raw = self._raw.get((inside, family))
        if raw is None:
            return False
        sender = answering(raw, target, 0, scope, local)
        try:
            raw.sendmsg([built], sender.control, 0, sender.address)
        except OSError as error:
            log.debug("an ICMP error could not be sent: %s", error.strerror)
            return False
        return True

    def close(self) -> None:
        """Close the raw sockets."""
        for sock in self._raw.values():
            if sock is not None:
                sock.close()
        self._raw.clear()

    def _raw_socket(self, inside: bool, family: int) -> RawSocket:
        """Open the raw socket of a side and family.

        :raises OSError: if the host's kernel refuses it.
        :raises GpasstError: if the namespace does not make it.
        """
        kind, protocol = family_constant(family), IPPROTO_ICMP if family == V4 else IPPROTO_ICMPV6
        if inside:
            assert self._pool is not None
            sock = self._pool.make(kind, SOCK_RAW, protocol)
        else:
            sock = RawSocket(kind, SOCK_RAW, protocol)
        try:
            # The socket only sends; without a filter the kernel would queue a copy of every ICMP message that arrives.
            if family == V4:
                sock.setsockopt(SOL_RAW, ICMP_FILTER, _ALL_TYPES4)
            else:
                sock.setsockopt(IPPROTO_ICMPV6, ICMPV6_FILTER, _ALL_TYPES6)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock
