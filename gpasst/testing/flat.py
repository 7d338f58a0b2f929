"""What a process holds of the machine, and the check that repeats of an action do not add to it.

Theory of operation: what counts is the whole tree of processes, since an action may start some and leave something in
them. The kernel takes things back after they were let go (a tap takes up to 40 ms), so a count that is too high is
looked at again until `SETTLE_SECONDS` are over. Memory is counted without what is shared with others, and may grow by
an allowance: an allocator keeps what it was given.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpasst.records import dataclass

WARM_REPEATS = 20
ALLOWED_KIB = 2048  # of memory, over all repeats
SETTLE_SECONDS = 5.0
LOOK_SECONDS = 0.02
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its descendants hold.

    :ivar processes: how many there are.
    :ivar threads: their threads.
    :ivar descriptors: their open files; of a process that this user may not look into, none.
    :ivar memory: their own memory, in KiB.
    """

    processes: int
    threads: int
    descriptors: int
    memory: int

    def exceeds(self, other: Usage, allowed: int = 0) -> bool:
        """Return whether it is more than another one in anything.

        :param allowed: memory that it may have more, in KiB.
        """
        return (
            self.processes > other.processes
            or self.threads > other.threads
            or self.descriptors > other.descriptors
            or self.memory > other.memory + allowed
        )


def usage(pid: int = 0) -> Usage:
    """Return what a process and its descendants hold.

    :param pid: its number, 0 for the calling one.
    """
    found = [_held(one) for one in _tree(pid or os.getpid())]
    return Usage(len(found), *(sum(column) for column in zip(*found, strict=True)))


def assert_flat(
    action: Callable[[], object], repeats: int = 100, warm: int = WARM_REPEATS, allowed: int = ALLOWED_KIB
) -> None:
    """Check that repeats of an action leave no process, thread or open file behind, and hardly any memory.

    ::

        def visit():
            with gpasst.Pasta(config_net=True) as net:
                net.run(["./client"], check=True)

        assert_flat(visit)

    :param action: the action.
    :param repeats: how often it is done, `warm` included.
    :param warm: how often it is done before the first look.
    :param allowed: memory that the others may add, in KiB.
    :raises AssertionError: naming what there was before and is afterwards.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    for _ in range(warm):
        action()
    gc.collect()
    time.sleep(LOOK_SECONDS)
    before = usage()
    for _ in range(repeats - warm):
        action()
    gc.collect()
    until = time.monotonic() + SETTLE_SECONDS
    while (after := usage()).exceeds(before, allowed) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    if after.exceeds(before, allowed):
        raise AssertionError(f"{repeats - warm} repeats have left something behind: {before} became {after}")


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return  # it has ended
    for task in tasks:
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
        except OSError:
            continue
        for child in children.split():
            yield from _tree(int(child))


def _held(pid: int) -> tuple[int, int, int]:
    """Return threads, descriptors and memory of one process."""
    folder = Path(f"/proc/{pid}")
    try:
        _, resident, shared, *_ = map(int, (folder / "statm").read_text(encoding="ascii").split())
        threads = len(os.listdir(folder / "task"))
    except OSError:
        return 0, 0, 0
    try:
        descriptors = len(os.listdir(folder / "fd"))
    except OSError:
        descriptors = 0
    return threads, descriptors, (resident - shared) * PAGE_KIB
