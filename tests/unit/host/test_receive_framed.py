"""Datagrams that land where their frames will stand, over loopback sockets of the kernel's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings

from gpasst.host.receive import SLOTS, split_key
from gpasst.host.receive_framed import BUFFER_BYTES, GAP, MINIMUM_PAYLOAD, FramedReceiver, frame_bytes
from tests.support.families import FAMILIES, LARGEST
from tests.support.loopback import BURSTS, Piece, port_of, send_joined, sockets


def frames(receiver: FramedReceiver, sock: socket.socket) -> Iterator[tuple[bytes, list[bytes], int]]:
    """Receive until nothing is left; yield key, datagrams and parts of each run, and fill every gap."""
    family = receiver.family
    while True:
        runs, more = receiver.receive(sock.fileno())
        for key, total, segment, payload, _ in runs:
            frames, step = payload[0], frame_bytes(family, segment)
            count = -(-total // segment) if total else 1
            last = total - (count - 1) * segment
            assert len(frames) == (count - 1) * step + GAP[family] + max(last, MINIMUM_PAYLOAD[family])
            sizes = [segment] * (count - 1) + [last]
            starts = range(GAP[family], GAP[family] + count * step, step)
            yield key, [bytes(frames[at : at + size]) for at, size in zip(starts, sizes, strict=True)], len(payload)
            # As headers do: whatever was received must not depend on what stands between.
            for at in starts:
                frames[at - GAP[family] : at] = os.urandom(GAP[family])
        if not runs:
            assert not more
            return


@pytest.mark.parametrize("gro", [False, True], ids=["each", "joined"])
@FAMILIES
@settings(max_examples=60, deadline=None)
@example([(0, 1472, 20, False, 0)] * 2)
@example([(0, 1000, 10, True, 7), (1, 1000, 10, True, 0), (0, 500, 20, True, 499)])
@example([(0, 1000, 10, True, 0), (1, 300, 3, False, 0), (0, 2000, 8, True, 5), (1, 1500, 2, False, 0)])
@example([(0, 0, 3, False, 0), (0, 5, 3, False, 0), (0, 0, 1, False, 0)])
@given(bursts=BURSTS)
def test_bursts_come_out_as_they_went_in(family: int, gro: bool, bursts: list[tuple[int, int, int, bool, int]]) -> None:
    receiver = FramedReceiver(family)
    with sockets(family, 3, gro) as (target, *senders):
        order: list[Piece] = []
        for number, (who, size, count, joined, short) in enumerate(bursts):
            pieces = [bytes([number, i])[:size] + os.urandom(max(0, size - 2)) for i in range(count)]
            if joined and size:
                if short % size:
                    pieces.append(os.urandom(short % size))
                send_joined(senders[who], b"".join(pieces), size)
            else:
                for piece in pieces:
                    senders[who].send(piece)
            order += [(port_of(senders[who]), piece) for piece in pieces]
        got = [(split_key(family, key)[1], piece) for key, pieces, _ in frames(receiver, target) for piece in pieces]
        assert got == order


@FAMILIES
def test_equal_datagrams_are_one_run_at_the_start_of_the_buffer(family: int) -> None:
    receiver = FramedReceiver(family)
    with sockets(family) as (target, sender):
        for size in (100, 1400, 5):
            for _ in range(2):
                sent = [os.urandom(size) for _ in range(40)]
                for piece in sent:
                    sender.send(piece)
                runs = list(frames(receiver, target))
            assert [pieces for _, pieces, _ in runs] == [sent]
            assert runs[0][2] == 2, "the layout is behind the payload, since the run begins at the start of the buffer"


@FAMILIES
def test_the_layout_changes_with_the_sizes_only(family: int) -> None:
    receiver = FramedReceiver(family)
    layouts = []
    with sockets(family, gro=True) as (target, sender):
        for size in (1000, 1000, 700, 700, 1000):
            # The first of the two may be of the size before, and is then copied.
            for _ in range(2):
                send_joined(sender, os.urandom(10 * size), size)
                ((_, _, _, payload, _),), _ = receiver.receive(target.fileno())
            _, layout = payload
            layouts.append(layout)
    changes = [one is not other for one, other in pairwise(layouts)]
    assert changes == [False, True, False, True]


@FAMILIES
def test_the_largest_datagrams(family: int) -> None:
    receiver = FramedReceiver(family)
    with sockets(family) as (target, sender):
        for size in (LARGEST[family], 3, LARGEST[family]):
            data = os.urandom(size)
            sender.send(data)
            assert [pieces for _, pieces, _ in frames(receiver, target)] == [[data]]
    assert SLOTS * frame_bytes(family, 1472) < BUFFER_BYTES
