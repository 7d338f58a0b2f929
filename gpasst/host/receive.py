"""Receiving batches of datagrams in one system call, as runs.

Theory of operation: `recvmmsg` (Linux 2.6.33) fills up to 64 *slots*, each with the socket address of its sender, its
control messages and two buffers: one of the *stride*, the expected bytes of a datagram, and an overflow for longer
ones. A subclass decides where the first buffers lie: `receive_contiguous` for the tap, `receive_framed` for a stream.

1. A *run* is a stretch of datagrams with the same sender, size, TOS and TTL, of which only the last may be shorter.
   Datagrams that the kernel joined already (UDP_GRO, Linux 5.0) are a run by themselves.
2. Runs come in the order of arrival, and every datagram keeps its own length.
3. The buffers belong to the receiver: a run is valid until the next `receive`.
4. Control messages repeat, so their raw bytes are the key of a table of what they mean. A run's sender is a raw key,
   too: the bytes of its socket address and, where the socket reports it, of the local address.

NOTE: one receiver serves all sockets of a family in one thread. Nothing here waits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from abc import ABC, abstractmethod
from array import array
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from gpasst.host.kernel_wire import (
    CMSGHDR_CODEC,
    IN6_PKTINFO_CODEC,
    IN_PKTINFO_CODEC,
    IOVEC_CODEC,
    MMSGHDR_CODEC,
    SOCKADDR_IN6_CODEC,
    SOCKADDR_IN_CODEC,
)
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IP_PKTINFO,
    IP_TOS,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_HOPLIMIT,
    IPV6_PKTINFO,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    SOL_UDP,
    UDP_GRO,
)
from gpasst.packet.address import V4, V6

SLOTS = 64  # datagrams per system call; as many as a superframe holds (UDP_MAX_SEGMENTS of Linux before 6.9)
RUN_BYTES = {V4: 65507, V6: 65487}  # payload bytes that fit one superframe: 65535 less IP and UDP headers
DATAGRAM_BYTES = 65535
FIRST_STRIDE = 1472  # bytes; the payload of a full Ethernet frame over IPv4
CONTROL_BYTES = 112  # of control messages per datagram: UDP_GRO 24, packet info 40, TOS and TTL 24 each
TOS_TTL_UNKNOWN = 255  # TOS and TTL of a datagram whose socket reports neither

_REPORTED_LIMIT = 4096  # different control messages whose meaning is kept
_NAME_BYTES = {V4: SOCKADDR_IN_CODEC.size, V6: SOCKADDR_IN6_CODEC.size}
_SENDER_BYTES = {V4: SOCKADDR_IN_CODEC.offset("padding"), V6: SOCKADDR_IN6_CODEC.size}  # of these, in a sender key
BUFFERS = 2  # of a slot: the first and the overflow
_VECTOR = IOVEC_CODEC.size
_SLOT_VECTORS = BUFFERS * _VECTOR
_SLOT_WORDS = _SLOT_VECTORS // 8  # 64-bit words of a slot's vectors: base, length, overflow's base, overflow's length
_HEADER = MMSGHDR_CODEC.size
_LENGTH_WORDS = slice(MMSGHDR_CODEC.offset("length") // 4, None, _HEADER // 4)  # of the headers as 32-bit words
_CONTROL_WORDS = slice(MMSGHDR_CODEC.offset("control_length") // 8, None, _HEADER // 8)  # as 64-bit words
_LOCAL4 = slice(IN_PKTINFO_CODEC.offset("local"), IN_PKTINFO_CODEC.offset("destination"))  # also for a broadcast
_CONTROL_ALIGNMENT = 8  # bytes; CMSG_ALIGN on 64-bit Linux
_BYTE = 0xFF

_control_head = CMSGHDR_CODEC.layout.unpack_from
_int = struct.Struct("@i").unpack_from
_sockaddr4 = struct.Struct("@H2s4s")  # SOCKADDR_IN without its padding
_sockaddr6 = struct.Struct("@H2s4x16sI")  # SOCKADDR_IN6

# A call through PyDLL keeps the interpreter lock: it never waits, and handing the lock over costs more than the call.
_libc = ctypes.PyDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
_recvmmsg.restype = ctypes.c_int

Run = tuple[bytes, int, int, list[memoryview], int]
"""Raw sender key; payload bytes of all datagrams; payload bytes of each; the payload; TOS times 256 plus TTL."""


def sender_key(family: int, address: bytes, port: int, scope: int) -> bytes:
    """Return the raw key of a sender: its socket address without padding, in the kernel's layout.

    :param family: 4 or 6.
    :param address: 4 or 16 bytes.
    :param port: 0 to 65535.
    :param scope: interface index of a link-local address, else 0.
    """
    if family == V4:
        return _sockaddr4.pack(AF_INET, port.to_bytes(2, "big"), address)
    return _sockaddr6.pack(AF_INET6, port.to_bytes(2, "big"), address, scope)


def split_key(family: int, key: bytes) -> tuple[bytes, int, int, bytes]:
    """Return address, port and scope of a raw sender key, and its local address (empty where it has none).

    The local address is 4 bytes, or 16 bytes and the index of the interface in 4 bytes of native order.

    :param family: 4 or 6.
    :param key: as in a `Run`.
    """
    size = _SENDER_BYTES[family]
    if family == V4:
        _, port, address = _sockaddr4.unpack(key[:size])
        return address, int.from_bytes(port, "big"), 0, key[size:]
    _, port, address, scope = _sockaddr6.unpack(key[:size])
    return address, int.from_bytes(port, "big"), scope, key[size:]


def address_of(buffer: bytearray | mmap) -> int:
    """Return the memory address of a buffer, which must keep its size as long as the address is used."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


