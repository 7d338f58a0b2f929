"""Rings: what is made in one call, in which order, what is reported, and what is left of it."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import socket
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gpasst.host import ring as module
from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import SOCKADDR_IN6_CODEC, SOCKADDR_IN_CODEC
from gpasst.host.ring import ENTRIES, TRIES, Form, Ring
from gpasst.host.ring_forms import CONTROL_BYTES, NAME_BYTES, Messages, Receives, Sends, Writes, open_ring
from gpasst.linux import (
    IORING_OP_SEND,
    IP_RECVTOS,
    IPV6_RECVTCLASS,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SOL_UDP,
    SYS_IO_URING_ENTER,
    SYS_IO_URING_REGISTER,
    SYS_IO_URING_SETUP,
    UDP_GRO,
    UDP_SEGMENT,
)
from tests.support.families import FAMILIES, FAMILY, LOOPBACK

STRIDE = 4096
READ = 22  # IORING_OP_READ (linux/io_uring.h)
FORCED_TO_A_WORKER = 1 << 4  # IOSQE_ASYNC
PATIENCE = 2  # seconds


def available() -> bool:
    try:
        open_ring().close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not available(), reason="needs io_uring (Linux 6.1, kernel.io_uring_disabled 0)")


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring()
    yield made
    made.close()


@pytest.fixture
def arena() -> Arena:
    return Arena(STRIDE * ENTRIES)


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
    return array("i", [sock.fileno() for sock in found])


def fill(sends: Sends, arena: Arena, family: int, senders: list[socket.socket], to: list[socket.socket]) -> int:
    """Have each sender send its own number, of 8 bytes, to its own receiver."""
    count = len(senders)
    for number in range(count):
        arena.bytes[STRIDE * number : STRIDE * number + 8] = number.to_bytes(8, "big")
    sends.descriptors[:count] = descriptors(senders)
    sends.addresses[:count] = arena.column(count, STRIDE)
    sends.lengths[:count] = array("I", [8] * count)
    sends.names[: count * NAME_BYTES[family]] = b"".join(packed(family, sock) for sock in to)
    return count


def open_descriptors(kind: str = "") -> set[int]:
    """Return those whose file has a word in its name."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # That of the listing itself is gone.
        with suppress(FileNotFoundError):
            if kind in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found


@FAMILIES
@pytest.mark.parametrize("count", [1, 2, ENTRIES - 1, ENTRIES])
def test_each_datagram_leaves_from_its_socket_to_its_address(ring: Ring, arena: Arena, family: int, count: int) -> None:
    """Several times, so that the batches lie in all places of the ring."""
    with ExitStack() as stack:
        senders, receivers = sockets(stack, family, count), sockets(stack, family, count)
        sends = Sends(ring, family, [arena])
        fill(sends, arena, family, senders, receivers)
        for _ in range(5):
            assert sends.failures(count) == []
            for number, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
                receiver.settimeout(PATIENCE)
                assert receiver.recvfrom(100) == (number.to_bytes(8, "big"), sender.getsockname())


@FAMILIES
def test_a_connected_socket_needs_no_address(ring: Ring, arena: Arena, family: int) -> None:
    with ExitStack() as stack:
        (one, two), (here, there) = sockets(stack, family, 2), sockets(stack, family, 2)
        sends = Sends(ring, family, [arena])
        fill(sends, arena, family, [one, two], [here, there])
        one.connect(there.getsockname())
        sends.remotes[0] = 0
        assert sends.failures(2) == []
        there.settimeout(PATIENCE)
        assert {there.recv(100), there.recv(100)} == {number.to_bytes(8, "big") for number in (0, 1)}


@FAMILIES
def test_failures_are_reported_by_row_and_the_others_are_sent(ring: Ring, arena: Arena, family: int) -> None:
    with ExitStack() as stack:
        senders, receivers = sockets(stack, family, 10), sockets(stack, family, 10)
        sends = Sends(ring, family, [arena])
        fill(sends, arena, family, senders, receivers)
        sends.lengths[3] = 65_530
        sends.addresses[5] = 1
        sends.descriptors[7] = 1 << 20
        sends.names[9 * NAME_BYTES[family] : 10 * NAME_BYTES[family]] = bytes(NAME_BYTES[family])
        numbers = dict(sends.failures(10))
        assert numbers.pop(9) in (errno.EAFNOSUPPORT, errno.EINVAL, errno.EDESTADDRREQ)
        assert numbers == {3: errno.EMSGSIZE, 5: errno.EFAULT, 7: errno.EBADF}
        for number, receiver in enumerate(receivers):
            if number in (3, 5, 7, 9):
                with pytest.raises(BlockingIOError):
                    receiver.recv(100)
            else:
                receiver.settimeout(PATIENCE)
                assert receiver.recv(100) == number.to_bytes(8, "big")


