"""A ring of system calls (io_uring): up to 64 of them in one, of which none waits.

Theory of operation: the process writes entries of 64 bytes into memory that it shares with the kernel, and one call,
`io_uring_enter`, has the kernel make all of them.

1. **Nothing waits.** Each entry says so itself: MSG_DONTWAIT for sockets, RWF_NOWAIT for a tap. The kernel then makes
   the call within `io_uring_enter`, in the order of the entries, and never hands it to a worker thread or a poll. All
   has happened when `io_uring_enter` returns, and no memory is looked at afterwards.
2. **A form** has the entries of one kind of call: what never changes is written once, and the rest is a *column* for
   each field, a strided view that takes 64 values in one assignment. A run of a form copies its first entries into the
   ring.
3. **Results** come as completions. A kind of which only failures matter asks for these alone (IOSQE_CQE_SKIP_SUCCESS),
   and then a batch without one ends with a comparison of two integers.
4. **Errors of the ring itself** are the entries' errors: if the kernel makes no more of them (no memory, another thread
   than the ring's), the rest is reported with that errno, and nothing of it stays in the ring. So whoever handles the
   errno of a row needs no other way out.
5. **Memory.** An entry has addresses. They are of arenas (`gpasst.host.arena`), which a form holds until the ring is
   closed; or of the form's own area. Closing the ring frees the arenas to be closed, never the other way round.
6. **Fork.** A child shares the ring with its parent, and would write into the parent's entries. So a child closes its
   copies of all rings at once; it finds them closed. A ring belongs to the thread that opened it: calls from others
   fail with EEXIST, as by 4.
7. **Restrictions.** Calls through a ring pass no seccomp filter. So the ring is opened disabled, restricted to the five
   calls of `CALLS` and to one flag of entries, and enabled; from then on neither can be changed
   (IORING_REGISTER_RESTRICTIONS, Linux 5.10).

The interpreter lock is kept for the call (PyDLL): 64 sends take 0.1 ms, while a thread that gave the lock away waits
5 ms for it beside a busy thread, each time; that is also what bounds `ENTRIES`.

NOTE: Linux 6.1 is needed for sends to an address, and has all flags that are used here; to write to a tap, 6.4
(`takes_writes`). A kernel or a container may forbid rings altogether (kernel.io_uring_disabled, seccomp), with EPERM or
ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from array import array
from mmap import MAP_POPULATE, MAP_SHARED, mmap

from gpasst.host.arena import Arena
from gpasst.host.kernel_wire import (
    IO_URING_CQE_CODEC,
    IO_URING_PARAMS_CODEC,
    IO_URING_RESTRICTION_CODEC,
    IO_URING_SQE_CODEC,
)
from gpasst.linux import (
    IORING_FEAT_SINGLE_MMAP,
    IORING_OFF_SQ_RING,
    IORING_OFF_SQES,
    IORING_OP_READ,
    IORING_OP_RECVMSG,
    IORING_OP_SEND,
    IORING_OP_SENDMSG,
    IORING_OP_WRITE,
    IORING_REGISTER_ENABLE_RINGS,
    IORING_REGISTER_RESTRICTIONS,
    IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
    IORING_RESTRICTION_SQE_OP,
    IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_R_DISABLED,
    IORING_SETUP_SINGLE_ISSUER,
    IORING_SETUP_SUBMIT_ALL,
    IOSQE_CQE_SKIP_SUCCESS,
    SYS_IO_URING_ENTER,
    SYS_IO_URING_REGISTER,
    SYS_IO_URING_SETUP,
)

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

ENTRIES = 64  # of a ring, and of a form; a power of two
CALLS = (
    IORING_OP_SEND,
    IORING_OP_SENDMSG,
    IORING_OP_RECVMSG,
    IORING_OP_WRITE,
    IORING_OP_READ,
)
"""What a ring may be asked for."""
TRIES = 3  # of io_uring_enter, where the kernel has no memory for the moment

_SETUP = IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER
_PASSING = errno.EAGAIN, errno.EINTR, errno.EBUSY
_ENTRY, _DONE = IO_URING_SQE_CODEC.size, IO_URING_CQE_CODEC.size
_RING = _ENTRY * ENTRIES
_WORD, _LONG = 4, 8  # bytes of 32 and of 64 bits
_WRAP = 0xFFFFFFFF  # heads and tails count modulo 2**32
_NUMBERS = list(range(ENTRIES))

# Arguments of declared types take ctypes twice as long; an int becomes one of C, of which all these are.
_enter = _syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long

_rings: weakref.WeakSet[Ring] = weakref.WeakSet()


class Ring:
    """A ring of the calling thread.

    :raises OSError: if the kernel does not allow one; nothing stays open then.
    :ivar refusal: the errno for which calls were not made last.
    """

    def __init__(self) -> None:
        self.refusal = 0
        params = ctypes.create_string_buffer(IO_URING_PARAMS_CODEC.pack(flags=_SETUP), IO_URING_PARAMS_CODEC.size)
        self._fd = _called(SYS_IO_URING_SETUP, ctypes.c_uint(ENTRIES), params)
        self._maps: list[mmap] = []
        self._views: list[memoryview] = []
        self._arenas: list[Arena] = []
        try:
            found = IO_URING_PARAMS_CODEC.unpack_from(params.raw)
            if not found["features"] & IORING_FEAT_SINGLE_MMAP or found["submissions"] != ENTRIES:
                raise OSError(errno.ENOSYS, "io_uring of an older kernel")
            self._map(found)
            self._restrict()
        except BaseException:
            self.close()
            raise
        self._tail = self._head = 0
        _rings.add(self)

    def _map(self, found: dict[str, int]) -> None:
        """Map what the kernel shares.

        :param found: the parameters, as the kernel returned them.
        :raises OSError: if there is no memory.
        """
        flags = MAP_SHARED | MAP_POPULATE
        completions, done_at = found["completions"], found["completion_array"]
        size = max(found["submission_array"] + _WORD * ENTRIES, done_at + _DONE * completions)
        self._maps.append(mmap(self._fd, size, flags, offset=IORING_OFF_SQ_RING))
        self._maps.append(mmap(self._fd, _RING, flags, offset=IORING_OFF_SQES))
        shared, self._entries = (memoryview(mapped) for mapped in self._maps)
        self._words = words = shared[: size - size % _WORD].cast("I")
        done = shared[done_at : done_at + _DONE * completions]
        longs, integers = done.cast("Q"), done.cast("i")
        self._users = longs[IO_URING_CQE_CODEC.offset("user") // _LONG :: _DONE // _LONG]
        self._results = integers[IO_URING_CQE_CODEC.offset("result") // _WORD :: _DONE // _WORD]
        self._completions = completions
        self._views += shared, self._entries, words, done, longs, integers, self._users, self._results
        self._entries_head, self._entries_tail = (found[f"submission_{end}"] // _WORD for end in ("head", "tail"))
        self._done_head, self._done_tail = (found[f"completion_{end}"] // _WORD for end in ("head", "tail"))
        # Which entry stands where, once and for all: each in its own place.
        first = found["submission_array"] // _WORD
        words[first : first + ENTRIES] = memoryview(array("I", _NUMBERS))

    def _restrict(self) -> None:
        """Restrict the ring to what is used of it, and enable it.

        :raises OSError: if the kernel refuses.
        """
        pack = IO_URING_RESTRICTION_CODEC.pack
        rules = [pack(kind=IORING_RESTRICTION_SQE_OP, value=call) for call in CALLS]
        rules.append(pack(kind=IORING_RESTRICTION_SQE_FLAGS_ALLOWED, value=IOSQE_CQE_SKIP_SUCCESS))
        table = b"".join(rules)
        for what, argument, count in (
            (IORING_REGISTER_RESTRICTIONS, table, len(rules)),
            (IORING_REGISTER_ENABLE_RINGS, None, 0),
        ):
            _called(SYS_IO_URING_REGISTER, ctypes.c_int(self._fd), ctypes.c_uint(what), argument, ctypes.c_uint(count))

    def hold(self, arenas: Iterable[Arena]) -> None:
        """Keep arenas from being closed as long as the ring is open.

        :raises ValueError: if the ring is closed.
        """
        if self._fd < 0:
            raise ValueError("the ring is closed")
        for arena in arenas:
            arena.hold()
            self._arenas.append(arena)

    def enter(self, entries: memoryview, count: int) -> int:
        """Have the kernel make calls.

        :param entries: they, one behind the other, and perhaps more.
        :param count: how many.
        :return: how many were made; `refusal` is the errno for which the others were not.
        :raises ValueError: if there are more than `ENTRIES`, or the ring is closed.
        """
        tail = self._tail
        at = tail % ENTRIES * _ENTRY
        size = count * _ENTRY
        end = at + size
        if end <= _RING:
            self._entries[at:end] = entries[:size]
        elif count <= ENTRIES:
            self._entries[at:] = entries[: _RING - at]
            self._entries[: end - _RING] = entries[_RING - at : size]
        else:
            raise ValueError(f"{count} entries in a ring of {ENTRIES}")
        self._words[self._entries_tail] = self._tail = (tail + count) & _WRAP
        made: int = _enter(SYS_IO_URING_ENTER, self._fd, count, 0, 0, None, 0)
        return made if made == count else self._enter_again(count, made)

    def _enter_again(self, count: int, made: int) -> int:
        """Go on where the kernel made fewer calls; parameters and result are those of `enter`.

        :param made: how many it made, -1 if it failed.
        """
        total, tries = 0, TRIES
        while True:
            number = ctypes.get_errno() if made < 0 else 0
            total += max(made, 0)
            if total == count:
                return count
            if not tries or (number and number not in _PASSING):
                break
            tries -= 1
            made = _enter(SYS_IO_URING_ENTER, self._fd, count - total, 0, 0, None, 0)
        # What was not made must not be made with the next batch.
        words = self._words
        words[self._entries_tail] = self._tail = words[self._entries_head]
        self.refusal = number or errno.EAGAIN
        return total

    def completed(self) -> bool:
        """Return whether there are completions."""
        return self._words[self._done_tail] != self._head

    def completions(self) -> tuple[list[int], list[int]]:
        """Take the completions; return the numbers of the entries that completed, and their results."""
        head = self._head
        end = self._words[self._done_tail]
        count = (end - head) & _WRAP
        at = head % self._completions
        beyond = at + count - self._completions
        numbers, results = self._users[at : at + count].tolist(), self._results[at : at + count].tolist()
        if beyond > 0:
            numbers += self._users[:beyond].tolist()
            results += self._results[:beyond].tolist()
        self._words[self._done_head] = self._head = end
        return numbers, results

    def close(self) -> None:
        """Close the ring, and let its arenas go. More calls do nothing."""
        if self._fd < 0:
            return
        _rings.discard(self)
        # Views of a view count as uses of the mapping.
        for view in self._views:
            view.release()
        # Each mapping has a duplicate of the descriptor.
        for mapped in self._maps:
            mapped.close()
        os.close(self._fd)
        self._fd = -1
        for arena in self._arenas:
            arena.let_go()
        self._arenas.clear()


class Form:
    """The entries of up to `ENTRIES` calls of one kind.

    :param ring: which makes them.
    :param operation: one of `CALLS`.
    :param call_flags: MSG_* or RWF_*; among them the one for which it does not wait.
    :param reports: whether each call reports its result, not failures alone.
    :param arenas: the memory that addresses may be of.
    :param name_length: bytes of socket addresses, 0 for none.
    :raises ValueError: if the ring is closed.
    :ivar descriptors: column of the descriptors.
    :ivar addresses: column of the addresses of payloads or message headers.
    :ivar lengths: column of the bytes of payloads.
    :ivar remotes: column of the addresses of socket addresses; 0 for none.
    """

    __slots__ = ("_entries", "_ring", "addresses", "descriptors", "lengths", "remotes")

    def __init__(
        self,
        ring: Ring,
        operation: int,
        call_flags: int,
        reports: bool,
        arenas: Iterable[Arena],
        name_length: int = 0,
    ) -> None:
        ring.hold(arenas)
        self._ring = ring
        flags = 0 if reports else IOSQE_CQE_SKIP_SUCCESS
        entry = IO_URING_SQE_CODEC.pack(
            operation=operation, flags=flags, call_flags=call_flags, name_length=name_length
        )
        self._entries = memoryview(bytearray(entry * ENTRIES))
        self._column("user", "Q")[:] = array("Q", _NUMBERS)
        self.descriptors = self._column("descriptor", "i")
        self.addresses = self._column("address", "Q")
        self.lengths = self._column("length", "I")
        self.remotes = self._column("offset", "Q")

    def _column(self, field: str, kind: Literal["i", "I", "Q"]) -> memoryview:
        view: memoryview = self._entries.cast(kind)
        return view[IO_URING_SQE_CODEC.offset(field) // view.itemsize :: _ENTRY // view.itemsize]

    def failures(self, count: int) -> list[tuple[int, int]]:
        """Make the first `count` calls, of a form that does not report.

        :return: number of the row and errno of each that failed, in the order of the rows.
        :raises ValueError: if the ring is closed, or there are more calls than `ENTRIES`.
        """
        ring = self._ring
        made = ring.enter(self._entries, count)
        failed: list[tuple[int, int]] = []
        if ring.completed():
            failed = sorted((row, -result) for row, result in zip(*ring.completions(), strict=True))
        if made < count:
            failed += [(row, ring.refusal) for row in range(made, count)]
        return failed

    def results(self, count: int) -> list[int]:
        """Make the first `count` calls, of a form that reports.

        :return: what each returns, or its negated errno, in the order of the rows.
        :raises ValueError: if the ring is closed, or there are more calls than `ENTRIES`.
        """
        ring = self._ring
        made = ring.enter(self._entries, count)
        rows, results = ring.completions()
        if rows != _NUMBERS[:made]:
            results = [result for _, result in sorted(zip(rows, results, strict=True))]
        return results if made == count else results + [-ring.refusal] * (count - made)


def _called(number: int, *arguments: object) -> int:
    """Make a system call.

    :raises OSError: if it fails.
    """
    result: int = _syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return result


def _leave() -> None:
    """Close the copies of rings that a child has of its parent's."""
    for ring in list(_rings):
        ring.close()


os.register_at_fork(after_in_child=_leave)
