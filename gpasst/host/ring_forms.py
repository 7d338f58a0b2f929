"""The forms of a ring: sends to addresses, reads, writes, and messages both ways; and the probe of all that.

Theory of operation: `gpasst.host.ring` explains rings and forms. What entries point to lies in two places. Payloads are
in arenas of the form's user. Socket addresses, message headers, vectors and control messages are in one arena of the
form's own, each kind one behind the other, so that a batch of them is one slice of bytes: the socket addresses of 64
receives are read as ``receives.names[:64 * 16]``.

What one call costs, in us (payloads of 64 bytes to differing sockets of the host, in turns, Linux 6.18, CPython 3.11):

| without a ring | | in batches of 64 | |
|---|---|---|---|
| `sendto` | 1.41 | `Sends` | 1.18, of which 0.09 to fill the columns from lists |
| `recvmsg_into` | 1.01 | `Receives` | 0.49 |
| `writev` of header and payload; `write` | 0.90; 0.76 | `Writes` | 0.74 |

So a batch of writes spares what Python does for each frame, rather than what the kernel does. A batch by itself costs 2
us: sends pay from 9 in a batch on, and receives from 5.
"""

from __future__ import annotations

import errno
import struct
from _socket import socket as RawSocket  # a class
from array import array

from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import (
    IOVEC_CODEC,
    MMSGHDR_CODEC,
    SOCKADDR_IN6_CODEC,
    SOCKADDR_IN_CODEC,
)
from gpasst.host.ring import ENTRIES, Form, Ring
from gpasst.linux import (
    AF_INET,
    IORING_OP_READ,
    IORING_OP_RECVMSG,
    IORING_OP_SEND,
    IORING_OP_SENDMSG,
    IORING_OP_WRITE,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    RWF_NOWAIT,
    SOCK_DGRAM,
)
from gpasst.packet.address import V4, V6

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterable

NAME_BYTES = {V4: SOCKADDR_IN_CODEC.size, V6: SOCKADDR_IN6_CODEC.size}  # from one socket address to the next
CONTROL_BYTES = 112  # of control messages: UDP_GRO 24, packet info 40, TOS and TTL 24 each

TARGET_BYTES = {V4: 8 + NAME_BYTES[V4], V6: 8 + NAME_BYTES[V6] + 4}  # of what `target` returns: whole longs

_WORD, _LONG = 4, 8  # bytes of 32 and of 64 bits
_HEADER, _VECTOR = MMSGHDR_CODEC.size, IOVEC_CODEC.size
_NEVER_WAIT = MSG_DONTWAIT | MSG_NOSIGNAL
_PROBE = b"?"


