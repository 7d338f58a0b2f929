"""ICMP errors for senders on either side: what tells them that nobody takes their datagrams.

Theory of operation: an error that a proxy knows of is sent through a raw socket, from the address that the sender had
addressed. The namespace's owner may have raw sockets there; on the host they take CAP_NET_RAW. Without one the error
cannot be told, and whoever wanted to counts it.
"""

from __future__ import annotations

import logging
from _socket import socket as RawSocket  # a class
from collections.abc import Callable

from gpasst.errors import GpasstError
from gpasst.host.send import answering
from gpasst.host.sockets import family_constant
from gpasst.linux import ICMP_FILTER, ICMPV6_FILTER, IPPROTO_ICMP, IPPROTO_ICMPV6, SOCK_RAW, SOL_RAW

log = logging.getLogger(__name__)

# Makes sockets in the namespace: (family constant, type, protocol, count) to descriptors.
MakeSockets = Callable[[int, int, int, int], list[int]]


class RawSockets:
    """Raw sockets of both sides, each made when it is first needed.

    :param make_inside: makes sockets in the namespace, without switching to another greenlet; None without one.
    """

    def __init__(self, make_inside: MakeSockets | None) -> None:
        self._make_inside = make_inside
        self._raw: dict[tuple[bool, int], RawSocket | None] = {}

    def open(self, inside: bool, family: int) -> None:
        """Get ready for senders on one side, in the namespace or on the host."""
        if (inside, family) not in self._raw:
            self._raw[inside, family] = self._raw_socket(inside, family)

    def send(self, inside: bool, built: bytes, target: bytes, scope: int = 0, local: bytes = b"") -> bool:
        """Send an error; tell whether that could be done.

        :param inside: whether the sender is in the namespace.
        :param built: the error as `gpasst.services.icmp_errors.message` gives it.
        :param target: who sent what met it, 4 or 16 bytes.
        :param scope: interface index of a link-local target, else 0.
        :param local: the address that it had addressed, as a raw sender key tells it; empty for the kernel's choice.
        """
        family = 4 if len(target) == 4 else 6
        self.open(inside, family)
        raw = self._raw[inside, family]
        if raw is None:
            return False
        sender = answering(raw, target, 0, scope, local)
        try:
            raw.sendmsg([built], sender.control, 0, sender.address)
        except OSError as error:
            log.debug("an error could not be reported: %s", error.strerror)
            return False
        return True

    def close(self) -> None:
        """Close the raw sockets."""
        for sock in self._raw.values():
            if sock is not None:
                sock.close()
        self._raw.clear()

    def _raw_socket(self, inside: bool, family: int) -> RawSocket | None:
        kind, protocol = family_constant(family), IPPROTO_ICMP if family == 4 else IPPROTO_ICMPV6
        try:
            if inside:
                assert self._make_inside is not None
                (descriptor,) = self._make_inside(kind, SOCK_RAW, protocol, 1)
                sock = RawSocket(fileno=descriptor)
            else:
                sock = RawSocket(kind, SOCK_RAW, protocol)
        except (OSError, GpasstError) as error:
            log.debug("IPv%d errors for senders are only counted: %s", family, error)
            return None
        # It only sends; without the filter the kernel would keep copies of all that arrives.
        if family == 4:
            sock.setsockopt(SOL_RAW, ICMP_FILTER, b"\xff" * 4)
        else:
            sock.setsockopt(IPPROTO_ICMPV6, ICMPV6_FILTER, b"\xff" * 32)
        sock.setblocking(False)
        return sock
