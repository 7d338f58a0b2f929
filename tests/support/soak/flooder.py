"""A hostile guest, which answers meanwhile what comes to one port.

    python -m tests.support.soak.flooder PORT            in a namespace: frames leave by a packet socket on the tap
    python -m tests.support.soak.flooder PORT PATH       a virtual machine on the socket of passt mode

It prints "ready" when the first question may come. Each line of input is a number of frames, which it sends as fast as
it can; then it prints as JSON what became of them. It ends with its input.

The tap's own counters say how many frames were read from it, and how many the kernel dropped, since the queue was full
or since it was asked to. On the stream nothing is dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import random
import select
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.lab import HOST4, REMOTE4
from tests.support.scripted import HOST_MAC, MAC, udp_packets
from tests.support.soak.shapes import hostile

BATCH = 64  # frames of a stream in one send; few enough that an answer soon finds its place
READ_BYTES = 1 << 18
SEED = 9293
SHORTEST = 14  # bytes of a frame that the kernel sends
COUNTER = struct.Struct("=Q")


def framed(frame: bytes) -> bytes:
    """Return a frame behind its length."""
    return struct.pack(">I", len(frame)) + frame


def tap_counters(interface: str) -> tuple[int, int]:
    """Return how many frames were sent to the tap, and how many of them were dropped."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, fields = line.strip().partition(":")
        if name == interface:
            numbers = [int(field) for field in fields.split()]
            return numbers[9], numbers[11]
    raise AssertionError(f"no {interface}")


def interface() -> str:
    """Return the name of the tap."""
    (name,) = [name for _, name in socket.if_nameindex() if name != "lo"]
    return name


def answer(server: socket.socket, answered: mmap.mmap, parent: int) -> None:
    """Answer datagrams, and count the answers, until the parent process has ended.

    :param parent: the reading end of a pipe, whose writing end the parent process has.
    """
    number = 0
    while parent not in select.select([server.fileno(), parent], [], [])[0]:
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
        number += 1
        COUNTER.pack_into(answered, 0, number)


def on_tap(port: int) -> None:
    """Flood the tap; a child process answers."""
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", port))
    answered = mmap.mmap(-1, COUNTER.size)
    reader, writer = os.pipe()
    if not os.fork():
        os.close(writer)
        answer(server, answered, reader)
        os._exit(0)
    name = interface()
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((name, 0))
    frames = hostile(out.getsockname()[4].hex(":"), random.Random(SEED), SHORTEST)
    print("ready", flush=True)
    sent, (packets, dropped) = 0, tap_counters(name)
    for line in sys.stdin:
        for frame in itertools.islice(frames, int(line)):
            with contextlib.suppress(OSError):  # the queue is full, which the device counts
                out.send(frame)
        sent += int(line)
        now, now_dropped = tap_counters(name)
        report(sent, now - packets, now_dropped - dropped, COUNTER.unpack_from(answered)[0])


def report(sent: int, read: int, dropped: int, answered: int) -> None:
    """Print what was done since the start.

    :param sent: hostile frames.
    :param read: frames that the proxy has read; on a stream, has to read.
    :param dropped: frames that the kernel has dropped.
    :param answered: answers, which are none of the hostile frames.
    """
    print(json.dumps({"sent": sent, "read": read, "dropped": dropped, "answered": answered}), flush=True)


class Stream:
    """The guest's end of a stream."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.answered = 0
        self._frames = hostile(MAC.hex(":"), random.Random(SEED), 0)
        self._pending = b""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        # The proxy learns the guest's addresses from its first frame.
        first = udp_packets(HOST4, port, REMOTE4, 9, b"")
        self._sock.sendall(b"".join(framed(HOST_MAC + MAC + packet) for packet in first))
        self._sock.setblocking(False)

    def flood(self, count: int) -> None:
        """Send so many frames, and answers between them."""
        for size in self._batches(count):
            waiting = b"".join(map(framed, itertools.islice(self._frames, size)))
            self._carry(waiting)

    @staticmethod
    def _batches(count: int) -> Iterator[int]:
        yield from itertools.repeat(BATCH, count // BATCH)
        yield count % BATCH

    def _carry(self, waiting: bytes) -> None:
        """Send what waits, and answers to what has come."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLOUT)
        while waiting:
            ((_, event),) = poll.poll()
            if event & select.POLLOUT:
                waiting = waiting[self._sock.send(waiting) :]
            if event & select.POLLIN:
                waiting += self.answers()

    def answers(self) -> bytes:
        """Receive what has come; return the answers."""
        data = self._pending + self._sock.recv(READ_BYTES)
        at, answers = 0, []
        while len(data) - at >= 4:
            (length,) = struct.unpack_from(">I", data, at)
            if len(data) - at - 4 < length:
                break
            frame = data[at + 4 : at + 4 + length]
            at += 4 + length
            if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == struct.pack(">H", self.port):
                # Sums stay as they are when what they are made of changes places.
                swapped = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
                answers.append(framed(swapped + frame[36:38] + frame[34:36] + frame[38:]))
        self._pending = data[at:]
        self.answered += len(answers)
        return b"".join(answers)

    def run(self) -> None:
        """Carry out the orders."""
        sent = 0
        poll = select.poll()
        for fd in (self._sock.fileno(), sys.stdin.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._sock.fileno():
                    self._carry(self.answers())
                    continue
                line = os.read(fd, 100)
                if not line:
                    return
                self.flood(int(line))
                sent += int(line)
                report(sent, sent + self.answered, 0, self.answered)


if __name__ == "__main__":
    given, *paths = sys.argv[1:]
    if paths:
        stream = Stream(int(given), paths[0])
        print("ready", flush=True)
        stream.run()
    else:
        on_tap(int(given))