class Receiver(ABC):
    """Receives from any socket of one family: the slots, and the meaning of what the kernel wrote into them.

    :param family: 4 or 6.
    :param slots: datagrams per system call, at most `SLOTS`.
    """

    def __init__(self, family: int, slots: int) -> None:
        self.family = family
        self._most = slots
        self._name = _NAME_BYTES[family]
        self._sender = _SENDER_BYTES[family]
        self._names = bytearray(self._name * SLOTS)
        self._controls = bytearray(CONTROL_BYTES * SLOTS)
        self._controls_view = memoryview(self._controls)
        # Local address, segment size, and TOS and TTL, by the raw control messages that report them.
        self._reported: dict[bytes, tuple[bytes, int, int]] = {b"": (b"", 0, TOS_TTL_UNKNOWN)}
        # 4 MiB, of which most proxies never use a page; a bytearray would be filled with zeros.
        self._overflow = mmap(-1, DATAGRAM_BYTES * SLOTS, MAP_PRIVATE | MAP_ANONYMOUS)
        self._overflow_view = memoryview(self._overflow)
        self._overflow_at = address_of(self._overflow)
        self._vectors = bytearray(_SLOT_VECTORS * SLOTS)
        self._vectors_at = address_of(self._vectors)
        # Base and length of each slot's first buffer are the subclass's.
        self._vector_words = memoryview(self._vectors).cast("Q")
        self._headers = bytearray(_HEADER * SLOTS)
        self._headers_at = address_of(self._headers)
        self._link_slots()
        self._lengths = memoryview(self._headers).cast("I")[_LENGTH_WORDS]
        self._control_lengths = memoryview(self._headers).cast("Q")[_CONTROL_WORDS]
        self._control_reset = memoryview(struct.pack("@Q", CONTROL_BYTES) * SLOTS).cast("Q")
        # How many slots the last call filled: their control lengths say what arrived, no longer what fits.
        self._dirty = SLOTS

    @abstractmethod
    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take the datagrams that a socket has, without waiting.

        :param fd: a UDP socket of this receiver's family.
        :return: the runs in order of arrival, and whether there may be more.
        :raises OSError: the pending error of the socket, which an earlier datagram caused; nothing was received then.
        """

    def _link_slots(self) -> None:
        """Write the addresses of names, vectors, overflows and control messages into the slots."""
        names_at, controls_at = address_of(self._names), address_of(self._controls)
        for i in range(SLOTS):
            self._vector_words[_SLOT_WORDS * i + 2] = self._overflow_at + DATAGRAM_BYTES * i
            self._vector_words[_SLOT_WORDS * i + 3] = DATAGRAM_BYTES
            self._headers[_HEADER * i : _HEADER * (i + 1)] = MMSGHDR_CODEC.pack(
                name=names_at + self._name * i,
                name_length=self._name,
                vectors=self._vectors_at + _SLOT_VECTORS * i,
                vectors_count=BUFFERS,
                control=controls_at + CONTROL_BYTES * i,
                control_length=CONTROL_BYTES,
            )

    def _place(self, first: int, step: int, stride: int, slots: int) -> None:
        """Place the first buffers of the slots.

        :param first: address of the first one.
        :param step: bytes from one to the next.
        :param stride: bytes of each.
        :param slots: how many.
        """
        bases = array("Q", range(first, first + step * slots, step))
        self._vector_words[0 : _SLOT_WORDS * slots : _SLOT_WORDS] = memoryview(bases)
        self._vector_words[1 : _SLOT_WORDS * slots : _SLOT_WORDS] = memoryview(array("Q", [stride]) * slots)

    def _take(self, fd: int, most: int) -> int:
        """Let the kernel fill up to `most` slots; return how many it did.

        :raises OSError: the pending error of the socket.
        """
        if self._dirty == 1:
            self._control_lengths[0] = CONTROL_BYTES
        else:
            self._control_lengths[:] = self._control_reset
        count: int = _recvmmsg(fd, self._headers_at, most, MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return 0
            raise OSError(number, os.strerror(number))
        self._dirty = count
        return count

    def _take_one(self, fd: int, slot: int) -> int:
        """Let the kernel fill a slot; return the payload's bytes, or the negated errno."""
        if _recvmmsg(fd, self._headers_at + _HEADER * slot, 1, MSG_DONTWAIT, None) == 1:
            return self._lengths[slot]
        return -(ctypes.get_errno() or errno.EIO)

    def _uniform(self, count: int) -> bool:
        """Return whether the first `count` datagrams have the sender and the control messages of the first."""
        name, names = self._name, self._names
        if names[: name * count] != names[:name] * count:
            return False
        lengths = self._control_lengths[:count].tolist()
        used = lengths[0]
        if lengths.count(used) != count:
            return False
        controls = self._controls
        return not used or controls[: CONTROL_BYTES * count] == controls[:CONTROL_BYTES] * count

    def _describe(self, i: int, used: int) -> tuple[bytes, int, int]:
        """Return raw key, segment size (0 if the kernel joined nothing), and TOS and TTL of the datagram in a slot.

        :param i: the slot's index.
        :param used: bytes of its control messages.
        """
        key = bytes(self._names[i * self._name : i * self._name + self._sender])
        position = i * CONTROL_BYTES
        raw = self._controls_view[position : position + used].tobytes()
        local, segment, tos_ttl = self._reported.get(raw) or self._read(raw)
        return (key + local if local else key), segment, tos_ttl

    def _read(self, raw: bytes) -> tuple[bytes, int, int]:
        """Parse control messages; return the local address as in keys, the segment size, and TOS and TTL."""
        local, segment, tos, ttl = b"", 0, TOS_TTL_UNKNOWN >> 8, TOS_TTL_UNKNOWN & _BYTE
        position, end = 0, len(raw)
        while position + CMSGHDR_CODEC.size <= end:
            size, level, kind = _control_head(raw, position)
            start = position + CMSGHDR_CODEC.size
            if level == SOL_UDP and kind == UDP_GRO:
                (segment,) = _int(raw, start)
            elif level == IPPROTO_IP and kind == IP_TOS:
                tos = raw[start]  # the only one that is a single byte
            elif level == IPPROTO_IP and kind == IP_TTL:
                (ttl,) = _int(raw, start)
            elif level == IPPROTO_IP and kind == IP_PKTINFO:
                local = raw[start:][_LOCAL4]
            elif level == IPPROTO_IPV6 and kind == IPV6_PKTINFO:
                local = raw[start : start + IN6_PKTINFO_CODEC.size]
            elif level == IPPROTO_IPV6 and kind == IPV6_TCLASS:
                (tos,) = _int(raw, start)
            elif level == IPPROTO_IPV6 and kind == IPV6_HOPLIMIT:
                (ttl,) = _int(raw, start)
            position += -(-size // _CONTROL_ALIGNMENT) * _CONTROL_ALIGNMENT
        if len(self._reported) >= _REPORTED_LIMIT:
            self._reported.clear()
        reported = self._reported[raw] = local, segment, (tos & _BYTE) << 8 | ttl & _BYTE
        return reported

    def _clear_controls(self) -> None:
        """Clear the control messages, since bytes left behind those of a mixed batch would make equal ones differ."""
        self._controls[: CONTROL_BYTES * SLOTS] = bytes(CONTROL_BYTES * SLOTS)
