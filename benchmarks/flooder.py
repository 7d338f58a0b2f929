"""A guest that floods its link with one kind of frame, and meanwhile answers what comes to one port.

    flooder.py KIND PORT            in a namespace: frames leave by a packet socket on the tap, a child process answers
    flooder.py KIND PORT PATH       a virtual machine on passt's UNIX socket: `BATCH` frames in each send

Standard library only. It prints "ready" when the first question may come, floods from the first line of its input on,
and prints how many frames it sent when its input ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator

INTERFACE = "up0"
GUEST, GATEWAY, REMOTE = (socket.inet_aton(text) for text in ("192.0.2.2", "192.0.2.1", "198.51.100.9"))
GUEST6, ROUTER6 = (socket.inet_pton(socket.AF_INET6, text) for text in ("fe80::9", "fe80::1"))
MAC, ROUTER_MAC = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
MORE_FRAGMENTS = 0x2000
UDP, ICMP, ICMPV6 = 17, 1, 58
BATCH = 64  # frames; few enough that an answer soon finds its place between two batches
READ_BYTES = 1 << 18

Frames = Iterator[bytes]


def internet_sum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)


def ip4(mac: bytes, target: bytes, protocol: int, size: int, number: int = 0, flags: int = 0) -> bytes:
    """Return Ethernet and IPv4 headers of a packet with `size` bytes of payload."""
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + size, number, flags, 64, protocol, 0, GUEST, target)
    return ROUTER_MAC + mac + b"\x08\x00" + head[:10] + internet_sum(head) + head[12:]


def none(mac: bytes) -> Frames:
    yield from ()


def peers(mac: bytes) -> Frames:
    """One port, ever new remote ends."""
    targets = (bytes((198, 51, 100, last)) for last in itertools.cycle(range(1, 255)))
    for target in targets:
        head = ip4(mac, target, UDP, 9)
        for port in range(1000, 61000):
            yield head + struct.pack(">HHHHc", 33000, port, 9, 0, b"x")


def mappings(mac: bytes) -> Frames:
    """Ever new ports."""
    head = ip4(mac, REMOTE, UDP, 9)
    for port in itertools.cycle(range(6000, 65000)):
        yield head + struct.pack(">HHHHc", port, 9, 9, 0, b"x")


def arp(mac: bytes) -> Frames:
    head = b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + mac + GUEST + bytes(6) + b"\xc0\x00"
    for number in itertools.cycle(range(1 << 16)):
        yield head + struct.pack(">H", number)


def ndp(mac: bytes) -> Frames:
    """Solicitations of ever new neighbours."""
    for number in itertools.count(256):
        target = ROUTER6[:8] + struct.pack(">Q", number)
        message = struct.pack(">BBHI16sBB6s", 135, 0, 0, 0, target, 1, 1, mac)
        head = struct.pack(">IHBB16s16s", 6 << 28, len(message), ICMPV6, 255, GUEST6, ROUTER6)
        checksum = internet_sum(GUEST6 + ROUTER6 + struct.pack(">II", len(message), ICMPV6) + message)
        yield ROUTER_MAC + mac + b"\x86\xdd" + head + message[:2] + checksum + message[4:]


def dhcp(mac: bytes) -> Frames:
    """DISCOVER with ever new transactions."""
    options = bytes.fromhex("638253633501013707010306 0f1a2a77ff").ljust(64, b"\0")
    size = 8 + 236 + len(options)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, UDP, 0, bytes(4), b"\xff" * 4)
    head = b"\xff" * 6 + mac + b"\x08\x00" + head[:10] + internet_sum(head) + head[12:]
    head += struct.pack(">HHHHBBBB", 68, 67, size, 0, 1, 1, 6, 0)
    for number in itertools.count():
        yield head + struct.pack(">I", number & 0xFFFFFFFF) + bytes(20) + mac.ljust(208, b"\0") + options


def echo(mac: bytes) -> Frames:
    """Requests of ever new identifiers."""
    head = ip4(mac, REMOTE, ICMP, 8)
    for number in itertools.cycle(range(1 << 16)):
        message = struct.pack(">BBHHH", 8, 0, 0, number, 1)
        yield head + message[:2] + internet_sum(message) + message[4:]


def fragments(mac: bytes) -> Frames:
    """Eight bytes each, of ever new datagrams."""
    for number in itertools.cycle(range(1 << 16)):
        yield ip4(mac, REMOTE, UDP, 8, number, MORE_FRAGMENTS) + bytes(8)


FLOODS = {flood.__name__: flood for flood in (none, arp, ndp, dhcp, echo, fragments, peers, mappings)}


def on_tap(kind: str, port: int) -> int:
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", port))
    print("ready", flush=True)
    if not os.fork():
        while True:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)
    sys.stdin.readline()
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((INTERFACE, 0))
    number = 0
    for number, frame in enumerate(FLOODS[kind](out.getsockname()[4]), 1):
        with contextlib.suppress(OSError):  # the queue is full
            out.send(frame)
        if not number % BATCH and select.select([sys.stdin], [], [], 0)[0]:
            break
    sys.stdin.read()
    return number


def on_stream(kind: str, port: int, path: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    frames = FLOODS[kind](MAC)
    # The proxy learns the guest's addresses from its first frame.
    waiting = framed(ip4(MAC, GATEWAY, UDP, 8) + struct.pack(">HHHH", port, 9, 8, 0))
    sock.sendall(waiting)
    print("ready", flush=True)
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    answers, waiting, pending, number, floods = b"", b"", b"", 0, False
    while True:
        if not waiting and not floods:
            waiting, answers = answers, b""
        elif not waiting:
            batch = list(itertools.islice(frames, BATCH))
            number += len(batch)
            waiting, answers = answers + b"".join(map(framed, batch)), b""
        poll.register(sock, select.POLLIN | (select.POLLOUT if waiting else 0))
        for fd, event in poll.poll():
            if fd != sock.fileno():
                if floods:
                    return number
                floods = bool(os.read(fd, 1))
                continue
            if event & select.POLLIN:
                pending += sock.recv(READ_BYTES)
                found, pending = answered(pending, port)
                answers += found
            if event & select.POLLOUT:
                waiting = waiting[sock.send(waiting) :]


def answered(data: bytes, port: int) -> tuple[bytes, bytes]:
    """Return the answers to what came to `port`, and the bytes of a frame that has not come whole."""
    at, answers = 0, b""
    while len(data) - at >= 4:
        (length,) = struct.unpack_from(">I", data, at)
        if len(data) - at - 4 < length:
            break
        frame = data[at + 4 : at + 4 + length]
        at += 4 + length
        if frame[12:14] == b"\x08\x00" and frame[23] == UDP and frame[36:38] == struct.pack(">H", port):
            (size,) = struct.unpack_from(">H", frame, 38)
            head = ip4(MAC, frame[26:30], UDP, size)
            answers += framed(head + frame[36:38] + frame[34:36] + struct.pack(">HH", size, 0) + frame[42 : 34 + size])
    return answers, data[at:]


def framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


if __name__ == "__main__":
    kind, port, *path = sys.argv[1:]
    print(on_stream(kind, int(port), path[0]) if path else on_tap(kind, int(port)), flush=True)
