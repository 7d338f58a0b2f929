"""What a stream carries when batches of many senders cross it as columns: the very bytes that rows have."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpasst.counters import Counters, Drop
from gpasst.host.sockets import new_udp_socket, stand_in
from gpasst.link.stream import Stream
from gpasst.udp.mapping import Listener
from tests.support.bench import Bench, bench, ringed, server
from tests.support.families import FAMILIES, FAMILY, LOOPBACK
from tests.support.loopback import send_joined

SENDERS = 12
ROOM = 1 << 22  # bytes
# Sender, payload bytes, segment bytes (0: a datagram by itself).
SENDS = st.lists(
    st.tuples(
        st.integers(0, SENDERS), st.sampled_from([0, 1, 17, 18, 19, 64, 1400]), st.sampled_from([0, 0, 0, 0, 600])
    ),
    min_size=1,
    max_size=60,
)


@contextmanager
def stream_bench(ring: bool = True) -> Iterator[tuple[Bench, Stream, socket.socket]]:
    """A bench whose link is a stream, and the guest's socket."""
    with ExitStack() as stack:
        near, far = socket.socketpair()
        for sock in (near, far):
            stack.enter_context(sock)
            sock.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        made: list[Stream] = []

        def end(counters: Counters) -> Stream:
            made.append(Stream(counters, lambda sock, empty: None, lambda: None))
            return made[0]

        it = stack.enter_context(bench(end=end, ring=stack.enter_context(ringed(ring))))
        made[0].connect(near)
        yield it, made[0], far


@contextmanager
def ground(family: int, columns: bool = True) -> Iterator[tuple[Bench, Listener, list[socket.socket], socket.socket]]:
    """A listener on a bench, its senders, and the guest's socket."""
    with ExitStack() as stack:
        it, _, far = stack.enter_context(stream_bench())
        sock = new_udp_socket(family, gro=True, packet_info=True)
        stand_in(sock, family)
        sock.bind((LOOPBACK[family], 0))
        listener = Listener(family, sock.getsockname()[1], sock, target=7000)
        it.nat.listen(listener)
        senders = []
        for _ in range(SENDERS + 1):
            sender = stack.enter_context(socket.socket(FAMILY[family], socket.SOCK_DGRAM))
            sender.connect((LOOPBACK[family], listener.port))
            senders.append(sender)
        for _ in range(2):
            for sender in senders[:SENDERS]:  # the last one stays unknown
                sender.send(b"known")
            it.udp.step(listener)
        assert listener.scattered
        listener.scattered = columns
        far.recv(ROOM)
        yield it, listener, senders, far
        for _ in it.nat.retire(listener):
            pass
        sock.close()


@FAMILIES
@settings(max_examples=20, deadline=None)
@example([(i % SENDERS, 64, 0) for i in range(48)])
@example([(i % 3, 1400, 600 * (i % 2)) for i in range(20)])
@example([(SENDERS, 64, 0), (0, 3, 0), (SENDERS, 0, 0), (1, 1, 0)])
@given(sends=SENDS)
def test_columns_and_rows_are_the_same_bytes(family: int, sends: list[tuple[int, int, int]]) -> None:
    with ground(family) as columns, ground(family, columns=False) as rows:
        streams = []
        for it, listener, senders, far in (columns, rows):
            ports = {sender.getsockname()[1]: i for i, sender in enumerate(senders)}
            for _ in range(2):  # the second time with headers that may have been kept
                for number, (who, size, segment) in enumerate(sends):
                    payload = bytes([number]) * size
                    if 0 < segment < size:
                        send_joined(senders[who], payload, segment)
                    else:
                        senders[who].send(payload)
                it.udp.step(listener)
                streams.append(flows(far.recv(ROOM), ports))
        assert streams[:2] == streams[2:]
        assert columns[0].counters.udp.up.datagrams == rows[0].counters.udp.up.datagrams
        assert columns[0].counters.udp.up.bytes == rows[0].counters.udp.up.bytes


def flows(stream: bytes, ports: dict[int, int]) -> dict[int, list[bytes]]:
    """Return the frames of each sender, without what differs between two senders: ports and checksums."""
    found: dict[int, list[bytes]] = {}
    while stream:
        size = int.from_bytes(stream[:4], "big")
        frame, stream = bytearray(stream[4 : 4 + size]), stream[4 + size :]
        assert len(frame) == size >= 60
        udp = 34 if frame[12:14] == b"\x08\x00" else 54
        sender = ports[int.from_bytes(frame[udp : udp + 2], "big")]
        if udp == 54:
            pseudo = bytes(frame[22:54]) + bytes(frame[udp + 4 : udp + 6]) + b"\0\x11"
            length = int.from_bytes(frame[udp + 4 : udp + 6], "big")
            data = pseudo + bytes(frame[udp : udp + length]) + b"\0" * (length % 2)
            total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
            assert total % 0xFFFF == 0, "the checksum"
        frame[udp : udp + 2] = frame[udp + 6 : udp + 8] = b"\0\0"
        found.setdefault(sender, []).append(bytes(frame))
    return found


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "no ring"])
def test_many_mappings_that_are_answered_at_once(ring: bool) -> None:
    with stream_bench(ring) as (it, _, far), server(4) as host:
        to = []
        for _ in range(20):
            it.send(4, host.getsockname(), b"?")
            to.append(host.recvfrom(9)[1])
        for number, address in enumerate(to):
            host.sendto(bytes([number]) * 30, address)
        assert it.ready.step() == 20
        stream = far.recv(ROOM)
        assert len(stream) == 20 * (4 + 42 + 30)
        assert sorted(stream[at + 46] for at in range(0, len(stream), 76)) == list(range(20))


def test_what_the_guest_does_not_read_waits_and_then_is_dropped() -> None:
    with ground(4) as (it, listener, senders, far):
        sent = 0
        while Drop.STREAM_FULL not in it.counters.drops:
            listener.scattered = True
            for i in range(SENDERS):
                senders[i].send(os.urandom(1400))
            sent += SENDERS
            it.udp.step(listener)
            assert sent < 20000
        known = it.counters.udp.up.datagrams - 2 * SENDERS
        assert known + it.counters.drops[Drop.STREAM_FULL] == sent
        assert isinstance(it.end, Stream)
        stream = b""
        while True:
            try:
                stream += far.recv(ROOM)
            except BlockingIOError:
                if not it.end.full:
                    break
            it.end.empty()
        assert len(stream) == known * (4 + 42 + 1400)


def test_without_a_guest_they_are_counted() -> None:
    with ground(4) as (it, listener, senders, _):
        assert isinstance(it.end, Stream)
        it.end.disconnect()
        for i in range(SENDERS):
            senders[i].send(b"lost")
        it.udp.step(listener)
        assert it.counters.drops == {Drop.NO_GUEST: SENDERS}
