"""The error queue of a socket: the ICMP errors that its datagrams caused, and the nodes that reported them.

Theory of operation: a socket with IP_RECVERR or IPV6_RECVERR keeps each ICMP error about a datagram of its own, with
the datagram's destination and as much of its payload as the error quoted. The kernel also returns the pending error
from the next call on that socket, whatever that call is about. The queue itself stays readable, and the socket's
watcher fires, until it has been read.
"""

from __future__ import annotations

from _socket import inet_pton
from collections.abc import Iterable

from gpasst.flow.sender import ControlMessage, HostSocket, SocketAddress
from gpasst.host.kernel_wire import (
    EXTENDED_ERROR_CODEC,
    IN6_PKTINFO_CODEC,
    IN_PKTINFO_CODEC,
    SOCKADDR_IN6_CODEC,
    SOCKADDR_IN_CODEC,
)
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
from gpasst.packet.address import V4, V6
from gpasst.packet.icmp_error import MESSAGE_BYTES, TYPES, Problem, too_big
from gpasst.records import dataclass
from gpasst.wire import IPV6_CODEC

ERRORS_LIMIT = 16  # errors read at once, each of which may be reported; a socket may hold thousands
_PAYLOAD_BYTES = MESSAGE_BYTES[V6] - IPV6_CODEC.size
_CONTROL_BYTES = 256  # the error 64, packet info 40, TTL and TOS 24 each
_OFFENDER = {V4: SOCKADDR_IN_CODEC, V6: SOCKADDR_IN6_CODEC}


@dataclass(frozen=True, slots=True)
class QueuedError:
    """One error about a datagram of the socket.

    :ivar address: the datagram's destination, 4 or 16 bytes.
    :ivar port: its destination port; 0 for echo.
    :ivar scope: interface index if the address is link-local, else 0.
    :ivar local: the host's address that the error was sent to, as in a raw sender key; empty if it is not reported.
    :ivar problem: the error, None if it is not to be passed on.
    :ivar offender: address of the node that reported it, empty for the host's own kernel.
    :ivar payload: the start of the datagram's payload, as far as the error quoted it.
    """

    address: bytes
    port: int
    scope: int
    local: bytes
    problem: Problem | None
    offender: bytes
    payload: bytes


def read_errors(sock: HostSocket, family: int) -> list[QueuedError]:
    """Take up to `ERRORS_LIMIT` errors from the queue of a socket, without waiting.

    :param sock: the socket.
    :param family: 4 or 6.
    """
    errors: list[QueuedError] = []
    while len(errors) < ERRORS_LIMIT:
        try:
            payload, control, _, name = sock.recvmsg(_PAYLOAD_BYTES, _CONTROL_BYTES, MSG_ERRQUEUE | MSG_DONTWAIT)
        except OSError:
            break
        errors.append(parse_error(family, payload, control, name))
    return errors


def discard_errors(sock: HostSocket) -> int:
    """Take up to `ERRORS_LIMIT` errors from the queue of a socket, without waiting; return how many it was."""
    for number in range(ERRORS_LIMIT):
        try:
            sock.recvmsg(1, 0, MSG_ERRQUEUE | MSG_DONTWAIT)
        except OSError:
            return number
    return ERRORS_LIMIT


def parse_error(family: int, payload: bytes, control: Iterable[ControlMessage], name: SocketAddress) -> QueuedError:
    """Parse an entry of an error queue.

    :param family: 4 or 6.
    :param payload: the quoted payload.
    :param control: the control messages.
    :param name: the destination as an address tuple.
    """
    problem, offender, local = None, b"", b""
    for level, kind, value in control:
        if (level, kind) == (IPPROTO_IP, IP_RECVERR) or (level, kind) == (IPPROTO_IPV6, IPV6_RECVERR):
            problem, offender = _problem(family, value)
        elif (level, kind) == (IPPROTO_IP, IP_PKTINFO):
            # For an error the kernel fills in this field only.
            local = IN_PKTINFO_CODEC.unpack_from(value)["destination"]
        elif (level, kind) == (IPPROTO_IPV6, IPV6_PKTINFO):
            local = value[: IN6_PKTINFO_CODEC.size]
    host, port, *more = name
    _, scope = more or (0, 0)
    address = inet_pton(family_constant(family), host.partition("%")[0])
    return QueuedError(address, port, scope, local, problem, offender, payload)


def _problem(family: int, value: bytes) -> tuple[Problem | None, bytes]:
    """Return the problem of an error (None if it is not to be passed on), and the offender's address."""
    error = EXTENDED_ERROR_CODEC.unpack_from(value)
    if error["origin"] == SO_EE_ORIGIN_LOCAL:
        # Of the kernel's own errors only "message too long" has information: the path MTU.
        return (too_big(family, error["info"]) if error["info"] else None), b""
    if error["origin"] not in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6) or error["type"] not in TYPES[family]:
        return None, b""
    offender = _OFFENDER[family].unpack_from(value, EXTENDED_ERROR_CODEC.size)
    return Problem(error["type"], error["code"], error["info"]), offender["address"]
