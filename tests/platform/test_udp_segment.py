"""UDP_SEGMENT (Linux 4.18, udp_send_skb): one send of many datagrams, and what the kernel refuses of them.

Where the path is narrower than a segment, Linux says EINVAL and later versions EMSGSIZE. What is refused has not been
sent, not even in part, so it can be repeated datagram by datagram.
"""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from gpasst.linux import SOL_UDP, UDP_MAX_SEGMENTS, UDP_MAX_SEGMENTS_SENT, UDP_SEGMENT
from tests.support.families import FAMILIES, FAMILY
from tests.support.lab import FAR, NARROW, NARROW_MTU, Remote, bound, host_socket
from tests.support.loopback import sockets

HEADER = {4: 28, 6: 48}  # bytes of IP and UDP
PACKET = 65535  # bytes of the largest IP packet; of an IPv6 superframe too, which has one payload length


def send(sender: socket.socket, payload: bytes, segment: int) -> None:
    sender.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", segment))])


def arrived(target: socket.socket) -> list[int]:
    """Return the sizes of what a socket holds."""
    sizes = []
    while True:
        try:
            sizes.append(len(target.recv(65535, socket.MSG_DONTWAIT)))
        except BlockingIOError:
            return sizes


@FAMILIES
def test_as_many_segments_as_every_kernel_takes(family: int) -> None:
    with sockets(family) as (target, sender):
        send(sender, bytes(10 * UDP_MAX_SEGMENTS_SENT), 10)
        assert arrived(target) == [10] * UDP_MAX_SEGMENTS_SENT


@FAMILIES
def test_more_segments_than_any_kernel_takes(family: int) -> None:
    with sockets(family) as (target, sender):
        with pytest.raises(OSError) as caught:
            send(sender, bytes(10 * UDP_MAX_SEGMENTS + 1), 10)
        assert caught.value.errno == errno.EINVAL
        assert arrived(target) == []


@FAMILIES
def test_the_largest_superframe(family: int) -> None:
    with sockets(family) as (target, sender):
        size = PACKET - HEADER[family]
        send(sender, bytes(size), 1400)
        assert sum(arrived(target)) == size


@FAMILIES
def test_a_larger_one_is_too_long(family: int) -> None:
    with sockets(family) as (target, sender):
        with pytest.raises(OSError) as caught:
            send(sender, bytes(65535), 1400)
        assert caught.value.errno == errno.EMSGSIZE
        assert arrived(target) == []


@FAMILIES
@pytest.mark.parametrize("segment", [0, 50, 99])
def test_a_payload_of_one_segment_is_a_datagram(family: int, segment: int) -> None:
    with sockets(family) as (target, sender):
        send(sender, bytes(segment and 50), segment)
        send(sender, bytes(50), 0)
        assert arrived(target) == [segment and 50, 50]


@FAMILIES
def test_a_segment_that_the_path_is_too_narrow_for(remote: Remote, family: int) -> None:
    with (
        bound(remote.socket(FAMILY[family]), NARROW[family]) as target,
        host_socket(FAMILY[family]) as sender,
    ):
        fitting = NARROW_MTU - HEADER[family]
        sender.connect(target.getsockname()[:2])
        with pytest.raises(OSError) as caught:
            send(sender, bytes(3 * fitting), fitting + 1)
        assert caught.value.errno in (errno.EINVAL, errno.EMSGSIZE)
        send(sender, bytes(3 * fitting), fitting)
        # Cut by IP where it is no superframe.
        sender.send(bytes(fitting + 1))
        assert [len(target.recv(65535)) for _ in range(4)] == [fitting] * 3 + [fitting + 1]


@FAMILIES
def test_the_same_where_the_path_is_wide(remote: Remote, family: int) -> None:
    with (
        bound(remote.socket(FAMILY[family]), FAR[family]) as target,
        host_socket(FAMILY[family]) as sender,
    ):
        sender.connect(target.getsockname()[:2])
        send(sender, bytes(4200), 1400)
        assert [len(target.recv(65535)) for _ in range(3)] == [1400] * 3
