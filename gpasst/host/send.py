"""Sending runs from UDP sockets: in one call where the kernel takes them so, else datagram by datagram.

Theory of operation: a `Sender` is what it takes to send to one peer, prepared once. `send_run` passes a run on as
superframes (UDP_SEGMENT). What the kernel refuses as a superframe (a path MTU below the segment, no segmentation on the
way) is repeated datagram by datagram; a refused datagram is counted, and the others go on.

A send may fail with the error that an earlier datagram met, which it thereby clears (E-23): it is repeated.
"""

from __future__ import annotations

import errno
import struct
from _socket import socket as RawSocket  # a class
from typing import Any

from gpasst.counters import Counters, Drop, Tally
from gpasst.host.sockets import socket_address
from gpasst.linux import (
    IP_PKTINFO,
    IP_TOS,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_HOPLIMIT,
    IPV6_PKTINFO,
    IPV6_TCLASS,
    SOL_UDP,
    UDP_MAX_SEGMENTS_SENT,
    UDP_SEGMENT,
)
from gpasst.packet.address import is_multicast
from gpasst.udp.header import DEFAULT_TOS_TTL
from gpasst.udp.mapping import Peer

SEGMENTS_PER_SEND = UDP_MAX_SEGMENTS_SENT
# Errors that the kernel refuses a superframe with where it would take its datagrams.
NOT_SEGMENTED = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT)
# Errors that may be an earlier datagram's: what ICMP and ICMPv6 errors become (Linux: icmp_err_convert and its like).
REPORTED = frozenset(
    (
        errno.EACCES,
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMSGSIZE,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
    )
)
# More than one, since in a flood of errors the next one may be there already; an error of its own just comes again.
REPEATS = 3

_in_pktinfo = struct.Struct("@i4s4x")
_in6_pktinfo = struct.Struct("@16sI")
_segment = struct.Struct("@H").pack
_int = struct.Struct("@i").pack


class Sender:
    """What it takes to send to one peer, in the form that socket calls take.

    :ivar socket: the socket.
    :ivar address: the peer's address tuple, None for a connected socket.
    :ivar control: control messages that choose the local address and the mark; empty for the kernel's choice of the one
        and the ordinary other.
    """

    __slots__ = ("address", "control", "socket")

    def __init__(
        self,
        sock: RawSocket,
        address: tuple[Any, ...] | None = None,
        control: tuple[tuple[int, int, bytes], ...] = (),
    ) -> None:
        self.socket = sock
        self.address = address
        self.control = control


def sender_to(peer: Peer) -> Sender:
    """Prepare to send to a peer of the guest, and let it remember how."""
    address, port, scope = peer.remote
    sender = answering(peer.udp_socket.socket, address, port, scope, peer.local, peer.tos_ttl)
    peer.send = sender
    return sender


def answering(
    sock: RawSocket, address: bytes, port: int, scope: int, local: bytes = b"", tos_ttl: int = DEFAULT_TOS_TTL
) -> Sender:
    """Prepare to answer someone from the address that was addressed.

    :param sock: an unconnected socket.
    :param address: whom to answer, 4 or 16 bytes.
    :param port: the port to answer.
    :param scope: interface index of a link-local address, else 0.
    :param local: the addressed address as a raw sender key tells it (`batch`); empty for the kernel's choice.
    :param tos_ttl: TOS and TTL (`gpasst.udp.headers`).
    """
    control: tuple[tuple[int, int, bytes], ...] = ()
    if len(local) == 4:
        control = ((IPPROTO_IP, IP_PKTINFO, _in_pktinfo.pack(0, local)),)
    elif local:
        # The interface matters for link-local addresses only; elsewhere routing decides.
        control = ((IPPROTO_IPV6, IPV6_PKTINFO, _in6_pktinfo.pack(local[:16], scope)),)
    if tos_ttl != DEFAULT_TOS_TTL or is_multicast(address):
        control += _tos_ttl_control(len(address), tos_ttl)
    return Sender(sock, socket_address(address, port, scope), control)