def full_stream(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return a pair of stream sockets, of which the first takes no more."""
    one, other = map(stack.enter_context, socket.socketpair())
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            one.send(bytes(1 << 16))
    return one, other


def test_a_full_socket_fails_at_once(ring: Ring, arena: Arena) -> None:
    """Also where the socket itself would wait; and nothing is sent later."""
    with ExitStack() as stack:
        one, other = full_stream(stack)
        one.setblocking(True)
        sends = Sends(ring, 4, [arena])
        sends.descriptors[:3] = array("i", [one.fileno()] * 3)
        sends.addresses[:3] = arena.column(3, STRIDE)
        sends.lengths[:3] = array("I", [100] * 3)
        sends.remotes[:3] = array("Q", [0] * 3)
        assert sends.failures(3) == [(row, errno.EAGAIN) for row in range(3)]
        one.setblocking(False)
        messages = Messages(ring, 4, 1, [arena])
        messages.descriptors[0], messages.name_lengths[0] = one.fileno(), 0
        messages.bases[0], messages.sizes[0] = arena.address, 100
        messages.control_lengths[0] = 0
        assert messages.results(1) == [-errno.EAGAIN]
        assert not ring.completed()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.recv(1 << 20)
        assert not ring.completed(), "nothing had been left waiting"
        assert sends.failures(1) == []


def pipe_writes(stack: ExitStack, ring: Ring, arena: Arena, flags: int) -> tuple[Writes, int, int]:
    """Return a form of writes to a pipe, and the ends of that."""
    reader, writer = os.pipe2(flags)
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    writes = Writes(ring, [arena])
    if not writes.accepted(writer):
        pytest.skip("needs Linux 6.4 (RWF_NOWAIT on a pipe)")
    writes.descriptors[:] = array("i", [writer]) * ENTRIES
    return writes, reader, writer


def test_a_full_pipe_fails_at_once(ring: Ring, arena: Arena) -> None:
    with ExitStack() as stack:
        writes, _, writer = pipe_writes(stack, ring, arena, os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(1 << 16))
        writes.addresses[0], writes.lengths[0] = arena.address, 10
        for blocking in (False, True):
            os.set_blocking(writer, blocking)
            assert writes.failures(1) == [(0, errno.EAGAIN)]
        assert not ring.completed()


@pytest.mark.parametrize("count", [1, 2, ENTRIES])
def test_writes_to_one_descriptor_keep_their_order(ring: Ring, arena: Arena, count: int) -> None:
    """By the packets of a pipe that keeps their limits."""
    order = [(number * 7 + 3) % count for number in range(count)]
    for number in range(count):
        arena.bytes[STRIDE * number : STRIDE * number + 8] = number.to_bytes(8, "big")
    places = arena.column(count, STRIDE)
    with ExitStack() as stack:
        writes, reader, _ = pipe_writes(stack, ring, arena, os.O_NONBLOCK | os.O_DIRECT)
        writes.lengths[:count] = array("I", [8] * count)
        # A pipe of 16 pages holds as many packets.
        for start in range(0, count, 16):
            part = order[start : start + 16]
            writes.addresses[: len(part)] = array("Q", [places[number] for number in part])
            assert writes.failures(len(part)) == []
            assert [os.read(reader, 100) for _ in part] == [number.to_bytes(8, "big") for number in part]


def receives_into(ring: Ring, arena: Arena, family: int, size: int = STRIDE - 100) -> Receives:
    """Return a form that receives behind a headroom of 100 bytes."""
    receives = Receives(ring, family, [arena])
    receives.bases[:] = arena.column(ENTRIES, STRIDE, 100)
    receives.sizes[:] = array("Q", [size]) * ENTRIES
    return receives


@FAMILIES
def test_one_datagram_of_each_socket_is_received(ring: Ring, arena: Arena, family: int) -> None:
    """With its sender, behind the headroom; a socket without one says so at once."""
    with ExitStack() as stack:
        senders, receivers = sockets(stack, family, ENTRIES), sockets(stack, family, ENTRIES)
        receives = receives_into(ring, arena, family)
        for turn in range(3):
            sent = {}
            for number, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
                if (number + turn) % 3:
                    sent[number] = bytes([number, turn]) * (number + 1)
                    sender.sendto(sent[number], receiver.getsockname())
                    receiver.settimeout(PATIENCE)
                    receiver.recv(1, socket.MSG_PEEK)
            results = receives.receive(descriptors(receivers))
            assert results == [len(sent.get(number, b"")) or -errno.EAGAIN for number in range(ENTRIES)]
            for number, data in sent.items():
                start = STRIDE * number + 100
                assert arena.bytes[start : start + len(data)] == data
                name = NAME_BYTES[family]
                assert receives.names[number * name : (number + 1) * name] == packed(family, senders[number])
                assert receives.control_lengths[number] == 0


@FAMILIES
def test_control_messages_and_flags_come_with_each_datagram(ring: Ring, arena: Arena, family: int) -> None:
    level, reports, sets = (
        (socket.IPPROTO_IP, IP_RECVTOS, socket.IP_TOS)
        if family == 4
        else (socket.IPPROTO_IPV6, IPV6_RECVTCLASS, socket.IPV6_TCLASS)
    )
    with ExitStack() as stack:
        (sender,), receivers = sockets(stack, family, 1), sockets(stack, family, 3)
        for receiver in receivers:
            receiver.setsockopt(level, reports, 1)
            receiver.settimeout(PATIENCE)
        receivers[1].setsockopt(SOL_UDP, UDP_GRO, 1)
        receives = receives_into(ring, arena, family, size=1000)
        for turn in range(2):
            marks = [0x28 + 4 * turn, 0x48, 0]
            for mark, receiver, size in zip(marks, receivers, (10, 300, 2000), strict=True):
                sender.setsockopt(level, sets, mark)
                if size == 300:
                    sender.sendmsg(
                        [bytes(size)], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", 100))], 0, receiver.getsockname()
                    )
                else:
                    sender.sendto(bytes(size), receiver.getsockname())
                receiver.recv(1, socket.MSG_PEEK)
            assert receives.receive(descriptors(receivers)) == [10, 300, 1000]
            assert [receives.flags[row] & MSG_TRUNC for row in range(3)] == [0, 0, MSG_TRUNC]
            found = []
            for row in range(3):
                used = receives.control_lengths[row]
                found.append(receives.controls[row * CONTROL_BYTES : row * CONTROL_BYTES + used].tobytes())
            assert [marks[row] in (data[16], data[-8]) for row, data in enumerate(found)] == [True] * 3
            assert struct.pack("@QiiI", 20, SOL_UDP, UDP_GRO, 100) in found[1]


@FAMILIES
def test_messages_have_pieces_control_messages_and_results(ring: Ring, arena: Arena, family: int) -> None:
    with ExitStack() as stack:
        senders, (receiver,) = sockets(stack, family, 2), sockets(stack, family, 1)
        receiver.settimeout(PATIENCE)
        arena.bytes[:9] = b"abcdefghi"
        messages = Messages(ring, family, 3, [arena])
        name = NAME_BYTES[family]
        segment = struct.pack("@QiiH", 18, SOL_UDP, UDP_SEGMENT, 3)
        messages.descriptors[:2] = descriptors(senders)
        messages.names[: 2 * name] = packed(family, receiver) * 2
        messages.bases[:3] = array("Q", [arena.address + at for at in (0, 3, 6)])
        messages.sizes[:3] = array("Q", [3, 3, 2])
        messages.controls[: len(segment)] = segment
        messages.control_lengths[0] = 24
        messages.bases[3] = arena.address + 8
        messages.sizes[3] = 1
        messages.counts[1] = 1
        assert messages.results(2) == [8, 1]
        assert [receiver.recv(100) for _ in range(4)] == [b"abc", b"def", b"gh", b"i"]


def test_a_batch_of_more_than_there_are_entries_is_refused(ring: Ring, arena: Arena) -> None:
    with pytest.raises(ValueError, match="65 entries in a ring of 64"):
        ring.enter(memoryview(bytes(64 * 65)), 65)
    receives = Receives(ring, 4, [arena])
    with pytest.raises(ValueError):
        receives.receive(array("i", [0] * (ENTRIES + 1)))


@pytest.mark.parametrize(("operation", "flags"), [(READ, 0), (IORING_OP_SEND, FORCED_TO_A_WORKER)])
def test_the_kernel_makes_no_other_calls(ring: Ring, operation: int, flags: int) -> None:
    """Whatever is written into the entries of the ring."""
    form = Form(ring, operation, MSG_DONTWAIT, True, [])
    form.descriptors[0] = 1 << 20
    entries = memoryview(bytearray(form._entries[:64]))  # noqa: SLF001
    entries[1] = flags
    assert ring.enter(entries, 1) == 1
    assert ring.completions() == ([0], [-errno.EACCES])


class Refusing:
    """The enter call of a kernel that makes only some of the calls, or none."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.real = module._enter  # noqa: SLF001
        self.asked: list[int] = []

    def __call__(self, number: int, fd: int, count: int, *rest: Any) -> int:
        self.asked.append(count)
        answer = self.answers.pop(0) if self.answers else count
        if answer < 0:
            ctypes.set_errno(-answer)
            return -1
        return int(self.real(number, fd, min(answer, count), *rest))


@pytest.mark.parametrize(
    ("answers", "refused", "number"),
    [
        ((4,), 0, 0),
        ((4, 0, 3), 0, 0),
        ((-errno.EAGAIN,), 0, 0),
        ((3, -errno.EINTR, -errno.EBUSY), 0, 0),
        ((-errno.ENOMEM,), 10, errno.ENOMEM),
        ((-errno.EEXIST,), 10, errno.EEXIST),
        ((7, -errno.ENOMEM), 3, errno.ENOMEM),
        ((7, *[0] * TRIES), 3, errno.EAGAIN),
        ((0, *[-errno.EAGAIN] * TRIES), 10, errno.EAGAIN),
    ],
)
def test_what_the_ring_does_not_make_fails_row_by_row(
    ring: Ring, arena: Arena, answers: tuple[int, ...], refused: int, number: int
) -> None:
    """It is not made later either."""
    with ExitStack() as stack:
        senders, receivers = sockets(stack, 4, 10), sockets(stack, 4, 10)
        for receiver in receivers:
            receiver.settimeout(PATIENCE)
        sends, receives = Sends(ring, 4, [arena]), receives_into(ring, arena, 4)
        fill(sends, arena, 4, senders, receivers)
        with mock.patch.object(module, "_enter", Refusing(*answers)):
            failed = sends.failures(10)
        assert failed == [(row, number) for row in range(10 - refused, 10)]
        for receiver in receivers[: 10 - refused]:
            receiver.recv(100, socket.MSG_PEEK)
        with mock.patch.object(module, "_enter", Refusing(*answers)):
            results = receives.receive(descriptors(receivers))
        assert results == [8] * (10 - refused) + [-number] * refused
        assert sends.failures(10) == []
        assert [receiver.recv(100) for receiver in receivers] == [row.to_bytes(8, "big") for row in range(10)]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.EMFILE, errno.EINVAL])
