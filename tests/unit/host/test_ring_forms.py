"""Forms of a ring: where sends go, which pieces a message has, what comes with a datagram, and reads in order."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate

import pytest

from gpasst.host.arena import Arena
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import CONTROL_BYTES, NAME_BYTES, Messages, Reads, Sends, open_ring
from gpasst.linux import IP_RECVTOS, IPV6_RECVTCLASS, MSG_TRUNC, SOL_UDP, UDP_GRO, UDP_SEGMENT
from tests.support.families import FAMILIES
from tests.support.rings import PATIENCE, STRIDE, aims, available, descriptors, packed, receives_into, sockets

pytestmark = pytest.mark.skipif(not available(), reason="needs io_uring (Linux 6.1, kernel.io_uring_disabled 0)")


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring()
    yield made
    made.close()


@pytest.fixture
def arena() -> Arena:
    return Arena(STRIDE * ENTRIES)


@FAMILIES
def test_too_few_or_too_many_targets_change_nothing(ring: Ring, arena: Arena, family: int) -> None:
    """One that is missing among the others leaves what was aimed at before."""
    with ExitStack() as stack:
        (sender,), receivers = sockets(stack, family, 1), sockets(stack, family, 3)
        sends = Sends(ring, family, [arena])
        sends.addresses[:3] = arena.column(3, STRIDE)
        sends.lengths[:3] = array("I", [8] * 3)
        assert sends.aim(aims(family, [sender] * 3, receivers), 3)
        others = aims(family, [receivers[0]] * 3, [sender] * 3)
        assert not sends.aim(others[: 2 * len(others) // 3], 3)
        assert not sends.aim(others, 2)
        assert not sends.aim(others[:-1], 3)
        assert sends.failures(3) == []
        for receiver in receivers:
            receiver.settimeout(PATIENCE)
            assert receiver.recvfrom(100)[1] == sender.getsockname()
        with pytest.raises(BlockingIOError):
            sender.recv(100)


@FAMILIES
def test_more_targets_than_entries_are_refused(ring: Ring, family: int) -> None:
    with ExitStack() as stack:
        (sock,) = sockets(stack, family, 1)
        one = aims(family, [sock], [sock])
        sends = Sends(ring, family, [])
        assert sends.aim(one * ENTRIES, ENTRIES)
        with pytest.raises(ValueError):
            sends.aim(one * (ENTRIES + 1), ENTRIES + 1)


@FAMILIES
def test_one_datagram_of_each_socket_is_received(ring: Ring, arena: Arena, family: int) -> None:
    """With its sender, behind the headroom; a socket without one says so at once."""
    with ExitStack() as stack:
        senders, receivers = sockets(stack, family, ENTRIES), sockets(stack, family, ENTRIES)
        receives = receives_into(ring, arena, family)
        for turn in range(3):
            sent = {}
            for number, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
                if (number + turn) % 3:
                    sent[number] = bytes([number, turn]) * (number + 1)
                    sender.sendto(sent[number], receiver.getsockname())
                    receiver.settimeout(PATIENCE)
                    receiver.recv(1, socket.MSG_PEEK)
            results = receives.receive(descriptors(receivers))
            assert results == [len(sent.get(number, b"")) or -errno.EAGAIN for number in range(ENTRIES)]
            for number, data in sent.items():
                start = STRIDE * number + 100
                assert arena.bytes[start : start + len(data)] == data
                name = NAME_BYTES[family]
                assert receives.names[number * name : (number + 1) * name] == packed(family, senders[number])
                assert receives.control_lengths[number] == 0


@FAMILIES
def test_control_messages_and_flags_come_with_each_datagram(ring: Ring, arena: Arena, family: int) -> None:
    level, reports, sets = (
        (socket.IPPROTO_IP, IP_RECVTOS, socket.IP_TOS)
        if family == 4
        else (socket.IPPROTO_IPV6, IPV6_RECVTCLASS, socket.IPV6_TCLASS)
    )
    with ExitStack() as stack:
        (sender,), receivers = sockets(stack, family, 1), sockets(stack, family, 3)
        for receiver in receivers:
            receiver.setsockopt(level, reports, 1)
            receiver.settimeout(PATIENCE)
        receivers[1].setsockopt(SOL_UDP, UDP_GRO, 1)
        receives = receives_into(ring, arena, family, size=1000)
        for turn in range(2):
            marks = [0x28 + 4 * turn, 0x48, 0]
            for mark, receiver, size in zip(marks, receivers, (10, 300, 2000), strict=True):
                sender.setsockopt(level, sets, mark)
                if size == 300:
                    sender.sendmsg(
                        [bytes(size)], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", 100))], 0, receiver.getsockname()
                    )
                else:
                    sender.sendto(bytes(size), receiver.getsockname())
                receiver.recv(1, socket.MSG_PEEK)
            assert receives.receive(descriptors(receivers)) == [10, 300, 1000]
            assert [receives.flags[row] & MSG_TRUNC for row in range(3)] == [0, 0, MSG_TRUNC]
            found = []
            for row in range(3):
                used = receives.control_lengths[row]
                found.append(receives.controls[row * CONTROL_BYTES : row * CONTROL_BYTES + used].tobytes())
            assert [marks[row] in (data[16], data[-8]) for row, data in enumerate(found)] == [True] * 3
            assert struct.pack("@QiiI", 20, SOL_UDP, UDP_GRO, 100) in found[1]


@FAMILIES
def test_messages_have_pieces_and_control_messages(ring: Ring, arena: Arena, family: int) -> None:
    with ExitStack() as stack:
        senders, (receiver,) = sockets(stack, family, 2), sockets(stack, family, 1)
        receiver.settimeout(PATIENCE)
        arena.bytes[:9] = b"abcdefghi"
        messages = Messages(ring, family, 3, [arena])
        name = NAME_BYTES[family]
        segment = struct.pack("@QiiH", 18, SOL_UDP, UDP_SEGMENT, 3)
        messages.descriptors[:2] = descriptors(senders)
        messages.names[: 2 * name] = packed(family, receiver) * 2
        messages.bases[:3] = array("Q", [arena.address + at for at in (0, 3, 6)])
        messages.sizes[:3] = array("Q", [3, 3, 2])
        messages.controls[: len(segment)] = segment
        messages.control_lengths[0] = 24
        messages.bases[3], messages.sizes[3] = arena.address + 8, 1
        messages.counts[1] = 1
        assert messages.failures(2) == []
        assert [receiver.recv(100) for _ in range(4)] == [b"abc", b"def", b"gh", b"i"]


@FAMILIES
def test_messages_share_the_pieces(ring: Ring, arena: Arena, family: int) -> None:
    """Any number for each row, as long as they suffice for all."""
    counts = [1, 9, 0, 3, 1, 2]
    numbers = iter(range(100))
    expected = [bytes(next(numbers) for _ in range(count)) for count in counts]
    with ExitStack() as stack:
        senders, receivers = sockets(stack, family, len(counts)), sockets(stack, family, len(counts))
        arena.bytes[:100] = bytes(range(100))
        messages = Messages(ring, family, 1, [arena])
        assert (len(messages.bases), len(messages.places)) == (ENTRIES, ENTRIES)
        total, rows = sum(counts), len(counts)
        messages.bases[:total] = array("Q", range(arena.address, arena.address + total))
        messages.sizes[:total] = array("Q", [1] * total)
        first = list(accumulate(counts, initial=0))[:rows]
        messages.vectors[:rows] = array("Q", [messages.places[at] for at in first])
        messages.counts[:rows] = array("Q", counts)
        messages.descriptors[:rows] = descriptors(senders)
        messages.names[: rows * NAME_BYTES[family]] = b"".join(packed(family, sock) for sock in receivers)
        assert messages.failures(rows) == []
        for receiver, sender, data in zip(receivers, senders, expected, strict=True):
            receiver.settimeout(PATIENCE)
            assert receiver.recvfrom(100) == (data, sender.getsockname())


def test_messages_report_failures_alone(ring: Ring, arena: Arena) -> None:
    with ExitStack() as stack:
        senders, receivers = sockets(stack, 4, 4), sockets(stack, 4, 4)
        messages = Messages(ring, 4, 1, [arena])
        messages.bases[:4] = array("Q", [arena.address] * 4)
        messages.sizes[:4] = array("Q", [1, 65_530, 1, 1])
        messages.descriptors[:4] = descriptors(senders)
        messages.descriptors[2] = 1 << 20
        messages.names[: 4 * NAME_BYTES[4]] = b"".join(packed(4, sock) for sock in receivers)
        assert messages.failures(4) == [(1, errno.EMSGSIZE), (2, errno.EBADF)]
        for row in (0, 3):
            receivers[row].settimeout(PATIENCE)
            assert receivers[row].recv(100) == b"\0"


class Packets:
    """What stands for a tap: one end of a socket that keeps packets apart, and the form that reads from it."""

    def __init__(self, stack: ExitStack, ring: Ring, size: int = STRIDE) -> None:
        ours, self.theirs = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.ours = ours
        self.arena = Arena(2 * STRIDE * ENTRIES)
        self.reads = Reads(ring, self.arena.column(2 * ENTRIES, STRIDE), size, [self.arena])

    def at(self, number: int, size: int) -> bytes:
        """Return what was read to one of the places."""
        return bytes(self.arena.bytes[STRIDE * number : STRIDE * number + size])


@pytest.mark.parametrize("waits", [False, True])
def test_reads_keep_their_order_and_never_wait(ring: Ring, waits: bool) -> None:
    """Into the places from the one on that was asked for; also where the descriptor itself would wait."""
    with ExitStack() as stack:
        packets = Packets(stack, ring)
        packets.ours.setblocking(waits)
        fd = packets.ours.fileno()
        assert packets.reads.read(fd, 0) == [-errno.EAGAIN] * ENTRIES
        sent = [bytes([number]) * (number + 1) for number in range(ENTRIES + 3)]
        for data in sent:
            packets.theirs.send(data)
        assert packets.reads.read(fd, ENTRIES) == [len(data) for data in sent[:ENTRIES]]
        assert [packets.at(ENTRIES + number, number + 1) for number in range(ENTRIES)] == sent[:ENTRIES]
        assert not any(packets.arena.bytes[: STRIDE * ENTRIES]), "nothing was read to other places"
        assert packets.reads.read(fd, 0) == [len(data) for data in sent[ENTRIES:]] + [-errno.EAGAIN] * (ENTRIES - 3)
        assert [packets.at(number, ENTRIES + number + 1) for number in range(3)] == sent[ENTRIES:]
        assert not ring.completed(), "nothing had been left waiting"


def test_reads_are_of_one_size_and_of_any_descriptor(ring: Ring) -> None:
    with ExitStack() as stack:
        packets = Packets(stack, ring, 10)
        packets.ours.setblocking(False)
        packets.theirs.send(bytes(range(1, 21)))
        assert packets.reads.read(packets.ours.fileno(), 0)[0] == 10
        assert packets.at(0, 20) == bytes(range(1, 11)) + bytes(10)
        assert packets.reads.read(1 << 20, 0) == [-errno.EBADF] * ENTRIES
        packets.theirs.send(b"more")
        assert packets.reads.read(packets.ours.fileno(), 0)[0] == 4


def test_what_does_not_know_reads_that_do_not_wait_says_so(ring: Ring) -> None:
    """A file of /proc is such a thing on every kernel."""
    with ExitStack() as stack:
        packets = Packets(stack, ring)
        fd = os.open("/proc/self/comm", os.O_RDONLY)
        stack.callback(os.close, fd)
        assert packets.reads.read(fd, 0) == [-errno.EOPNOTSUPP] * ENTRIES
