"""Many datagrams per system call: what is received becomes runs, and runs are the unit of work everywhere else.

Theory of operation: `recvmmsg` fills slots that lie one behind the other, each as long as the datagram seen last, so
that a burst of equal datagrams lands as one contiguous block: a superframe that can be passed on in one call without
touching its datagrams. Behind each slot a second buffer catches what is longer.

1. A *run* is a stretch of datagrams of one sender, size and mark, of which only the last may be shorter. What the
   kernel joined already (UDP_GRO, Linux 5.0) is a run by itself. The mark is TOS times 256 plus TTL.
2. Runs come in the order of arrival, and every datagram keeps its own length.
3. The buffers belong to the receiver: a run is valid until the next `receive`.

NOTE: one receiver serves all sockets of a family in one thread. Nothing here waits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array

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

SLOTS = 64  # datagrams per system call; UDP_MAX_SEGMENTS of Linux before 6.9
RUN_BYTES = {4: 65507, 6: 65487}  # payload bytes that fit one superframe: 65535 less IP and UDP headers
DATAGRAM_BYTES = 65535
FIRST_STRIDE = 1472  # bytes; a full Ethernet frame's payload
_MMSGHDR = 64  # bytes of struct mmsghdr on 64-bit Linux
_CONTROL = 112  # bytes of control messages per datagram: UDP_GRO 24, packet info 40, TOS and TTL 24 each
_REPORTED_LIMIT = 4096  # different control messages whose meaning is remembered
TOS_TTL_UNKNOWN = 255  # the mark of a datagram whose socket tells neither TOS nor TTL
_NAME = {4: 16, 6: 28}  # bytes of sockaddr_in and sockaddr_in6
_SENDER = {4: 8, 6: 28}  # bytes of these that tell senders apart

_cmsg = struct.Struct("@Qii").unpack_from  # struct cmsghdr
_int = struct.Struct("@i").unpack_from
_sockaddr4 = struct.Struct("@H2s4s")
_sockaddr6 = struct.Struct("@H2s4x16sI")

# A call through PyDLL keeps the interpreter lock: it never waits, and handing the lock over costs more than it takes.
_libc = ctypes.PyDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
_recvmmsg.restype = ctypes.c_int

# (raw sender key, payload bytes in all, payload bytes of each datagram, payload, TOS times 256 plus TTL)
Run = tuple[bytes, int, int, list[memoryview], int]


def sender_key(family: int, address: bytes, port: int, scope: int) -> bytes:
    """Give the raw key of a sender: the telling part of its socket address.

    :param family: 4 or 6.
    :param address: 4 or 16 bytes.
    :param port: 0 to 65535.
    :param scope: interface index for IPv6 link-local addresses, else 0.
    """
    if family == 4:
        return _sockaddr4.pack(AF_INET, port.to_bytes(2, "big"), address)
    return _sockaddr6.pack(AF_INET6, port.to_bytes(2, "big"), address, scope)


def split_key(family: int, key: bytes) -> tuple[bytes, int, int, bytes]:
    """Turn a raw sender key into address, port, scope, and the addressed local address (empty if not told)."""
    size = _SENDER[family]
    if family == 4:
        _, port, address = _sockaddr4.unpack(key[:size])
        return address, int.from_bytes(port, "big"), 0, key[size:]
    _, port, address, scope = _sockaddr6.unpack(key[:size])
    return address, int.from_bytes(port, "big"), scope, key[size:]


def _address_of(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


class Receiver:
    """Receives from any socket of one family.

    :param family: 4 or 6.
    :param slots: datagrams per system call.
    """

    def __init__(self, family: int, slots: int = SLOTS) -> None:
        self.family = family
        self._most = slots
        self._limit = RUN_BYTES[family]
        self._name = _NAME[family]
        self._sender = _SENDER[family]
        self._names = bytearray(self._name * SLOTS)
        self._controls = bytearray(_CONTROL * SLOTS)
        self._controls_view = memoryview(self._controls)
        # What control messages mean: they repeat, and taking them apart costs more than looking them up.
        self._reported: dict[bytes, tuple[bytes, int, int]] = {b"": (b"", 0, TOS_TTL_UNKNOWN)}
        self._data = bytearray(2 * DATAGRAM_BYTES)
        self._overflow = bytearray(DATAGRAM_BYTES * SLOTS)
        self._vectors = bytearray(32 * SLOTS)
        self._headers = bytearray(_MMSGHDR * SLOTS)
        self._view = memoryview(self._data)
        self._overflow_view = memoryview(self._overflow)
        iovecs = memoryview(self._vectors).cast("Q")
        self._iovecs = iovecs
        self._data_at = _address_of(self._data)
        self._overflow_at = _address_of(self._overflow)
        self._headers_at = _address_of(self._headers)
        for i in range(SLOTS):
            iovecs[4 * i + 2] = self._overflow_at + DATAGRAM_BYTES * i
            iovecs[4 * i + 3] = DATAGRAM_BYTES
        names_at, controls_at = _address_of(self._names), _address_of(self._controls)
        vectors_at = _address_of(self._vectors)
        for i in range(SLOTS):
            struct.pack_into(
                "@QI4xQQQQi",
                self._headers,
                _MMSGHDR * i,
                names_at + self._name * i,
                self._name,
                vectors_at + 32 * i,
                2,
                controls_at + _CONTROL * i,
                _CONTROL,
                0,
            )
        self._lengths = memoryview(self._headers).cast("I")[14::16]
        self._control_lengths = memoryview(self._headers).cast("Q")[5::8]
        self._control_reset = memoryview(struct.pack("@Q", _CONTROL) * SLOTS).cast("Q")
        # How many slots the last call filled: their control lengths say what arrived, no longer what fits.
        self._dirty = SLOTS
        self._stride = 0
        self._slots = slots
        self._set_stride(FIRST_STRIDE)

    def _set_stride(self, stride: int) -> None:
        """Lay the slots out for datagrams of `stride` bytes."""
        if stride == self._stride or not stride:
            return
        self._stride = stride
        self._slots = min(self._most, max(1, self._limit // stride))
        slots = self._slots
        self._iovecs[0 : 4 * slots : 4] = memoryview(
            array("Q", range(self._data_at, self._data_at + stride * slots, stride))
        )
        self._iovecs[1 : 4 * slots : 4] = memoryview(array("Q", [stride]) * slots)

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        """Take what a socket has, without waiting.

        :param fd: a UDP socket of this receiver's family.
        :return: the runs in order of arrival, and whether there may be more.
        :raises OSError: what the socket's error queue held; nothing was received then.
        """
        count = self._take(fd, self._slots)
        if not count:
            return [], False
        more = count == self._slots
        if count == 1:
            return [self._single()], more
        stride = self._stride
        lengths = self._lengths[:count].tolist()
        if lengths.count(stride) == count:
            key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
            if not segment and self._uniform(count):
                total = count * stride
                return [(key, total, stride, [self._view[:total]], tos_ttl)], more
        return self._runs(lengths), more

    def _take(self, fd: int, most: int) -> int:
        """Let the kernel fill up to `most` slots; give how many it did.

        :raises OSError: what the socket's error queue held.
        """
        if self._dirty == 1:
            self._control_lengths[0] = _CONTROL
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

    def _single(self) -> Run:
        """Give the run that is the first datagram received."""
        key, segment, tos_ttl = self._describe(0, self._control_lengths[0])
        length = self._lengths[0]
        parts = self._parts(0, length)
        if length > self._stride or self._slots == 1:
            self._set_stride(length)
        return key, length, segment or length, parts, tos_ttl

    def _uniform(self, count: int) -> bool:
        """Tell whether all datagrams have the sender and the control messages of the first."""
        name, names = self._name, self._names
        if names[: name * count] != names[:name] * count:
            return False
        lengths = self._control_lengths[:count].tolist()
        used = lengths[0]
        if lengths.count(used) != count:
            return False
        controls = self._controls
        return not used or controls[: _CONTROL * count] == controls[:_CONTROL] * count

    def _parts(self, i: int, length: int) -> list[memoryview]:
        """Give where datagram `i` of `length` bytes lies: in its slot, and behind it what is longer."""
        at, over = i * self._stride, i * DATAGRAM_BYTES
        if length <= self._stride:
            return [self._view[at : at + length]]
        beyond = length - self._stride
        return [self._view[at : at + self._stride], self._overflow_view[over : over + beyond]]

    def _describe(self, i: int, used: int) -> tuple[bytes, int, int]:
        """Give the raw key of datagram `i`, the segment size if the kernel joined it from several, and its mark."""
        key = bytes(self._names[i * self._name : i * self._name + self._sender])
        position = i * _CONTROL
        raw = self._controls_view[position : position + used].tobytes()
        local, segment, tos_ttl = self._reported.get(raw) or self._read(raw)
        return (key + local if local else key), segment, tos_ttl

    def _read(self, raw: bytes) -> tuple[bytes, int, int]:
        """Take control messages apart: the addressed address as keys tell it, segment size and mark."""
        local, segment, tos, ttl = b"", 0, TOS_TTL_UNKNOWN >> 8, TOS_TTL_UNKNOWN & 0xFF
        position, end = 0, len(raw)
        while position + 16 <= end:
            size, level, kind = _cmsg(raw, position)
            start = position + 16
            if level == SOL_UDP and kind == UDP_GRO:
                (segment,) = _int(raw, start)
            elif level == IPPROTO_IP and kind == IP_TOS:
                tos = raw[start]  # the one that is a single byte
            elif level == IPPROTO_IP and kind == IP_TTL:
                (ttl,) = _int(raw, start)
            elif level == IPPROTO_IP and kind == IP_PKTINFO:
                # The middle of in_pktinfo: the local address, also for a broadcast.
                local = raw[start + 4 : start + 8]
            elif level == IPPROTO_IPV6 and kind == IPV6_PKTINFO:
                local = raw[start : start + 20]
            elif level == IPPROTO_IPV6 and kind == IPV6_TCLASS:
                (tos,) = _int(raw, start)
            elif level == IPPROTO_IPV6 and kind == IPV6_HOPLIMIT:
                (ttl,) = _int(raw, start)
            position += (size + 7) & ~7
        if len(self._reported) >= _REPORTED_LIMIT:
            self._reported.clear()
        reported = self._reported[raw] = local, segment, (tos & 0xFF) << 8 | ttl & 0xFF
        return reported

    def _runs(self, lengths: list[int]) -> list[Run]:
        """Cut a mixed batch of at least two datagrams into runs."""
        runs: list[Run] = []
        stride, view = self._stride, self._view
        used = self._control_lengths[: len(lengths)].tolist()
        open_key: bytes | None = None
        start = total = open_tos_ttl = 0
        for i, length in enumerate(lengths):
            key, segment, tos_ttl = self._describe(i, used[i])
            if open_key is not None:
                if key == open_key and tos_ttl == open_tos_ttl and not segment and 0 < length <= stride:
                    total += length
                    if length == stride:
                        continue
                    runs.append((key, total, stride, [view[start : start + total]], open_tos_ttl))
                    open_key = None
                    continue
                runs.append((open_key, total, stride, [view[start : start + total]], open_tos_ttl))
                open_key = None
            if length == stride and not segment:
                open_key, open_tos_ttl, start, total = key, tos_ttl, i * stride, length
            else:
                runs.append((key, length, segment or length, self._parts(i, length), tos_ttl))
        if open_key is not None:
            runs.append((open_key, total, stride, [view[start : start + total]], open_tos_ttl))
        # Any layout takes any size; laying the slots out anew pays when more of one size follow.
        if len(lengths) == self._slots or lengths[-1] == lengths[-2]:
            self._set_stride(lengths[-1])
        # What is left behind control messages would make equal batches look mixed.
        self._controls[: _CONTROL * SLOTS] = bytes(_CONTROL * SLOTS)
        return runs
