"""Many datagrams per system call, over loopback sockets of the kernel's."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.host.receive import FIRST_STRIDE, RUN_BYTES, SLOTS, TOS_TTL_UNKNOWN, Receiver, sender_key, split_key
from gpasst.host.receive_contiguous import ContiguousReceiver
from gpasst.linux import IP_PKTINFO
from tests.support.addresses import ip
from tests.support.families import FAMILIES, FAMILY, LARGEST, LOOPBACK
from tests.support.loopback import BURSTS, Piece, bound, port_of, send_joined, sockets


def drain(receiver: Receiver, sock: socket.socket) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Receive until nothing is left; check what every run promises."""
    while True:
        runs, more = receiver.receive(sock.fileno())
        for key, total, segment, parts, _ in runs:
            payload = b"".join(parts)
            assert len(payload) == total
            assert segment <= total or not total
            assert total <= max(RUN_BYTES[receiver.family], LARGEST[receiver.family])
            yield key, total, segment, payload
        if not runs:
            assert not more
            return


def cut(total: int, segment: int, payload: bytes) -> list[bytes]:
    """Cut a run into its datagrams."""
    return [payload[start : start + segment] for start in range(0, total, segment)] if total else [b""]


def received(receiver: Receiver, sock: socket.socket) -> list[Piece]:
    pieces = []
    for key, total, segment, payload in drain(receiver, sock):
        address, port, scope, _ = split_key(receiver.family, key)
        assert (address, scope) == (ip(LOOPBACK[receiver.family]), 0)
        pieces += [(port, piece) for piece in cut(total, segment, payload)]
    return pieces


@pytest.mark.parametrize("gro", [False, True], ids=["each", "joined"])
@pytest.mark.parametrize("info", [False, True], ids=["", "reported"])
@FAMILIES
@settings(max_examples=40, deadline=None)
@example([(0, 1472, 20, False, 0)] * 2)
@example([(0, 1000, 10, True, 7), (1, 1000, 10, True, 0), (0, 500, 20, True, 499)])
@example([(0, 0, 3, False, 0), (0, 5, 3, False, 0), (0, 0, 1, False, 0)])
@given(bursts=BURSTS)
def test_bursts_come_out_as_they_went_in(
    family: int, info: bool, gro: bool, bursts: list[tuple[int, int, int, bool, int]]
) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family, 3, gro, info) as (target, *senders):
        sent: dict[int, list[bytes]] = defaultdict(list)
        order: list[Piece] = []
        for number, (who, size, count, joined, short) in enumerate(bursts):
            sender = senders[who]
            pieces = [bytes([number, i])[:size] + os.urandom(max(0, size - 2)) for i in range(count)]
            if joined and size:
                if short % size:
                    pieces.append(os.urandom(short % size))
                send_joined(sender, b"".join(pieces), size)
            else:
                for piece in pieces:
                    sender.send(piece)
            sent[port_of(sender)] += pieces
            order += [(port_of(sender), piece) for piece in pieces]
        got = received(receiver, target)
        assert got == order
        by_sender: dict[int, list[bytes]] = defaultdict(list)
        for port, piece in got:
            by_sender[port].append(piece)
        assert by_sender == sent


