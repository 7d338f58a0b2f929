"""Load generators: each mode is one program run, standard library only, many datagrams a system call.

    load.py send ADDRESS PORT SIZE SECONDS SEGMENTS    flood; prints {"sent": N, "seconds": S}
    load.py receive ADDRESS PORT GRO                   count until end of input; prints the count
    load.py echo ADDRESS PORT                          answer until end of input
    load.py ask ADDRESS PORT SIZE SECONDS              ask, await the answer, again; prints the round trips

SEGMENTS above 1 sends superframes (UDP_SEGMENT). A receiver prints "ready" when it is, and stops when its standard
input ends.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import struct
import sys
import time

UDP_SEGMENT = 103
UDP_GRO = 104
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
MSG_DONTWAIT = 0x40
BATCH = 64  # datagrams a system call
BUFFER = 65536
RING = 16 << 20  # bytes of socket buffer

libc = ctypes.CDLL(None, use_errno=True)


def udp_socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, RING)
    return sock


class Messages:
    """An array of struct mmsghdr over one buffer each, or over one buffer for all."""

    def __init__(self, count: int, size: int, control: int, shared: bool) -> None:
        self.data = ctypes.create_string_buffer(size if shared else size * count)
        self.control = ctypes.create_string_buffer(max(1, control * count))
        self.vectors = (ctypes.c_uint64 * (2 * count))()
        self.headers = ctypes.create_string_buffer(64 * count)
        self.address = ctypes.addressof(self.headers)
        for i in range(count):
            self.vectors[2 * i] = ctypes.addressof(self.data) + (0 if shared else size * i)
            self.vectors[2 * i + 1] = size
            at = ctypes.addressof(self.control) + control * i if control else 0
            vector = ctypes.addressof(self.vectors) + 16 * i
            struct.pack_into("@QI4xQQQQi", self.headers, 64 * i, 0, 0, vector, 1, at, control, 0)


def send(address: str, port: int, size: int, seconds: float, segments: int) -> None:
    sock = udp_socket(address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.connect((address, port))
    if segments > 1:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    batch = BATCH if segments == 1 else 1
    messages = Messages(batch, size * segments, 0, shared=True)
    sent = 0
    began = now = time.monotonic()
    while now - began < seconds:
        for _ in range(4):
            sent += max(0, libc.sendmmsg(sock.fileno(), ctypes.c_void_p(messages.address), batch, 0))
        now = time.monotonic()
    print(json.dumps({"sent": sent * segments, "seconds": now - began}))


def receive(address: str, port: int, gro: bool) -> None:
    sock = udp_socket(address)
    sock.bind((address, port))
    if gro:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    control = 32
    messages = Messages(BATCH, BUFFER, control, shared=False)
    lengths = memoryview(messages.headers).cast("B").cast("I")[14::16]
    used = memoryview(messages.headers).cast("B").cast("Q")[5::8]
    full = memoryview(struct.pack("@Q", control) * BATCH).cast("Q")
    print("ready", flush=True)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    received = 0
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if sock.fileno() not in ready:
            break
        while True:
            used[:] = full
            count = libc.recvmmsg(sock.fileno(), ctypes.c_void_p(messages.address), BATCH, MSG_DONTWAIT, None)
            if count <= 0:
                break
            if not gro:
                received += count
                continue
            for i in range(count):
                length = lengths[i]
                segment = struct.unpack_from("@i", messages.control, control * i + 16)[0] if used[i] else length
                received += -(-length // segment) if segment else 1
    print(json.dumps({"received": received}))


def echo(address: str, port: int) -> None:
    sock = udp_socket(address)
    sock.bind((address, port))
    print("ready", flush=True)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    while sys.stdin.fileno() not in (ready := [fd for fd, _ in poll.poll()]) or sock.fileno() in ready:
        data, sender = sock.recvfrom(65535)
        sock.sendto(data, sender)


def ask(address: str, port: int, size: int, seconds: float) -> None:
    sock = udp_socket(address)
    sock.connect((address, port))
    sock.settimeout(1)
    payload = bytes(size)
    trips = []
    lost = 0
    began = now = time.monotonic()
    while now - began < seconds:
        sock.send(payload)
        try:
            sock.recv(65535)
        except TimeoutError:
            lost += 1
        later = time.monotonic()
        trips.append(later - now)
        now = later
    trips.sort()
    figures = {"trips": len(trips), "lost": lost, "seconds": now - began}
    figures |= {"median_us": trips[len(trips) // 2] * 1e6, "p99_us": trips[len(trips) * 99 // 100] * 1e6}
    print(json.dumps(figures))


if __name__ == "__main__":
    mode, address, port, *rest = sys.argv[1:]
    if mode == "send":
        send(address, int(port), int(rest[0]), float(rest[1]), int(rest[2]))
    elif mode == "receive":
        receive(address, int(port), rest[0] == "1")
    elif mode == "echo":
        echo(address, int(port))
    else:
        ask(address, int(port), int(rest[0]), float(rest[1]))
