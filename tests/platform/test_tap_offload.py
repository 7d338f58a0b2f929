"""A tap with virtio-net headers and USO (Linux 6.2, tun_set_offload): superframes cross in one read or write.

The header (linux/virtio_net.h) says that the checksum is partial (flags 1), of which kind the superframe is (GSO type
5, VIRTIO_NET_HDR_GSO_UDP_L4), and how long a segment is.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from gpasst.helper.client import Helper, Namespace
from gpasst.linux import SOL_UDP, UDP_GRO, UDP_SEGMENT
from tests.support.families import FAMILIES, FAMILY
from tests.support.namespaces import CONFIGURED

VIRTIO = struct.Struct("@BBHHHH")  # flags, GSO type, bytes of headers, of a segment, checksum's start and offset
NEEDS_CHECKSUM, GSO_UDP_L4 = 1, 5
HERE = {4: "10.1.2.3", 6: "fd11::3"}
BEHIND = {4: "10.1.2.77", 6: "fd11::77"}
IP_BYTES = {4: 20, 6: 40}
ETHERNET_BYTES = 14
GATEWAY_MAC = bytes.fromhex("020000000099")
SEGMENT, COUNT = 1000, 30


@pytest.fixture(scope="module")
def namespace(tun: None, remote: object) -> Iterator[Namespace]:
    """A namespace with a tap, whose other end is ours."""
    del tun, remote
    with Helper.start() as helper, helper.open(CONFIGURED) as opened:
        if "uso4" not in opened.offloads:
            pytest.skip("needs Linux 6.2 (USO)")
        yield opened


def udp_socket(namespace: Namespace, family: int) -> socket.socket:
    (descriptor,) = namespace.sockets(FAMILY[family], socket.SOCK_DGRAM, 0, 1)
    sock = socket.socket(FAMILY[family], socket.SOCK_DGRAM, 0, descriptor)
    sock.settimeout(2)
    return sock


def frames(tap: int) -> Iterator[bytes]:
    while True:
        assert select.select([tap], [], [], 2)[0], "no frame has come"
        yield os.read(tap, 1 << 17)


def resolved(namespace: Namespace, family: int, sender: socket.socket) -> None:
    """Let the namespace know the link address of its neighbour, by answering what it asks."""
    sender.sendto(b"first", (BEHIND[family], 9))
    for read in frames(namespace.tap):
        frame = read[VIRTIO.size :]
        raw = socket.inet_pton(FAMILY[family], BEHIND[family])
        if frame[12:14] == b"\x08\x06" and frame[38:42] == raw:
            reply = b"\0\x01\x08\0\x06\x04\0\x02" + GATEWAY_MAC + raw + frame[22:32]
            os.write(namespace.tap, VIRTIO.pack(0, 0, 0, 0, 0, 0) + frame[6:12] + GATEWAY_MAC + b"\x08\x06" + reply)
        elif frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135 and frame[62:78] == raw:
            body = b"\x88\0\0\0\x60\0\0\0" + raw + b"\x02\x01" + GATEWAY_MAC
            source, target = raw, frame[22:38]
            total = sum(struct.unpack(">16H", source + target)) + len(body) + 58 + sum(struct.unpack(">16H", body))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            body = body[:2] + (0xFFFF ^ total).to_bytes(2, "big") + body[4:]
            head = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + target
            os.write(
                namespace.tap, VIRTIO.pack(0, 0, 0, 0, 0, 0) + frame[6:12] + GATEWAY_MAC + b"\x86\xdd" + head + body
            )
        elif frame.endswith(b"first"):
            return


@FAMILIES
def test_a_superframe_of_the_namespace_is_read_in_one_piece(namespace: Namespace, family: int) -> None:
    with udp_socket(namespace, family) as sender:
        resolved(namespace, family, sender)
        payload = bytes(i * 7 & 0xFF for i in range(SEGMENT * COUNT + 5))
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", SEGMENT))]
        sender.sendmsg([payload], control, 0, (BEHIND[family], 9))
        frame = next(read for read in frames(namespace.tap) if len(read) > len(payload))
        headers = ETHERNET_BYTES + IP_BYTES[family] + 8
        flags, gso, length, size, start, offset = VIRTIO.unpack_from(frame)
        assert (flags, gso, size) == (NEEDS_CHECKSUM, GSO_UDP_L4, SEGMENT)
        assert (length, start, offset) == (headers, headers - 8, 6)
        assert frame[VIRTIO.size + headers :] == payload


@FAMILIES
@pytest.mark.parametrize("joined", [True, False])
def test_a_superframe_that_is_written_is_received(namespace: Namespace, family: int, joined: bool) -> None:
    """In one receive where the socket has UDP_GRO, else datagram by datagram."""
    with udp_socket(namespace, family) as target:
        target.bind((HERE[family], 0))
        if joined:
            target.setsockopt(SOL_UDP, UDP_GRO, 1)
        port = target.getsockname()[1]
        payload = bytes(i * 11 & 0xFF for i in range(SEGMENT * COUNT + 5))
        source, local = (socket.inet_pton(FAMILY[family], end[family]) for end in (BEHIND, HERE))
        length = len(payload) + 8
        if family == 4:
            head = struct.pack(">BBHIBBH", 0x45, 0, 20 + length, 0, 64, 17, 0) + source + local
            words = sum(struct.unpack(">10H", head))
            checksum = 0xFFFF ^ ((words & 0xFFFF) + (words >> 16))
            head = head[:10] + checksum.to_bytes(2, "big") + head[12:]
        else:
            head = struct.pack(">IHBB", 6 << 28, length, 17, 64) + source + local
        # The partial checksum is the pseudo header's; the kernel completes that of each segment.
        words = sum(struct.unpack(f">{len(source + local) // 2}H", source + local)) + 17 + length
        partial = (words & 0xFFFF) + (words >> 16)
        partial = (partial & 0xFFFF) + (partial >> 16)
        udp = struct.pack(">HHHH", 9, port, length, partial)
        headers = ETHERNET_BYTES + IP_BYTES[family] + 8
        virtio = VIRTIO.pack(NEEDS_CHECKSUM, GSO_UDP_L4, headers, SEGMENT, headers - 8, 6)
        ethernet = namespace.mac + GATEWAY_MAC + (b"\x08\0" if family == 4 else b"\x86\xdd")
        os.writev(namespace.tap, [virtio, ethernet + head + udp, payload])
        received = [target.recvmsg(65535, 64) for _ in range(1 if joined else COUNT + 1)]
        assert b"".join(data for data, *_ in received) == payload
        control = [(SOL_UDP, UDP_GRO, struct.pack("@i", SEGMENT))] if joined else []
        assert [found for _, found, _, _ in received] == [control] * len(received)


def test_nothing_to_read_and_a_senseless_header(namespace: Namespace) -> None:
    while select.select([namespace.tap], [], [], 0.05)[0]:
        os.read(namespace.tap, 1 << 17)
    with pytest.raises(OSError, match="Invalid argument"):
        os.write(namespace.tap, VIRTIO.pack(0, 0xFF, 0, SEGMENT, 0, 0) + bytes(60))
    with pytest.raises(OSError, match="Invalid argument"):
        os.write(namespace.tap, VIRTIO.pack(0, 0, 0, 0, 0, 0) + bytes(13))
