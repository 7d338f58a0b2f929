"""A scripted guest on passt's UNIX socket: frames behind their lengths, standard library only, many a system call.

    guest.py PATH send PORT SIZE SECONDS [PORTS]
                                             flood the gateway; prints {"sent": N, "seconds": S}
    guest.py PATH receive PORT SIZE          count until end of input; prints {"received": N, "seconds": S}
    guest.py PATH echo PORT                  answer until end of input
    guest.py PATH ask PORT SIZE SECONDS      ask the gateway, await the answer, again; prints the round trips

What receives or answers prints "ready" when it has spoken, so that its addresses are known. What receives counts from
nothing after the line "zero", which it answers with "zeroed". What sends from several ports in turn has sent from each
once when it prints "warm", and awaits a line.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("9a559a559a55")
GUEST, GATEWAY = socket.inet_aton("192.0.2.2"), socket.inet_aton("192.0.2.1")
OWN_PORT = 33000
WARM_SECONDS = 0.3
BATCH_BYTES = 1 << 17  # frames in one system call; more than any proxy takes at once
HEADERS = 42  # Ethernet, IPv4, UDP


def frame(source_port: int, port: int, payload: bytes) -> bytes:
    udp = struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload
    blank = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, GUEST, GATEWAY)
    total = sum(struct.unpack(">10H", blank))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = blank[:10] + struct.pack(">H", total) + blank[12:] + udp
    body = HOST_MAC + MAC + b"\x08\x00" + packet
    return struct.pack(">I", len(body)) + body


class Guest:
    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.buffer = bytearray(1 << 20)
        self.view = memoryview(self.buffer)
        self.pending = b""

    def frames(self) -> list[bytes]:
        """Whole frames that have come; waits for some."""
        size = self.sock.recv_into(self.view)
        if not size:
            raise SystemExit("the proxy closed the connection")
        data = self.pending + bytes(self.view[:size])
        at, found = 0, []
        while len(data) - at >= 4:
            (length,) = struct.unpack_from(">I", data, at)
            if len(data) - at - 4 < length:
                break
            found.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        self.pending = data[at:]
        return found

    def speak(self) -> None:
        """Let the proxy know the guest's addresses."""
        self.sock.sendall(frame(OWN_PORT, 9, b""))


def is_udp(data: bytes, port: int) -> bool:
    return data[12:14] == b"\x08\x00" and data[23] == 17 and data[36:38] == port.to_bytes(2, "big")


def send(guest: Guest, port: int, size: int, seconds: float, ports: int) -> None:
    turn = b"".join(frame(OWN_PORT + i, port, bytes(size)) for i in range(ports))
    turns = max(1, BATCH_BYTES // len(turn))
    batch, count = turn * turns, ports * turns
    if ports > 1:
        guest.sock.sendall(turn)
        time.sleep(WARM_SECONDS)
        print("warm", flush=True)
        sys.stdin.readline()
    sent = 0
    began = now = time.monotonic()
    while now - began < seconds:
        guest.sock.sendall(batch)
        sent += count
        now = time.monotonic()
    # What is still on its way has been read when the proxy answers.
    print(json.dumps({"sent": sent, "seconds": now - began}))


def receive(guest: Guest, size: int) -> None:
    guest.speak()
    print("ready", flush=True)
    poll = select.poll()
    poll.register(guest.sock, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    whole = 4 + HEADERS + max(size, 60 - HEADERS)
    received = rest = 0
    first = last = 0.0
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if guest.sock.fileno() not in ready:
            if sys.stdin.readline() != "zero\n":
                break
            received = rest = 0
            print("zeroed", flush=True)
            continue
        came = guest.sock.recv_into(guest.view)
        if not came:
            raise SystemExit("the proxy closed the connection")
        # Nearly all frames are of one size; the few others are less than one of these in all.
        last = time.monotonic()
        first = first if received else last
        rest += came
        received, rest = received + rest // whole, rest % whole
    print(json.dumps({"received": received, "seconds": last - first}))


def echo(guest: Guest, port: int) -> None:
    guest.speak()
    print("ready", flush=True)
    poll = select.poll()
    poll.register(guest.sock, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN)
    while guest.sock.fileno() in [fd for fd, _ in poll.poll()]:
        for data in guest.frames():
            if is_udp(data, port):
                length = int.from_bytes(data[38:40], "big")
                answer = frame(port, int.from_bytes(data[34:36], "big"), data[HEADERS : HEADERS + length - 8])
                guest.sock.sendall(answer)


def ask(guest: Guest, port: int, size: int, seconds: float) -> None:
    question = frame(OWN_PORT, port, bytes(size))
    trips = []
    began = now = time.monotonic()
    while now - began < seconds:
        guest.sock.sendall(question)
        while not any(is_udp(data, OWN_PORT) for data in guest.frames()):
            pass
        later = time.monotonic()
        trips.append(later - now)
        now = later
    trips.sort()
    figures = {"trips": len(trips), "lost": 0, "seconds": now - began}
    figures |= {"median_us": trips[len(trips) // 2] * 1e6, "p99_us": trips[len(trips) * 99 // 100] * 1e6}
    print(json.dumps(figures))


if __name__ == "__main__":
    path, mode, port, *rest = sys.argv[1:]
    guest = Guest(path)
    if mode == "send":
        send(guest, int(port), int(rest[0]), float(rest[1]), int(rest[2]) if rest[2:] else 1)
    elif mode == "receive":
        receive(guest, int(rest[0]))
    elif mode == "echo":
        echo(guest, int(port))
    else:
        ask(guest, int(port), int(rest[0]), float(rest[1]))
