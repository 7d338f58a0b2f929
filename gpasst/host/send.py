"""Sending runs from UDP sockets: in one call where the kernel accepts them, else datagram by datagram.

Theory of operation: a `Sender` holds the arguments of every send to one remote end. `send_run` sends a run as
superframes (UDP_SEGMENT). A superframe that the kernel refuses (a path MTU below the segment size, no segmentation
offload on the path) is sent again datagram by datagram; a refused datagram is counted, and the others are sent.

The kernel returns the pending error of a socket, which an ICMP error about an earlier datagram left, from the next call
on that socket, and clears it. Such a call sent nothing, so a failed send is retried.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from gpasst.counters import Counters, Tally
from gpasst.flow.sender import ControlMessage, HostSocket, Sender
from gpasst.host.kernel_wire import IN6_PKTINFO_CODEC, IN_PKTINFO_CODEC
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
from gpasst.packet.address import IP4_BYTES, IP6_BYTES, UNSPECIFIED, V4, family_of, is_multicast
from gpasst.packet.refusal import refusal
from gpasst.udp.header import DEFAULT_TOS_TTL, TTL_MASK
from gpasst.udp.mapping import Peer

SEGMENTS_PER_SEND = UDP_MAX_SEGMENTS_SENT
# Errors of a superframe whose datagrams the kernel may accept one by one.
NOT_SEGMENTED = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT)
# Errors that may be an earlier datagram's: those that Linux makes of ICMP errors (icmp_err_convert and tab_unreach).
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
# Retry more than once: under a flood of ICMP errors the next pending error may already be queued. A genuine send error
# simply recurs.
REPEATS = 3

_in_pktinfo = IN_PKTINFO_CODEC.layout.pack
_in6_pktinfo = IN6_PKTINFO_CODEC.layout.pack
_segment = struct.Struct("@H").pack
_int = struct.Struct("@i").pack


def sender_to(peer: Peer) -> Sender:
    """Make the sender to a peer of the guest, and keep it in the peer."""
    address, port, scope = peer.remote
    assert peer.udp_socket.socket is not None
    sender = answering(peer.udp_socket.socket, address, port, scope, peer.local, peer.tos_ttl)
    peer.sender = sender
    return sender


def answering(
    sock: HostSocket, address: bytes, port: int, scope: int, local: bytes = b"", tos_ttl: int = DEFAULT_TOS_TTL
) -> Sender:
    """Make the sender of replies to a remote end, from the address that it had sent to.

    :param sock: an unconnected socket.
    :param address: of the remote end, 4 or 16 bytes.
    :param port: of the remote end; 0 for a raw socket.
    :param scope: interface index of a link-local address, else 0.
    :param local: the source address of the replies, as in a raw sender key (`gpasst.host.receive`); empty for the
        kernel's choice.
    :param tos_ttl: TOS times 256 plus TTL, or the same of traffic class and hop limit.
    """
    control: tuple[ControlMessage, ...] = ()
    if len(local) == IP4_BYTES:
        control = ((IPPROTO_IP, IP_PKTINFO, _in_pktinfo(0, local, UNSPECIFIED[V4])),)
    elif local:
        # The interface matters for link-local addresses only; elsewhere routing decides.
        control = ((IPPROTO_IPV6, IPV6_PKTINFO, _in6_pktinfo(local[:IP6_BYTES], scope)),)
    # Multicast has a TTL option of its own, which stand-ins leave at the kernel's default of 1.
    if tos_ttl != DEFAULT_TOS_TTL or is_multicast(address):
        control += _tos_ttl_control(family_of(address), tos_ttl)
    return Sender(sock, socket_address(address, port, scope), control)


def _tos_ttl_control(family: int, tos_ttl: int) -> tuple[ControlMessage, ...]:
    """Return the control messages that set TOS and TTL of a datagram of `family`, 4 or 6."""
    # A TTL of 0 never crosses a wire (RFC 1122, section 3.2.1.7), and the kernel refuses it.
    tos, ttl = _int(tos_ttl >> 8), _int(max(tos_ttl & TTL_MASK, 1))
    if family == V4:
        return (IPPROTO_IP, IP_TOS, tos), (IPPROTO_IP, IP_TTL, ttl)
    return (IPPROTO_IPV6, IPV6_TCLASS, tos), (IPPROTO_IPV6, IPV6_HOPLIMIT, ttl)


def send_run(sender: Sender, payload: memoryview, segment: int, most: int, tally: Tally, counters: Counters) -> int:
    """Send a run of datagrams to one remote end.

    :param sender: its sender.
    :param payload: the datagrams, one behind the other.
    :param segment: bytes of each datagram but perhaps the last.
    :param most: datagrams that one call may carry, at most `SEGMENTS_PER_SEND`.
    :param tally: counts the traffic.
    :param counters: count the drops.
    :return: the errno of the last refused datagram, 0 if none was refused.
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
    """Send one datagram; parameters and result are those of `send_run`."""
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


def _repeat(
    sender: Sender, payload: memoryview, control: Iterable[ControlMessage], number: int, counters: Counters
) -> int:
    """Retry a send that failed with an error that may be an earlier datagram's.

    :param sender: the sender.
    :param payload: the datagram or superframe.
    :param control: the control messages of the send.
    :param number: errno of the failed send.
    :param counters: count the socket's errors.
    :return: the errno of the last try, 0 if the datagram was sent.
    """
    for _ in range(REPEATS):
        if number not in REPORTED:
            break
        if sender.address is None:
            # A connected socket has no error queue: this is the only trace of the error.
            counters.socket_errors += 1
        try:
            sender.socket.sendmsg([payload], control, 0, sender.address)
        except OSError as error:
            number = error.errno or errno.EIO
        else:
            return 0
    return number


def _refused(number: int, count: int, counters: Counters) -> int:
    """Count `count` datagrams under the reason for which the kernel refused them; return the errno `number`."""
    counters.drop(refusal(number).reason, count)
    return number


def send_slices(sender: Sender, slices: list[memoryview], segment: int, tally: Tally, counters: Counters) -> int:
    """Send a run of datagrams that are not contiguous in memory.

    :param sender: the sender.
    :param slices: the datagrams, all of `segment` bytes, at most `SEGMENTS_PER_SEND`.
    :param segment: bytes of each.
    :param tally: counts the traffic.
    :param counters: count the drops.
    :return: the errno of the last refused datagram, 0 if none was refused.
    """
    control = [*sender.control, (SOL_UDP, UDP_SEGMENT, _segment(segment))]
    try:
        sender.socket.sendmsg(slices, control, 0, sender.address)
    except OSError:
        # Whatever the error is, each datagram's own send handles it.
        failure = 0
        for payload in slices:
            failure = send_one(sender, payload, tally, counters) or failure
        return failure
    tally.superframes += 1
    tally.datagrams += len(slices)
    tally.bytes += segment * len(slices)
    return 0
