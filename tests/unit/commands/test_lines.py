"""Lines from pipes, and to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO
from itertools import chain

import gevent
import pytest

from gpasst.commands.lines import LINE_MAXIMUM, Lines, read_lines

PIPE_BYTES = 1 << 16  # of a pipe, by default (pipe(7))
PATIENCE = 10.0  # seconds; for what takes none


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reader, writer = os.pipe()
    with FileIO(reader) as read, FileIO(writer, "w") as write:
        yield read, write


def refuse(error: OSError) -> None:
    raise error


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\nb", ["a", "", "b"]),
        (b"\xffx\n", ["\N{REPLACEMENT CHARACTER}x"]),
    ],
)
def test_lines_are_read(pipe: tuple[FileIO, FileIO], written: bytes, lines: list[str]) -> None:
    reader, writer = pipe
    writer.write(written)
    writer.close()
    assert list(chain.from_iterable(read_lines(reader.fileno()))) == lines


def test_a_line_without_an_end_is_cut(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe

    def write() -> None:
        Lines(writer.fileno(), refuse).put("x" * LINE_MAXIMUM * 3)
        writer.close()

    task = gevent.spawn(write)
    found = list(chain.from_iterable(read_lines(reader.fileno())))
    task.get(timeout=PATIENCE)
    assert "".join(found) == "x" * LINE_MAXIMUM * 3
    assert max(map(len, found)) <= 2 * LINE_MAXIMUM


def test_two_writers_that_wait_write_whole_lines(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    lines = Lines(writer.fileno(), refuse)
    long = ["a" * PIPE_BYTES, "b" * PIPE_BYTES]
    tasks = [gevent.spawn(lines.put, text) for text in long]
    gevent.sleep(0)
    assert not any(task.ready() for task in tasks), "the pipe takes only one without its end"
    found = chain.from_iterable(read_lines(reader.fileno()))
    assert [next(found), next(found)] == long
    gevent.joinall(tasks, timeout=PATIENCE, raise_error=True)


def test_an_error_is_reported_once(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    reader.close()
    errors: list[OSError] = []
    lines = Lines(writer.fileno(), errors.append)
    lines.put("a")
    lines.put("b")
    assert [type(error) for error in errors] == [BrokenPipeError]
