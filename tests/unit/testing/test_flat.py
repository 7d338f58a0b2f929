"""The check that repeats leave nothing behind."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gpasst.testing import assert_flat, flat
from gpasst.testing.flat import Usage, usage


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind on purpose goes away by no waiting."""
    monkeypatch.setattr(flat, "SETTLE_SECONDS", 0.0)


@pytest.fixture(name="held")
def _held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def test_an_action_without_traces_is_flat() -> None:
    counted = []
    assert_flat(lambda: counted.append(1), repeats=30, warm=10)
    assert len(counted) == 30


def test_descriptors_that_stay_are_seen(held: ExitStack) -> None:
    def leave() -> None:
        held.callback(os.close, os.open(os.devnull, os.O_RDONLY))

    with pytest.raises(AssertionError, match="10 repeats have left something behind"):
        assert_flat(leave, repeats=11, warm=1)


def test_threads_that_stay_are_seen(held: ExitStack) -> None:
    end = threading.Event()
    held.callback(end.set)
    with pytest.raises(AssertionError, match="threads"):
        assert_flat(lambda: threading.Thread(target=end.wait).start(), repeats=2, warm=1)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


def test_processes_that_stay_are_seen(held: ExitStack) -> None:
    with pytest.raises(AssertionError, match="processes"):
        assert_flat(lambda: held.enter_context(sleeper()), repeats=2, warm=1)


def mapped() -> mmap.mmap:
    return mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_memory_that_stays_is_seen(held: ExitStack) -> None:
    # The kernel's pages: an allocator may have some left that are counted already.
    with pytest.raises(AssertionError, match="memory"):
        assert_flat(lambda: held.enter_context(mapped()).write(bytes(1 << 20)), repeats=11, warm=1)


def test_a_process_and_its_descendants_count(held: ExitStack) -> None:
    """Threads are those of the child alone: the helper of an earlier test may be ending one of its own."""
    before = usage()
    child = usage(held.enter_context(sleeper()).pid)
    after = usage()
    assert (child.processes, child.threads) == (1, 1)
    assert after.processes == before.processes + 1
    assert after.exceeds(before)
    assert not child.exceeds(after)


def test_memory_has_an_allowance() -> None:
    assert not Usage(1, 1, 1, 100).exceeds(Usage(1, 1, 1, 50), 50)
    assert Usage(1, 1, 1, 101).exceeds(Usage(1, 1, 1, 50), 50)
