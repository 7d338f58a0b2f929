"""The two ends of the demo's traffic; a program of its own, so that neither end waits for the proxy's interpreter.

    demo_peer.py serve ADDRESS PORT            echo everything, as it came; prints its port when it is ready
    demo_peer.py exchange ADDRESS PORT MODE    send, await the echo, compare; prints the figures as JSON
    demo_peer.py serve-streams ADDRESS PORT    the service for TCP; prints its port when it is ready
    demo_peer.py streams ADDRESS PORT          move streams both ways, connect, exchange; prints the figures as JSON

Theory of operation: the client of UDP keeps a small window of datagrams under way, so that nothing is lost for want of
buffers and every loss is a defect. With GSO a send is one call of 30 x 1000 + 500 bytes that the kernel cuts into 31
datagrams; the service receives them joined (GRO) where the kernel joins them, and answers likewise.

A connection of TCP begins with one byte that says what it is for: echo everything, read to the end of the stream and
acknowledge with its checksum, or write a stream. So a stream to the service needs both directions to end separately.

Standard library only: it is run by an interpreter without site packages.
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import struct
import sys
import time
import zlib

PR_SET_PDEATHSIG = 1  # linux/prctl.h
UDP_SEGMENT = 103
UDP_GRO = 104
SIZE = 1000  # payload bytes of a datagram
LAST_SIZE = 500  # payload bytes of the last of a superframe
SEGMENTS = 31
ROUND_TRIPS = 200
DATAGRAMS = 3000
SUPERFRAMES = 300
WINDOW = 32  # datagrams under way
SUPERFRAME_WINDOW = 2
TIMEOUT = 2.0  # seconds to wait for an echo
ECHO, READ, WRITE = b"e", b"r", b"w"  # what the service does with a connection
STREAM_BYTES = 64 << 20
SMALL = 64  # bytes of an exchange
CONNECTIONS = 200
EXCHANGES = 500


def make_socket(address: str) -> socket.socket:
    """Make a socket of the family of `address`, with room for a window."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def serve(address: str, port: int) -> None:
    """Echo until killed, or until the process that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sock = make_socket(address)
    sock.bind((address, port))
    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    print(sock.getsockname()[1], flush=True)
    while True:
        data, control, _, sender = sock.recvmsg(65535, 64)
        answer = [
            (level, UDP_SEGMENT, struct.pack("@H", struct.unpack("@i", value)[0]))
            for level, kind, value in control
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO)
        ]
        sock.sendmsg([data], answer, 0, sender)


def payload(number: int, size: int) -> bytes:
    """Return the content of datagram `number`: its number, then bytes that depend on it."""
    head = struct.pack(">Q", number)
    return (head + bytes((number + i) & 0xFF for i in range(251)) * (size // 251 + 1))[:size]


def exchange(address: str, port: int, mode: str) -> dict[str, float]:
    """Send datagrams, await and compare their echoes; return the figures."""
    sock = make_socket(address)
    # Resolved rather than given as it is, since only that keeps the scope of a link-local address.
    sock.connect(socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
    sock.settimeout(TIMEOUT)
    trips = []
    sent = received = wrong = 0
    for number in range(ROUND_TRIPS):
        data = payload(number, SIZE)
        start = time.perf_counter()
        sock.send(data)
        sent += 1
        try:
            answer = sock.recv(65535)
        except TimeoutError:
            continue
        trips.append(time.perf_counter() - start)
        received += 1
        wrong += answer != data
    segments = 1 if mode == "single" else SEGMENTS
    rounds = DATAGRAMS if mode == "single" else SUPERFRAMES
    window = WINDOW if mode == "single" else SUPERFRAME_WINDOW
    if segments > 1:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
    sizes = [SIZE] * segments if segments == 1 else [SIZE] * (segments - 1) + [LAST_SIZE]
    # Made before the clock starts; no two datagrams of eight superframes in a row are equal.
    blocks = [[payload(8 * turn + i, size) for i, size in enumerate(sizes)] for turn in range(8)]
    whole = [b"".join(block) for block in blocks]
    start = time.perf_counter()
    next_round = done = 0
    pending = 0
    position = 0
    while done < rounds:
        while next_round < rounds and pending < window:
            sock.send(whole[next_round % 8])
            next_round += 1
            pending += 1
            sent += segments
        try:
            answer = sock.recv(65535)
        except TimeoutError:
            break
        received += 1
        wrong += answer != blocks[done % 8][position]
        position += 1
        if position == segments:
            position = 0
            done += 1
            pending -= 1
    elapsed = time.perf_counter() - start
    moved = done * segments
    trips.sort()
    return {
        "sent": sent,
        "received": received,
        "wrong": wrong,
        "round_trip_us": round(trips[len(trips) // 2] * 1e6, 1) if trips else 0.0,
        "datagrams_per_second": round(moved / elapsed),
        "megabits_per_second": round(done * sum(sizes) * 8 / elapsed / 1e6, 1),
    }


def make_stream(address: str) -> socket.socket:
    """Make a TCP socket of the family of `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def stream_content() -> bytes:
    """Return what a stream consists of; its period is prime to the size of every segment."""
    return (bytes(range(251)) * (STREAM_BYTES // 251 + 1))[:STREAM_BYTES]


def read_stream(sock: socket.socket) -> memoryview:
    """Return what comes to the end of the stream, as far as a stream's content may be long."""
    # Two bytes more than there should be, so that one too many is noticed.
    room = memoryview(bytearray(STREAM_BYTES + 2))
    size = 0
    while count := sock.recv_into(room[size:]):
        size += count
    return room[:size]


def serve_streams(address: str, port: int) -> None:
    """Serve one connection after the other until killed, or until the process that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    listener = make_stream(address)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    content = stream_content()
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        with sock:
            try:
                serve_stream(sock, content)
            except OSError:
                continue  # the client sees it, and reports it


def serve_stream(sock: socket.socket, content: bytes) -> None:
    """Do with a connection what its first byte says."""
    kind = sock.recv(1)
    if kind == ECHO:
        while data := sock.recv(65536):
            sock.sendall(data)
    elif kind == READ:
        came = read_stream(sock)
        sock.sendall(kind)  # before the checksum is made, which takes time of its own
        sock.sendall(struct.pack(">I", zlib.crc32(came)))
    elif kind == WRITE:
        sock.sendall(content)


def open_stream(address: str, port: int, kind: bytes) -> socket.socket:
    """Connect to the service and say what the connection is for."""
    sock = make_stream(address)
    sock.settimeout(TIMEOUT)
    sock.connect(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4])
    sock.sendall(kind)
    return sock


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes, or those that come before the end of the stream."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def exchange_once(sock: socket.socket, data: bytes) -> bool:
    """Send, await as much; return whether it is the same."""
    sock.sendall(data)
    return read_exactly(sock, len(data)) == data


def streams(address: str, port: int) -> dict[str, float]:
    """Move streams both ways, connect, and exchange; return the figures. Those that were not reached are missing."""
    figures: dict[str, float] = {"intact": False}
    content = stream_content()
    good = True
    try:
        with open_stream(address, port, READ) as sock:
            start = time.perf_counter()
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            good &= sock.recv(1) == READ
            figures["megabits_per_second_out"] = megabits(start)
            good &= read_exactly(sock, 4) == struct.pack(">I", zlib.crc32(content))
        with open_stream(address, port, WRITE) as sock:
            start = time.perf_counter()
            came = read_stream(sock)
            figures["megabits_per_second_in"] = megabits(start)
            good &= came == content
        start = time.perf_counter()
        for number in range(CONNECTIONS):
            with open_stream(address, port, ECHO) as sock:
                good &= exchange_once(sock, payload(number, SMALL))
        figures["connections_per_second"] = round(CONNECTIONS / (time.perf_counter() - start))
        trips = []
        with open_stream(address, port, ECHO) as sock:
            for number in range(EXCHANGES):
                start = time.perf_counter()
                good &= exchange_once(sock, payload(number, SMALL))
                trips.append(time.perf_counter() - start)
        figures["round_trip_us"] = round(sorted(trips)[EXCHANGES // 2] * 1e6, 1)
        figures["intact"] = good
    except OSError as error:
        print(f"{address} port {port}: {error}", file=sys.stderr)
    return figures


def megabits(start: float) -> float:
    """Return the rate of a stream that began at `start`, in Mbit/s."""
    return round(STREAM_BYTES * 8e-6 / (time.perf_counter() - start), 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "serve-streams":
        serve_streams(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "streams":
        print(json.dumps(streams(sys.argv[2], int(sys.argv[3]))))
    else:
        print(json.dumps(exchange(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