@pytest.mark.parametrize(
    ("call", "nth"),
    [
        (SYS_IO_URING_SETUP, 0),
        (SYS_IO_URING_REGISTER, 0),
        (SYS_IO_URING_REGISTER, 1),
        *((SYS_IO_URING_ENTER, nth) for nth in range(2)),
    ],
)
def test_a_ring_that_is_refused_leaves_nothing(call: int, nth: int, number: int) -> None:
    real, entered = module._called, module._enter  # noqa: SLF001
    met: list[int] = []

    def refuses(asked: int) -> bool:
        met.append(asked)
        return asked == call and met.count(call) == nth + 1

    def called(asked: int, *arguments: object) -> int:
        if refuses(asked):
            raise OSError(number, os.strerror(number))
        return real(asked, *arguments)

    def enter(asked: int, *arguments: Any) -> int:
        if refuses(asked):
            ctypes.set_errno(number)
            return -1
        return int(entered(asked, *arguments))

    before = open_descriptors()
    with mock.patch.multiple(module, _called=called, _enter=enter), pytest.raises(OSError):
        open_ring()
    assert met.count(call) > nth, "the call was made"
    gc.collect()
    assert open_descriptors() == before


@pytest.mark.parametrize("nth", [0, 1])
def test_a_mapping_that_is_refused_leaves_nothing(nth: int) -> None:
    real = mmap.mmap
    answers: Iterator[Callable[..., Any]] = iter([real] * nth + [mock.Mock(side_effect=OSError(errno.ENOMEM, ""))])
    before = open_descriptors()
    with mock.patch.object(module, "mmap", lambda *given, **named: next(answers)(*given, **named)):
        with pytest.raises(OSError):
            Ring()
    assert open_descriptors() == before


