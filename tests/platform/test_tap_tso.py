"""A tap with TSO (TUN_F_TSO4 and TUN_F_TSO6): superframes of TCP cross in one read or write, whatever the MTU.

The virtio-net header (linux/virtio_net.h) has GSO type 1 for IPv4 and 4 for IPv6, and the size of a segment. The
checksum is that of the pseudo header; what is written is segmented, or handed on whole, by the kernel.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from gpasst.formats import TCP_ACK, TCP_SYN
from gpasst.helper.client import Helper, Namespace
from tests.support.families import FAMILIES, FAMILY
from tests.support.namespaces import CONFIGURED, inside
from tests.support.need import need
from tests.support.scripted import ones_sum, packed
from tests.support.scripted_tcp import DATA, MASK, TCP, Segment, parse_tcp, tcp_frame

VIRTIO = struct.Struct("@BBHHHH")  # flags, GSO type, bytes of headers, of a segment, checksum's start and offset
NEEDS_CHECKSUM = 1
GSO_TCP = {4: 1, 6: 4}
HERE, BEHIND = {4: "10.1.2.3", 6: "fd11::3"}, {4: "10.1.2.77", 6: "fd11::77"}
HEADERS = {4: 14 + 20 + 20, 6: 14 + 40 + 20}
GATEWAY_MAC = "02:00:00:00:00:99"
MSS = 1000
SIZE = 30 * MSS + 5
PORT = 80
CHECKSUM = 16  # offset in a TCP header
OPTIONS = b"\x02\x04" + MSS.to_bytes(2, "big")


@pytest.fixture(scope="module")
def namespace(tun: None, remote: object) -> Iterator[Namespace]:
    """A namespace with a tap, whose other end is ours, and a neighbour that it knows."""
    del tun, remote
    with Helper.start() as helper, helper.open(CONFIGURED) as opened:
        assert {"tso4", "tso6"} <= opened.offloads
        for address in BEHIND.values():
            done = inside(opened, need("ip"), "neigh", "add", address, "lladdr", GATEWAY_MAC, "dev", opened.name)
            assert done.returncode == 0, done.stderr
        yield opened


def frame(namespace: Namespace, family: int) -> tuple[tuple[int, ...], bytes]:
    """Read up to a frame of TCP; return its virtio-net header, and the frame."""
    place, kind = (23, b"\x08\0") if family == 4 else (20, b"\x86\xdd")
    while True:
        assert select.select([namespace.tap], [], [], 2)[0], "no frame has come"
        read = os.read(namespace.tap, 1 << 17)
        if read[VIRTIO.size :][12:14] == kind and read[VIRTIO.size + place] == TCP:
            return VIRTIO.unpack_from(read), read[VIRTIO.size :]


def write(namespace: Namespace, rest: bytes, virtio: bytes = bytes(VIRTIO.size)) -> None:
    """Write a frame, given from its EtherType on."""
    os.writev(namespace.tap, [virtio, namespace.mac, bytes.fromhex(GATEWAY_MAC.replace(":", "")), rest])


def headers(read: bytes, family: int) -> tuple[int, int, int]:
    """Return sequence number, port and flags of a segment."""
    at = HEADERS[family] - 20
    port, _, sequence = struct.unpack_from(">HHI", read, at)
    return sequence, port, read[at + 13]


@pytest.fixture
def connection(namespace: Namespace, request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, int, int]]:
    """A socket of the namespace, connected to us; with its port, and the number of its next byte."""
    family = request.getfixturevalue("family")
    (descriptor,) = namespace.sockets(FAMILY[family], socket.SOCK_STREAM, 0, 1)
    with socket.socket(FAMILY[family], socket.SOCK_STREAM, 0, descriptor) as sock:
        sock.setblocking(False)
        sock.connect_ex((BEHIND[family], PORT))
        _, read = frame(namespace, family)
        sequence, port, flags = headers(read, family)
        assert flags == TCP_SYN
        following = (sequence + 1) & MASK
        ends = BEHIND[family], HERE[family]
        write(namespace, tcp_frame(ends, (PORT, port), (0, following), TCP_SYN | TCP_ACK, options=OPTIONS))
        _, read = frame(namespace, family)
        assert headers(read, family)[2] == TCP_ACK
        sock.settimeout(2)
        yield sock, port, following


@FAMILIES
def test_a_superframe_of_the_namespace_is_read_in_one_piece(
    namespace: Namespace, family: int, connection: tuple[socket.socket, int, int]
) -> None:
    sock, port, following = connection
    payload = bytes(at * 7 & 0xFF for at in range(5 * MSS))
    sock.sendall(payload)
    virtio, read = frame(namespace, family)
    flags, gso, length, size, start, offset = virtio
    assert (flags, gso, size) == (NEEDS_CHECKSUM, GSO_TCP[family], MSS)
    assert (length, start, offset) == (HEADERS[family], HEADERS[family] - 20, CHECKSUM)
    assert read[HEADERS[family] :] == payload
    assert headers(read, family)[:2] == (following, port)


@FAMILIES
def test_a_superframe_that_is_written_is_received(
    namespace: Namespace, family: int, connection: tuple[socket.socket, int, int]
) -> None:
    sock, port, following = connection
    payload = bytes(at * 11 & 0xFF for at in range(SIZE))
    ends = BEHIND[family], HERE[family]
    rest = tcp_frame(ends, (PORT, port), (1, following), DATA, payload=payload)
    at = HEADERS[family] - 12  # without MAC addresses
    pseudo = ones_sum(packed(ends[0]) + packed(ends[1]) + struct.pack(">HH", TCP, 20 + SIZE))
    rest = rest[: at - 4] + pseudo.to_bytes(2, "big") + rest[at - 2 :]
    virtio = VIRTIO.pack(NEEDS_CHECKSUM, GSO_TCP[family], HEADERS[family], MSS, HEADERS[family] - 20, CHECKSUM)
    write(namespace, rest, virtio)
    data = b""
    while len(data) < SIZE:
        data += sock.recv(SIZE)
    assert data == payload
    _, read = frame(namespace, family)
    acknowledged = struct.unpack_from(">I", read, HEADERS[family] - 12)[0]
    assert 1 < acknowledged <= SIZE + 1


def test_a_frame_of_ours_is_what_the_checks_take() -> None:
    """The partial checksum above replaces one that was right."""
    rest = tcp_frame(("10.0.0.1", "10.0.0.2"), (1, 2), (3, 4), DATA, payload=b"hello")
    assert parse_tcp(bytes(12) + rest + bytes(60 - 12 - len(rest))) == Segment(
        ("10.0.0.1", 1), 2, 3, 4, DATA, 0xFFFF, b"", b"hello"
    )
