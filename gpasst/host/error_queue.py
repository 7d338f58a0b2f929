"""The error queue of a socket: which datagram met which ICMP error, and who reported it.

Theory of operation: a socket with IP_RECVERR or IPV6_RECVERR keeps each ICMP error that a datagram of its met, with
where the datagram went and as much of its payload as the error quoted. The kernel says so by failing the next call on
the socket once, whatever datagram that is about; the queue stays readable after that, and keeps waking whoever waits
for the socket until it has been read.
"""

from __future__ import annotations

from _socket import inet_pton
from _socket import socket as RawSocket  # a class
from dataclasses import dataclass
from typing import Any

from gpasst.formats import IPV6_CODEC
from gpasst.host.kernel_formats import EXTENDED_ERROR_CODEC
from gpasst.host.sockets import family_constant
from gpasst.linux import (
    IP_PKTINFO,
    IP_RECVERR,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    IPV6_RECVERR,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    SO_EE_ORIGIN_ICMP,
    SO_EE_ORIGIN_ICMP6,
    SO_EE_ORIGIN_LOCAL,
)
from gpasst.packet.icmp_error import MESSAGE_BYTES, TYPES, Problem, too_big

MOST = 64  # errors read at once; a socket may hold thousands
_PAYLOAD_BYTES = MESSAGE_BYTES[6] - IPV6_CODEC.size
_CONTROL_BYTES = 256  # the error 64, packet info 40, TTL and TOS 24 each
_OFFENDER = {4: slice(4, 8), 6: slice(8, 24)}  # the address in sockaddr_in and sockaddr_in6


@dataclass(frozen=True, slots=True)
class QueuedError:
    """One error that a datagram of the socket met.

    :ivar address: where the datagram went, 4 or 16 bytes.
    :ivar port: to which port; 0 for echo.
    :ivar scope: interface index if the address is link-local, else 0.
    :ivar local: the host's address that the error was sent to, as a raw sender key tells it; empty if not told.
    :ivar problem: what went wrong, None if it is nothing that the sender could be told.
    :ivar offender: address of who reported it, empty for the host's own kernel.
    :ivar payload: the start of the datagram's payload, as far as the error quoted it.
    """

    address: bytes
    port: int
    scope: int
    local: bytes
    problem: Problem | None
    offender: bytes
    payload: bytes


def read_errors(sock: RawSocket, family: int) -> list[QueuedError]:
    """Take up to `MOST` errors from the queue of a socket, without waiting.

    :param sock: the socket.
    :param family: 4 or 6.
    """
    errors: list[QueuedError] = []
    while len(errors) < MOST:
        try:
            payload, control, _, name = sock.recvmsg(_PAYLOAD_BYTES, _CONTROL_BYTES, MSG_ERRQUEUE | MSG_DONTWAIT)
        except OSError:
            break
        errors.append(parse_error(family, payload, control, name))
    return errors


def parse_error(
    family: int, payload: bytes, control: list[tuple[int, int, bytes]], name: tuple[Any, ...]
) -> QueuedError:
    """Take apart what a read of an error queue gave.

    :param family: 4 or 6.
    :param payload: the data.
    :param control: the control messages.
    :param name: the address tuple.
    """
    problem, offender, local = None, b"", b""
    for level, kind, value in control:
        if (level, kind) == (IPPROTO_IP, IP_RECVERR) or (level, kind) == (IPPROTO_IPV6, IPV6_RECVERR):
            problem, offender = _problem(family, value)
        elif (level, kind) == (IPPROTO_IP, IP_PKTINFO):
            # Of an error the kernel fills in the last field alone: whom it was sent to.
            local = value[8:12]
        elif (level, kind) == (IPPROTO_IPV6, IPV6_PKTINFO):
            local = value[:20]
    address = inet_pton(family_constant(family), name[0].partition("%")[0])
    return QueuedError(address, name[1], name[3] if family == 6 else 0, local, problem, offender, payload)


def _problem(family: int, value: bytes) -> tuple[Problem | None, bytes]:
    """Read what an error says, and who says so."""
    error = EXTENDED_ERROR_CODEC.unpack_from(value)
    if error["origin"] == SO_EE_ORIGIN_LOCAL:
        # Of what the kernel finds by itself, only a path MTU comes with something to tell.
        return (too_big(family, error["info"]) if error["info"] else None), b""
    if error["origin"] not in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6) or error["type"] not in TYPES[family]:
        return None, b""
    offender = value[EXTENDED_ERROR_CODEC.size :][_OFFENDER[family]]
    return Problem(error["type"], error["code"], error["info"]), offender