def test_a_kernel_that_lacks_a_call_is_found_out() -> None:
    """One that would wait, or that takes no address."""
    for kind, answer in ((Receives, "results"), (Sends, "failures")):
        answers = {"results": [-errno.EINVAL], "failures": [(0, errno.EINVAL)]}
        with mock.patch.object(kind, answer, return_value=answers[answer]), pytest.raises(OSError) as caught:
            open_ring()
        assert caught.value.errno == errno.EOPNOTSUPP


def test_closing_frees_descriptors_and_arenas(arena: Arena) -> None:
    before = open_descriptors()
    rings = [open_ring() for _ in range(3)]
    forms = [form for ring in rings for form in (Sends(ring, 4, [arena]), receives_into(ring, arena, 6))]
    assert len(open_descriptors()) == len(before) + 3 * 3
    for ring in rings:
        with pytest.raises(BufferError):
            arena.close()
        ring.close()
        ring.close()
    assert open_descriptors() == before
    arena.close()
    for form in forms:
        with pytest.raises(ValueError):
            form.failures(1)
    with pytest.raises(ValueError, match="closed"):
        Sends(rings[0], 4, [])


def test_what_a_form_had_goes_with_its_ring() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("\n")

    def use() -> None:
        ring = open_ring()
        arena = Arena(1 << 20)
        Sends(ring, 4, [arena])
        Messages(ring, 6, 100, [arena])
        ring.close()

    use()
    before = mapped()
    for _ in range(20):
        use()
    assert mapped() - before < 20


