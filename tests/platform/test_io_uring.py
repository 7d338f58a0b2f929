"""io_uring on a tap (Linux 6.4: RWF_NOWAIT, tun_chr_open): writes that do not wait arrive in the order of entries."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Iterator

import pytest

from gpasst.helper.client import Helper, Namespace
from gpasst.host.arena import Arena
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import Writes, open_ring
from gpasst.packet.checksum import internet
from tests.support.namespaces import CONFIGURED

PORT = 5001
STRIDE = 256
ROUNDS = 5


@pytest.fixture(scope="module")
def namespace(tun: None) -> Iterator[Namespace]:
    """A namespace with a tap, whose other end is ours."""
    del tun
    with Helper.start() as helper, helper.open(CONFIGURED) as opened:
        yield opened


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        made = open_ring()
    except OSError:
        pytest.skip("needs io_uring (Linux 6.1, kernel.io_uring_disabled 0)")
    yield made
    made.close()


def frame(number: int) -> bytes:
    """Return a datagram to the namespace, from a port of its own, as the tap takes it."""
    datagram = struct.pack(">HHHHI", 1000 + number, PORT, 12, 0, number)
    addresses = socket.inet_aton("10.1.2.9") + socket.inet_aton("10.1.2.3")
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    head = head[:10] + internet(head).to_bytes(2, "big") + head[12:]
    return bytes(10) + bytes.fromhex("020000000007 020000000099 0800") + head + datagram


@pytest.mark.parametrize("blocking", [False, True])
def test_writes_to_a_tap_keep_their_order(namespace: Namespace, ring: Ring, blocking: bool) -> None:
    arena = Arena(STRIDE * ENTRIES)
    writes = Writes(ring, [arena])
    before = os.get_blocking(namespace.tap)
    os.set_blocking(namespace.tap, blocking)
    if not writes.accepted(namespace.tap):
        pytest.skip("needs Linux 6.4 (RWF_NOWAIT on a tap)")
    (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 0, descriptor) as sock:
        sock.bind(("10.1.2.3", PORT))
        sock.settimeout(2)
        writes.descriptors[:] = array("i", [namespace.tap]) * ENTRIES
        writes.addresses[:] = arena.column(ENTRIES, STRIDE)
        for turn in range(ROUNDS):
            frames = [frame(turn * ENTRIES + number) for number in range(ENTRIES)]
            for number, data in enumerate(frames):
                arena.bytes[STRIDE * number : STRIDE * number + len(data)] = data
            writes.lengths[:] = array("I", map(len, frames))
            assert writes.failures(ENTRIES) == []
            found = [int.from_bytes(sock.recv(100), "big") for _ in range(ENTRIES)]
            assert found == list(range(turn * ENTRIES, (turn + 1) * ENTRIES))
    os.set_blocking(namespace.tap, before)


def test_a_frame_that_the_tap_refuses_stops_no_other(namespace: Namespace, ring: Ring) -> None:
    arena = Arena(STRIDE * 3)
    writes = Writes(ring, [arena])
    data = frame(7)
    arena.bytes[: len(data)] = data
    writes.descriptors[:3] = array("i", [namespace.tap]) * 3
    writes.addresses[:3] = array("Q", [arena.address]) * 3
    writes.lengths[:3] = array("I", [len(data), 5, len(data)])
    (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 0, descriptor) as sock:
        sock.bind(("10.1.2.3", PORT))
        sock.settimeout(2)
        assert writes.failures(3) == [(1, errno.EINVAL)]
        assert [sock.recv(100)[-1] for _ in range(2)] == [7, 7]


def test_a_file_that_could_wait_is_not_accepted(ring: Ring) -> None:
    """One whose driver does not know RWF_NOWAIT, as a tap's before Linux 6.4."""
    with open("/proc/self/comm", "wb", buffering=0) as file:
        assert not Writes(ring, []).accepted(file.fileno())