def _tos_ttl_control(width: int, tos_ttl: int) -> tuple[tuple[int, int, bytes], ...]:
    """Give the control messages that mark a datagram to an address of 4 or 16 bytes."""
    # A TTL of 0 never crosses a wire (RFC 1122, section 3.2.1.7), and the kernel does not take it.
    tos, ttl = _int(tos_ttl >> 8), _int(max(tos_ttl & 0xFF, 1))
    if width == 4:
        return (IPPROTO_IP, IP_TOS, tos), (IPPROTO_IP, IP_TTL, ttl)
    return (IPPROTO_IPV6, IPV6_TCLASS, tos), (IPPROTO_IPV6, IPV6_HOPLIMIT, ttl)


def send_run(sender: Sender, payload: memoryview, segment: int, most: int, tally: Tally, counters: Counters) -> int:
    """Send a run of datagrams to one peer.

    :param sender: where to.
    :param payload: the datagrams, one behind the other.
    :param segment: bytes of each datagram but perhaps the last.
    :param most: how many datagrams one call may carry.
    :param tally: where traffic is counted.
    :param counters: where drops are counted.
    :return: the errno of what was refused last, 0 if nothing was.
    """
    total = len(payload)
    if segment >= total:
        return send_one(sender, payload, tally, counters)
    failure = 0
    step = most * segment
    for start in range(0, total, step):
        piece = payload[start : start + step]
        size = len(piece)
        if size <= segment:
            failure = send_one(sender, piece, tally, counters) or failure
            continue
        control = [*sender.control, (SOL_UDP, UDP_SEGMENT, _segment(segment))]
        try:
            sender.socket.sendmsg([piece], control, 0, sender.address)
        except OSError as error:
            number = error.errno or errno.EIO
            if number not in NOT_SEGMENTED:
                number = _repeat(sender, piece, control, number, counters)
            if number in NOT_SEGMENTED:
                for at in range(0, size, segment):
                    failure = send_one(sender, piece[at : at + segment], tally, counters) or failure
                continue
            if number:
                failure = _refused(number, -(-size // segment), counters)
                continue
        tally.superframes += 1
        tally.datagrams += -(-size // segment)
        tally.bytes += size
    return failure


def send_one(sender: Sender, payload: memoryview, tally: Tally, counters: Counters) -> int:
    """Send one datagram; see `send_run`."""
    try:
        if sender.control or sender.address is None:
            sender.socket.sendmsg([payload], sender.control, 0, sender.address)
        else:
            sender.socket.sendto(payload, sender.address)
    except OSError as error:
        number = _repeat(sender, payload, sender.control, error.errno or errno.EIO, counters)
        if number:
            return _refused(number, 1, counters)
    tally.datagrams += 1
    tally.bytes += len(payload)
    return 0


def _repeat(sender: Sender, payload: memoryview, control: Any, number: int, counters: Counters) -> int:
    """Send again what was refused with an error that may be an earlier datagram's.

    :param number: that error.
    :return: the errno that remains, 0 if it is sent.
    """
    for _ in range(REPEATS):
        if number not in REPORTED:
            break
        if sender.address is None:
            # A connected socket has no queue, where this would be counted when it is read.
            counters.socket_errors += 1
        try:
            sender.socket.sendmsg([payload], control, 0, sender.address)
        except OSError as error:
            number = error.errno or errno.EIO
        else:
            return 0
    return number


def _refused(number: int, count: int, counters: Counters) -> int:
    """Count datagrams under the reason for which the kernel refused them, and give that back."""
    if number in (errno.EAGAIN, errno.ENOBUFS):
        reason = Drop.SEND_FULL
    elif number == errno.EMSGSIZE:
        reason = Drop.MESSAGE_SIZE
    else:
        reason = Drop.SEND_FAILED
    counters.drop(reason, count)
    return number


def send_slices(sender: Sender, slices: list[memoryview], segment: int, tally: Tally, counters: Counters) -> int:
    """Send a run of datagrams that do not lie one behind the other; see `send_run`.

    :param slices: the datagrams, all of `segment` bytes, no more than one call may carry.
    :return: the errno of what was refused last, 0 if nothing was.
    """
    control = [*sender.control, (SOL_UDP, UDP_SEGMENT, _segment(segment))]
    try:
        sender.socket.sendmsg(slices, control, 0, sender.address)
    except OSError:
        # Whatever it is, it is found out for each datagram.
        failure = 0
        for payload in slices:
            failure = send_one(sender, payload, tally, counters) or failure
        return failure
    tally.superframes += 1
    tally.datagrams += len(slices)
    tally.bytes += segment * len(slices)
    return 0
