"""TOS, traffic class, TTL and hop limit as control messages (ip(7), RFC 3542): their sizes in both directions.

IP_TTL and IP_TOS are accepted in sends since Linux 3.14. What is received is an int, but for IP_TOS, a single byte.
"""

from __future__ import annotations

import socket
import struct

import pytest

from gpasst.linux import (
    IP_RECVTOS,
    IP_RECVTTL,
    IP_TOS,
    IP_TTL,
    IPV6_HOPLIMIT,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVTCLASS,
    IPV6_TCLASS,
    UDP_SEGMENT,
)
from tests.support.families import FAMILIES, LEVEL
from tests.support.loopback import sockets

REPORTED = {4: (IP_RECVTOS, IP_RECVTTL), 6: (IPV6_RECVTCLASS, IPV6_RECVHOPLIMIT)}
TOS, TTL = {4: IP_TOS, 6: IPV6_TCLASS}, {4: IP_TTL, 6: IPV6_HOPLIMIT}
CASES = [(0, 64), (0xB8, 1), (3, 255), (0xFF, 17)]


def report(family: int, target: socket.socket) -> None:
    for option in REPORTED[family]:
        target.setsockopt(LEVEL[family], option, 1)


def expected(family: int, tos: int, ttl: int) -> set[tuple[int, int, bytes]]:
    written = bytes([tos]) if family == 4 else struct.pack("@i", tos)
    return {(LEVEL[family], TOS[family], written), (LEVEL[family], TTL[family], struct.pack("@i", ttl))}


def sent(family: int, tos: int, ttl: int) -> list[tuple[int, int, bytes]]:
    return [(LEVEL[family], kind[family], struct.pack("@i", value)) for kind, value in ((TOS, tos), (TTL, ttl))]


@FAMILIES
@pytest.mark.parametrize(("tos", "ttl"), CASES)
def test_a_send_may_say_both_for_itself_alone(family: int, tos: int, ttl: int) -> None:
    with sockets(family) as (target, sender):
        report(family, target)
        sender.sendmsg([b"marked"], sent(family, tos, ttl))
        sender.send(b"plain")
        assert set(target.recvmsg(9, 128)[1]) == expected(family, tos, ttl)
        assert set(target.recvmsg(9, 128)[1]) == expected(family, 0, 64)


@FAMILIES
@pytest.mark.parametrize(("tos", "ttl"), CASES)
def test_so_may_a_superframe(family: int, tos: int, ttl: int) -> None:
    with sockets(family) as (target, sender):
        report(family, target)
        segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 4))
        sender.sendmsg([b"one two "], [*sent(family, tos, ttl), segment])
        for data in (b"one ", b"two "):
            got, control, _, _ = target.recvmsg(9, 128)
            assert (got, set(control)) == (data, expected(family, tos, ttl))


@FAMILIES
def test_a_ttl_of_zero_cannot_be_sent(family: int) -> None:
    with sockets(family) as (_, sender):
        if family == 4:
            with pytest.raises(OSError, match="Invalid argument"):
                sender.sendmsg([b"?"], sent(family, 0, 0)[1:])
        else:
            sender.sendmsg([b"?"], sent(family, 0, 0)[1:])  # IPv6 has no such rule
