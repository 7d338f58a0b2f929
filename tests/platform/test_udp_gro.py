"""UDP_GRO (Linux 5.0, net/ipv4/udp_offload.c): the kernel joins datagrams of one sender and says how long each is."""

from __future__ import annotations

import socket
import struct

import pytest

from gpasst.linux import SOL_UDP, UDP_GRO, UDP_MAX_SEGMENTS_SENT, UDP_SEGMENT
from tests.support.families import FAMILIES
from tests.support.loopback import sockets
from tests.support.need import need_option

SEGMENT = 100


@FAMILIES
@pytest.mark.parametrize("count", [2, 3, UDP_MAX_SEGMENTS_SENT])
@pytest.mark.parametrize("shorter", [0, 1, SEGMENT - 1])
def test_a_superframe_arrives_in_one_receive_with_the_size_of_its_segments(
    family: int, count: int, shorter: int
) -> None:
    with sockets(family) as (target, sender):
        need_option(target, SOL_UDP, UDP_GRO, 1, "5.0")
        payload = bytes(i & 0xFF for i in range(count * SEGMENT - shorter))
        sender.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", SEGMENT))])
        data, control, flags, _ = target.recvmsg(65535, 64)
        assert (data, flags) == (payload, 0)
        assert control == [(SOL_UDP, UDP_GRO, struct.pack("@i", SEGMENT))]


@FAMILIES
def test_a_single_datagram_has_no_such_message(family: int) -> None:
    with sockets(family) as (target, sender):
        need_option(target, SOL_UDP, UDP_GRO, 1, "5.0")
        sender.send(b"single")
        assert target.recvmsg(65535, 64)[:2] == (b"single", [])


@FAMILIES
def test_without_the_option_each_datagram_arrives_alone(family: int) -> None:
    with sockets(family) as (target, sender):
        sender.sendmsg([bytes(250)], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", SEGMENT))])
        assert [len(target.recv(65535, socket.MSG_DONTWAIT)) for _ in range(3)] == [SEGMENT, SEGMENT, 50]