def test_descriptors_are_not_for_programs(ring: Ring) -> None:
    del ring
    own = open_descriptors("io_uring")
    assert len(own) == 3
    assert not any(map(os.get_inheritable, own))


def test_a_child_finds_it_closed_and_the_parent_goes_on(ring: Ring, arena: Arena) -> None:
    with ExitStack() as stack:
        senders, receivers = sockets(stack, 4, 3), sockets(stack, 4, 3)
        sends = Sends(ring, 4, [arena])
        fill(sends, arena, 4, senders, receivers)
        sends.failures(1)

        def work() -> None:
            with pytest.raises(ValueError, match="released"):
                sends.failures(3)
            assert not open_descriptors("io_uring")
            own = open_ring()
            theirs = Sends(own, 4, [arena])
            fill(theirs, arena, 4, senders, receivers)
            assert theirs.failures(3) == []
            own.close()

        child = os.fork()
        if not child:
            # Whatever happens here, the child must not go on with the tests.
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sends.failures(3) == []
        for receiver, count in zip(receivers, (3, 2, 2), strict=True):
            receiver.settimeout(PATIENCE)
            assert len([receiver.recv(100) for _ in range(count)]) == count
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(100)


def test_a_ring_is_for_its_thread(ring: Ring, arena: Arena) -> None:
    """Another one is refused, without harm; and has a ring of its own."""
    with ExitStack() as stack:
        senders, receivers = sockets(stack, 4, 3), sockets(stack, 4, 3)
        sends = Sends(ring, 4, [arena])
        fill(sends, arena, 4, senders, receivers)
        found: list[object] = []

        def work() -> None:
            found.append(sends.failures(3))
            own = open_ring()
            theirs = Sends(own, 4, [arena])
            fill(theirs, arena, 4, senders, receivers)
            found.append(theirs.failures(3))
            own.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [[(row, errno.EEXIST) for row in range(3)], []]
        assert sends.failures(3) == []
        for receiver in receivers:
            receiver.settimeout(PATIENCE)
            assert len([receiver.recv(100) for _ in range(2)]) == 2
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(100)


def test_no_worker_thread_is_made(ring: Ring, arena: Arena) -> None:
    before = sorted(os.listdir("/proc/self/task"))
    with ExitStack() as stack:
        senders, receivers = sockets(stack, 4, ENTRIES), sockets(stack, 4, ENTRIES)
        sends, receives = Sends(ring, 4, [arena]), receives_into(ring, arena, 4)
        fill(sends, arena, 4, senders, receivers)
        for _ in range(20):
            sends.failures(ENTRIES)
            receives.receive(descriptors(receivers))
    assert sorted(os.listdir("/proc/self/task")) == before
