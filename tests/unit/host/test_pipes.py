"""Pipes: how many there are, and that none has another pair's bytes."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpasst.host import pipes
from gpasst.host.pipes import IDLE, PATIENCE, PIPE_BYTES, PIPES, Pipes
from gpasst.tcp.pairs import Pipe

PLENTY = 1 << 20


def lent(source: Pipes, count: int) -> list[Pipe]:
    found = [source.borrow() for _ in range(count)]
    return [pipe for pipe in found if pipe is not None]


def is_open(pipe: Pipe) -> bool:
    for descriptor in pipe[:2]:
        try:
            os.fstat(descriptor)
        except OSError:
            return False
    return True


def lowest() -> tuple[int, int]:
    """Return the numbers of the next descriptors."""
    first, second = os.dup(0), os.dup(0)
    os.close(first)
    os.close(second)
    return first, second


@contextmanager
def pipes_of(limit: int = PLENTY) -> Iterator[Pipes]:
    before = len(os.listdir("/proc/self/fd"))
    source = Pipes(limit)
    yield source
    source.close()
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_takes_what_is_promised_and_never_waits() -> None:
    with pipes_of() as source:
        (pipe,) = lent(source, 1)
        assert pipe.size >= PIPE_BYTES
        assert os.write(pipe.writer, bytes(pipe.size)) == pipe.size
        with pytest.raises(BlockingIOError):
            os.write(pipe.writer, b"?")
        assert not os.get_inheritable(pipe.reader) and not os.get_inheritable(pipe.writer)
        source.give_back(pipe, empty=False)


def test_an_empty_one_serves_again() -> None:
    with pipes_of() as source:
        (pipe,) = lent(source, 1)
        source.give_back(pipe, empty=True)
        assert lent(source, 1) == [pipe]
        source.give_back(pipe, empty=True)


def test_one_with_bytes_in_it_serves_nobody_any_more() -> None:
    with pipes_of() as source:
        (pipe,) = lent(source, 1)
        os.write(pipe.writer, b"of a pair that is gone")
        source.give_back(pipe, empty=False)
        assert not is_open(pipe)
        (other,) = lent(source, 1)
        with pytest.raises(BlockingIOError):
            os.read(other.reader, 1)
        source.give_back(other, empty=True)


def test_a_few_are_kept() -> None:
    with pipes_of() as source:
        found = lent(source, IDLE + 3)
        for pipe in found:
            source.give_back(pipe, empty=True)
        assert [is_open(pipe) for pipe in found].count(True) == IDLE


def test_there_are_so_many_at_most() -> None:
    with pipes_of() as source:
        found = lent(source, PIPES + 1)
        assert len(found) == PIPES
        source.give_back(found[0], empty=False)
        found[:1] = lent(source, 2)
        assert len(found) == PIPES
        for pipe in found:
            source.give_back(pipe, empty=True)


def test_what_was_lent_goes_back_after_the_end() -> None:
    with pipes_of() as source:
        (pipe,) = lent(source, 1)
        source.close()
        assert is_open(pipe)
        source.give_back(pipe, empty=False)


def test_above_the_limit_there_is_none() -> None:
    _, writer = lowest()
    with pipes_of(writer) as source:
        assert source.borrow() is None
    with pipes_of(writer + 1) as source:
        (pipe,) = lent(source, 1)
        source.give_back(pipe, empty=True)


def test_without_descriptors_there_is_none() -> None:
    """The kernel is asked again after a while, and none of the tries counts as lent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pipes_of() as source:
        _, second = lowest()
        resource.setrlimit(resource.RLIMIT_NOFILE, (second, hard))
        try:
            assert lent(source, 1 + PIPES * (PATIENCE + 1)) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert lent(source, PATIENCE) == []
        (pipe,) = lent(source, 1)
        source.give_back(pipe, empty=True)


def test_where_the_kernel_refuses_the_size_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with pipes_of() as source:
        monkeypatch.setattr(pipes, "fcntl", refuse)
        assert source.borrow() is None
        monkeypatch.undo()
        assert lent(source, PATIENCE) == []
        (pipe,) = lent(source, 1)
        source.give_back(pipe, empty=True)
