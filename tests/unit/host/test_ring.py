"""Rings: what is made in one call, in which order, what is reported, and what is left of it."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import socket
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
from gpasst.host.ring import CALLS, ENTRIES, TRIES, Form, Ring
from gpasst.host.ring_forms import NAME_BYTES, Messages, Receives, Sends, Writes, open_ring, target
from gpasst.linux import MSG_DONTWAIT, SYS_IO_URING_ENTER, SYS_IO_URING_REGISTER, SYS_IO_URING_SETUP
from tests.support.families import FAMILIES
from tests.support.rings import PATIENCE, STRIDE, aims, available, descriptors, receives_into, sockets

# Of linux/io_uring.h.
WRITEV, OPENAT, RECV = 2, 18, 27
FORCED_TO_A_WORKER = 1 << 4  # IOSQE_ASYNC


pytestmark = pytest.mark.skipif(not available(), reason="needs io_uring (Linux 6.1, kernel.io_uring_disabled 0)")


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring()
    yield made
    made.close()


@pytest.fixture
def arena() -> Arena:
    return Arena(STRIDE * ENTRIES)


def fill(sends: Sends, arena: Arena, family: int, senders: list[socket.socket], to: list[socket.socket]) -> int:
    """Have each sender send its own number, of 8 bytes, to its own receiver."""
    count = len(senders)
    for number in range(count):
        arena.bytes[STRIDE * number : STRIDE * number + 8] = number.to_bytes(8, "big")
    sends.addresses[:count] = arena.column(count, STRIDE)
    sends.lengths[:count] = array("I", [8] * count)
    assert sends.aim(aims(family, senders, to), count)
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
        nowhere = target(senders[9].fileno(), bytes(NAME_BYTES[family]))
        assert sends.aim(aims(family, senders[:9], receivers[:9]) + nowhere, 10)
        sends.lengths[3] = 65_530
        sends.addresses[5] = 1
        sends.descriptors[7] = 1 << 20
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
        assert messages.failures(1) == [(0, errno.EAGAIN)]
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


def test_a_batch_of_more_than_there_are_entries_is_refused(ring: Ring, arena: Arena) -> None:
    with pytest.raises(ValueError, match="65 entries in a ring of 64"):
        ring.enter(memoryview(bytes(64 * 65)), 65)
    receives = Receives(ring, 4, [arena])
    with pytest.raises(ValueError):
        receives.receive(array("i", [0] * (ENTRIES + 1)))


@pytest.mark.parametrize(
    ("operation", "flags"), [(OPENAT, 0), (RECV, 0), (WRITEV, 0), *((call, FORCED_TO_A_WORKER) for call in CALLS)]
)
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