@FAMILIES
def test_a_burst_of_equal_datagrams_is_one_run(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family) as (target, sender):
        for turn in range(3):
            pieces = [bytes([turn, i]) * (FIRST_STRIDE // 2) for i in range(40)]
            for piece in pieces:
                sender.send(piece)
            (run,), more = receiver.receive(target.fileno())
            key, total, segment, parts, tos_ttl = run
            assert tos_ttl == TOS_TTL_UNKNOWN
            assert key == sender_key(family, ip(LOOPBACK[family]), port_of(sender), 0)
            assert (total, segment, len(parts), more) == (40 * FIRST_STRIDE, FIRST_STRIDE, 1, False)
            assert bytes(parts[0]) == b"".join(pieces)


@pytest.mark.parametrize("size", [1, 64, 1471, 1473, 9000, 30000])
@FAMILIES
def test_the_layout_follows_the_traffic(family: int, size: int) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family) as (target, sender):
        fitting = min(SLOTS, RUN_BYTES[family] // size)
        for _ in range(2):
            pieces = [os.urandom(size) for _ in range(fitting)]
            for piece in pieces:
                sender.send(piece)
            runs = list(drain(receiver, target))
            assert [piece for _, total, segment, data in runs for piece in cut(total, segment, data)] == pieces
        assert [(total, segment) for _, total, segment, _ in runs] == [(fitting * size, size)]


@FAMILIES
def test_a_shorter_datagram_ends_its_run(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family, 2) as (target, one, two):
        plan = [(one, FIRST_STRIDE), (one, FIRST_STRIDE), (one, 10), (one, FIRST_STRIDE), (two, 5), (one, 0)]
        for sender, size in plan:
            sender.send(bytes(size))
        runs = list(drain(receiver, target))
        assert [(total, segment) for _, total, segment, _ in runs] == [
            (2 * FIRST_STRIDE + 10, FIRST_STRIDE),
            (FIRST_STRIDE, FIRST_STRIDE),
            (5, 5),
            (0, 0),
        ]
        ports = [split_key(family, key)[1] for key, *_ in runs]
        assert ports == [port_of(one), port_of(one), port_of(two), port_of(one)]


@FAMILIES
def test_what_the_kernel_joined_is_one_run(family: int) -> None:
    receiver = ContiguousReceiver(family)
    payload = os.urandom(30 * 1000 + 17)
    with sockets(family, gro=True) as (target, sender):
        for _ in range(3):
            send_joined(sender, payload, 1000)
            runs = list(drain(receiver, target))
            assert [(total, segment, data) for _, total, segment, data in runs] == [(len(payload), 1000, payload)]


@FAMILIES
def test_the_largest_datagrams_arrive_whole(family: int) -> None:
    receiver = ContiguousReceiver(family)
    largest = LARGEST[family]
    with sockets(family) as (target, sender):
        for sizes in ((largest,), (1, largest), (65500, 3), (65500,), (0, largest), (3, 0)):
            pieces = [os.urandom(size) for size in sizes]
            for piece in pieces:
                sender.send(piece)
            assert [piece for _, piece in received(receiver, target)] == pieces


@pytest.mark.parametrize("slots", [1, 2, 7])
@FAMILIES
def test_fewer_slots_make_smaller_batches_of_the_same(family: int, slots: int) -> None:
    receiver = ContiguousReceiver(family, slots)
    sizes = [FIRST_STRIDE] * 9 + [3, 2000, 2000, 0, 2000, 500, 500]
    pieces = [os.urandom(size) for size in sizes]
    with sockets(family) as (target, sender):
        for piece in pieces:
            sender.send(piece)
        assert [piece for _, piece in received(receiver, target)] == pieces
        for _ in range(slots + 1):
            sender.send(bytes(500))
        runs, more = receiver.receive(target.fileno())
        assert sum(max(1, -(-total // (segment or 1))) for _, total, segment, *_ in runs) == slots
        assert more


@FAMILIES
def test_empty_datagrams_are_datagrams(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family, gro=True, info=True) as (target, sender):
        for _ in range(SLOTS + 6):
            sender.send(b"")
        assert received(receiver, target) == [(port_of(sender), b"")] * (SLOTS + 6)


@FAMILIES
def test_a_full_batch_says_that_there_may_be_more(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family) as (target, sender):
        assert receiver.receive(target.fileno()) == ([], False)
        for _ in range(SLOTS + 6):
            sender.send(b"x" * FIRST_STRIDE)
        assert receiver.receive(target.fileno())[1] is True
        while receiver.receive(target.fileno())[1]:
            pass
        assert receiver.receive(target.fileno()) == ([], False)


@pytest.mark.parametrize(("family", "addressed"), [(4, "127.0.0.1"), (4, "127.0.0.5"), (6, "::1")])
def test_keys_have_the_local_address_where_the_socket_reports_it(family: int, addressed: str) -> None:
    receiver = ContiguousReceiver(family)
    with sockets(family, info=True) as (_, sender), socket.socket(FAMILY[family], socket.SOCK_DGRAM) as target:
        option = (socket.IPPROTO_IP, IP_PKTINFO) if family == 4 else (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
        target.setsockopt(*option, 1)
        target.bind(("", 0))
        sender.connect((addressed, port_of(target)))
        for _ in range(3):
            sender.send(bytes(FIRST_STRIDE))
        ((key, total, _, _),) = list(drain(receiver, target))
        assert total == 3 * FIRST_STRIDE
        source, port, scope, local = split_key(family, key)
        assert (source, port, scope) == (ip(sender.getsockname()[0]), port_of(sender), 0)
        assert key == sender_key(family, source, port, 0) + local
        assert local[: len(source)] == ip(addressed)
        # An IPv6 address needs the interface it came by.
        assert local[len(source) :] == (b"" if family == 4 else struct.pack("@I", socket.if_nametoindex("lo")))


def test_local_addresses_are_distinguished_within_a_batch() -> None:
    receiver = ContiguousReceiver(4)
    with bound(4) as sender, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        target.bind(("", 0))
        to = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"]
        for address in to:
            sender.sendto(bytes(FIRST_STRIDE), (address, port_of(target)))
        runs = list(drain(receiver, target))
        assert [(split_key(4, key)[3], total // FIRST_STRIDE) for key, total, _, _ in runs] == [
            (ip("127.0.0.1"), 2),
            (ip("127.0.0.2"), 1),
            (ip("127.0.0.1"), 1),
        ]


@FAMILIES
def test_one_receiver_serves_many_sockets(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with (
        sockets(family, info=True) as (reported, one),
        sockets(family) as (plain, two),
        sockets(family, gro=True) as (joined, three),
    ):
        for turn in range(6):
            pieces = [bytes([turn]) * size for size in (FIRST_STRIDE, FIRST_STRIDE, 3, 700)]
            for sender in (one, two, three):
                for piece in pieces:
                    sender.send(piece)
            for target, sender in ((reported, one), (plain, two), (joined, three)):
                assert received(receiver, target) == [(port_of(sender), piece) for piece in pieces]
            two.send(b"last")
            ((key, *_),) = drain(receiver, plain)
            assert split_key(family, key)[3] == b"", "only some sockets report where a datagram was addressed"


@FAMILIES
def test_errors_of_a_socket_are_raised_once(family: int) -> None:
    receiver = ContiguousReceiver(family)
    with bound(family) as closed:
        place = closed.getsockname()
    with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as sock, bound(family) as friend:
        sock.connect(place)
        sock.send(b"nobody there")
        with pytest.raises(OSError) as caught:
            receiver.receive(sock.fileno())
        assert caught.value.errno == errno.ECONNREFUSED
        assert receiver.receive(sock.fileno()) == ([], False)
        sock.connect(friend.getsockname())
        friend.sendto(b"still fine", sock.getsockname())
        assert received(receiver, sock) == [(port_of(friend), b"still fine")]


def test_no_socket_is_an_error() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError) as caught:
            ContiguousReceiver(4).receive(reader)
        assert caught.value.errno == errno.ENOTSOCK
    finally:
        os.close(reader)
        os.close(writer)


@given(
    st.sampled_from([4, 6]).flatmap(
        lambda family: st.tuples(
            st.just(family),
            st.binary(min_size=4 if family == 4 else 16, max_size=4 if family == 4 else 16),
            st.integers(0, 65535),
            st.integers(0, 2**32 - 1 if family == 6 else 0),
            st.binary(max_size=20),
        )
    )
)
def test_keys_can_be_read_back(fields: tuple[int, bytes, int, int, bytes]) -> None:
    family, address, port, scope, local = fields
    assert split_key(family, sender_key(family, address, port, scope) + local) == (address, port, scope, local)


TOS_TTL_OPTIONS = {
    4: ((0, 13), (0, 12), (socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IP, socket.IP_TTL)),
    6: ((41, 66), (41, 51), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS), (socket.IPPROTO_IPV6, 16)),
}


@pytest.mark.parametrize("gro", [False, True], ids=["each", "joined"])
@pytest.mark.parametrize("info", [False, True], ids=["", "reported"])
@FAMILIES
@settings(max_examples=30, deadline=None)
@given(
    bursts=st.lists(
        st.tuples(st.integers(0, 255), st.integers(1, 255), st.sampled_from([0, 20, FIRST_STRIDE]), st.integers(1, 5)),
        min_size=1,
        max_size=6,
    )
)
def test_runs_end_where_tos_or_ttl_changes(
    family: int, info: bool, gro: bool, bursts: list[tuple[int, int, int, int]]
) -> None:
    receiver = ContiguousReceiver(family)
    tos, ttl, set_tos, set_ttl = TOS_TTL_OPTIONS[family]
    with sockets(family, 1, gro, info) as (target, sender):
        for option in (tos, ttl):
            target.setsockopt(*option, 1)
        expected = []
        for number, (class_, hops, size, count) in enumerate(bursts):
            sender.setsockopt(*set_tos, class_)
            sender.setsockopt(*set_ttl, hops)
            for copy in range(count):
                piece = bytes([number, copy])[:size] + bytes(max(0, size - 2))
                sender.send(piece)
                expected.append((piece, class_ << 8 | hops))
        got = []
        while True:
            runs, _ = receiver.receive(target.fileno())
            if not runs:
                break
            for _, total, segment, parts, tos_ttl in runs:
                got += [(piece, tos_ttl) for piece in cut(total, segment, b"".join(parts))]
        assert got == expected


def test_equal_tos_and_ttl_stay_one_run() -> None:
    receiver = ContiguousReceiver(4)
    with sockets(4, info=True) as (target, sender):
        for option in TOS_TTL_OPTIONS[4][:2]:
            target.setsockopt(*option, 1)
        sender.setsockopt(*TOS_TTL_OPTIONS[4][2], 0xB9)
        for _ in range(3):
            for _ in range(40):
                sender.send(bytes(FIRST_STRIDE))
            ((_, total, segment, _, tos_ttl),), _ = receiver.receive(target.fileno())
            assert (total, segment, tos_ttl) == (40 * FIRST_STRIDE, FIRST_STRIDE, 0xB940)
