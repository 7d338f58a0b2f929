"""Sockets for the calls of a ring, and what was asked of it."""

from __future__ import annotations

import ctypes
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import IO_URING_SQE_CODEC, MMSGHDR_CODEC, SOCKADDR_IN6_CODEC, SOCKADDR_IN_CODEC
from gpasst.host.ring import ENTRIES, Ring
from gpasst.host.ring_forms import Receives, open_ring, target
from gpasst.linux import IORING_OP_SENDMSG, SOL_UDP, UDP_SEGMENT
from tests.support.families import FAMILY, LOOPBACK

STRIDE = 4096  # bytes of an arena for each entry
PATIENCE = 2  # seconds


def available() -> bool:
    """Return whether the kernel has rings."""
    try:
        open_ring().close()
    except OSError:
        return False
    return True


def sockets(stack: ExitStack, family: int, count: int) -> list[socket.socket]:
    """Return bound sockets that do not wait."""
    made = [stack.enter_context(socket.socket(FAMILY[family], socket.SOCK_DGRAM)) for _ in range(count)]
    for sock in made:
        sock.bind((LOOPBACK[family], 0))
        sock.setblocking(False)
    return made


def packed(family: int, sock: socket.socket) -> bytes:
    """Return a socket's address as the kernel has it."""
    address, port = sock.getsockname()[:2]
    codec = SOCKADDR_IN_CODEC if family == 4 else SOCKADDR_IN6_CODEC
    return codec.pack(family=FAMILY[family], port=port, address=socket.inet_pton(FAMILY[family], address))


def descriptors(found: list[socket.socket]) -> array[int]:
    """Return the descriptors of sockets."""
    return array("i", [sock.fileno() for sock in found])


def aims(family: int, senders: list[socket.socket], to: list[socket.socket]) -> bytes:
    """Return the targets of sends from sockets to others."""
    return b"".join(target(sock.fileno(), packed(family, other)) for sock, other in zip(senders, to, strict=True))


def receives_into(ring: Ring, arena: Arena, family: int, size: int = STRIDE - 100) -> Receives:
    """Return a form that receives behind a headroom of 100 bytes."""
    receives = Receives(ring, family, [arena])
    receives.bases[:] = arena.column(ENTRIES, STRIDE, 100)
    receives.sizes[:] = array("Q", [size]) * ENTRIES
    return receives


class Asked:
    """What a ring has been asked for.

    :ivar calls: of the ring, with the operations of each.
    :ivar segments: of all messages, in order: the bytes of a segment, 0 without one.
    """

    def __init__(self, enter: Callable[[memoryview, int], int]) -> None:
        self._enter = enter
        self.calls: list[list[int]] = []
        self.segments: list[int] = []

    def __call__(self, entries: memoryview, count: int) -> int:
        size = IO_URING_SQE_CODEC.size
        found = [IO_URING_SQE_CODEC.unpack_from(entries, at) for at in range(0, size * count, size)]
        self.calls.append([entry["operation"] for entry in found])
        self.segments += [_segment(entry) for entry in found if entry["operation"] == IORING_OP_SENDMSG]
        return self._enter(entries, count)


def _segment(entry: dict[str, Any]) -> int:
    header = MMSGHDR_CODEC.unpack_from(ctypes.string_at(entry["address"], MMSGHDR_CODEC.size))
    control = ctypes.string_at(header["control"], header["control_length"])
    while control:
        length, level, kind = struct.unpack_from("@Qii", control)
        if (level, kind) == (SOL_UDP, UDP_SEGMENT):
            return int(struct.unpack_from("@H", control, 16)[0])
        control = control[length + -length % 8 :]
    return 0


@contextmanager
def asked(ring: Ring) -> Iterator[Asked]:
    """Take note of what a ring is asked for."""
    with mock.patch.object(ring, "enter", Asked(ring.enter)) as made:
        yield made
