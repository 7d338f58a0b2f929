"""Batches of many senders with room for headers, over loopback sockets of the kernel's."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import example, given, settings

from gpasst.host.receive import SLOTS, sender_key
from gpasst.host.receive_headed import HEADROOM, HeadedReceiver
from gpasst.linux import IP_TOS
from tests.support.addresses import ip
from tests.support.families import FAMILIES, LARGEST, LOOPBACK
from tests.support.headers import header
from tests.support.loopback import BURSTS, Piece, bound, port_of, send_joined, sockets

LOCAL4 = b"\x7f\0\0\1"


@pytest.fixture(scope="module")
def receivers() -> dict[int, HeadedReceiver]:
    return {family: HeadedReceiver(family) for family in (4, 6)}


@pytest.mark.parametrize("info", [False, True], ids=["", "reported"])
@FAMILIES
@settings(max_examples=30, deadline=None)
@example([(0, 1000, 10, True, 7), (1, 1000, 10, True, 0), (0, 500, 20, True, 499)])
@example([(0, 0, 3, False, 0), (1, 5, 3, False, 0), (0, 0, 1, False, 0)])
@given(bursts=BURSTS)
def test_bursts_come_out_as_they_went_in(
    receivers: dict[int, HeadedReceiver], info: bool, family: int, bursts: list[tuple[int, int, int, bool, int]]
) -> None:
    receiver = receivers[family]
    with sockets(family, 3, gro=True, info=info) as (target, *senders):
        sent: list[Piece] = []
        for who, size, count, joined, short in bursts:
            pieces = [os.urandom(size) for _ in range(count)]
            if joined and size:
                pieces += [os.urandom(short % size)] if short % size else []
                send_joined(senders[who], b"".join(pieces), size)
            else:
                for piece in pieces:
                    senders[who].send(piece)
            sent += [(port_of(senders[who]), piece) for piece in pieces]
        got: list[Piece] = []
        more = True
        while more:
            runs, more = receiver.receive(target.fileno())
            for key, total, segment, (payload,), _ in runs:
                port = int.from_bytes(key[2:4], "big")
                starts = range(0, total, segment) if total else (0,)
                got += [(port, bytes(payload[at : at + segment])) for at in starts]
        assert got == sent


@FAMILIES
def test_the_columns_of_a_batch(receivers: dict[int, HeadedReceiver], family: int) -> None:
    receiver = receivers[family]
    with sockets(family, 5) as (target, *senders):
        pieces = [bytes([i]) * (100 + i) for i in range(5)]
        for sender, piece in zip(senders, pieces, strict=True):
            sender.send(piece)
        columns = receiver.columns(target.fileno())
        assert columns.keys == [sender_key(family, ip(LOOPBACK[family]), port_of(sender), 0) for sender in senders]
        assert columns.sizes == list(map(len, pieces))
        assert columns.segments is None
        assert len(set(columns.tos_ttls)) == 1
        head = receiver.headroom
        for frame, piece in zip(receiver.frames, pieces, strict=False):
            assert frame[head : head + len(piece)] == piece
        assert receiver.columns(target.fileno()).keys == []


def test_a_row_for_each_datagram_whose_marks_differ(receivers: dict[int, HeadedReceiver]) -> None:
    receiver = receivers[4]
    with sockets(4, 2, info=True) as (target, one, two):
        target.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        for turn in range(3):
            for tos in (0, 8, 4, 0):
                for sender in (one, two):
                    sender.setsockopt(socket.IPPROTO_IP, IP_TOS, tos)
                    sender.send(b"x")
            columns = receiver.columns(target.fileno())
            assert [tos_ttl >> 8 for tos_ttl in columns.tos_ttls] == [0, 0, 8, 8, 4, 4, 0, 0], turn
            assert all(key.endswith(LOCAL4) for key in columns.keys)


@FAMILIES
def test_the_headers_fit_and_the_largest_datagram_does(receivers: dict[int, HeadedReceiver], family: int) -> None:
    assert HEADROOM[family] == len(header(family).buffer) == receivers[family].headroom
    with sockets(family) as (target, sender):
        payload = os.urandom(LARGEST[family])
        sender.send(payload)
        (run,), more = receivers[family].receive(target.fileno())
        assert (b"".join(run[3]), more) == (payload, False)


def test_more_than_one_call_takes() -> None:
    receiver = HeadedReceiver(4, 4)
    with sockets(4) as (target, sender):
        for i in range(6):
            sender.send(bytes([i]))
        runs, more = receiver.receive(target.fileno())
        assert (len(runs), more) == (4, True)
        runs, more = receiver.receive(target.fileno())
        assert (len(runs), more) == (2, False)
    assert receiver.slots < SLOTS


@FAMILIES
def test_a_pending_error_is_raised(receivers: dict[int, HeadedReceiver], family: int) -> None:
    with bound(family) as target, bound(family) as gone:
        target.connect(gone.getsockname())
        gone.close()
        target.send(b"?")
        with pytest.raises(ConnectionRefusedError) as caught:
            receivers[family].columns(target.fileno())
        assert caught.value.errno == errno.ECONNREFUSED