class Sends(Form):
    """Sends of datagrams, each from any socket to an address; failures alone are reported.

    The columns `addresses` and `lengths` are the user's, and `remotes` where a connected socket needs no address (0).
    A row's socket and address are its `target`.

    :param ring: which makes them.
    :param family: 4 or 6.
    :param arenas: the memory of the payloads.
    """

    __slots__ = ("_size", "_targets")

    def __init__(self, ring: Ring, family: int, arenas: Iterable[Arena]) -> None:
        self._size = size = TARGET_BYTES[family]
        own = Arena(size * ENTRIES)
        super().__init__(ring, IORING_OP_SEND, _NEVER_WAIT, False, [*arenas, own], NAME_BYTES[family])
        self._targets = own.bytes
        self.remotes[:] = own.column(ENTRIES, size, _LONG)

    def aim(self, targets: bytes, count: int) -> bool:
        """Let the first rows send to targets.

        :param targets: one for each row, one behind the other.
        :param count: of rows.
        :return: whether there are as many targets; otherwise nothing has changed.
        :raises ValueError: if there are more than `ENTRIES`.
        """
        size = self._size
        if len(targets) != size * count:
            return False
        self._targets[: size * count] = targets
        self.descriptors[:count] = memoryview(targets).cast("i")[:: size // _WORD]
        return True


class Writes(Form):
    """Writes to taps, in the order of the rows; failures alone are reported.

    The columns `descriptors`, `addresses` and `lengths` are the user's.

    :param ring: which makes them.
    :param arenas: the memory of the frames.
    """

    __slots__ = ()

    def __init__(self, ring: Ring, arenas: Iterable[Arena]) -> None:
        super().__init__(ring, IORING_OP_WRITE, RWF_NOWAIT, False, arenas)

    def accepted(self, fd: int) -> bool:
        """Return whether a tap takes writes that do not wait (Linux 6.4), found out by one of no bytes."""
        self.descriptors[0], self.lengths[0] = fd, 0
        return (0, errno.EOPNOTSUPP) not in self.failures(1)


class Reads(Form):
    """Reads from a tap, in the order of the rows.

    :param ring: which makes them.
    :param addresses: where frames go, as an array of type "Q" of whole multiples of `ENTRIES`; they are read into
        `ENTRIES` at a time.
    :param size: bytes that there is room for at each address.
    :param arenas: the memory of the addresses.
    """

    __slots__ = ("_addresses",)

    def __init__(self, ring: Ring, addresses: array[int], size: int, arenas: Iterable[Arena]) -> None:
        super().__init__(ring, IORING_OP_READ, RWF_NOWAIT, True, arenas)
        self._addresses = addresses
        self.lengths[:] = array("I", [size]) * ENTRIES

    def read(self, fd: int, first: int) -> list[int]:
        """Read up to `ENTRIES` frames.

        :param fd: the tap.
        :param first: index of the address that the first one goes to.
        :return: bytes of each, or the negated errno.
        """
        self.descriptors[:] = array("i", [fd]) * ENTRIES
        self.addresses[:] = self._addresses[first : first + ENTRIES]
        return self.results(ENTRIES)


class _Messages(Form):
    """Calls with a message header each.

    :param ring: which makes them.
    :param operation: IORING_OP_SENDMSG or IORING_OP_RECVMSG.
    :param reports: whether each call reports its result.
    :param family: 4 or 6, of the socket addresses.
    :param pieces: of a payload, on average over the rows.
    :param arenas: the memory of the payloads.
    :ivar names: the rows' socket addresses, `NAME_BYTES` each.
    :ivar controls: the rows' control messages, `CONTROL_BYTES` each.
    :ivar name_lengths: column of the bytes of socket addresses.
    :ivar control_lengths: column of the bytes of control messages.
    :ivar counts: column of how many pieces each has.
    :ivar flags: column of the flags (MSG_*) that the kernel returns.
    :ivar bases: the addresses of the pieces of all rows, `pieces` for each.
    :ivar sizes: the bytes of the pieces, likewise.
    :ivar vectors: column of where the kernel finds a row's first piece, one of `places`.
    :ivar places: of all pieces, in the order of `bases`.
    """

    __slots__ = (
        "bases",
        "control_lengths",
        "controls",
        "counts",
        "flags",
        "name_lengths",
        "names",
        "places",
        "sizes",
        "vectors",
    )

    def __init__(
        self, ring: Ring, operation: int, reports: bool, family: int, pieces: int, arenas: Iterable[Arena]
    ) -> None:
        name = NAME_BYTES[family]
        places: list[int] = []
        end = 0
        for size in (_HEADER, _VECTOR * pieces, CONTROL_BYTES, name):
            places.append(end)
            end += size * ENTRIES
        own = Arena(end)
        super().__init__(ring, operation, _NEVER_WAIT, reports, [*arenas, own])
        headers_at, vectors_at, controls_at, names_at = places
        column = own.column
        self.addresses[:] = column(ENTRIES, _HEADER, headers_at)
        self.lengths[:] = array("I", [1]) * ENTRIES
        self.controls = own.bytes[controls_at:names_at]
        self.names = own.bytes[names_at:end]
        longs = own.bytes[vectors_at:controls_at].cast("Q")
        self.bases, self.sizes = longs[::2], longs[1::2]
        self.places = column(pieces * ENTRIES, _VECTOR, vectors_at)
        headers = own.bytes[headers_at:vectors_at]
        longs, words = headers.cast("Q"), headers.cast("I")

        def of(field: str, view: memoryview) -> memoryview:
            return view[MMSGHDR_CODEC.offset(field) // view.itemsize :: _HEADER // view.itemsize]

        of("name", longs)[:] = column(ENTRIES, name, names_at)
        self.vectors = of("vectors", longs)
        self.vectors[:] = self.places[::pieces]
        of("control", longs)[:] = column(ENTRIES, CONTROL_BYTES, controls_at)
        self.name_lengths, self.flags = of("name_length", words), of("flags", words)
        self.counts, self.control_lengths = of("vectors_count", longs), of("control_length", longs)
        self.name_lengths[:] = array("I", [name]) * ENTRIES
        self.counts[:] = array("Q", [pieces]) * ENTRIES


class Messages(_Messages):
    """Sends of messages, which may have control messages and payloads of several pieces; failures alone are reported.

    The columns `descriptors`, `bases`, `sizes`, and where they change `vectors`, `counts`, `names`, `name_lengths` (0
    for a connected socket), `controls` and `control_lengths` are the user's. There are no control messages at first.

    :param ring: which makes them.
    :param family: 4 or 6, of the socket addresses.
    :param pieces: of a payload, on average over the rows; of one row at most UIO_MAXIOV.
    :param arenas: the memory of the payloads.
    """

    __slots__ = ()

    def __init__(self, ring: Ring, family: int, pieces: int, arenas: Iterable[Arena]) -> None:
        super().__init__(ring, IORING_OP_SENDMSG, False, family, pieces, arenas)


class Receives(_Messages):
    """Receives of one datagram each, from any sockets of one family.

    `bases` and `sizes` say where payloads go; `names`, `controls`, `control_lengths` and `flags` have what came with
    those that were received, and older values in other rows.

    :param ring: which makes them.
    :param family: 4 or 6.
    :param arenas: the memory that payloads go to.
    """

    __slots__ = ("_fit", "_used")

    def __init__(self, ring: Ring, family: int, arenas: Iterable[Arena]) -> None:
        super().__init__(ring, IORING_OP_RECVMSG, True, family, 1, arenas)
        self._fit = array("Q", [CONTROL_BYTES]) * ENTRIES
        self._used = ENTRIES  # rows whose control lengths say what came, no longer what fits

    def receive(self, descriptors: array[int]) -> list[int]:
        """Receive from sockets.

        :param descriptors: of the sockets, as an array of type "i", at most `ENTRIES`.
        :return: for each, the bytes received, or the negated errno; that of a socket without datagrams is EAGAIN.
        :raises ValueError: if the ring is closed, or there are too many sockets.
        """
        count = len(descriptors)
        self.descriptors[:count] = descriptors
        used = self._used
        self.control_lengths[:used] = self._fit if used == ENTRIES else self._fit[:used]
        self._used = count
        return self.results(count)


def target(descriptor: int, name: bytes) -> bytes:
    """Return what `Sends.aim` takes for a row.

    :param descriptor: of the socket.
    :param name: the address, as the kernel reads it (struct sockaddr).
    """
    return struct.pack("@i4x", descriptor) + name + bytes(-len(name) % _LONG)


def open_ring() -> Ring:
    """Open a ring whose calls have been tried.

    :raises OSError: if the kernel does not allow one, or has not all that is used of it.
    """
    ring = Ring()
    try:
        _try(ring)
    except BaseException:
        ring.close()
        raise
    return ring


def _try(ring: Ring) -> None:
    """Let a socket send a datagram to itself, by its address.

    :raises OSError: if that fails.
    """
    sock = RawSocket(AF_INET, SOCK_DGRAM, 0)
    payloads = Arena(2 * len(_PROBE))
    try:
        sock.bind(("127.0.0.1", 0))
        address, port = sock.getsockname()
        receives, sends = Receives(ring, V4, [payloads]), Sends(ring, V4, [payloads])
        receives.bases[0], receives.sizes[0] = payloads.address + len(_PROBE), len(_PROBE)
        payloads.bytes[: len(_PROBE)] = _PROBE
        sends.addresses[0], sends.lengths[0] = payloads.address, len(_PROBE)
        packed = SOCKADDR_IN_CODEC.pack(family=AF_INET, port=port, address=bytes(map(int, address.split("."))))
        sends.aim(target(sock.fileno(), packed), 1)
        # One that waited would find the datagram later, instead of none now.
        (nothing,) = receives.receive(array("i", [sock.fileno()]))
        failed = sends.failures(1)
        (found,) = receives.receive(array("i", [sock.fileno()]))
    finally:
        sock.close()
    # On a busy machine the datagram may come later.
    number = -errno.EAGAIN - nothing or (failed[0][1] if failed else 0) or (found not in (len(_PROBE), -errno.EAGAIN))
    if number:
        raise OSError(errno.EOPNOTSUPP, "io_uring of an older kernel")
