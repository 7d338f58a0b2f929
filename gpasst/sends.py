"""Sending runs from UDP sockets: in one call where the kernel takes them so, else datagram by datagram.

Theory of operation: a `Sender` is what it takes to send to one peer, prepared once. `send_run` passes a run on as
superframes (UDP_SEGMENT). What the kernel refuses as a superframe (a path MTU below the segment, no segmentation on the
way) is repeated datagram by datagram; a refused datagram is counted, and the others go on.

A send may return the error that an earlier datagram met (E-23): it is counted, and the send repeated once.
"""

from __future__ import annotations

import errno
import struct
from _socket import socket as RawSocket  # a class
from typing import Any

from gpasst.batch import (
    IP_PKTINFO,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    SOL_UDP,
    UDP_SEGMENT,
)
from gpasst.counters import Counters, Drop, Tally
from gpasst.sockets import socket_address
from gpasst.udp.mappings import Peer

SEGMENTS_PER_SEND = 64  # UDP_MAX_SEGMENTS before Linux 6.9
# Errors that the kernel refuses a superframe with where it would take its datagrams.
NOT_SEGMENTED = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT)

_in_pktinfo = struct.Struct("@i4s4x")
_in6_pktinfo = struct.Struct("@16sI")
_segment = struct.Struct("@H").pack


class Sender:
    """What it takes to send to one peer, in the form that socket calls take.

    :ivar socket: the socket.
    :ivar address: the peer's address tuple, None for a connected socket.
    :ivar control: control messages that choose the local address; empty for the kernel's choice.
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
    """Prepare to send to a peer of the guest."""
    address, port, scope = peer.remote
    return answering(peer.endpoint.socket, address, port, scope, peer.local)


def answering(sock: RawSocket, address: bytes, port: int, scope: int, local: bytes) -> Sender:
    """Prepare to answer someone from the address that was addressed.

    :param sock: an unconnected socket.
    :param address: whom to answer, 4 or 16 bytes.
    :param port: the port to answer.
    :param scope: interface index of a link-local address, else 0.
    :param local: the addressed address as a raw sender key tells it (`batch`); empty for the kernel's choice.
    """
    control: tuple[tuple[int, int, bytes], ...] = ()
    if len(local) == 4:
        control = ((IPPROTO_IP, IP_PKTINFO, _in_pktinfo.pack(0, local)),)
    elif local:
        # The interface matters for link-local addresses only; elsewhere routing decides.
        control = ((IPPROTO_IPV6, IPV6_PKTINFO, _in6_pktinfo.pack(local[:16], scope)),)
    return Sender(sock, socket_address(address, port, scope), control)


def send_run(sender: Sender, payload: memoryview, segment: int, most: int, tally: Tally, counters: Counters) -> None:
    """Send a run of datagrams to one peer.

    :param sender: where to.
    :param payload: the datagrams, one behind the other.
    :param segment: bytes of each datagram but perhaps the last.
    :param most: how many datagrams one call may carry.
    :param tally: where traffic is counted.
    :param counters: where drops are counted.
    """
    total = len(payload)
    if segment >= total:
        send_one(sender, payload, tally, counters)
        return
    step = most * segment
    for start in range(0, total, step):
        piece = payload[start : start + step]
        size = len(piece)
        if size <= segment:
            send_one(sender, piece, tally, counters)
            continue
        control = [*sender.control, (SOL_UDP, UDP_SEGMENT, _segment(segment))]
        try:
            _sendmsg(sender, piece, control, counters)
        except OSError as error:
            if error.errno in NOT_SEGMENTED:
                for at in range(0, size, segment):
                    send_one(sender, piece[at : at + segment], tally, counters)
            else:
                _refused(error, -(-size // segment), counters)
            continue
        tally.superframes += 1
        tally.datagrams += -(-size // segment)
        tally.bytes += size


def send_one(sender: Sender, payload: memoryview, tally: Tally, counters: Counters) -> None:
    """Send one datagram; see `send_run`."""
    try:
        if sender.control or sender.address is None:
            _sendmsg(sender, payload, sender.control, counters)
        else:
            sender.socket.sendto(payload, sender.address)
    except OSError as error:
        _refused(error, 1, counters)
        return
    tally.datagrams += 1
    tally.bytes += len(payload)


def _sendmsg(sender: Sender, payload: memoryview, control: Any, counters: Counters) -> None:
    try:
        sender.socket.sendmsg([payload], control, 0, sender.address)
    except ConnectionRefusedError:
        counters.socket_errors += 1
        sender.socket.sendmsg([payload], control, 0, sender.address)


def _refused(error: OSError, count: int, counters: Counters) -> None:
    """Count datagrams under the reason for which the kernel refused them."""
    if error.errno in (errno.EAGAIN, errno.ENOBUFS):
        reason = Drop.SEND_FULL
    elif error.errno == errno.EMSGSIZE:
        reason = Drop.MESSAGE_SIZE
    else:
        reason = Drop.SEND_FAILED
    counters.drop(reason, count)


def send_slices(sender: Sender, slices: list[memoryview], segment: int, tally: Tally, counters: Counters) -> None:
    """Send a run of datagrams that do not lie one behind the other; see `send_run`.

    :param slices: the datagrams, all of `segment` bytes, no more than one call may carry.
    """
    control = [*sender.control, (SOL_UDP, UDP_SEGMENT, _segment(segment))]
    try:
        sender.socket.sendmsg(slices, control, 0, sender.address)
    except OSError:
        # Whatever it is, it is found out for each datagram.
        for payload in slices:
            send_one(sender, payload, tally, counters)
        return
    tally.superframes += 1
    tally.datagrams += len(slices)
    tally.bytes += segment * len(slices)
